"""A search begins where learning is easy, and goes on in the order of the effort."""

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
from dlnn_search.models.shapes import seconds_an_image
from dlnn_search.study import Study
from dlnn_search.worker.first_trials import Chooser, at_share, effort, first_trials, middle_config
from dlnn_search.worker.optuna_study import make_sampler

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


def dropouts(config: Config) -> list[float]:
    assert isinstance(config.model, Mlp | Cnn)
    return [block.rate for block in config.model.blocks if isinstance(block, Dropout)]


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
    assert drawn(study_of(space), 1) == [
        {
            "optimizer": "adam",
            "units": 128,
            "activation": "tanh",
            "l2": pytest.approx(1e-6),
            "dropout": pytest.approx(0.2),
            "adam_rate": pytest.approx(10**-2.75, rel=1e-3),
        }
    ]


def test_the_rest_of_stage_1_comes_in_the_order_of_its_effort_but_for_the_slowest() -> None:
    study = study_of(space)
    opened, plain = drawn(study, 14), drawn(study_of(space, CoarseToFine(first_trials=tuple)), 14)
    slowest = max(plain[:10], key=lambda params: effort(config_of(study, params), SHAPE))
    efforts = [effort(config_of(study, params), SHAPE) for params in opened[:10]]
    assert efforts == sorted(efforts)
    assert plain[0]["adam_rate"] == pytest.approx(10**-3.5)  # the middle is among them
    for params in plain[:10]:
        assert (params in opened[1:10]) == (params != slowest)


def test_a_stage_of_one_trial_has_the_easy_one_alone() -> None:
    first, second = drawn(study_of(space, CoarseToFine((1, 10))), 2)
    assert first["dropout"] == pytest.approx(0.2) and second != first


def test_a_space_in_which_nothing_matters_has_no_trial_twice() -> None:
    def idle(trial: optuna.Trial) -> Config:
        trial.suggest_float("idle", 0.0, 1.0)
        return mlp()

    places = [trial["idle"] for trial in first_trials(study_of(idle), CoarseToFine(seed=0))]
    assert places[0] == 0.5 and len(set(places)) == len(places) == 10


def test_own_first_trials_are_taken_where_they_fit_the_space() -> None:
    own: list[dict[str, Any]] = [
        {"units": 77, "dropout": 0.9, "activation": "relu", "nothing": 1},
        {"units": 99},
    ]
    trials = drawn(study_of(space, CoarseToFine(first_trials=lambda: own)), 3)
    assert [trial["units"] for trial in trials[:2]] == [77, 99]
    assert trials[0]["activation"] == "relu"
    assert trials[0]["dropout"] == pytest.approx(0.4)  # 0.9 is beyond its range


def own(trial: optuna.Trial) -> Config:
    rate = trial.suggest_float("rate", 1e-6, 1e-1, log=True)
    return Config(model=OwnModel(), training=Training(learning_rate=rate))


def build(options: dict[str, Any], shape: tuple[int, ...], n_classes: int) -> Any:
    raise AssertionError("no model is built to choose where to begin")


def test_networks_that_nothing_is_known_of_begin_in_the_middle() -> None:
    study = Study(space=own, data=Mnist(), maximize="accuracy", name="mine", build=build)
    for unknown in (study, load_study("task3-clock")):
        assert first_trials(unknown, CoarseToFine(seed=0)) == []
    assert drawn(study, 1)[0]["rate"] == pytest.approx(10**-3.5)


def test_what_a_space_refuses_takes_the_most_effort() -> None:
    def constrained(trial: optuna.Trial) -> Config:
        if trial.suggest_int("units", 8, 128, log=True) < 32:
            raise optuna.TrialPruned("too narrow")
        return mlp(dropout=trial.suggest_float("dropout", 0, 0.5))

    trials = first_trials(study_of(constrained), CoarseToFine(seed=0))
    assert trials[0] == {"units": 32, "dropout": pytest.approx(0.125)}
    refused = [trial["units"] < 32 for trial in trials]
    assert refused == sorted(refused) and any(refused)


def test_a_space_whose_middle_is_refused_begins_as_the_sampler_would() -> None:
    def refusing(trial: optuna.Trial) -> Config:
        trial.suggest_int("units", 8, 128)
        raise optuna.TrialPruned("never")

    assert first_trials(study_of(refusing), CoarseToFine(seed=0)) == []


@pytest.mark.parametrize("name", ["task1-fashion-cnn", "task1-mnist-mlp", "task2-mnist-cnn-plus"])
def test_the_built_in_studies_begin_with_less_dropout_and_less_work(name: str) -> None:
    study = load_study(name)
    (first,), middle = drawn(study, 1), middle_config(study)
    assert max(dropouts(config_of(study, first))) < max(dropouts(middle))
    assert effort(config_of(study, first), SHAPE) < effort(middle, SHAPE) - math.log(2)


def test_a_share_of_a_range_is_on_its_own_scale() -> None:
    distribution = optuna.distributions.FloatDistribution(1e-4, 1.0, log=True)
    assert at_share(distribution, 0.25) == pytest.approx(1e-3)
    assert at_share(optuna.distributions.IntDistribution(0, 8), 0.75) == 6
