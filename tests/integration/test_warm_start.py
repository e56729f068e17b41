"""Warm starts and converged studies on made-up trials, on every kind of database."""

from __future__ import annotations

import dataclasses

import numpy as np
import optuna
import pytest

from dlnn_search import (
    Config,
    Converged,
    Dense,
    Dropout,
    FashionMnist,
    Mlp,
    RandomSearch,
    Study,
    Training,
)
from dlnn_search.commands.warm_start import WarmStart, agreeing, warm_start
from dlnn_search.errors import UsageError
from dlnn_search.storage.control import orders
from dlnn_search.storage.database import Database
from dlnn_search.storage.slots import Slots
from dlnn_search.storage.studies import StoredStudy, register
from dlnn_search.storage.trials import Point, add_points
from dlnn_search.worker.first_trials import example_config
from dlnn_search.worker.joining import converged_words, settle, stop_if_converged
from dlnn_search.worker.optuna_study import begin_trial, open_optuna_study

from .slot_life import give_trials
from .test_confirmation import work_off


def space(trial: optuna.Trial) -> Config:
    units = trial.suggest_int("units", 16, 256)
    rate = trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
    optimizer = trial.suggest_categorical("optimizer", ["adam", "sgd"])
    return Config(
        model=Mlp(blocks=(Dense(units=units),)),
        training=Training(learning_rate=rate, optimizer=optimizer),
    )


def narrower(trial: optuna.Trial) -> Config:
    units = trial.suggest_int("units", 64, 512)
    rate = trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
    layers = trial.suggest_int("layers", 1, 3)
    return Config(
        model=Mlp(blocks=(Dense(units=units),) * layers), training=Training(learning_rate=rate)
    )


SOURCE = Study(
    space=space,
    data=FashionMnist(),
    maximize="accuracy",
    sampler=RandomSearch(),
    epochs=8,
    name="source",
)
TARGET = dataclasses.replace(SOURCE, space=narrower, name="target")


def warmed(database: Database, wanted: WarmStart, n_trials: int = 10) -> list[str]:
    stored = register(database, TARGET.name, TARGET.definition())
    give_trials(Slots(database, stored.id), n_trials)
    optuna_study = open_optuna_study(TARGET, database)
    return warm_start(TARGET, database, stored, optuna_study, wanted, example_config(TARGET))


def next_trials(database: Database, n: int) -> list[tuple[dict[str, object], object]]:
    """Begin the next slots as a worker does; return each trial's parameters and given config."""
    stored = register(database, TARGET.name, TARGET.definition())
    slots, optuna_study = Slots(database, stored.id), open_optuna_study(TARGET, database)
    found: list[tuple[dict[str, object], object]] = []
    for _ in range(n):
        slot = slots.claim("w")
        assert slot is not None
        trial = begin_trial(optuna_study, TARGET, slot)
        slots.begin(slot, trial._trial_id, trial.number)
        if slot.config is None:
            TARGET.config(trial)
        found.append((dict(trial.params), slot.config))
    return found


def test_parameters_are_taken_where_the_spaces_agree_and_the_rest_is_told() -> None:
    given = {"units": 100, "learning_rate": 0.5, "optimizer": "sgd"}
    taken, left, new = agreeing(TARGET, given)
    assert taken == {"units": 100}
    assert left == [
        "learning_rate=0.5 (outside of 0.0001 to 0.01)",
        "optimizer=sgd (not in this space)",
    ]
    assert new == ["learning_rate", "layers"]


def test_a_value_between_two_of_the_grid_is_told_with_both() -> None:
    def space(trial: optuna.Trial) -> Config:
        dropout = trial.suggest_float("dropout", 0.0, 0.5, step=0.1)
        units = trial.suggest_int("units", 8, 64, step=8)
        return Config(model=Mlp(blocks=(Dense(units=units), Dropout(rate=dropout))))

    study = dataclasses.replace(TARGET, space=space)
    _, left, _ = agreeing(study, {"dropout": 0.15, "units": 12})
    assert left == [
        "dropout=0.15 (off the grid: the nearest values are 0.1 and 0.2)",
        "units=12 (off the grid: the nearest values are 8 and 16)",
    ]
    assert agreeing(study, {"dropout": 0.6})[1] == ["dropout=0.6 (outside of 0.0 to 0.5)"]


