"""What a trial under training has to tell the database, and keeps while that is away."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress

import optuna

from dlnn_search.errors import DlnnSearchError, OutageError
from dlnn_search.metrics import DIRECTIONS, loss_sign
from dlnn_search.storage.curves import Point, add_points
from dlnn_search.storage.database import Database, UndoneError, storage_errors
from dlnn_search.storage.database.outages import MAX_PAUSE_SECONDS, pause_seconds
from dlnn_search.storage.slots import LostLeaseError, Slot, Slots
from dlnn_search.storage.workers import Presence, add_event
from dlnn_search.worker.optuna_study import storage_of

#: Reports of one trial: rungs, evenly spread epochs, the last and the best.
MAX_REPORTS = 20


def epochs_to_report(epochs: int, rungs: Sequence[int]) -> frozenset[int]:
    """Return which of a trial's epochs Optuna is told as they come: at most `MAX_REPORTS` - 1.

    The first, the rungs, evenly spread ones, the last; the best is known at the end alone.
    """
    wanted = {1, epochs, *rungs}
    spread = max(1, MAX_REPORTS - 1 - len(wanted))
    step = max(1, math.ceil(epochs / spread))
    return frozenset(wanted | set(range(step, epochs + 1, step)))


class Reports:
    """The reported values of one trial, held equal to its curve."""

    def __init__(
        self,
        optuna_study: optuna.Study,
        trial_id: int,
        *,
        metric: str,
        epochs: int,
        rungs: Sequence[int],
    ) -> None:
        self._storage = storage_of(optuna_study)
        self._trial_id = trial_id
        self._sign = loss_sign(DIRECTIONS[metric])
        self._due = epochs_to_report(epochs, rungs)
        #: What Optuna has.
        self._told: dict[int, float] = {}
        self._is_new = True

    def begin(self, values: Mapping[int, float], *, is_new: bool) -> None:
        """Make Optuna's values those of the curve that the trial goes on from.

        Args:
            values: The metric by epoch; empty where the trial starts (over).
            is_new: Whether nobody can have reported anything of it yet.
        """
        self._look(is_new=is_new)
        self._write(values, self._due & set(values))

    def tell(self, values: Mapping[int, float]) -> None:
        """Report those of the epochs that are due.

        Args:
            values: The metric by epoch, of epochs that are stored in our own tables.
        """
        known = set(values)
        self._set({epoch: values[epoch] for epoch in known & (self._due | set(self._told))})

    def end(self, values: Mapping[int, float]) -> None:
        """Add the last and the best epoch, and mend what a former holder may have written.

        Args:
            values: The metric of all epochs.
        """
        if not values:
            return
        best = min(values, key=lambda epoch: (self._sign * values[epoch], epoch))
        self._look(is_new=self._is_new)
        self._write(values, (self._due & set(values)) | {best, max(values)})

    @contextmanager
    def as_a_whole(self) -> Iterator[None]:
        """Take what is written inside for not written where that fails."""
        told = dict(self._told)
        try:
            yield
        except BaseException:
            self._told = told
            raise

    def _look(self, *, is_new: bool) -> None:
        self._is_new = is_new
        if not is_new:
            self._told = dict(self._storage.get_trial(self._trial_id).intermediate_values)

    def _write(self, values: Mapping[int, float], wanted: Set[int]) -> None:
        # Optuna's interface takes no value back: NaN stands where an epoch is not (yet) again.
        self._set({epoch: values.get(epoch, math.nan) for epoch in {*self._told, *wanted}})

    def _set(self, values: Mapping[int, float]) -> None:
        new = {
            epoch: values[epoch]
            for epoch in sorted(values)
            if not _is_same(self._told.get(epoch), values[epoch])
        }
        if new:
            self._storage.set_trial_intermediate_values(self._trial_id, new)
            self._told |= new


def _is_same(known: float | None, value: float) -> bool:
    return known is not None and (known == value or (math.isnan(known) and math.isnan(value)))


def report_whole_curve(
    optuna_study: optuna.Study, trial_id: int, metric: str, values: Mapping[int, float]
) -> None:
    """Report a curve that another trial trained: this one has the same config.

    Args:
        optuna_study: The trial's study.
        trial_id: Optuna's id of it.
        metric: That the study optimises.
        values: The metric by epoch.
    """
    reports = Reports(optuna_study, trial_id, metric=metric, epochs=len(values), rungs=())
    reports.begin(values, is_new=False)
    reports.end(values)


#: Between two renewals of a lease and two looks of the live view.
RENEW_SECONDS = 1.0

log = logging.getLogger(__name__)


class Outbox:
    """One trial's way to the database, which may be away: training goes on meanwhile.

    Epochs wait here until they are in a checkpoint and the database has taken them, in order.
    Lease and live view are renewed when it answers; of them only the present counts. All that
    is written is fenced and safe to write twice.
    """

    def __init__(
        self,
        database: Database,
        slots: Slots,
        slot: Slot,
        presence: Presence,
        reports: Reports,
        *,
        metric: str,
        place: str,
    ) -> None:
        self._database = database
        self._slots = slots
        self._slot = slot
        self._presence = presence
        self._reports = reports
        self._metric = metric
        self._place = place
        self._waiting: list[Point] = []  # not stored yet
        self._n_kept = 0  # so many epochs are in the checkpoint
        # Who begins a trial has renewed and shown all a moment ago.
        self._renewed = self._shown = self._sent = time.monotonic()
        self._away_since: float | None = None
        self._n_tries = 0
        self._next_try = 0.0

    @property
    def n_waiting(self) -> int:
        """How many epochs the database does not have yet."""
        return len(self._waiting)

    def progress(self, epoch: int, share: float) -> None:
        """Renew the lease: training goes forward.

        Raises:
            LostLeaseError: If another worker holds the slot.
        """
        if time.monotonic() - self._renewed < RENEW_SECONDS:
            return
        self._renewed = time.monotonic()

        def renew() -> None:
            with self._database.together():
                self._slots.renew(self._slot)
                self._presence.show(epoch=epoch, share=share)

        self.attempt(renew)

    def trained(self, point: Point) -> None:
        """Take an epoch that no checkpoint holds yet."""
        self._waiting.append(point)
        if time.monotonic() - self._shown < RENEW_SECONDS:
            return
        self._shown = time.monotonic()

        def show() -> None:
            self._presence.show(
                epoch=point.epoch,
                value=point.metrics[self._metric],
                images_per_second=point.images_per_second,
            )

        self.attempt(show)

    def kept(self, n_epochs: int) -> None:
        """Send the epochs that a checkpoint now holds, if the database answers.

        Of epochs that take less than a second, several at a time: a kill loses none, as whoever
        goes on stores what the checkpoint holds.

        Raises:
            LostLeaseError: If another worker holds the slot.
        """
        self._n_kept = n_epochs
        if time.monotonic() - self._sent < RENEW_SECONDS:
            return
        self.send_kept()

    def send_kept(self) -> None:
        """Send the epochs that a checkpoint holds now, if the database answers.

        Raises:
            LostLeaseError: If another worker holds the slot.
        """
        self._sent = time.monotonic()
        self.attempt(self._send)

    def send_all(self, *, interrupted: Callable[[], bool]) -> None:
        """Send what waits, and wait for the database if it must be.

        Raises:
            LostLeaseError: If another worker holds the slot.
            StorageError: If the database stays away.
            OutageError: If `interrupted` while it is away.
        """
        self._database.retrying(self._send, interrupted=interrupted)
        self._is_back()

    def end(self, values: Mapping[int, float], *, interrupted: Callable[[], bool]) -> None:
        """Send every epoch that was trained, those of no checkpoint, too: nobody will go on.

        Args:
            values: The metric of all epochs; what Optuna has is made equal to it.
            interrupted: As of `send_all`.
        """
        if self._waiting:
            self._n_kept = max(self._n_kept, self._waiting[-1].epoch)

        def send() -> None:
            self._store(list(self._waiting), lambda: self._reports.end(values))

        self._database.retrying(send, interrupted=interrupted)
        self._is_back()

    def attempt(self, call: Callable[[], object]) -> bool:
        """Call, unless the database is away; return whether it answered."""
        now = time.monotonic()
        if now < self._next_try:
            return False
        try:
            with storage_errors(self._database.url):
                call()
        except OutageError as error:
            self._n_tries += 1
            if self._away_since is None:
                self._away_since = now
                log.warning("%s Training goes on; what it has to tell is kept.", error)
            # A server that does not even refuse costs time: training shall have most of it.
            took = time.monotonic() - now
            pause = pause_seconds(self._n_tries, MAX_PAUSE_SECONDS)
            self._next_try = time.monotonic() + max(pause, 4 * took)
            return False
        self._is_back()
        return True

    def _send(self) -> None:
        points = [point for point in self._waiting if point.epoch <= self._n_kept]
        if points:
            values = {point.epoch: point.metrics[self._metric] for point in points}
            self._store(points, lambda: self._reports.tell(values))

    def _store(self, points: list[Point], report: Callable[[], None]) -> None:
        """Store the first of what waits, and report, in one transaction."""

        def add() -> None:
            if not add_points(
                self._database,
                self._slot.id,
                self._slot.fence,
                points,
                place=self._place if points else None,
                epochs=self._n_kept,
            ):
                raise LostLeaseError(f"Slot {self._slot.number} was claimed by another worker.")

        try:
            with self._reports.as_a_whole(), self._database.together():
                add()
                report()
        except UndoneError:  # the trial was ended in the dashboard, say: our curve has it all
            add()
            report()
        self._waiting = self._waiting[len(points) :]

    def _is_back(self) -> None:
        if self._away_since is None:
            return
        seconds = time.monotonic() - self._away_since
        self._away_since, self._n_tries, self._next_try = None, 0, 0.0
        words = f"The database was away for {seconds:.0f} s; training went on."
        log.warning("%s", words)
        with suppress(DlnnSearchError):  # a remark, and it may have gone again
            add_event(
                self._database,
                self._presence.study_id,
                "recovered",
                words,
                worker=self._presence.worker,
                slot_id=self._slot.id,
            )
