"""Training and prediction as two compiled functions.

Each call into TensorFlow trains many batches in a loop of the graph, so that Python and the
runtime's start-up cost are paid once in a while instead of once a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from dlnn_search.models.heads import Head, by_name
from dlnn_search.training.average import Average
from dlnn_search.training.feed import Images, Targets


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
