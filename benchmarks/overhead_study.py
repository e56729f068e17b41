"""Two studies of many finished trials in one database: one of ours, one of plain Optuna."""

from __future__ import annotations

import json
import random
from datetime import datetime, timedelta
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.distributions import distribution_to_json
from optuna.storages._rdb import models

from dlnn_search.config import ClockNet, Clocks, Config, Conv, Dropout, Pool, Training
from dlnn_search.storage.budget import Budget, extend_budget
from dlnn_search.storage.control import set_lease_seconds
from dlnn_search.storage.database import Database
from dlnn_search.storage.schema import curves, slots
from dlnn_search.storage.studies import register
from dlnn_search.study import RandomSearch, Study
from dlnn_search.worker.optuna_study import SLOT_ATTRIBUTE, open_optuna_study

METRIC = "common_sense_error"
PLAIN = "plain"
#: Open slots beyond the finished ones: more than any measurement takes.
N_OPEN = 2_000
N_PARAMETERS = 10
#: Parameters beyond the four that the config is made of.
FURTHER = tuple(f"further_{number}" for number in range(N_PARAMETERS - 4))
CHUNK = 500


def suggest(trial: optuna.Trial) -> dict[str, float]:
    """Return what both sides' spaces ask for: rates, sizes, and a choice; `N_PARAMETERS` in all."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True),
        "dropout": trial.suggest_float("dropout", 0.0, 0.5),
        "units": trial.suggest_int("units", 8, 512, log=True),
        "batch": trial.suggest_categorical("batch", [32, 64, 128]),
    } | {name: trial.suggest_float(name, 0.0, 0.5) for name in FURTHER}


def _space(trial: optuna.Trial) -> Config:
    values = suggest(trial)
    return Config(
        model=ClockNet(
            blocks=(Conv(filters=round(values["units"])), Dropout(rate=values["dropout"]), Pool())
        ),
        training=Training(learning_rate=values["learning_rate"], batch_size=round(values["batch"])),
    )


def make_study(epochs: int, sampler: str) -> Study:
    """Return our side's study, with the default sampler or a random one."""
    chosen: dict[str, Any] = {"sampler": RandomSearch()} if sampler == "random" else {}
    return Study(
        space=_space,
        data=Clocks(
            source="rendered", image_size=32, images_per_time=2, difficulty=0, azimuth_spread=0.2
        ),
        minimize=METRIC,
        epochs=epochs,
        name="ours",
        **chosen,
    )


def metrics_of(epoch: int, rate: float) -> dict[str, float]:
    """Return what an epoch that trained nothing claims to have come to."""
    error = 180.0 / epoch + 100.0 * rate
    return {METRIC: error, "train_loss": error / 60, "loss": error / 50, "accuracy": 1 / error}


def fill(database: Database, study: Study, n_trials: int, epochs: int) -> None:
    """Give both studies so many finished trials, as many rows at a time as fit."""
    ours = open_optuna_study(study, database)
    plain = optuna.create_study(storage=database.optuna, study_name=PLAIN, load_if_exists=True)
    stored = register(database, study.name, study.definition())
    set_lease_seconds(database, stored.id, 3600.0)
    extend_budget(database, stored.id, Budget(trials=n_trials + N_OPEN))
    example = _example(study)
    for first in range(0, n_trials, CHUNK):
        numbers = range(first, min(n_trials, first + CHUNK))
        for studys_id, is_ours in ((ours._study_id, True), (plain._study_id, False)):
            _add_trials(database, studys_id, stored.id, numbers, epochs, example, is_ours)


def _example(study: Study) -> tuple[optuna.trial.FrozenTrial, dict[str, Any]]:
    beside = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = beside.ask()
    config = study.config(trial).model_dump(mode="json")
    return beside.trials[0], config


def _add_trials(
    database: Database,
    optunas_id: int,
    study_id: int,
    numbers: range,
    epochs: int,
    example: tuple[optuna.trial.FrozenTrial, dict[str, Any]],
    is_ours: bool,
) -> None:
    frozen, config = example
    began = datetime(2026, 1, 1)
    kinds = {name: distribution_to_json(found) for name, found in frozen.distributions.items()}
    with database.transaction() as connection:
        trials = models.TrialModel.__table__
        connection.execute(
            sa.insert(trials),
            [
                {
                    "number": number,
                    "study_id": optunas_id,
                    "state": optuna.trial.TrialState.COMPLETE,
                    "datetime_start": began + timedelta(minutes=number),
                    "datetime_complete": began + timedelta(minutes=number + 1),
                }
                for number in numbers
            ],
        )
        of_number: dict[int, int] = dict(
            connection.execute(
                sa.select(trials.c.number, trials.c.trial_id).where(
                    trials.c.study_id == optunas_id, trials.c.number.in_(numbers)
                )
            ).all()
        )
        params, values, reported, notes, points, done = [], [], [], [], [], []
        for number in numbers:
            trial_id = of_number[number]
            draw = random.Random(number)
            rate = 10 ** draw.uniform(-5, -2)
            drawn = {
                "learning_rate": rate,
                "dropout": draw.uniform(0, 0.5),
                "units": draw.randint(8, 512),
                "batch": draw.randrange(3),
            } | {name: draw.uniform(0, 0.5) for name in FURTHER}
            params += [
                {
                    "trial_id": trial_id,
                    "param_name": name,
                    "param_value": value,
                    "distribution_json": kinds[name],
                }
                for name, value in drawn.items()
            ]
            best = metrics_of(epochs, rate)[METRIC]
            values.append({"trial_id": trial_id, "objective": 0, "value": best})
            for epoch in range(1, epochs + 1):
                error = metrics_of(epoch, rate)
                reported.append(
                    {"trial_id": trial_id, "step": epoch, "intermediate_value": error[METRIC]}
                )
                points.append((number, epoch, error))
            notes.append(
                {"trial_id": trial_id, "key": SLOT_ATTRIBUTE, "value_json": json.dumps(number)}
            )
            done.append(
                {
                    "of": number,
                    "state": "done",
                    "fence": 1,
                    "trial_id": trial_id,
                    "trial_number": number,
                    "config": config,
                    "outcome": "complete",
                    "value": best,
                    "best_epoch": epochs,
                    "told": 1,
                    "fingerprint": f"{number:032x}",
                }
            )
        connection.execute(sa.insert(models.TrialParamModel.__table__), params)
        finite = {"value_type": models.TrialValueModel.TrialValueType.FINITE}
        connection.execute(
            sa.insert(models.TrialValueModel.__table__), [value | finite for value in values]
        )
        finite_step = models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE
        connection.execute(
            sa.insert(models.TrialIntermediateValueModel.__table__),
            [value | {"intermediate_value_type": finite_step} for value in reported],
        )
        if not is_ours:
            return
        connection.execute(sa.insert(models.TrialUserAttributeModel.__table__), notes)
        changed: dict[str, Any] = {name: sa.bindparam(name) for name in done[0] if name != "of"}
        connection.execute(
            slots.update()
            .where(slots.c.study_id == study_id, slots.c.number == sa.bindparam("of"))
            .values(**changed),
            done,
        )
        slot_of: dict[int, int] = dict(
            connection.execute(
                sa.select(slots.c.number, slots.c.id).where(
                    slots.c.study_id == study_id, slots.c.number.in_(numbers)
                )
            ).all()
        )
        connection.execute(
            sa.insert(curves),
            [
                {
                    "slot_id": slot_of[number],
                    "epoch": epoch,
                    "metrics": metrics,
                    "seconds": 1.0,
                    "images_per_second": 1e4,
                }
                for number, epoch, metrics in points
            ],
        )
