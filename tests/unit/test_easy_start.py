"""A search begins where learning is easy, and then has the middle of its space."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import optuna
import pytest

from dlnn_search import CoarseToFine, load_study
from dlnn_search.config import (
    BatchNorm,
    Cnn,
    Config,
    Conv,
    Dense,
    Dropout,
    Mlp,
    Mnist,
    OwnModel,
    Training,
)
from dlnn_search.models.work import seconds_an_image
from dlnn_search.search.corners import Chooser, at_share
from dlnn_search.search.easy_start import easy_start, effort
from dlnn_search.search.optuna_study import make_sampler
from dlnn_search.study import Study

SHAPE = (28, 28)


def mlp(units: int = 128, dropout: float = 0.2, **training: Any) -> Config:
    blocks = (Dense(units=units), Dropout(rate=dropout))
    return Config(data=Mnist(), model=Mlp(blocks=blocks), training=Training(**training))


def cnn(*widths: int) -> Config:
    blocks = tuple(Conv(filters=width, padding="same") for width in widths)
    return Config(data=Mnist(), model=Cnn(blocks=blocks))


def study_of(space: Callable[[optuna.Trial], Config], sampler: CoarseToFine | None = None) -> Study:
    sampler = sampler or CoarseToFine()
    return Study(space=space, data=Mnist(), maximize="accuracy", name="mine", sampler=sampler)


def drawn(study: Study, n: int) -> list[dict[str, Any]]:
    """Return the parameters of a search's first trials."""
    sampler = make_sampler(study.sampler, study, 0)
    search = optuna.create_study(sampler=sampler, direction="maximize")
    search.optimize(lambda trial: float(study.config(trial).training.epochs), n_trials=n)
    return [trial.params for trial in search.trials]


def config_of(study: Study, params: dict[str, Any]) -> Config:
    sampler = Chooser(lambda name, _: params[name])
    return study.config(optuna.create_study(sampler=sampler).ask())


@pytest.mark.parametrize(
    ("easier", "harder"),
    [
        (mlp(units=64), mlp(units=1024)),
        (mlp(dropout=0.0), mlp(dropout=0.5)),
        (mlp(learning_rate=1e-3), mlp(learning_rate=1e-5)),
        (mlp(learning_rate=1e-3), mlp(learning_rate=0.3)),
        (mlp(optimizer="adam"), mlp(optimizer="sgd", learning_rate=0.1)),
        (
            mlp(optimizer="sgd", learning_rate=0.01, momentum=0.9),
            mlp(optimizer="sgd", learning_rate=0.01),
        ),
        (cnn(8), cnn(8, 8)),
    ],
)
def test_what_learns_sooner_takes_less_effort(easier: Config, harder: Config) -> None:
    assert effort(easier, SHAPE) < effort(harder, SHAPE)


def test_work_is_that_of_all_layers() -> None:
    # 3x3x1 weights and a bias a filter, at each of 28x28 places; twice the filters, twice that.
    one, two = (seconds_an_image(cnn(width), SHAPE) for width in (100, 200))
    assert two / one == pytest.approx(2, rel=0.2)
    normalised = Config(data=Mnist(), model=Cnn(blocks=(Conv(filters=8), BatchNorm())))
    assert seconds_an_image(normalised, SHAPE) > seconds_an_image(cnn(8), SHAPE)


def space(trial: optuna.Trial) -> Config:
    optimizer = trial.suggest_categorical("optimizer", ["adam", "sgd"])
    return Config(
        model=Mlp(
            blocks=(
                Dense(
                    units=trial.suggest_int("units", 64, 1024, log=True),
                    activation=trial.suggest_categorical("activation", ["tanh", "relu"]),
                    l2=trial.suggest_float("l2", 1e-8, 1e-4, log=True),
                ),
                Dropout(rate=trial.suggest_float("dropout", 0.0, 0.8)),
            )
        ),
        training=Training(
            optimizer=optimizer,
            # SGD's middle is better than Adam's: what Adam's best is must be known first.
            learning_rate=trial.suggest_float("adam_rate", 1e-5, 1e-2, log=True)
            if optimizer == "adam"
            else trial.suggest_float("sgd_rate", 1e-2, 1.0, log=True),
        ),
    )


