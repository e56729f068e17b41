"""Learning rates over a training, and averaged weights: resumed trainings stay bit-equal."""

import itertools
import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from pydantic import ValidationError

from dlnn_search.config import (
    Augmentation,
    BatchNorm,
    Cnn,
    Config,
    Conv,
    Dense,
    Dropout,
    Mlp,
    Mnist,
    Pool,
    Training,
)
from dlnn_search.data.splits import Split, TrainingData
from dlnn_search.training.fit import Decision, Epoch, best_model, fit
from dlnn_search.training.optimizer import Rate, make_optimizer, plateau_factor
from dlnn_search.training.step import Average


def digits(n: int, seed: int) -> Split:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, n, dtype=np.uint8)
    images = random.integers(0, 120, (n, 10, 10), dtype=np.uint8)
    images[np.arange(n), labels] += 80
    return Split(images, np.arange(n), labels)


DATA = TrainingData(digits(210, 1), digits(90, 2))
CNN = Cnn(blocks=(Conv(filters=4), BatchNorm(), Pool(), Dropout(rate=0.2)), dense=(Dense(units=8),))


def config_of(model: Mlp | Cnn = CNN, **training: object) -> Config:
    plain = {"epochs": 4, "batch_size": 32, "precision": "float32", **training}
    return Config(data=Mnist(), model=model, training=Training.model_validate(plain))


def rates(steps_of_epochs: list[int], **training: Any) -> list[float]:
    made = Training(epochs=len(steps_of_epochs), learning_rate=0.2, **training)
    rate = Rate(made, steps_of_epochs)
    return [float(rate(tf.constant(step, tf.int64))) for step in range(sum(steps_of_epochs))]


def test_a_constant_rate_stays() -> None:
    assert rates([3, 3]) == pytest.approx([0.2] * 6)


def test_a_cosine_falls_from_the_rate_to_0_over_all_steps() -> None:
    found = rates([10, 5, 5], schedule="cosine")
    expected = [0.1 * (1 + math.cos(math.pi * step / 20)) for step in range(20)]
    assert found == pytest.approx(expected, rel=1e-5)
    assert found[-1] < 0.01 * found[0]


def test_a_warm_up_rises_over_its_epochs_then_the_schedule_begins() -> None:
    # One and a half epochs of 4 and 8 steps are 8 steps.
    found = rates([4, 8, 8], warmup_epochs=1.5, schedule="cosine")
    assert found[:8] == pytest.approx([0.2 * (step + 1) / 8 for step in range(8)])
    assert found[8] == pytest.approx(0.2)
    assert all(later < earlier for earlier, later in itertools.pairwise(found[8:]))


def test_a_warm_up_as_long_as_the_training_is_refused() -> None:
    with pytest.raises(ValidationError, match="warmup_epochs=2"):
        Training(epochs=2, warmup_epochs=2)


@pytest.mark.parametrize(
    ("values", "factor"),
    [
        ([], 1.0),
        ([5, 4, 3, 2], 1.0),
        ([5, 5], 1.0),
        ([5, 5, 6], 0.5),
        ([5, 5, 6, 4, 4], 0.5),
        ([5, 5, 6, 5.5, 5.1], 0.25),
        ([5, 5, 6, 5.5, 4.9, 4.8], 0.5),
    ],
)
def test_a_plateau_halves_the_rate_after_epochs_that_were_no_better(
    values: list[float], factor: float
) -> None:
    assert plateau_factor(values, "minimize", 2) == factor
    assert plateau_factor([-value for value in values], "maximize", 2) == factor


def test_a_plateau_s_rate_is_trained_with() -> None:
    # Halved after every epoch that is no better: soon nothing changes any more.
    config = config_of(
        Mlp(),
        epochs=40,
        schedule="plateau",
        plateau_patience=1,
        monitor="accuracy",
        optimizer="sgd",
    )
    losses = [epoch.metrics["loss"] for epoch in fit(config, DATA).curve]
    constant = fit(config_of(Mlp(), epochs=40, optimizer="sgd"), DATA).curve
    assert losses[:2] == [epoch.metrics["loss"] for epoch in constant[:2]]
    assert abs(losses[-1] - losses[-2]) < 0.2 * abs(losses[1] - losses[0])


