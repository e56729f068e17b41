"""What training a network costs, before TensorFlow makes it."""

from __future__ import annotations

from math import prod

from dlnn_search.config import Config
from dlnn_search.models.shapes import Shape, foreseen

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
