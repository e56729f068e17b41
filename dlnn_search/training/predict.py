"""What a trained model says of a split."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from dlnn_search.data.split import Split
from dlnn_search.models.heads import Head, by_name

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