FULL: dict[str, Any] = {
    "deterministic": True,
    "average": 0.9,
    "augmentation": Augmentation(rotation=0.3, shift=0.1, brightness=0.2, glare=0.2),
    "warmup_epochs": 0.5,
    "weight_decay": 0.01,
}


@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_a_stopped_training_goes_on_bit_for_bit(tmp_path: Path, schedule: str) -> None:
    config = config_of(**FULL, schedule=schedule, plateau_patience=1, optimizer="adamw")
    whole = fit(config, DATA, folder=tmp_path / "whole")

    def stop(epoch: Epoch) -> Decision:
        return Decision.STOP if epoch.epoch == 2 else Decision.GO_ON

    for _ in range(2):
        resumed = fit(config, DATA, folder=tmp_path / "parts", on_epoch=stop)
    assert resumed.finished
    assert [e.metrics for e in resumed.curve] == [e.metrics for e in whole.curve]
    models = [best_model(config, tmp_path / name, (10, 10)) for name in ("whole", "parts")]
    for mine, same in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_array_equal(mine, same)


def test_how_many_batches_a_call_trains_changes_nothing() -> None:
    one, many = (config_of(**FULL, schedule="cosine", steps_per_execution=n) for n in (1, 5))
    curves = [[epoch.metrics for epoch in fit(config, DATA).curve] for config in (one, many)]
    assert curves[0] == curves[1]


def test_the_average_is_what_is_validated_and_kept(tmp_path: Path) -> None:
    config = config_of(epochs=6, average=0.95, learning_rate=0.02, optimizer="adam")
    fitted = fit(config, DATA, folder=tmp_path)
    plain = fit(config_of(epochs=6, learning_rate=0.02, optimizer="adam"), DATA)
    # Training itself does not know of it.
    for mine, same in zip(fitted.curve, plain.curve, strict=True):
        assert mine.metrics["train_loss"] == pytest.approx(same.metrics["train_loss"], rel=1e-3)
        assert mine.metrics["loss"] != same.metrics["loss"]
    model = best_model(config, tmp_path, (10, 10))
    found = np.argmax(model(DATA.validation.take(slice(None))[..., None]), axis=1)
    assert np.mean(found == DATA.validation.labels) == fitted.best.metrics["accuracy"]


def test_an_average_follows_weights_and_statistics_by_its_formula() -> None:
    layer = keras.layers.BatchNormalization()
    model = keras.Sequential([keras.Input((3,)), layer])
    average = Average(model, 0.5)
    expected = [np.array(weight) for weight in model.weights]
    follow = tf.function(average.follow)
    for step in range(12):
        for number, weight in enumerate(model.weights):
            weight.assign(np.full(3, 10.0 * number + step))
        follow(tf.constant(step, tf.int64))
        decay = min(0.5, (1 + step) / (10 + step))
        for number in range(len(expected)):
            expected[number] = decay * expected[number] + (1 - decay) * (10.0 * number + step)
    for found, wanted in zip(average.variables, expected, strict=True):
        np.testing.assert_allclose(np.asarray(found), wanted, rtol=1e-5)
    with average.in_place():
        np.testing.assert_allclose(np.asarray(layer.moving_mean), expected[2], rtol=1e-5)
    assert np.asarray(layer.moving_mean).tolist() == [31.0] * 3


def test_adadelta_s_rate_is_1_and_decay_is_a_share_of_rate_times_weight() -> None:
    training = Training(optimizer="adadelta", weight_decay=0.1)
    assert training.learning_rate == 1.0
    optimizer = make_optimizer(training, Rate(training, [1] * 10))
    weight = keras.Variable(np.ones(4, np.float32))
    optimizer.apply([keras.ops.zeros(4)], [weight])
    np.testing.assert_allclose(np.asarray(weight), 0.9, rtol=1e-6)
