"""A study whose trials take seconds, for tests that train, kill, stop and go on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import optuna

from dlnn_search.config import Config, Dense, Mlp, Mnist, Training
from dlnn_search.data.splits import Split, TrainingData
from dlnn_search.storage.database import Database
from dlnn_search.storage.slots import Slot, Slots, new_token
from dlnn_search.storage.studies import register
from dlnn_search.storage.trials import Point, curve_of_slot
from dlnn_search.storage.workers import WorkerRow
from dlnn_search.study import Halving, RandomSearch, Study
from dlnn_search.worker.config_trial import train_config
from dlnn_search.worker.held_trial import HeldTrial, Search, claim
from dlnn_search.worker.interruption import Interruption
from dlnn_search.worker.optuna_study import open_optuna_study
from dlnn_search.worker.verdict import Verdict

from .slot_life import give_trials

EPOCHS = 12


def digits(n: int, seed: int) -> Split:
    """Return noisy pictures in which one row is bright: that of the label."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, n, dtype=np.uint8)
    images = random.integers(0, 120, (n, 10, 10), dtype=np.uint8)
    images[np.arange(n), labels] += 80
    return Split(images, np.arange(n), labels)


DATA = TrainingData(digits(210, seed=1), digits(90, seed=2))


def space(trial: optuna.Trial) -> Config:
    rate = trial.suggest_float("rate", 1e-3, 1e-2, log=True)
    return Config(
        model=Mlp(blocks=(Dense(units=16),)),
        training=Training(
            learning_rate=rate, batch_size=32, precision="float32", deterministic=True
        ),
    )


def study_of(*, epochs: int = EPOCHS, pruner: Halving | None = None) -> Study:
    return Study(
        space=space,
        data=Mnist(),
        minimize="loss",
        sampler=RandomSearch(),
        pruner=pruner,
        epochs=epochs,
        reuse=False,  # tests train a config twice, and compare
        name="some-study",
    )


class Interruptible(Interruption):
    """Ends a training when a test says so, besides by signals and orders."""

    asked = False

    def __call__(self) -> bool:
        return self.asked or super().__call__()


@dataclass
class Searched:
    """A study in a database, and one worker of it."""

    search: Search

    @classmethod
    def open(cls, database: Database, study: Study, n_slots: int = 3) -> Searched:
        stored = register(database, study.name, study.definition())
        slots = Slots(database, stored.id)
        give_trials(slots, n_slots)
        worker_row = WorkerRow(database, stored.id)
        trials = open_optuna_study(study, database)
        return cls(Search(study, stored, database, trials, slots, worker_row, Interruptible()))

    @property
    def database(self) -> Database:
        return self.search.database

    @property
    def study(self) -> Study:
        return self.search.study

    @property
    def slots(self) -> Slots:
        return self.search.slots

    @property
    def worker_row(self) -> WorkerRow:
        return self.search.worker_row

    @property
    def optuna_study(self) -> optuna.Study:
        return self.search.optuna_study

    @property
    def interruption(self) -> Interruptible:
        assert isinstance(self.search.interruption, Interruptible)
        return self.search.interruption

    def begin(self) -> HeldTrial:
        """Claim a slot and begin its trial, or go on with it."""
        held = claim(self.search, new_token(), again=False)
        assert held is not None
        held.begin()
        return held

    def train(self) -> tuple[Verdict, Slot]:
        """Train a slot's trial; give the slot back if that was cut short."""
        held = self.begin()
        verdict = train_config(held, threads=1)
        if verdict.outcome is None:
            self.slots.release(held.slot)
        return verdict, held.slot

    def curve(self, slot: Slot) -> list[Point]:
        return curve_of_slot(self.database, slot.id)

    def reported(self, number: int = 0) -> dict[int, float]:
        """What Optuna has of a trial."""
        return self.optuna_study.trials[number].intermediate_values


def losses(points: list[Point]) -> list[float]:
    return [point.metrics["loss"] for point in points]
