"""One trial: a config trained, its epochs stored and reported, and what came of it."""

from __future__ import annotations

import functools
import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import optuna
from optuna.exceptions import UpdateFinishedTrialError

from dlnn_search import data
from dlnn_search.config import Config, CurriculumStage, Data
from dlnn_search.data.splits import TrainingData
from dlnn_search.errors import OutageError, StorageError
from dlnn_search.files import slot_path
from dlnn_search.optuna_version import trial_id_of
from dlnn_search.pruners.halving import falls_behind, rungs_of
from dlnn_search.storage.checkpoints import place_of
from dlnn_search.storage.curves import Point, kept_of_slot, replace_curve
from dlnn_search.storage.database import Database
from dlnn_search.storage.duplicates import (
    Duplicate,
    find_duplicate,
    look_for_duplicate,
    wait_for_space,
)
from dlnn_search.storage.slots import LostLeaseError, Outcome, Slot, Slots
from dlnn_search.storage.workers import Presence, has_trained_here
from dlnn_search.study import Study
from dlnn_search.training.checkpoint import (
    Checkpoint,
    DamagedCheckpointError,
    Epoch,
    OtherCheckpointError,
)
from dlnn_search.worker.failures import MAX_DRAWS, POLICIES, REFUSES_ALL, USED_UP, Kind, failure_of
from dlnn_search.worker.optuna_study import (
    draw_again,
    may_draw_again,
    put_back,
    remember_infeasible,
    storage_of,
)
from dlnn_search.worker.outbox import Outbox, Reports

T = TypeVar("T")