def test_the_first_trial_is_half_way_to_where_learning_is_easy_and_the_rest_in_the_middle() -> None:
    first, second, *_ = drawn(study_of(space), 12)
    assert first == {
        "optimizer": "adam",
        "units": 128,
        "activation": "tanh",
        "l2": pytest.approx(1e-6),
        "dropout": pytest.approx(0.2),
        "adam_rate": pytest.approx(10**-2.75, rel=1e-3),
    }
    assert second == {
        **first,
        "units": pytest.approx(256, abs=1),
        "dropout": pytest.approx(0.4),
        "adam_rate": pytest.approx(10**-3.5),
    }


def test_all_later_trials_are_as_they_would_be_without() -> None:
    opened = drawn(study_of(space), 10)
    middle_first = drawn(study_of(space, CoarseToFine(opening=dict)), 10)
    assert opened[1] == middle_first[0]
    assert opened[2:] == middle_first[2:]


def test_an_own_opening_is_taken_where_it_fits_the_space() -> None:
    opening = {"units": 77, "dropout": 0.9, "activation": "relu", "nothing": 1}
    first, second = drawn(study_of(space, CoarseToFine(opening=lambda: opening)), 2)
    assert (first["units"], first["activation"]) == (77, "relu")
    assert first["dropout"] == pytest.approx(0.4)  # 0.9 is beyond its range
    assert second["units"] == pytest.approx(256, abs=1)


def own(trial: optuna.Trial) -> Config:
    rate = trial.suggest_float("rate", 1e-6, 1e-1, log=True)
    return Config(model=OwnModel(), training=Training(learning_rate=rate))


def build(options: dict[str, Any], shape: tuple[int, ...], n_classes: int) -> Any:
    raise AssertionError("no model is built to choose where to begin")


def test_networks_that_nothing_is_known_of_begin_in_the_middle() -> None:
    assert easy_start(load_study("task3-clock")) == {}
    study = Study(space=own, data=Mnist(), maximize="accuracy", name="mine", build=build)
    assert easy_start(study) == {}
    assert drawn(study, 1)[0]["rate"] == pytest.approx(10**-3.5)


def test_a_space_that_cannot_be_asked_begins_in_the_middle() -> None:
    def constrained(trial: optuna.Trial) -> Config:
        if trial.suggest_int("units", 8, 128, log=True) < 32:
            raise optuna.TrialPruned("too narrow")
        return mlp(dropout=trial.suggest_float("dropout", 0, 0.5))

    def too_deep(trial: optuna.Trial) -> Config:
        return Config(
            model=Cnn(blocks=tuple(Conv(filters=4) for _ in range(trial.suggest_int("n", 20, 30))))
        )

    for unasked in (constrained, too_deep):
        assert easy_start(study_of(unasked)) == {}


@pytest.mark.parametrize("name", ["task1-fashion-cnn", "task1-mnist-mlp", "task2-mnist-cnn-plus"])
def test_the_built_in_studies_begin_with_less_dropout_and_less_work(name: str) -> None:
    study = load_study(name)
    first, second, *_ = drawn(study, 2)
    shared = {key for key in first if key in second}
    assert any(first[key] < second[key] for key in shared if "dropout" in key)
    configs = [config_of(study, params) for params in (first, second)]
    assert effort(configs[0], SHAPE) < effort(configs[1], SHAPE) - math.log(2)


def test_a_share_of_a_range_is_on_its_own_scale() -> None:
    distribution = optuna.distributions.FloatDistribution(1e-4, 1.0, log=True)
    assert at_share(distribution, 0.25) == pytest.approx(1e-3)
    assert at_share(optuna.distributions.IntDistribution(0, 8), 0.75) == 6
