"""A study whose trials take seconds, for tests that train, kill, stop and go on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import optuna

from dlnn_search.config import Config, Dense, Mlp, Mnist, Training
from dlnn_search.data.splits import Split, TrainingData
from dlnn_search.storage.curves import Point, curve_of_slot
from dlnn_search.storage.database import Database
from dlnn_search.storage.slots import Slot, Slots
from dlnn_search.storage.studies import register
from dlnn_search.storage.workers import Presence
from dlnn_search.study import Halving, RandomSearch, Study
from dlnn_search.worker.objective import Objective, Verdict
from dlnn_search.worker.optuna_study import begin_trial, open_optuna_study

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


@dataclass
class Searched:
    """A study in a database, and one worker of it."""

    database: Database
    study: Study
    slots: Slots
    presence: Presence
    optuna_study: optuna.Study
    objective: Objective
    interrupted: bool = False

    @classmethod
    def open(cls, database: Database, study: Study, n_slots: int = 3) -> Searched:
        stored = register(database, study.name, study.definition())
        slots = Slots(database, stored.id)
        slots.extend_to(n_slots)
        presence = Presence(database, stored.id)
        objective = Objective(
            study,
            database,
            slots,
            presence,
            threads=1,
            interrupted=lambda: searched.interrupted,
        )
        trials = open_optuna_study(study, database)
        searched = cls(database, study, slots, presence, trials, objective)
        return searched

    def begin(self) -> tuple[optuna.Trial, Slot]:
        """Claim a slot and begin its trial, or go on with it."""
        slot = self.slots.claim(self.presence.worker)
        assert slot is not None
        trial = begin_trial(self.optuna_study, self.study, slot)
        self.slots.begin(slot, trial._trial_id, trial.number)
        return trial, slot

    def train(self) -> tuple[Verdict, Slot]:
        """Train a slot's trial; give the slot back if that was cut short."""
        trial, slot = self.begin()
        verdict = self.objective(trial, slot)
        if verdict.outcome is None:
            self.slots.release(slot)
        return verdict, slot

    def curve(self, slot: Slot) -> list[Point]:
        return curve_of_slot(self.database, slot.id)

    def reported(self, number: int = 0) -> dict[int, float]:
        """What Optuna has of a trial."""
        return self.optuna_study.trials[number].intermediate_values


def losses(points: list[Point]) -> list[float]:
    return [point.metrics["loss"] for point in points]
