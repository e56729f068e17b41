"""What a network's layers will be and what they cost, before TensorFlow makes any of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from dlnn_search.config import BatchNorm, Cnn, Config, Conv, Dense, Mlp, Model, OwnModel, Pool
from dlnn_search.config.data import N_DIGIT_CLASSES, Clocks
from dlnn_search.config.model import ClockHead, ConvBlock, DenseBlock
from dlnn_search.errors import TrainingError

#: Weights, gradients and two moments of Adam take 16 bytes a parameter: 1.6 GB.
MAX_PARAMETERS = 100_000_000
#: Layer outputs of one batch, kept for the backward pass: 8 GiB in float32.
MAX_VALUES_IN_BATCH = 2**31

Shape = tuple[int, ...]


class ModelError(TrainingError):
    """A config whose network cannot be built: no pixels left, or too large."""


@dataclass(frozen=True)
class LayerShape:
    """One layer to be: where it stands in the config, what it puts out, what it learns.

    Attributes:
        where: Such as `blocks[3] (conv)`, `head.hour[0] (dense)` or `output`.
        shape: Of its output for one image: (height, width, channels) or (features,).
        n_parameters: Its weights, those of batch normalisation's moving averages included.
    """

    where: str
    shape: Shape
    n_parameters: int


def network_input(image_shape: Shape) -> tuple[int, int, int]:
    """Return (height, width, channels) of pictures that name no channels where there is one."""
    height, width, *channels = image_shape
    return height, width, channels[0] if channels else 1


def layer_shapes(
    model: Model, image_shape: Shape, n_classes: int = N_DIGIT_CLASSES
) -> list[LayerShape]:
    """Return the layers of a network in the order in which they are built.

    Args:
        model: The network. Of an own one nothing is known before it is built: no layers.
        image_shape: Height and width of its pictures, pixels, and channels if more than one.
        n_classes: What a network that is not for clocks tells apart.

    Raises:
        ModelError: If a feature map would shrink below one pixel.
    """
    return list(_walk(model, image_shape, n_classes))


def n_parameters(model: Model, image_shape: Shape, n_classes: int = N_DIGIT_CLASSES) -> int:
    """Return how many parameters a network has, those that are not trained included."""
    return sum(layer.n_parameters for layer in _walk(model, image_shape, n_classes))


def foreseen(config: Config, image_shape: Shape) -> list[LayerShape]:
    """Return the layers of a config's network, as `layer_shapes`."""
    if isinstance(config.data, Clocks):
        return layer_shapes(config.model, image_shape)
    return layer_shapes(config.model, image_shape, config.data.n_classes)


def check_size(config: Config, image_shape: Shape) -> None:
    """Refuse a network that shrinks to nothing or would not fit into any sane memory.

    Raises:
        ModelError: Saying which block, which shape or size came, and what to do.
    """
    layers = foreseen(config, image_shape)
    total = sum(layer.n_parameters for layer in layers)
    if total > MAX_PARAMETERS:
        largest = max(layers, key=lambda layer: layer.n_parameters)
        raise ModelError(
            f"Expected a network of at most {MAX_PARAMETERS:,} parameters, got {total:,}, "
            f"{largest.n_parameters:,} of them in {largest.where}. "
            "Pool more, or take fewer filters, units or a smaller kernel."
        )
    values = config.training.batch_size * sum(prod(layer.shape) for layer in layers)
    if values > MAX_VALUES_IN_BATCH:
        largest = max(layers, key=lambda layer: prod(layer.shape))
        raise ModelError(
            f"Expected at most {MAX_VALUES_IN_BATCH:,} layer outputs in a batch, got {values:,} "
            f"with batch_size={config.training.batch_size}; the largest is {largest.where} with "
            f"{_shown(largest.shape)} for each image. Take a smaller batch or fewer filters."
        )


