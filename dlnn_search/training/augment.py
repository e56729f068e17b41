"""Augmentation: every training picture a little different each time it is seen.

Works on batches inside the compiled step. Rotation, shift, zoom and perspective are one
projective transformation, so that each picture is resampled once; it stays uint8 throughout.
All draws follow from a seed and the batch's number: a resumed training draws what an
uninterrupted one would have.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from dlnn_search.config import Augmentation, Training

#: A TensorFlow tensor, symbolic or not.
Tensor = Any

#: A glare's radius as a share of the edge: from a spot to a wide halo, as real pictures show.
GLARE_RADIUS = (0.04, 0.25)
#: Keeps the draws independent of whatever else is drawn from a training's seed.
_PURPOSE = zlib.crc32(b"augmentation")


def augmenter(training: Training) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return what changes a batch, or None if the config changes nothing.

    Returns:
        A function of images (batch, height, width, channels), uint8, and of the number of batches
        before this one since the training began, a scalar integer tensor.
    """
    spec = training.augmentation
    if not spec.changes:
        return None
    # Any seed, however large, becomes the two int32 that TensorFlow takes.
    words = np.random.SeedSequence([training.seed, _PURPOSE]).generate_state(2)
    seed = words.astype(np.uint32).view(np.int32)
    return lambda images, n_before: augment(images, spec, _fold(seed, n_before))


def augment(images: Tensor, spec: Augmentation, seed: Tensor) -> Tensor:
    """Return other pictures of the same things.

    Args:
        images: (batch, height, width, channels), uint8.
        spec: How far each change may go.
        seed: Two int32, different for each batch of a training.

    Returns:
        The same shape and type. What a transformation uncovers repeats the nearest edge.
    """
    shape, known = tf.shape(images), images.shape
    if spec.mirror:
        heads = tf.random.stateless_uniform((shape[0], 1, 1, 1), _fold(seed, 7)) < 0.5
        images = tf.where(heads, images[:, :, ::-1], images)
    if spec.rotation or spec.shift or spec.zoom or spec.perspective:
        images = tf.raw_ops.ImageProjectiveTransformV3(
            images=images,
            transforms=_transforms(spec, shape, seed),
            output_shape=shape[1:3],
            interpolation="BILINEAR",
            fill_mode="NEAREST",
            fill_value=0.0,
        )
        # The operation forgets height and width, which convolutions are chosen by.
        images = tf.ensure_shape(images, known)
    if spec.brightness or spec.glare:
        pixels = tf.cast(images, tf.float32)
        if spec.brightness:
            pixels *= 1.0 + _draw(spec.brightness, shape[0], seed, 5)[:, None, None, None]
        if spec.glare:
            pixels += _glare(spec.glare, shape, seed)
        images = tf.cast(tf.round(tf.clip_by_value(pixels, 0.0, 255.0)), tf.uint8)
    return images


def _transforms(spec: Augmentation, shape: Tensor, seed: Tensor) -> Tensor:
    """Return (batch, 8): for each picture, where the pixels of its new version come from."""
    batch = shape[0]
    height, width = tf.cast(shape[1], tf.float32), tf.cast(shape[2], tf.float32)
    angle = _draw(spec.rotation, batch, seed, 0)
    scale = 1.0 + _draw(spec.zoom, batch, seed, 1)
    right = _draw(spec.shift, batch, seed, 2) * width
    down = _draw(spec.shift, batch, seed, 3) * height
    # At the edge, half a picture from the centre, the depth differs by the drawn share.
    tilt = _draw(spec.perspective, 2 * batch, seed, 4) * 2.0
    tilt_x, tilt_y = tilt[:batch] / width, tilt[batch:] / height
    cos, sin = tf.cos(angle) / scale, tf.sin(angle) / scale
    # About the centre c: from = c + A (to - c - move) / (1 + tilt . (to - c)). Multiplied out,
    # and divided by the constant below the line, as the operation takes it.
    cx, cy = (width - 1.0) / 2.0, (height - 1.0) / 2.0
    below = 1.0 - tilt_x * cx - tilt_y * cy
    moved_x, moved_y = cx + right, cy + down
    rows = [
        cos + cx * tilt_x,
        -sin + cx * tilt_y,
        cx * below - cos * moved_x + sin * moved_y,
        sin + cy * tilt_x,
        cos + cy * tilt_y,
        cy * below - sin * moved_x - cos * moved_y,
        tilt_x,
        tilt_y,
    ]
    return tf.stack(rows, axis=1) / below[:, None]


def _glare(strength: float, shape: Tensor, seed: Tensor) -> Tensor:
    """Return light to add: on half of the pictures a round spot, (batch, height, width, 1)."""
    batch = shape[0]
    uniform = tf.random.stateless_uniform((4, batch, 1, 1), _fold(seed, 6))
    rows = tf.linspace(0.0, 1.0, shape[1])[None, :, None]
    columns = tf.linspace(0.0, 1.0, shape[2])[None, None, :]
    low, high = GLARE_RADIUS
    radius = low + (high - low) * uniform[2]
    away = (rows - uniform[0]) ** 2 + (columns - uniform[1]) ** 2
    # Twice the strength for those that get one at all: nothing below a half, up to all above.
    light = 255.0 * strength * tf.maximum(0.0, 2.0 * uniform[3] - 1.0)
    return (light * tf.exp(-away / (2.0 * radius**2)))[..., None]


def _fold(seed: Tensor, purpose: Tensor) -> Tensor:
    return tf.random.experimental.stateless_fold_in(seed, purpose)


def _draw(most: float, n: Tensor, seed: Tensor, purpose: int) -> Tensor:
    """Return n numbers, uniform in [-most, most]; each purpose draws its own."""
    if not most:
        return tf.zeros((n,))
    uniform = tf.random.stateless_uniform((n,), _fold(seed, purpose))
    return most * (2.0 * uniform - 1.0)
