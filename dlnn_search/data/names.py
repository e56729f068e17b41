"""The classes' names, for pictures and tables."""

#: Source: github.com/zalandoresearch/fashion-mnist, "Labels".
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def class_names(data_name: str) -> tuple[str, ...]:
    """Return the ten classes' names of `mnist` or `fashion-mnist`, by label."""
    if data_name == "fashion-mnist":
        return FASHION_CLASSES
    return tuple(str(digit) for digit in range(10))
