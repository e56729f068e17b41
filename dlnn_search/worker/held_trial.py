"""One trial's life in the worker that holds it: claimed, begun, trained, judged, ended.

`claim` makes it, and from then on all goes through one object: `begin` takes up Optuna's trial;
while it trains, `take_up`, `progress`, `report` and `keep` tell the database how far it is, and
`is_behind` asks the pruner; `conclude` ends it, or gives it back for whoever goes on.

Training goes on while the database is away. Epochs wait here until they are in a checkpoint and
the database has taken them, in order. Lease and live view are renewed when it answers; of them
only the present counts. All that is written is fenced and safe to write twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import optuna
from optuna.exceptions import UpdateFinishedTrialError

from dlnn_search.errors import DlnnSearchError, OutageError
from dlnn_search.files import slot_path
from dlnn_search.optuna_version import trial_id_of
from dlnn_search.pruners import falls_behind, rungs_of
from dlnn_search.storage.checkpoints import Standing, place_of, settle_checkpoint, standing_of
from dlnn_search.storage.control import kept_stop_rule
from dlnn_search.storage.database import Database, UndoneError, storage_errors
from dlnn_search.storage.database.outages import MAX_PAUSE_SECONDS, pause_seconds
from dlnn_search.storage.duplicates import settle_like
from dlnn_search.storage.slots import MAX_LOSSES, LostLeaseError, Outcome, Slot, Slots
from dlnn_search.storage.studies import StoredStudy
from dlnn_search.storage.trials import (
    Point,
    add_points,
    curve_of_slot,
    kept_of_slot,
    replace_curve,
)
from dlnn_search.storage.workers import WorkerRow, add_event
from dlnn_search.study import Sampler, Study
from dlnn_search.worker.interruption import Interruption
from dlnn_search.worker.optuna_study import (
    begin_made,
    begin_trial,
    chosen_sampler,
    has_enqueued,
    make_trial,
    put_back,
    storage_of,
)
from dlnn_search.worker.reports import (
    Reports,
    report_whole_curve,
    tell,
    tell_what_is_untold,
    write_note,
)
from dlnn_search.worker.verdict import TrialTimeoutError, Verdict, out_of_time

#: Between two renewals of a lease and two looks of the live view.
RENEW_SECONDS = 1.0

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass
class Search:
    """What one worker has of the study that it searches, the same for all of its trials.

    Attributes:
        study: As it is here.
        stored: The same, as the database knows it.
        optuna_study: Optuna's half of it.
        slots: Of which a trial holds one.
        worker_row: The worker's row.
        interruption: What may end a training before its time.
        has_opened_data: Whether this worker had the data: missing ones may come back then.
    """

    study: Study
    stored: StoredStudy
    database: Database
    optuna_study: optuna.Study
    slots: Slots
    worker_row: WorkerRow
    interruption: Interruption
    has_opened_data: bool = False

    def retrying(self, call: Callable[[], T]) -> T:
        """Call until no outage stops it, or a signal comes."""
        return self.database.retrying(call, interrupted=lambda: self.interruption.by_signal)

    def note_event(self, kind: str, words: str, slot: Slot | None = None) -> None:
        """Add an event, if the database takes it: it is a remark."""
        with suppress(DlnnSearchError):
            add_event(
                self.database,
                self.stored.id,
                kind,
                words,
                worker=self.worker_row.worker,
                slot_id=None if slot is None else slot.id,
            )


def claim(search: Search, token: str, *, again: bool) -> HeldTrial | None:
    """Claim a slot and make its trial, in one transaction: nobody sees one without the other.

    Where Optuna cannot join, or somebody enqueued a trial, `HeldTrial.begin` finds or makes it.

    Args:
        search: Of this worker.
        token: Names this claim.
        again: Whether it was tried before, and its answer lost: what it claimed is found again.

    Returns:
        None where no slot may be claimed.
    """
    try:
        while True:
            with search.database.together():
                # What is only read comes first: who starts reads all trials, and locks nothing.
                sampler = chosen_sampler(search.optuna_study, search.study)
                if not search.slots.untold():
                    return _claimed(search, sampler, token, again)
            tell_what_is_untold(search.optuna_study, search.slots)
    except BaseException as error:
        storage_of(search.optuna_study).forget_made()
        if isinstance(error, UndoneError) and error.__cause__ is not None:
            raise error.__cause__ from None
        raise


def _claimed(search: Search, sampler: Sampler, token: str, again: bool) -> HeldTrial | None:
    trials, slots = search.optuna_study, search.slots
    is_enqueued = has_enqueued(trials)
    slot = slots.claim(search.worker_row.worker, token, again=again)
    if slot is None:
        return None
    held = HeldTrial(search, slot, sampler)
    if held.is_new and search.database.joins and (slot.config is not None or not is_enqueued):
        held.made_id = make_trial(trials, slot)
        number = storage_of(trials).get_trial_number_from_id(held.made_id)
        slots.begin(slot, held.made_id, number)
    return held


class HeldTrial:
    """The slot that a worker holds, Optuna's trial in it, its checkpoint folder and its curve."""

    def __init__(self, search: Search, slot: Slot, sampler: Sampler) -> None:
        """Hold a slot that was claimed; `sampler` is the study's at that moment."""
        self.search = search
        self.slot = slot
        #: Optuna's id of the trial that was made with the claim, if one was.
        self.made_id: int | None = None
        #: Whether the study is to stop when it has converged, as of this trial's end.
        self.may_converge = False
        #: Whether the pruner has stopped it.
        self.is_pruned = False
        self._sampler = sampler
        self._trial: optuna.Trial | None = None
        self._reports: Reports | None = None
        self._place: str | None = None
        self._rungs: list[int] = []
        self._judged = 0  # the last rung that the pruner was asked at
        self._values: dict[int, float] = {}  # the metric by epoch
        self._waiting: list[Point] = []  # not stored yet
        self._n_kept = 0  # so many epochs are in the checkpoint
        # Who begins a trial has renewed and shown all a moment ago.
        self._renewed = self._shown = self._sent = time.monotonic()
        self._away_since: float | None = None
        self._n_tries = 0
        self._next_try = 0.0
        self._standing: Standing | None = None
        self._earlier_seconds = 0.0  # that earlier holders trained what it goes on from
        self._trains_since = time.monotonic()

    @property
    def is_new(self) -> bool:
        """Whether nobody held the slot before: its trial, checkpoint and curve are fresh."""
        return self.slot.fence == 1 and self.slot.trial_id is None

    @property
    def folder(self) -> Path:
        """Where its checkpoints are kept."""
        search = self.search
        path = slot_path(search.study.lasting_name, self.slot.number)
        return (search.database.files / path).parent

    @property
    def trial(self) -> optuna.Trial:
        """Optuna's trial, once it has begun."""
        assert self._trial is not None, "it has not begun"
        return self._trial

    @property
    def trial_id(self) -> int:
        """Optuna's id of its trial."""
        return trial_id_of(self.trial.study, self.trial)

    def is_interrupted(self) -> bool:
        """Whether its training should end with the epoch that runs, and be kept."""
        return self.search.interruption()

    def retrying(self, call: Callable[[], T]) -> T:
        """Call until no outage stops it, or the training should end."""
        return self.search.database.retrying(call, interrupted=self.is_interrupted)

    # Begun.

    def begin(self) -> None:
        """Take up Optuna's trial: the claim's, the slot's earlier one, an enqueued, or a new one.

        Raises:
            LostLeaseError: If another worker holds the slot.
            StorageError: If the slot's trial was deleted.
        """
        search = self.search
        if self.made_id is not None:
            self._trial = begin_made(
                search.optuna_study, search.study, self._sampler, self.slot, self.made_id
            )
        else:
            self._begin_anyhow()
        log.info("Trial %d begins%s.", self.trial.number, "" if self.slot.fence == 1 else " again")

    def _begin_anyhow(self) -> None:
        search = self.search
        is_again = False

        def begin() -> optuna.Trial:
            nonlocal is_again
            tried, is_again = is_again, True
            return begin_trial(search.optuna_study, search.study, self.slot, again=tried)

        self._trial = trial = search.retrying(begin)
        trial_id = search.retrying(lambda: self.trial_id)
        try:
            search.retrying(lambda: search.slots.begin(self.slot, trial_id, trial.number))
        except LostLeaseError:
            if search.slots.trial_of(self.slot) != trial_id:  # nobody will go on with it
                tell(search.optuna_study, trial_id, Verdict("failed", failure="lost"))
            raise

    def lost_too_often(self) -> Verdict | None:
        """Return the end of a trial that its workers do not survive; None where it may train."""
        if self.slot.losses < MAX_LOSSES:
            return None
        reason = f"Lost {self.slot.losses} times: its workers were killed or hung."
        return Verdict("failed", reason=reason, failure="lost")

    # Trained.

    def show(self, epochs: int) -> None:
        """Let the live view show it, before its first epoch of so many."""
        self.search.worker_row.show(
            state="training",
            message=None,
            trial_number=self.trial.number,
            slot_id=self.slot.id,
            epoch=0,
            epochs=epochs,
            share=0.0,
            value=None,
        )

    def expect(self, epochs: int) -> list[int]:
        """Say how long it will train at most; return the epochs at which it is judged."""
        # Once: the disk may be away later, when the database is not.
        self._place = place_of(self.search.database.files)
        self._rungs = rungs_of(self.trial.study.pruner, epochs)
        self._reports = Reports(
            self.trial.study,
            self.retrying(lambda: self.trial_id),
            metric=self.search.study.metric,
            epochs=epochs,
            rungs=self._rungs,
        )
        return self._rungs

    def take_up(self, points: Sequence[Point], damage: str | None = None) -> None:
        """Begin with the curve of the checkpoint that the training goes on from.

        Args:
            points: Its epochs; none where the training starts (over).
            damage: Why an earlier holder's checkpoint was of no use.

        Raises:
            LostLeaseError: If another worker holds the slot.
        """
        assert self._reports is not None, "nobody said how long it trains"
        reports, metric = self._reports, self.search.study.metric
        self._values = {point.epoch: point.metrics[metric] for point in points}
        if not self.is_new:
            self.retrying(lambda: self._replace_curve(points, damage))
        self.retrying(lambda: reports.begin(self._values, is_new=self.is_new))
        self._earlier_seconds = sum(point.seconds for point in points)
        self._trains_since = time.monotonic()
        # Later rungs judge the earlier ones again; only a judgement that a kill may have cut off
        # is made up for here.
        self._judged = max((rung for rung in self._rungs if rung < len(points)), default=0)

    def _replace_curve(self, points: Sequence[Point], damage: str | None) -> None:
        """Let the stored curve be the checkpoint's, and say so where epochs are lost."""
        database, place = self.search.database, self._place
        assert place is not None, "nobody said how long it trains"
        kept = kept_of_slot(database, self.slot.id)
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
            database,
            self.slot.id,
            self.slot.fence,
            points,
            place=place,
            worker=self.search.worker_row.worker,
            words=words,
        ):
            raise self._lost()
        if words is not None:
            log.warning("%s", words)

    def progress(self, epoch: int, share: float) -> None:
        """Renew the lease: training goes forward.

        Raises:
            LostLeaseError: If another worker holds the slot.
            TrialTimeoutError: If it has trained for as long as it may.
        """
        if time.monotonic() - self._renewed < RENEW_SECONDS:
            return
        self._renewed = time.monotonic()
        self.attempt(lambda: self._renew(epoch, share))
        limit = self.search.interruption.trial_timeout_seconds
        trained = self._earlier_seconds + time.monotonic() - self._trains_since
        if limit is not None and trained > limit:
            raise TrialTimeoutError(out_of_time(self._values, self.search.study.metric, limit))

    def _renew(self, epoch: int, share: float) -> None:
        with self.search.database.together():
            self.search.slots.renew(self.slot)
            self.search.worker_row.show(epoch=epoch, share=share)

    def report(self, point: Point) -> None:
        """Take an epoch that was trained, and that no checkpoint holds yet."""
        value = point.metrics[self.search.study.metric]
        self._values[point.epoch] = value
        self._waiting.append(point)
        if time.monotonic() - self._shown < RENEW_SECONDS:
            return
        self._shown = time.monotonic()
        speed = point.images_per_second
        show = self.search.worker_row.show
        self.attempt(lambda: show(epoch=point.epoch, value=value, images_per_second=speed))

    def keep(self, n_epochs: int) -> None:
        """Send the epochs that a checkpoint now holds, if the database answers.

        Of epochs that take less than a second, several at a time: a kill loses none, as whoever
        goes on stores what the checkpoint holds.

        Raises:
            LostLeaseError: If another worker holds the slot.
        """
        self._n_kept = n_epochs
        if time.monotonic() - self._sent >= RENEW_SECONDS:
            self.send_kept()

    def send_kept(self) -> None:
        """Send the epochs that a checkpoint holds now, if the database answers.

        Raises:
            LostLeaseError: If another worker holds the slot.
        """
        self._sent = time.monotonic()
        self.attempt(self._send)

    def send_all(self) -> None:
        """Send the epochs that a checkpoint holds, and wait for the database if it must be.

        Raises:
            LostLeaseError: If another worker holds the slot.
            StorageError: If the database stays away.
            OutageError: If the training should end while it is away.
        """
        self.retrying(self._send)
        self._is_back()

    def send_curve(self) -> None:
        """Send every epoch that was trained, those of no checkpoint, too: nobody will go on.

        Harmless where none was. Raises as `send_all` does.
        """
        reports = self._reports
        if reports is None:
            return
        if self._waiting:
            self._n_kept = max(self._n_kept, self._waiting[-1].epoch)
        self.retrying(lambda: self._store(list(self._waiting), partial(reports.end, self._values)))
        self._is_back()

    def is_behind(self, n_epochs: int) -> bool:
        """Ask the pruner at the latest rung, as soon as the database has the curve to it."""
        rung = max((rung for rung in self._rungs if rung <= n_epochs), default=0)
        if rung > self._judged and not self._waiting:
            self.attempt(lambda: self._judge(rung))  # else it is asked when the database is back
        return self.is_pruned

    def _judge(self, rung: int) -> None:
        trial = self.trial
        self.is_pruned = falls_behind(trial.study, trial.number, rung, self._values[rung])
        self._judged = rung

    def attempt(self, call: Callable[[], object]) -> bool:
        """Call, unless the database is away; return whether it answered."""
        now = time.monotonic()
        if now < self._next_try:
            return False
        try:
            with storage_errors(self.search.database.url):
                call()
        except OutageError as error:
            self._n_tries += 1
            if self._away_since is None:
                self._away_since = now
                log.warning("%s Training goes on, and its results are stored later.", error)
            # A server that does not even refuse costs time: training shall have most of it.
            took = time.monotonic() - now
            pause = pause_seconds(self._n_tries, MAX_PAUSE_SECONDS)
            self._next_try = time.monotonic() + max(pause, 4 * took)
            return False
        self._is_back()
        return True

    def _is_back(self) -> None:
        if self._away_since is None:
            return
        seconds = time.monotonic() - self._away_since
        self._away_since, self._n_tries, self._next_try = None, 0, 0.0
        words = f"The database was away for {seconds:.0f} s; training went on."
        log.warning("%s", words)
        self.search.note_event("recovered", words, self.slot)

    def _send(self) -> None:
        assert self._reports is not None
        points = [point for point in self._waiting if point.epoch <= self._n_kept]
        if points:
            values = {point.epoch: self._values[point.epoch] for point in points}
            self._store(points, partial(self._reports.tell, values))

    def _store(self, points: list[Point], report: Callable[[], None]) -> None:
        """Store the first of what waits, and report, in one transaction."""
        assert self._reports is not None
        try:
            with self._reports.as_a_whole(), self.search.database.together():
                self._add(points)
                report()
        except UndoneError:  # the trial was ended in the dashboard, say: our curve has it all
            self._add(points)
            report()
        self._waiting = self._waiting[len(points) :]

    def _add(self, points: list[Point]) -> None:
        database = self.search.database
        place = self._place if points else None
        slot = self.slot
        if not add_points(database, slot.id, slot.fence, points, place=place, epochs=self._n_kept):
            raise self._lost()

    def _lost(self) -> LostLeaseError:
        return LostLeaseError(f"Slot {self.slot.number} was claimed by another worker.")

    # Ended.

    def conclude(self, verdict: Verdict) -> Verdict:
        """Store what came of it: it ends, or is given back, or waits for another trial.

        Returns:
            The verdict that counts: where another trial has the same config, that one's.

        Raises:
            LostLeaseError: If another worker holds the slot.
        """
        if verdict.waits:  # as it was noted: nobody holds it any more
            return verdict
        if self._trial is not None and (first := verdict.duplicate) and first.outcome:
            verdict = Verdict(
                first.outcome,
                value=first.value,
                best_epoch=first.best_epoch,
                reason=first.reason,
                failure="diverged" if first.failure is not None else None,
                duplicate=first,
            )
            search = self.search
            points = search.retrying(lambda: curve_of_slot(search.database, first.slot_id))
            self._end(
                verdict,
                lambda: self._report_curve(points),
                lambda: settle_like(search.database, search.stored.id, self.slot, first),
            )
        elif self._trial is None or verdict.outcome is None:
            self.search.retrying(lambda: self.give_back(verdict))
        else:
            self._end(verdict, partial(self._settle, verdict.outcome, verdict))
        return verdict

    def give_back(self, verdict: Verdict) -> None:
        """Release the slot; its trial waits, as nobody runs it.

        Raises:
            LostLeaseError: If another worker holds the slot.
        """
        search = self.search
        trial_id = search.slots.trial_if_held(self.slot)

        def wait() -> None:
            if trial_id is not None:
                put_back(search.optuna_study, trial_id)

        def release() -> None:
            search.slots.release(self.slot, failure=verdict.failure, reason=verdict.reason)

        search.database.at_once(wait, release)

    def _end(self, verdict: Verdict, *settle: Callable[[], None]) -> None:
        """Settle the slot, in one transaction with all that follows, and look at the files once.

        Where Optuna refuses its part (somebody ended the trial in the dashboard), the parts are
        done one after the other, and whoever comes next tells Optuna what a kill between left.
        """
        search, slot_id = self.search, self.slot.id
        database, metric = search.database, search.study.metric
        parts: tuple[Callable[[], object], ...] = (
            *settle,
            partial(write_note, self.trial, slot_id, verdict, database, metric),
            partial(self._tell, verdict),
            partial(search.slots.mark_told, slot_id),
            self._look,
        )
        search.retrying(partial(database.at_once, *parts))
        value = "" if verdict.value is None else f", {metric} {verdict.value:.6g}"
        why = f" {verdict.reason}" if verdict.reason else ""
        log.info("Trial %d is %s%s.%s", self.trial.number, verdict.outcome, value, why)
        keep = search.study.keep_checkpoints
        search.retrying(lambda: settle_checkpoint(database, slot_id, keep, self._standing))

    def _settle(self, outcome: Outcome, verdict: Verdict) -> None:
        self.search.slots.settle(
            self.slot,
            outcome,
            value=verdict.value,
            best_epoch=verdict.best_epoch,
            reason=verdict.reason,
            failure=verdict.failure,
        )

    def _report_curve(self, points: Sequence[Point]) -> None:
        metric = self.search.study.metric
        values = {point.epoch: point.metrics[metric] for point in points}
        with suppress(UpdateFinishedTrialError):  # ended in the dashboard
            report_whole_curve(self.search.optuna_study, self.trial_id, metric, values)

    def _tell(self, verdict: Verdict) -> None:
        trials = self.trial.study
        tell(trials, self.trial_id, verdict, known=storage_of(trials).known(self.trial))

    def _look(self) -> None:
        search = self.search
        keep = search.study.keep_checkpoints
        self._standing = standing_of(search.database, self.slot.id, keep)
        _, rule = kept_stop_rule(search.database, search.stored.id)
        self.may_converge = rule is not None