log = logging.getLogger(__name__)


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
        duplicate: Another trial with the same config: its result counts for this one, too.
        waits: The slot waits for another one, and nobody holds it any more.
        space_is_over: Why the space has nothing more to train, which ends the search.
    """

    outcome: Outcome | None
    value: float | None = None
    best_epoch: int | None = None
    reason: str | None = None
    failure: Kind | None = None
    trouble: str | None = None
    bug: str | None = None
    duplicate: Duplicate | None = None
    waits: bool = False
    space_is_over: str | None = None


@dataclass(frozen=True)
class _Noted:
    """What a look at the other slots came to.

    Attributes:
        duplicate: Another trial with the config.
        draw_again: Nothing was noted: another config can be drawn.
    """

    duplicate: Duplicate | None
    draw_again: bool


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
        self._opened_data = False
        self._ending: Callable[[], None] | None = None

    def folder(self, slot: Slot) -> Path:
        """Where the slot's checkpoints are kept."""
        return (self._database.files / slot_path(self._study.lasting_name, slot.number)).parent

    def __call__(self, trial: optuna.Trial, slot: Slot) -> Verdict:
        """Train a trial, or go on with one, to its end or an interruption.

        Raises:
            LostLeaseError: If the slot was claimed by another worker meanwhile.
            StorageError, DataError: If the worker cannot go on; the slot is still its own.
        """
        self._ending = None
        try:
            drawn = self._draw(trial, slot)
            return self._train(drawn, trial, slot) if isinstance(drawn, Config) else drawn
        except LostLeaseError:
            raise
        except UpdateFinishedTrialError:
            self._slots.renew(slot)  # raises where a successor was the one who ended it
            reason = f"Trial {trial.number} was ended by another program."
            return Verdict("failed", reason=reason, failure="lost")
        except Exception as error:
            verdict = self._failed(error, slot)
        # Outside of the handler, whose exception holds the model and all that belongs to it.
        gc.collect()
        if verdict.outcome is not None and self._ending is not None:
            self._ending()
        return verdict

    def _failed(self, error: Exception, slot: Slot) -> Verdict:
        if isinstance(error, OutageError) and self._interrupted():
            return Verdict(None)
        failure = failure_of(error, had_data=self._had_data())
        if failure.kind is None:
            return Verdict(None, reason=failure.reason, trouble=failure.reason)
        if slot.memory_failures + 1 < POLICIES[failure.kind].attempts:
            return Verdict(None, reason=failure.reason, failure=failure.kind)
        return Verdict("failed", reason=failure.reason, failure=failure.kind, bug=failure.traceback)

    def _had_data(self) -> bool:
        """Whether this machine has had the data: then they may come back."""
        if self._opened_data:
            return True
        try:
            return has_trained_here(self._database, self._presence.study_id)
        except StorageError:
            return False

    def _draw(self, trial: optuna.Trial, slot: Slot) -> Config | Verdict:
        """Draw until the space allows a config that no other trial has; else say what comes of it.

        What is refused, or another's, costs neither a slot nor a trial: the same one is asked
        anew, unless its parameters are given.
        """
        n_draws = n_refused = n_known = 0
        in_training: int | None = None  # a slot that trains what was drawn here
        while not self._interrupted():
            if n_draws:
                self._retrying(functools.partial(draw_again, trial, self._study, slot, n_draws))
            n_draws += 1
            try:
                config = self._config(trial, slot)
            except optuna.TrialPruned as refusal:
                if not self._retrying(lambda: self._remember(trial, slot)):
                    words = f"The space refuses the given parameters. {refusal}".strip()
                    return Verdict("failed", reason=words, failure="infeasible")
                n_refused += 1
                if n_refused == MAX_DRAWS:
                    return Verdict(None, space_is_over=REFUSES_ALL)
                continue
            n_refused = 0
            noted = self._retrying(functools.partial(self._note, trial, slot, config))
            if noted.duplicate is None:
                return config
            is_trained = noted.duplicate.outcome is not None
            if not noted.draw_again:
                return Verdict(None, duplicate=noted.duplicate, waits=not is_trained)
            n_known += 1
            in_training = in_training if is_trained else noted.duplicate.slot_id
            if n_known == MAX_DRAWS:
                wait = functools.partial(self._wait_or_end, trial, slot, in_training)
                return self._retrying(wait)
        return Verdict(None)

    def _remember(self, trial: optuna.Trial, slot: Slot) -> bool:
        """Note that the space refused a draw; return whether it can be drawn anew."""
        self._slots.renew(slot)
        if not may_draw_again(trial):
            return False
        remember_infeasible(trial)
        return True

    def _wait_or_end(self, trial: optuna.Trial, slot: Slot, in_training: int | None) -> Verdict:
        """Let a slot wait that got nothing new; where nothing is trained any more, that is all."""
        waits = False

        def wait() -> None:
            nonlocal waits
            study_id = self._presence.study_id
            waits = wait_for_space(self._database, study_id, slot, in_training)
            if waits:
                put_back(trial.study, trial_id_of(trial.study, trial))

        self._database.at_once(wait)
        return Verdict(None, waits=waits, space_is_over=None if waits else USED_UP)

    def _config(self, trial: optuna.Trial, slot: Slot) -> Config:
        if slot.config is not None:
            return Config.model_validate(slot.config)

        def ask() -> Config:
            # A space may be asked again: what was suggested already stays.
            with storage_of(trial.study).gathering(trial_id_of(trial.study, trial)):
                return self._study.config(trial)

        config = self._retrying(ask)
        config = config.model_copy(update={"data": data.resolve(config.data)})
        # Here and not above: the first import of TensorFlow takes seconds.
        from dlnn_search.training.runtime import resolve_precision

        shape = self._images(config).train.image_shape
        return resolve_precision(config, shape)

    def _note(self, trial: optuna.Trial, slot: Slot, config: Config) -> _Noted:
        """Store all that is known before the training, unless another trial has the config.

        Then another one is drawn; where that cannot be, all is stored, and the slot waits for that
        trial if it is trained just now.
        """
        noted = _Noted(None, draw_again=False)
        study_id, reuse = self._presence.study_id, self._study.reuse
        storage, trial_id = storage_of(trial.study), trial_id_of(trial.study, trial)
        fingerprint = config.fingerprint()

        def look() -> None:
            nonlocal noted
            if slot.config is None:
                found = look_for_duplicate(self._database, study_id, slot, fingerprint, reuse=reuse)
                noted = _Noted(found, found is not None and may_draw_again(trial))

        def note() -> None:
            nonlocal noted
            plain = config.model_dump(mode="json") if slot.config is None else None
            found = find_duplicate(
                self._database, study_id, slot, fingerprint, config=plain, reuse=reuse
            )
            noted = _Noted(found, draw_again=False)

        def show() -> None:
            if noted.duplicate is None:
                if slot.config is None:  # else it has no pictures yet
                    self._show(trial, slot, config)
            elif noted.duplicate.outcome is None:
                put_back(trial.study, trial_id)

        def unless_drawn_again(call: Callable[[], None]) -> Callable[[], None]:
            return lambda: None if noted.draw_again else call()

        store = (lambda: storage.write_gathered(trial_id), note, show)
        self._database.at_once(look, *map(unless_drawn_again, store))
        return noted

    def _show(self, trial: optuna.Trial, slot: Slot, config: Config) -> None:
        self._presence.show(
            state="training",
            message=None,
            trial_number=trial.number,
            slot_id=slot.id,
            epoch=0,
            epochs=config.training.epochs,
            share=0.0,
            value=None,
        )

    def _images(self, config: Config) -> TrainingData:
        images = _load(config.data, config.training.curriculum)
        self._opened_data = True
        return images

    def _retrying(self, call: Callable[[], T]) -> T:
        return self._database.retrying(call, interrupted=self._interrupted)

    def _train(self, config: Config, trial: optuna.Trial, slot: Slot) -> Verdict:
        from dlnn_search.training.fit import Decision, fit

        metric, epochs = self._study.metric, config.training.epochs
        images = self._images(config)
        place = place_of(self._database.files)
        is_new = slot.fence == 1 and slot.trial_id is None
        damage = _clear_what_is_damaged(self.folder(slot), config.fingerprint(), is_new=is_new)
        rungs = rungs_of(trial.study.pruner, epochs)
        trial_id = self._retrying(lambda: trial_id_of(trial.study, trial))
        reports = Reports(trial.study, trial_id, metric=metric, epochs=epochs, rungs=rungs)
        outbox = Outbox(
            self._database,
            self._slots,
            slot,
            self._presence,
            reports,
            metric=metric,
            place=place,
        )
        values: dict[int, float] = {}
        pruned, judged = False, 0

        def begin(curve: tuple[Epoch, ...]) -> Decision:
            values.update({epoch.epoch: epoch.metrics[metric] for epoch in curve})
            if not is_new:
                points = [_point(epoch) for epoch in curve]
                self._retrying(lambda: self._take_up(slot, points, place, damage))
            self._retrying(lambda: reports.begin(values, is_new=is_new))
            nonlocal judged
            # Later rungs judge the earlier ones again; only a judgement that a kill may have
            # cut off is made up for here.
            judged = max((rung for rung in rungs if rung < len(curve)), default=0)
            return judge(len(curve)) if len(curve) < epochs else Decision.GO_ON

        def judge(n_stored: int) -> Decision:
            """Ask the pruner at the latest rung, as soon as the database has the curve to it."""
            nonlocal pruned, judged
            rung = max((rung for rung in rungs if rung <= n_stored), default=0)

            def ask() -> None:
                nonlocal pruned, judged
                pruned = falls_behind(trial.study, trial.number, rung, values[rung])
                judged = rung

            if rung > judged:
                outbox.attempt(ask)  # else it is asked when the database is back
            return Decision.STOP if pruned else Decision.GO_ON

        def on_epoch(epoch: Epoch) -> Decision:
            values[epoch.epoch] = epoch.metrics[metric]
            outbox.trained(_point(epoch))
            if self._interrupted():
                return Decision.STOP
            return Decision.KEEP if epoch.epoch in rungs else Decision.GO_ON

        def on_kept(n_epochs: int) -> Decision:
            outbox.kept(n_epochs)
            return Decision.GO_ON if outbox.n_waiting else judge(n_epochs)

        def end() -> None:
            outbox.end(values, interrupted=self._interrupted)

        self._ending = end
        if slot.config is not None:
            outbox.attempt(lambda: self._show(trial, slot, config))
        try:
            fitted = fit(
                config,
                images,
                folder=self.folder(slot),
                generation=slot.fence,
                threads=self._threads,
                on_begin=begin,
                on_kept=on_kept,
                on_epoch=on_epoch,
                on_progress=outbox.progress,
            )
        except OutageError:
            outbox.send_kept()  # it may be the disk that is away, and not the database
            raise
        if not (pruned or fitted.finished):
            outbox.send_all(interrupted=self._interrupted)
            return Verdict(None)
        end()
        best = fitted.best.metrics[metric]
        outcome: Outcome = "pruned" if pruned else "complete"
        return Verdict(outcome, value=best, best_epoch=fitted.best.epoch)

    def _take_up(self, slot: Slot, points: list[Point], place: str, damage: str | None) -> None:
        """Let the stored curve be the checkpoint's, and say so where epochs are lost."""
        kept = kept_of_slot(self._database, slot.id)
        known = max(kept.epochs, len(kept.points))
        words = None
        if known > len(points):
            if kept.place is not None and kept.place != place:
                why = "its checkpoint lies in another machine's files folder"
            else:
                why = damage or "its checkpoint is missing"
            back = f"goes back to epoch {len(points)}" if points else "starts over"
            words = f"The trial {back} after {known} epochs: {why}."
        if not replace_curve(
            self._database,
            slot.id,
            slot.fence,
            points,
            place=place,
            worker=self._presence.worker,
            words=words,
        ):
            raise LostLeaseError(f"Slot {slot.number} was claimed by another worker.")
        if words is not None:
            log.warning("%s", words)


def _point(epoch: Epoch) -> Point:
    return Point(epoch.epoch, epoch.metrics, epoch.seconds, epoch.images_per_second)


def _clear_what_is_damaged(folder: Path, fingerprint: str, *, is_new: bool) -> str | None:
    """Remove a checkpoint that cannot be gone on from; return what was wrong with it.

    Raises:
        OutageError: If the disk does not answer.
    """
    checkpoint = Checkpoint(folder, fingerprint)
    if is_new:  # of another database that had its files here
        checkpoint.clear()
        return None
    try:
        checkpoint.load()
    except DamagedCheckpointError:
        checkpoint.clear()
        return "its checkpoint is damaged"
    except OtherCheckpointError:
        checkpoint.clear()
        return "its checkpoint is of another config"
    return None


@functools.lru_cache(maxsize=4)
def _load(config_data: Data, curriculum: tuple[CurriculumStage, ...]) -> TrainingData:
    """Open the splits once a worker; the trials of a study mostly share them."""
    return data.load(config_data, curriculum)
