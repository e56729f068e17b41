"""One step of training and of prediction: pictures fed, augmented, learnt from, averaged."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from dlnn_search.config import Augmentation, Training
from dlnn_search.data.splits import Split
from dlnn_search.models.heads import Head, by_name

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


Images = NDArray[np.uint8]
Targets = NDArray[np.int32]


def epoch_order(n_images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of an epoch's images: a permutation that (seed, epoch) alone decides.

    So a resumed training sees exactly what an uninterrupted one would have seen.

    Args:
        n_images: Of the split.
        seed: Of the training.
        epoch: Counted from 1.

    Returns:
        Positions in the split, shape (n_images,).
    """
    return np.random.default_rng([seed, epoch]).permutation(n_images)


class Prefetch:
    """Hands out consecutive pieces of a split, gathering the next one in a thread.

    Pieces stay uint8, and only two are in memory at a time: a worker's memory does not depend
    on the size of the data set. Gathering is a copy of bytes, hidden behind the training of the
    piece before.
    """

    def __init__(self, split: Split, targets: Targets, order: NDArray[np.int64]) -> None:
        self._split = split
        self._targets = targets
        self._order = order
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dlnn-feed")
        self._ahead: tuple[int, int, Future[tuple[Images, Targets]]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def piece(self, start: int, stop: int, *, then: int) -> tuple[Images, Targets]:
        """Return the images and targets from `start` to `stop`, and begin to gather up to `then`.

        Returns:
            Images (stop - start, height, width, channels), uint8; targets (stop - start,
            outputs), int32.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[:2] == (start, stop):
            found = ahead[2].result()
        else:
            found = self._gather(start, stop)
        if then > stop:
            self._ahead = (stop, then, self._thread.submit(self._gather, stop, then))
        return found

    def _gather(self, start: int, stop: int) -> tuple[Images, Targets]:
        positions = self._order[start:stop]
        return self._split.batch(positions), self._targets[positions]


#: A TensorFlow tensor, symbolic or not.


class Average:
    """The exponential moving average of a model's weights, updated inside the compiled step.

    Batch normalisation's statistics are averaged along: they belong to the weights of the same
    steps, and the last ones would not fit the averaged weights.

    Args:
        model: To follow; the average begins as its weights.
        decay: Share of the average that a step keeps, once there were many steps. At step t it
            is at most (1 + t) / (10 + t): else the random initial weights would weigh on short
            trainings.
    """

    def __init__(self, model: keras.Model, decay: float) -> None:
        self._model = model
        self._decay = decay
        # Whole numbers, such as a count of a layer of the user's, have no average.
        self._followed = [w for w in model.weights if w.dtype.startswith(("float", "bfloat"))]
        self.variables = [
            keras.Variable(np.asarray(weight), trainable=False, name="average")
            for weight in self._followed
        ]

    def follow(self, n_before: Tensor) -> None:
        """Take in the weights after a step.

        Args:
            n_before: Steps before it, a scalar integer tensor.
        """
        count = tf.cast(n_before, tf.float32)
        decay = tf.minimum(self._decay, (1.0 + count) / (10.0 + count))
        for average, weight in zip(self.variables, self._followed, strict=True):
            # average -= (1 - decay) * (average - weight), in one kernel but for the difference.
            tf.raw_ops.ResourceApplyGradientDescent(
                var=average.value.handle,
                alpha=tf.cast(1.0 - decay, average.dtype),
                delta=average.value - weight.value,
            )

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have the averaged weights inside, and its own again afterwards."""
        own = [np.array(weight) for weight in self._followed]
        try:
            for weight, average in zip(self._followed, self.variables, strict=True):
                weight.assign(average)
            yield
        finally:
            for weight, array in zip(self._followed, own, strict=True):
                weight.assign(array)


class Steps:
    """The compiled steps of one model.

    Args:
        model: To train.
        head: Its end.
        optimizer: Its `iterations` count the batches.
        alter: Makes the pictures of a batch from those of the split, as `augmenter` returns it.
        average: Follows the weights after each step.
    """

    def __init__(
        self,
        model: keras.Model,
        head: Head,
        optimizer: keras.optimizers.Optimizer,
        *,
        alter: Callable[[Any, Any], Any] | None = None,
        average: Average | None = None,
    ) -> None:
        self._model = model
        self._head = head
        self._optimizer = optimizer
        self._alter = alter
        self._average = average
        optimizer.build(model.trainable_variables)
        pixels = tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8)
        targets = tf.TensorSpec((None, len(head.names)), tf.int32)
        size = tf.TensorSpec((), tf.int32)
        # One trace for any number of batches and for the short last one.
        # Without AutoGraph, which takes a second to rewrite Python that has nothing to rewrite;
        # `model.fit` does without, too.
        self._train = tf.function(
            self._train_batches, input_signature=(pixels, targets, size), autograph=False
        )
        self._predict = tf.function(
            self._predict_batch, input_signature=(pixels, targets), autograph=False
        )

    def train(self, images: Images, targets: Targets, batch_size: int) -> NDArray[np.float32]:
        """Train on consecutive batches and return their losses, penalties included.

        Args:
            images: (n, height, width, channels), uint8.
            targets: (n, outputs), int32.
            batch_size: Of all batches but the last, which takes what is left.

        Returns:
            One loss a batch, shape (ceil(n / batch_size),).
        """
        losses: NDArray[np.float32] = self._train(images, targets, batch_size).numpy()
        return losses

    def predict(
        self, images: Images, targets: Targets
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
        """Return the loss of each image without penalties, (n,), and the outputs by name."""
        losses, outputs = self._predict(images, targets)
        return losses.numpy(), {name: output.numpy() for name, output in outputs.items()}

    def _train_batches(self, images: tf.Tensor, targets: tf.Tensor, batch_size: tf.Tensor) -> Any:
        n_images = tf.shape(images)[0]
        n_batches = (n_images + batch_size - 1) // batch_size

        def train_next(number: tf.Tensor, losses: tf.TensorArray) -> tuple[Any, Any]:
            start = number * batch_size
            stop = tf.minimum(start + batch_size, n_images)
            loss = self._train_batch(images[start:stop], targets[start:stop])
            return number + 1, losses.write(number, loss)

        _, losses = tf.while_loop(
            lambda number, _: number < n_batches,
            train_next,
            (0, tf.TensorArray(tf.float32, n_batches)),
            parallel_iterations=1,
            maximum_iterations=n_batches,
        )
        return losses.stack()

    def _train_batch(self, images: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        weights = self._model.trainable_variables
        n_before = self._optimizer.iterations.value
        if self._alter is not None:
            images = self._alter(images, n_before)
        with tf.GradientTape() as tape:
            outputs = by_name(self._head, self._model(images, training=True))
            loss = tf.reduce_mean(self._head.losses(targets, outputs))
            penalties = self._model.losses
            if penalties:
                loss += tf.add_n([tf.cast(penalty, tf.float32) for penalty in penalties])
            scaled = self._optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, weights)
        self._optimizer.apply(gradients, weights)
        if self._average is not None:
            self._average.follow(n_before)
        return loss

    def _predict_batch(self, images: tf.Tensor, targets: tf.Tensor) -> Any:
        outputs = by_name(self._head, self._model(images, training=False))
        return self._head.losses(targets, outputs), outputs


#: Images a prediction: few calls, little memory.
PREDICTION_BATCH = 256


def predict(model: keras.Model, head: Head, split: Split) -> dict[str, NDArray[np.float32]]:
    """Return the model's outputs by name, shape (n, classes) each, in the split's order."""
    pixels = tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8)
    forward = tf.function(
        lambda images: by_name(head, model(images, training=False)),
        input_signature=(pixels,),
        autograph=False,  # as in the training's own steps
    )
    batches = [
        forward(split.batch(slice(start, start + PREDICTION_BATCH)))
        for start in range(0, len(split), PREDICTION_BATCH)
    ]
    return {name: np.concatenate([batch[name].numpy() for batch in batches]) for name in head.names}