def test_the_best_of_another_study_come_first_once(database: Database) -> None:
    def value(config: Config) -> float:
        assert isinstance(config.model, Mlp) and isinstance(config.model.blocks[0], Dense)
        return config.model.blocks[0].units / 1000

    work_off(database, SOURCE, value, n=8)
    said = warmed(database, WarmStart(source="source", top=3))
    assert len(said) == 3 and all("is enqueued" in line for line in said)
    assert all("optimizer" in line and "Drawn anew: layers" in line for line in said)
    again = warmed(database, WarmStart(source="source", top=3))
    assert all("already" in line for line in again)
    best = optuna.load_study(study_name="source", storage=database.optuna).trials
    best = sorted(best, key=lambda trial: -(trial.value or 0))[:3]
    begun = next_trials(database, 4)
    for trial, (params, _) in zip(best, begun, strict=False):
        assert params["units"] == trial.params["units"]
        assert params["learning_rate"] == pytest.approx(trial.params["learning_rate"])
    assert begun[3][0]["units"] not in {trial.params["units"] for trial in best}


def test_named_configs_fill_the_first_slots_on_the_study_s_own_terms(database: Database) -> None:
    said = warmed(database, WarmStart(names=("known",)))
    assert "mnist_mlp" in said[0] and "fashion_mlp" in said[0] and "cnn" not in said[0]
    assert "already" in warmed(database, WarmStart(names=("mnist_mlp",)))[-1]
    begun = next_trials(database, 3)
    for _, plain in begun[:2]:
        config = Config.model_validate(plain)
        assert config.data == FashionMnist() and config.training.epochs == 8
        assert config.metric == "accuracy"
    assert begun[2][1] is None


def test_a_given_config_leaves_what_is_enqueued_to_the_next_slot(database: Database) -> None:
    warmed(database, WarmStart(names=("fashion_mlp",)))
    open_optuna_study(TARGET, database).enqueue_trial({"units": 77})
    (given, enqueued) = next_trials(database, 2)
    assert given[0] == {} and given[1] is not None
    assert enqueued[0]["units"] == 77


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"source": "target"}, "itself"),
        ({"source": "sorce"}, "no study"),
        ({"names": ("report_clock",)}, "cannot be trained in 'target'"),
        ({"names": ("mnist_mpl",)}, "Did you mean 'mnist_mlp'"),
        ({"source": "source", "top": 0}, "--top 0"),
    ],
)
def test_what_cannot_be_begun_with_is_told(
    database: Database, wanted: dict[str, object], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        warmed(database, WarmStart(**wanted))  # type: ignore[arg-type]


def search(database: Database, study: Study, n: int, noise: float) -> StoredStudy:
    """Settle trials of a bowl in three dimensions, with curves that wobble by `noise`."""
    stored = register(database, study.name, study.definition())
    slots = Slots(database, stored.id)
    give_trials(slots, 10 * n)
    optuna_study = open_optuna_study(study, database)
    random = np.random.default_rng(0)
    for _ in range(n):
        slot = slots.claim("w")
        assert slot is not None
        trial = begin_trial(optuna_study, study, slot)
        slots.begin(slot, trial._trial_id, trial.number)
        value = 1 - float((random.uniform(-1, 1, 3) ** 2).sum()) / 3
        for epoch in range(1, 11):
            metrics = {"accuracy": value + noise * float(random.normal())}
            add_points(database, slot.id, slot.fence, [Point(epoch, metrics, 1.0, 1.0)])
        slots.settle(slot, "complete", value=value, best_epoch=1)
    return stored


def test_a_converged_study_stops_for_all_workers_until_asked_not_to(database: Database) -> None:
    study = dataclasses.replace(SOURCE, stop_when_converged=Converged())
    stored = register(database, study.name, study.definition())
    assert settle(database, stored, study, None) is None
    search(database, study, 24, noise=0.3)
    words = stop_if_converged(database, stored, worker="w")
    assert words is not None and "expected to gain" in words and "noise" in words
    assert orders(database, stored.id).control == "stop"
    assert converged_words(database, stored.id) == words
    assert not Slots(database, stored.id).all_done()  # what is left of the budget stays
    assert settle(database, stored, study, None) == words
    assert settle(database, stored, study, False) is None
    assert orders(database, stored.id).control == "run"


def test_a_study_goes_on_while_it_can_gain_or_nobody_asked_it_to_stop(database: Database) -> None:
    study = dataclasses.replace(SOURCE, stop_when_converged=Converged())
    stored = search(database, study, 24, noise=0.0001)
    settle(database, stored, study, None)
    assert stop_if_converged(database, stored) is None
    other = dataclasses.replace(SOURCE, name="other")
    stored = search(database, other, 24, noise=0.3)
    assert settle(database, stored, other, None) is None
    assert stop_if_converged(database, stored) is None
    assert settle(database, stored, other, True) is not None
