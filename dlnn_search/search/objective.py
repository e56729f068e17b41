"""One trial: a config trained, its epochs stored and reported, and what came of it."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import optuna

from dlnn_search import data
from dlnn_search.config import Config, CurriculumStage, Data
from dlnn_search.data.split import TrainingData
from dlnn_search.search.failures import POLICIES, Kind, failure_of
from dlnn_search.search.optuna_study import report
from dlnn_search.storage.curves import Point, add_point
from dlnn_search.storage.database import Database
from dlnn_search.storage.presence import Presence
from dlnn_search.storage.slots import LostLeaseError, Outcome, Slot, Slots
from dlnn_search.study import Study

#: Between two renewals of a lease and two looks of the live view.
RENEW_SECONDS = 1.0


@dataclass(frozen=True)
class Verdict:
    """What came of a trial.

    Attributes:
        outcome: None where training was cut short and will go on later: interrupted; out of
            memory with attempts left (`failure` says so); or stopped by a `trouble`.
        value: The best epoch's metric on the validation split.
        reason: Why it failed, or was cut short.
        failure: Its kind. With an outcome of None it costs the slot an attempt, as a loss does.
        trouble: Data, disk or database are missing: the trial is not to blame. The slot is
            released at no cost, and the worker pauses and tries again.
        bug: The traceback, where the study's or our own code is to blame.
    """

    outcome: Outcome | None
    value: float | None = None
    best_epoch: int | None = None
    reason: str | None = None
    failure: Kind | None = None
    trouble: str | None = None
    bug: str | None = None


class Objective:
    """Trains the trials of one study in one worker."""

    def __init__(
        self,
        study: Study,
        database: Database,
        slots: Slots,
        presence: Presence,
        *,
        threads: int | None,
        interrupted: Callable[[], bool],
    ) -> None:
        self._study = study
        self._database = database
        self._slots = slots
        self._presence = presence
        self._threads = threads
        self._interrupted = interrupted
        self._had_data = False

    def folder(self, slot: Slot) -> Path:
        """Where the slot's checkpoints are kept."""
        return checkpoint_folder(self._database, self._study.name, slot.number)

    def __call__(self, trial: optuna.Trial, slot: Slot) -> Verdict:
        """Train a trial, or go on with one, to its end or an interruption.

        Raises:
            LostLeaseError: If the slot was claimed by another worker meanwhile.
            StorageError, DataError: If the worker cannot go on; the slot is still its own.
        """
        try:
            config = self._config(trial, slot)
            return self._train(config, trial, slot)
        except LostLeaseError:
            raise
        except Exception as error:
            return self._failed(error, slot)

    def _failed(self, error: Exception, slot: Slot) -> Verdict:
        failure = failure_of(error, had_data=self._had_data)
        if failure.kind is None:
            return Verdict(None, reason=failure.reason, trouble=failure.reason)
        if slot.memory_failures + 1 < POLICIES[failure.kind].attempts:
            return Verdict(None, reason=failure.reason, failure=failure.kind)
        return Verdict("failed", reason=failure.reason, failure=failure.kind, bug=failure.traceback)

    def _config(self, trial: optuna.Trial, slot: Slot) -> Config:
        if slot.config is not None:
            return Config.model_validate(slot.config)
        config = self._study.config(trial)
        config = config.model_copy(update={"data": data.resolve(config.data)})
        # Here and not above: the first import of TensorFlow takes seconds.
        from dlnn_search.training.precision import resolve_precision

        shape = self._images(config).train.image_shape
        config = resolve_precision(config, shape)
        self._slots.set_config(slot, config.model_dump(mode="json"))
        return config

    def _images(self, config: Config) -> TrainingData:
        images = _load(config.data, config.training.curriculum)
        self._had_data = True
        return images

    def _train(self, config: Config, trial: optuna.Trial, slot: Slot) -> Verdict:
        from dlnn_search.training.fit import Decision, Epoch, fit

        pruned = False
        renewed = 0.0
        images = self._images(config)

        def on_epoch(epoch: Epoch) -> Decision:
            nonlocal pruned
            value = epoch.metrics[self._study.metric]
            point = Point(epoch.epoch, epoch.metrics, epoch.seconds, epoch.images_per_second)
            if not add_point(self._database, slot.id, slot.fence, point):
                raise LostLeaseError(f"Slot {slot.number} was claimed by another worker.")
            report(trial, value, epoch.epoch)
            self._presence.show(
                epoch=epoch.epoch, value=value, images_per_second=epoch.images_per_second
            )
            # A trial in its last epoch is complete, whatever the pruner thinks of it.
            pruned = epoch.epoch < config.training.epochs and trial.should_prune()
            return Decision.STOP if pruned or self._interrupted() else Decision.GO_ON

        def on_progress(epoch: int, share: float) -> None:
            nonlocal renewed
            if time.monotonic() - renewed < RENEW_SECONDS:
                return
            renewed = time.monotonic()
            self._slots.renew(slot)
            self._presence.show(epoch=epoch, share=share)

        self._presence.show(
            state="training",
            trial_number=trial.number,
            epoch=0,
            epochs=config.training.epochs,
            share=0.0,
            value=None,
        )
        fitted = fit(
            config,
            images,
            folder=self.folder(slot),
            threads=self._threads,
            on_epoch=on_epoch,
            on_progress=on_progress,
        )
        for epoch in fitted.curve:  # epochs that an earlier holder kept, but did not store
            point = Point(epoch.epoch, epoch.metrics, epoch.seconds, epoch.images_per_second)
            add_point(self._database, slot.id, slot.fence, point)
            report(trial, epoch.metrics[self._study.metric], epoch.epoch)
        best = fitted.best.metrics[self._study.metric]
        if pruned:
            return Verdict("pruned", value=best, best_epoch=fitted.best.epoch)
        if not fitted.finished:
            return Verdict(None)
        return Verdict("complete", value=best, best_epoch=fitted.best.epoch)


def checkpoint_folder(database: Database, study_name: str, slot_number: int) -> Path:
    """Return the folder of a slot's checkpoints."""
    return database.files / "checkpoints" / study_name / str(slot_number)


def remove_checkpoints(database: Database, study_name: str, slot_number: int) -> None:
    """Remove a settled slot's checkpoints: its config can be trained again from the database."""
    shutil.rmtree(checkpoint_folder(database, study_name, slot_number), ignore_errors=True)


@functools.lru_cache(maxsize=4)
def _load(config_data: Data, curriculum: tuple[CurriculumStage, ...]) -> TrainingData:
    """Open the splits once a worker; the trials of a study mostly share them."""
    return data.load(config_data, curriculum)