def _walk(model: Model, image_shape: Shape, n_classes: int) -> Iterator[LayerShape]:
    shape: Shape = network_input(image_shape)
    if isinstance(model, OwnModel):
        return
    if isinstance(model, Mlp):
        layers = _dense(model.blocks, prod(shape), "blocks")
        yield from layers
        yield _output("output", _width(layers, prod(shape)), n_classes)
        return
    for number, block in enumerate(model.blocks):
        layer = _conv(block, shape, f"blocks[{number}] ({block.kind})")
        shape = layer.shape
        yield layer
    joined = prod(shape) if model.join == "flatten" else shape[-1]
    yield LayerShape(f"join ({model.join})", (joined,), 0)
    shared = _dense(model.dense, joined, "dense")
    yield from shared
    width = _width(shared, joined)
    if isinstance(model, Cnn):
        yield _output("output", width, n_classes)
    else:
        yield from _clock_head(model.head, width)


def _clock_head(head: ClockHead, width: int) -> Iterator[LayerShape]:
    for branch in head.branches:
        layers = _dense(branch.blocks, width, f"head.{branch.name}")
        yield from layers
        yield _output(branch.name, _width(layers, width), branch.width)


def _conv(block: ConvBlock, shape: Shape, where: str) -> LayerShape:
    height, width, channels = shape
    if isinstance(block, Conv):
        if block.padding == "valid":
            _enough(shape, block.kernel, where, "or padding='same'")
            height, width = height - block.kernel + 1, width - block.kernel + 1
        height, width = -(-height // block.stride), -(-width // block.stride)
        weights = block.kernel**2 * channels * block.filters + block.filters
        return LayerShape(where, (height, width, block.filters), weights)
    if isinstance(block, Pool):
        _enough(shape, block.size, where, "or fewer pools before it")
        return LayerShape(where, (height // block.size, width // block.size, channels), 0)
    return LayerShape(where, shape, 4 * channels if isinstance(block, BatchNorm) else 0)


def _dense(blocks: Sequence[DenseBlock], width: int, where: str) -> list[LayerShape]:
    layers = []
    for number, block in enumerate(blocks):
        n_weights = 4 * width if isinstance(block, BatchNorm) else 0
        if isinstance(block, Dense):
            n_weights = (width + 1) * block.units
            width = block.units
        layers.append(LayerShape(f"{where}[{number}] ({block.kind})", (width,), n_weights))
    return layers


def _width(layers: Sequence[LayerShape], before: int) -> int:
    return layers[-1].shape[-1] if layers else before


def _output(name: str, width: int, n_classes: int) -> LayerShape:
    return LayerShape(name, (n_classes,), (width + 1) * n_classes)


def _enough(shape: Shape, size: int, where: str, advice: str) -> None:
    if min(shape[:2]) < size:
        raise ModelError(
            f"{where} needs a feature map of at least {size}x{size} pixels, got "
            f"{_shown(shape)}. Take larger pictures, fewer blocks before it, a smaller size "
            f"{advice}."
        )


def _shown(shape: Shape) -> str:
    return "x".join(str(edge) for edge in shape)


#: Seconds of one core in float32, of no machine in particular: of a multiplication with the two
#: that its gradients take; of a value that a layer writes and another one reads, both ways; of a
#: step as such; of a weight's update.
MULTIPLICATION_SECONDS = 1.5e-10
VALUE_SECONDS = 6e-9
STEP_SECONDS = 1e-3
UPDATE_SECONDS = 4e-9


def seconds_an_image(config: Config, image_shape: Shape) -> float:
    """Return about how long a processor's core trains on one picture.

    It is for comparing networks with one another: over 25 random configs each of
    `task1-fashion-cnn` and `task1-fashion-mlp`, which differ a hundred times, its logarithm and
    that of a timed step are correlated by .95. By the clock it was off by two or three times.

    Args:
        config: Of a network whose layers are known.
        image_shape: Height and width of its pictures, pixels, and channels if more than one.

    Raises:
        ModelError: If there is no such network.
    """
    layers = foreseen(config, image_shape)
    # A weight is used once at each place of its map.
    multiplications = sum(layer.n_parameters * prod(layer.shape[:-1]) for layer in layers)
    values = sum(prod(layer.shape) for layer in layers)
    weights = sum(layer.n_parameters for layer in layers)
    return (
        multiplications * MULTIPLICATION_SECONDS
        + values * VALUE_SECONDS
        + (STEP_SECONDS + weights * UPDATE_SECONDS) / config.training.batch_size
    )
