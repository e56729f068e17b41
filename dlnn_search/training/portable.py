"""Trained models for use elsewhere: by plain Keras and by plain TensorFlow, without this package.

Two formats: a `.keras` file of Keras's own layers, which puts out what the network puts out, and
a TensorFlow SavedModel, which puts out what that says: a class or a time.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from dlnn_search.config import Clocks, Config, OwnModel
from dlnn_search.metrics import MINUTES
from dlnn_search.models.build import (
    DarkContrast,
    LeanDropout,
    PixelPermutation,
    Standardize,
    pixel_permutation,
)
from dlnn_search.models.heads import Tensor, by_name, head_of

_OURS = (LeanDropout, PixelPermutation, DarkContrast, Standardize)
#: What a SavedModel's caller names; the second is what TensorFlow Serving asks for.
SIGNATURES = ("predict", "serving_default")


def portable_model(model: keras.Model) -> keras.Model:
    """Return a network with the same weights and outputs that is made of Keras's layers alone.

    Args:
        model: As `build` makes it. One of the user's own has none of our layers and stays as it is.
    """
    if not any(isinstance(layer, _OURS) for layer in model.layers):
        return model
    portable = keras.models.clone_model(model, clone_function=_standard, call_function=_call)
    portable.set_weights(model.get_weights())
    return portable


def _standard(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Return Keras's own layer for one of ours, and a new one of the same kind for any other."""
    if isinstance(layer, LeanDropout):
        return keras.layers.Dropout(layer.rate, name=layer.name, dtype=layer.dtype_policy)
    if isinstance(layer, Standardize):
        # The same formula, with the same gray level added. In float32 whatever the network is in:
        # its first layer rounds what it is given.
        return keras.layers.LayerNormalization(
            axis=(1, 2, 3),
            center=False,
            scale=False,
            epsilon=1.0,
            name=layer.name,
            dtype="float32",
        )
    return layer.__class__.from_config(layer.get_config())


def _call(layer: keras.layers.Layer, *args: Tensor, **kwargs: Tensor) -> Tensor:
    """Return a layer's output, in Keras's operations where it has no layer for it."""
    ops = keras.ops
    if isinstance(layer, PixelPermutation):
        (images,) = args
        _, height, width, _ = images.shape
        order = pixel_permutation(layer.seed, height * width)
        mixed = ops.take(ops.reshape(images, (-1, height * width)), order, axis=1)
        return ops.reshape(mixed, (-1, height, width, 1))
    if isinstance(layer, DarkContrast):
        pixels = ops.cast(args[0], "float32")
        lacking = ops.maximum(ops.subtract(layer.threshold, pixels), 0.0)
        return ops.maximum(ops.subtract(pixels, ops.multiply(layer.strength, lacking)), 0.0)
    if isinstance(layer, keras.layers.LayerNormalization):
        # Given bytes it would compute in bytes (Keras 3.15).
        return layer(ops.cast(args[0], "float32"))
    return layer(*args, **kwargs)


def save_portable(config: Config, model: keras.Model, folder: Path, stem: str) -> None:
    """Write `STEM.keras`, `STEM.json` (the config) and the folder `STEM-savedmodel`.

    Raises:
        OSError: If one of them cannot be written.
    """
    # An own model is made of whatever its builder takes: as it is.
    portable = model if isinstance(config.model, OwnModel) else portable_model(model)
    portable.save(folder / f"{stem}.keras")
    (folder / f"{stem}.json").write_text(config.to_json(), encoding="utf-8")
    save_reader(config, portable, folder / f"{stem}-savedmodel")


def save_reader(config: Config, model: keras.Model, folder: Path) -> None:
    """Write a SavedModel that reads pictures, in place of what the folder held.

    Its signatures `predict` and `serving_default` take `images`, uint8 (batch, height, width,
    channels), and return, shape (batch,) each: for classes `class`, int64, and `probability`,
    float32; for clocks `minutes` since 12:00 (0 to 719), `hour` (0 to 11) and `minute`, int64.

    Raises:
        OSError: If it cannot be written.
    """
    head, clocks = head_of(config), isinstance(config.data, Clocks)
    pixels = tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8, name="images")

    def read(images: Tensor) -> dict[str, Tensor]:
        outputs = by_name(head, model(images, training=False))
        answer = head.read(outputs)
        if clocks:
            return {"minutes": answer, "hour": answer // MINUTES, "minute": answer % MINUTES}
        return {"class": answer, "probability": tf.reduce_max(outputs["output"], axis=-1)}

    module: Any = tf.Module()
    signature = tf.function(read, input_signature=(pixels,), autograph=False)
    module.weights = [weight.value for weight in model.variables]
    partial = folder.with_name(f".{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        tf.saved_model.save(module, str(partial), signatures=dict.fromkeys(SIGNATURES, signature))
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    except tf.errors.OpError as error:
        # A full disk among them: TensorFlow writes through a file system of its own.
        raise OSError(str(error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
