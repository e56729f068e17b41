"""The classes' names, for pictures and tables."""

from __future__ import annotations

from dlnn_search.config.data import ClassData

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


def class_names(data: ClassData) -> tuple[str, ...]:
    """Return the classes' names by label: numbers, but for the articles of clothing."""
    if data.name == "fashion-mnist":
        return FASHION_CLASSES
    return tuple(str(label) for label in range(data.n_classes))
