"""Own pictures in colour are trained on, augmented, predicted and kept."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from dlnn_search.config import (
    Augmentation,
    Cnn,
    Config,
    Conv,
    Dropout,
    Mlp,
    Model,
    OwnData,
    OwnModel,
    Pool,
    Training,
)
from dlnn_search.data.splits import Split, TrainingData
from dlnn_search.models.heads import head_of
from dlnn_search.study.finding import OwnCode, register
from dlnn_search.training.fit import best_model, fit
from dlnn_search.training.portable import save_portable
from dlnn_search.training.step import predict


def colours(n: int, seed: int) -> Split:
    """Return pictures whose class is the channel that is brightest: gray ones tell nothing."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, n, dtype=np.uint8)
    images = random.integers(0, 150, (n, 10, 12, 3), dtype=np.uint8)
    images[np.arange(n), :, :, labels] += 60
    return Split(images, np.arange(n), labels)


def build(options: dict[str, Any], shape: tuple[int, int, int], n_classes: int) -> keras.Model:
    image = keras.Input(shape, dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(image)
    x = keras.layers.Dropout(options["rate"])(keras.layers.Conv2D(4, 3, activation="relu")(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(n_classes, activation="softmax")(x))


@pytest.mark.parametrize(
    "model",
    [
        Mlp(),
        Cnn(blocks=(Conv(filters=4), Pool(), Dropout(rate=0.1)), join="average"),
        OwnModel(study="mine", options={"rate": 0.1}),
    ],
    ids=["mlp", "cnn", "own"],
)
def test_colour_is_learnt_augmented_predicted_and_kept(tmp_path: Path, model: Model) -> None:
    register(OwnCode("mine", "0" * 12, build=build))
    config = Config(
        data=OwnData(study="mine", n_classes=3),
        model=model,
        training=Training(
            epochs=10,
            batch_size=16,
            learning_rate=0.02,
            precision="float32",
            average=0.9,
            augmentation=Augmentation(rotation=0.2, shift=0.1, brightness=0.1, glare=0.1),
        ),
    )
    data = TrainingData(colours(240, 1), colours(60, 2))
    fitted = fit(config, data, folder=tmp_path / "kept")
    assert fitted.best.metrics["accuracy"] > 0.8
    trained, head, test = (
        best_model(config, tmp_path / "kept", (10, 12, 3)),
        head_of(config),
        colours(30, 3),
    )
    outputs = predict(trained, head, test)
    assert outputs["output"].shape == (30, 3)
    save_portable(config, trained, tmp_path, "model")
    restored = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert np.allclose(restored(test.batch(slice(None))), outputs["output"], atol=1e-5)
    reader = tf.saved_model.load(str(tmp_path / "model-savedmodel"))
    read = reader.signatures["predict"](images=tf.constant(test.batch(slice(None))))
    assert np.array_equal(read["class"], head.decode(outputs))
