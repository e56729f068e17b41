"""The pruner on stored curves, on every kind of database."""

from __future__ import annotations

import optuna

from dlnn_search import Clocks, Config, Mlp, Study
from dlnn_search.pruners import Halving
from dlnn_search.results.status import study_status
from dlnn_search.storage.database import Database
from dlnn_search.storage.duplicates import find_duplicate, settle_like
from dlnn_search.storage.slots import Slots
from dlnn_search.storage.studies import register
from dlnn_search.storage.trials import Point, StoredRungValues, add_points
from dlnn_search.worker.optuna_study import begin_trial, open_optuna_study

from .slot_life import DEFINITION, give_trials


def space(trial: optuna.Trial) -> Config:
    return Config(model=Mlp(blocks=()))


def stopped_at(database: Database, halving: Halving, curves: list[dict[str, list[float]]]) -> list:  # type: ignore[type-arg]
    """Train made-up trials by the worker's own steps; return the epoch each is pruned at."""
    study = Study(
        space=space,
        data=Clocks(),
        minimize="common_sense_error",
        pruner=halving,
        trials=len(curves),
        name="made-up",
    )
    slots = Slots(database, register(database, study.name, study.definition()).id)
    give_trials(slots, study.trials)
    optuna_study = open_optuna_study(study, database)
    found: list[int | None] = []
    for curve in curves:
        slot = slots.claim("w")
        assert slot is not None
        trial = begin_trial(optuna_study, study, slot)
        slots.begin(slot, trial._trial_id, trial.number)
        found.append(None)
        errors = curve["common_sense_error"]
        for epoch, error in enumerate(errors, start=1):
            metrics = {name: values[epoch - 1] for name, values in curve.items()}
            assert add_points(database, slot.id, slot.fence, [Point(epoch, metrics, 1.0, 1.0)])
            if epoch % 2 == 0:  # reports to Optuna may be thin; curves are whole
                trial.report(error, epoch)
                if trial.should_prune():
                    found[-1] = epoch
                    break
        slots.settle(slot, "complete", value=min(errors), best_epoch=1)
    return found


def with_losses(errors: list[float], losses: list[float]) -> dict[str, list[float]]:
    return {"common_sense_error": errors, "train_loss": losses}


def test_a_trial_at_chance_is_spared_until_then_judged(database: Database) -> None:
    at_chance = with_losses([180.0] * 8, [7.0] * 8)
    late = with_losses([180.0, 180, 180, 90, 50, 40, 30, 20], [7.0] * 8)
    early = with_losses([120.0, 110, 100, 95, 90, 85, 80, 75], [7.0] * 8)
    halving = Halving(2, factor=2, better_than="chance", until=6)
    assert stopped_at(database, halving, [early, at_chance, late]) == [None, 6, None]


def test_trials_may_be_judged_by_their_training_loss(database: Database) -> None:
    learns = with_losses([181.0] * 4, [6.5, 6.0, 5.5, 5.0])
    sits = with_losses([179.0] * 4, [6.6] * 4)
    # By the metric, which is noise at chance, the second one would pass.
    halving = Halving(2, factor=2, judge="train_loss")
    assert stopped_at(database, halving, [learns, sits]) == [None, 2]


def test_a_duplicate_is_nobody_s_rival_and_in_no_estimate(database: Database) -> None:
    stored = register(database, "some-study", DEFINITION)
    slots = Slots(database, stored.id)
    give_trials(slots, 3)
    search = optuna.create_study(study_name=stored.name, storage=database.optuna)
    for number in range(3):
        slot = slots.claim("w")
        assert slot is not None
        slots.begin(slot, 70 + number, number)
        duplicate = find_duplicate(database, stored.id, slot, "same" if number < 2 else "other")
        if duplicate is not None:
            settle_like(database, stored.id, slot, duplicate)
            continue
        seconds = 1.0 + number
        point = Point(1, {"loss": 0.5 + number}, seconds, 1.0)
        assert add_points(database, slot.id, slot.fence, [point])
        slots.settle(slot, "complete", value=0.5)
    assert sorted(StoredRungValues(database, "loss", "loss")(search, 1)) == [0, 2]
    assert study_status(database, stored).mean_trial_seconds == 2.0
