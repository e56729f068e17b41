"""What happens to pictures inside a model, before its first block.

Inside, an exported model takes pictures as they are, and the data files are shared by configs
that look at them differently.
"""

from __future__ import annotations

import zlib

import keras
import numpy as np
from numpy.typing import NDArray

from dlnn_search.models.heads import Tensor


def pixel_permutation(seed: int, n_pixels: int) -> NDArray[np.int32]:
    """Return the permutation of a seed: which pixel goes to each place, shape (n_pixels,).

    The same on every machine and with every release of NumPy, which promises to keep the raw
    words of a bit generator (NEP 19) but not `Generator.permutation`.
    """
    words = np.random.PCG64(np.random.SeedSequence([seed, _PURPOSE])).random_raw(n_pixels)
    return np.argsort(words, kind="stable").astype(np.int32)


#: Keeps the permutation independent of whatever else is drawn from the same seed.
_PURPOSE = zlib.crc32(b"permutation of pixels")


@keras.saving.register_keras_serializable("dlnn_search")
class PixelPermutation(keras.layers.Layer):
    """Put every image's pixels in the one order of a seed.

    uint8 to uint8, (batch, height, width, 1). Taking whole rows of a transposed batch copies 128
    bytes at a time, not one: 0.25 ms for 128 images of 28 px, one core, 0.64 ms without. Of a
    training step that is 3 % for the report's MLP and nothing that shows for its CNN.

    Source: report, section 3.
    """

    def __init__(self, seed: int, **kwargs: Tensor) -> None:
        super().__init__(**kwargs)
        self.seed = seed

    def call(self, images: Tensor) -> Tensor:
        _, height, width, _ = images.shape
        order = pixel_permutation(self.seed, height * width)
        by_pixel = keras.ops.transpose(keras.ops.reshape(images, (-1, height * width)))
        mixed = keras.ops.transpose(keras.ops.take(by_pixel, order, axis=0))
        return keras.ops.reshape(mixed, (-1, height, width, 1))

    def get_config(self) -> dict[str, Tensor]:
        return {**super().get_config(), "seed": self.seed}


@keras.saving.register_keras_serializable("dlnn_search")
class DarkContrast(keras.layers.Layer):
    """Subtract from each dark pixel `strength` times what it lacks to the threshold, down to 0.

    Gray levels 0 to 255, any dtype, to the same shape in the layer's compute dtype. A brighter
    pixel never becomes the darker one.

    Source: report, section 4.4 and Figure 4.
    """

    def __init__(self, threshold: float, strength: float, **kwargs: Tensor) -> None:
        super().__init__(**kwargs)
        self.threshold = threshold
        self.strength = strength

    def call(self, images: Tensor) -> Tensor:
        pixels = keras.ops.cast(images, self.compute_dtype)
        lacking = keras.ops.maximum(self.threshold - pixels, 0.0)
        return keras.ops.maximum(pixels - self.strength * lacking, 0.0)

    def get_config(self) -> dict[str, Tensor]:
        return {
            **super().get_config(),
            "threshold": self.threshold,
            "strength": self.strength,
        }


@keras.saving.register_keras_serializable("dlnn_search")
class Standardize(keras.layers.Layer):
    """Bring each image to mean 0 and deviation 1: lamps and exposures differ, times do not.

    A plain image (deviation 0) becomes all zeros. (batch, height, width, 1), any dtype, to the
    same shape in the layer's compute dtype.
    """

    def call(self, images: Tensor) -> Tensor:
        pixels = keras.ops.cast(images, "float32")
        mean, variance = keras.ops.moments(pixels, axes=(1, 2, 3), keepdims=True)
        # A gray level's worth of variance keeps noise on a plain image from being blown up.
        return keras.ops.cast((pixels - mean) / keras.ops.sqrt(variance + 1.0), self.compute_dtype)
