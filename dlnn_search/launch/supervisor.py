"""Starts worker processes, restarts the dead and the grown, and stops them when asked."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dlnn_search.errors import (
    DataError,
    DlnnSearchError,
    ExitCode,
    OutageError,
    StorageError,
    StudyError,
    UsageError,
)
from dlnn_search.launch.detached import Adopted, Started, WorkerProcess, exit_words, last_words
from dlnn_search.machine import Seat
from dlnn_search.storage.database import Database
from dlnn_search.storage.slots import Slots
from dlnn_search.storage.workers import (
    Orphan,
    add_event,
    new_worker_name,
    process_mark,
    what_was_trained,
)

POLL_SECONDS = 0.2
FIRST_BACK_OFF_SECONDS = 1.0
LONGEST_BACK_OFF_SECONDS = 60.0
#: A worker that dies that often without living for `STEADY_SECONDS` in between is given up.
MAX_CRASHES = 5
#: The same while the other workers finish trials: it is tried less and less often.
MAX_CRASHES_BESIDE_OTHERS = 20
STEADY_SECONDS = 120.0
#: Errors that a new process would only meet again.
FATAL_EXIT_CODES: dict[int, type[DlnnSearchError]] = {
    error.exit_code: error for error in (UsageError, StudyError, DataError)
}
#: After the second Ctrl-C a worker has that long to give its slot back.
GRACE_SECONDS = 5.0
#: SIGTERM comes from what kills 30 s later (Slurm, Kubernetes) or earlier (compose: see its
#: `stop_grace_period`). So long may the epochs end; then the workers end now; then they are
#: killed; and whatever hangs even then, such as a database that does not answer, is left.
EPOCH_SECONDS = 12.0
KILL_SECONDS = 18.0
LAST_SECONDS = 24.0
#: Between two tries of a database that is away.
RETRY_SECONDS = 2.0


@dataclass
class _Place:
    """One of the N places for a worker, and the process that fills it now."""

    seat: Seat
    process: WorkerProcess | None = None
    worker: str = ""
    log: Path = Path()
    started: float = 0.0
    crashes: int = 0
    n_trained: int = 0
    restart_at: float = 0.0
    done: bool = False
    given_up: DlnnSearchError | None = None


@dataclass
class Supervisor:
    """The worker processes of one study on this machine.

    Attributes:
        command: Arguments after `python -m dlnn_search` that run a worker.
        environment: Added to the workers' environment; holds the database's address, which
            must not be seen in a list of processes.
        seats: What each worker has of the machine: one worker a seat.
        logs: Folder of the workers' log files.
        away: Told for how many seconds the database has not answered.
    """

    command: list[str]
    environment: dict[str, str]
    seats: Sequence[Seat]
    database: Database
    study_id: int
    logs: Path
    say: Callable[[str], None]
    away: Callable[[float], None]
    _places: list[_Place] = field(default_factory=list)
    _n_stop_signals: int = 0
    _now_at: float | None = None
    _kill_at: float | None = None
    _pending: list[Callable[[], None]] = field(default_factory=list)
    _away_since: float | None = None
    _try_at: float = 0.0

    def run(
        self,
        tick: Callable[[], None],
        deadline: float | None,
        orphans: Sequence[Orphan] = (),
        *,
        ignore_hangup: bool = False,
    ) -> bool:
        """Run the workers until the budget is used up or somebody stops them.

        Args:
            tick: Called several times a second, to draw.
            deadline: `time.monotonic()` at which the workers are asked to stop.
            orphans: Living workers whose supervisor died: they take a seat each. Those beyond
                the seats are asked to keep their checkpoints and end.
            ignore_hangup: Go on when the terminal is closed.

        Returns:
            Whether the workers ended by themselves: no slot is open, or `stop` was asked for.

        Raises:
            DlnnSearchError: If no worker can work: what the last of them said.
        """
        self._places = [_Place(seat) for seat in self.seats]
        self._adopt(orphans)
        previous = {
            number: signal.signal(number, self._hear)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        if ignore_hangup:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            while not all(place.done for place in self._places):
                for place in self._places:
                    self._look_after(place)
                self._watch_the_clock(deadline)
                self._with_database(tick)
                time.sleep(POLL_SECONDS)
            self._tell_failure()
            return not self._n_stop_signals
        finally:
            self._end_all()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _adopt(self, orphans: Sequence[Orphan]) -> None:
        free = list(self._places)
        for orphan in orphans:
            # Where it trains already, if there is such a seat.
            same = [place for place in free if _gpu_name(place.seat) == orphan.gpu]
            place = next(iter(same or free), None)
            process = Adopted(orphan.pid)
            if place is None:
                self.say(
                    f"Worker {orphan.worker} of an earlier start has no place in this one. It "
                    "keeps its checkpoint and ends."
                )
                process.send(signal.SIGTERM)
                # Looked after to its end, never replaced.
                place = _Place(self.seats[0], restart_at=float("inf"))
                self._places.append(place)
            else:
                free.remove(place)
                self.say(
                    f"Worker {orphan.worker} of an earlier start goes on. It is looked after here."
                )
            place.process, place.worker = process, orphan.worker
            place.log = self.logs / f"{orphan.worker}.log"
            place.started = time.monotonic()

    def _look_after(self, place: _Place) -> None:
        if place.done:
            return
        if place.process is None:
            if self._n_stop_signals or place.restart_at == float("inf"):
                place.done = True
            elif time.monotonic() >= place.restart_at:
                self._fill(place)
            return
        code = place.process.exit_code()
        if code is None:
            return
        adopted = isinstance(place.process, Adopted)
        place.process = None
        if self._n_stop_signals:
            self._release(place.worker, is_loss=False)
            place.done = True
        elif adopted:
            # It may have finished or died: a new worker finds out what is left to do.
            self._release(place.worker, is_loss=True)
        elif code == ExitCode.RECYCLED:
            place.crashes = 0
            self.say(f"Worker {place.worker} used too much memory and ended. A new one starts.")
        elif code in (ExitCode.DONE, ExitCode.INTERRUPTED):
            place.done = True
        else:
            self._crashed(place, code)

    def _crashed(self, place: _Place, code: int) -> None:
        self._release(place.worker, is_loss=True)
        told = last_words(place.log)
        how = exit_words(code)
        if code in FATAL_EXIT_CODES:
            raise FATAL_EXIT_CODES[ExitCode(code)](told.sentence, details=told.details)
        if time.monotonic() - place.started > STEADY_SECONDS:
            place.crashes = 0
        is_outage = code == ExitCode.STORAGE and self._away_since is not None
        if not is_outage and self._count_crash(place):
            self._give_up(place, code, told, how)
            return
        wait = min(
            FIRST_BACK_OFF_SECONDS * 2 ** max(0, place.crashes - 1), LONGEST_BACK_OFF_SECONDS
        )
        place.restart_at = time.monotonic() + wait
        words = (
            f"Worker {place.worker} died by {how}; its trial goes on from the last checkpoint. "
            f"A new worker starts in {wait:.0f} s."
        )
        self.say(f"{words} Log: {place.log}")
        self._note("restarted", f"{words} It said last: {told.sentence}", place.worker)

    def _count_crash(self, place: _Place) -> bool:
        """Count a worker's death; return whether its place is to be given up.

        One that trained was killed, as by an operator or for want of memory: no crash loop, if
        trials are finished meanwhile. Its trial's losses are counted all the same.
        """
        n_trained = place.n_trained
        with suppress(StorageError):
            trained, n_trained = what_was_trained(self.database, self.study_id, place.worker)
            if trained and n_trained > place.n_trained:
                place.crashes = 0
        place.crashes += 1
        if place.crashes == 1:
            place.n_trained = n_trained
        goes_on = n_trained > place.n_trained
        return place.crashes >= (MAX_CRASHES_BESIDE_OTHERS if goes_on else MAX_CRASHES)

    def _give_up(self, place: _Place, code: int, told: DlnnSearchError, how: str) -> None:
        """Leave a place empty; the others go on."""
        place.done = True
        words = (
            f"A worker died {place.crashes} times in a row, the last time by {how}: "
            f"{told.sentence.rstrip('.')}. Its log: {place.log}"
        )
        error = StorageError if code == ExitCode.STORAGE else DlnnSearchError
        place.given_up = error(words, details=told.details)
        self._note("gave_up", words, place.worker)
        left = sum(not other.done for other in self._places)
        if left:
            self.say(f"{words}. Its place stays empty; {left} others go on.")

    def _tell_failure(self) -> None:
        """Fail where every place was given up: nobody works any more."""
        errors = [place.given_up for place in self._places if place.given_up is not None]
        if errors and len(errors) == len(self._places):
            raise errors[-1]

    def _fill(self, place: _Place) -> None:
        """Start a worker, unless it is a further one and nothing is left to do."""
        if place.worker:
            self._with_database(lambda: self._close_if_all_done(place))
        if not place.done:
            self._start(place)

    def _close_if_all_done(self, place: _Place) -> None:
        place.done = Slots(self.database, self.study_id).all_done()

    def _start(self, place: _Place) -> None:
        place.worker = new_worker_name()
        place.log = self.logs / f"{place.worker}.log"
        place.started = time.monotonic()
        try:
            place.process = Started(
                [
                    *self.command,
                    *place.seat.options,
                    *("--name", place.worker),
                    *("--log", str(place.log)),
                    *("--supervisor", process_mark()),
                    *("--n-workers", str(len(self.seats))),
                ],
                {**self.environment, **place.seat.environment},
                place.log,
            )
        except OSError as error:
            raise StorageError(
                f"Cannot start a worker with the log '{place.log}': {error.strerror or error}. "
                "Make room or make the folder writable, then start again."
            ) from error

    def _watch_the_clock(self, deadline: float | None) -> None:
        now = time.monotonic()
        if deadline is not None and now > deadline and not self._n_stop_signals:
            self.say("Time is up. The workers finish their epoch and keep it.")
            self._stop_signal()
        if self._now_at is not None and now > self._now_at:
            self._now_at = None
            self._send(signal.SIGINT)
        if self._kill_at is not None and now > self._kill_at:
            self._send(signal.SIGKILL)

    def _hear(self, number: int, _frame: object) -> None:
        if number == signal.SIGTERM and self._now_at is None and self._kill_at is None:
            now = time.monotonic()
            self._now_at, self._kill_at = now + EPOCH_SECONDS, now + KILL_SECONDS
            # Never cancelled: a last look at a database that is away may hang, too.
            last = threading.Timer(LAST_SECONDS, self._leave)
            last.daemon = True
            last.start()
        self._stop_signal()

    def _stop_signal(self) -> None:
        """Once: the workers finish their epoch. Twice: they end now. Thrice: they are killed."""
        self._n_stop_signals += 1
        if self._n_stop_signals == 1:
            self.say("Stopping after the running epochs. Press Ctrl-C again to stop at once.")
        if self._n_stop_signals == 2:
            # Not killed yet: a worker that gives its slot back has not lost it.
            self._kill_at = min(time.monotonic() + GRACE_SECONDS, self._kill_at or float("inf"))
        # Workers take two SIGTERMs at once for one: the second signal is another.
        numbers = {1: signal.SIGTERM, 2: signal.SIGINT}
        self._send(numbers.get(self._n_stop_signals, signal.SIGKILL))

    def _leave(self) -> None:
        """End this process whatever it waits for: its own killer comes next."""
        self._send(signal.SIGKILL)
        os._exit(ExitCode.INTERRUPTED)

    def _send(self, number: signal.Signals) -> None:
        for place in self._places:
            if place.process is not None:
                place.process.send(number)

    def _end_all(self) -> None:
        self._send(signal.SIGTERM)
        for place in self._places:
            if place.process is not None:
                if not place.process.wait(10):
                    place.process.send(signal.SIGKILL)
                    place.process.wait(10)
                self._release(place.worker, is_loss=False)
        with suppress(DlnnSearchError):
            self._do_pending()

    def _release(self, worker: str, *, is_loss: bool) -> None:
        slots = Slots(self.database, self.study_id)
        self._later(lambda: slots.release_of_dead(worker, is_loss=is_loss))

    def _note(self, kind: str, words: str, worker: str) -> None:
        self._later(lambda: add_event(self.database, self.study_id, kind, words, worker=worker))

    def _later(self, write: Callable[[], None]) -> None:
        """Write to the database now, or when it is back."""
        self._pending.append(write)
        self._with_database(lambda: None)

    def _with_database(self, action: Callable[[], None]) -> None:
        """Do what waits for the database, then an action; while it is away, say so."""
        now = time.monotonic()
        if self._away_since is not None and now < self._try_at:
            self.away(now - self._away_since)
            return
        try:
            self._do_pending()
            action()
        except OutageError:
            if self._away_since is None:
                self._away_since = now
            self._try_at = time.monotonic() + RETRY_SECONDS
            return
        except OSError:  # the terminal is gone
            return
        if self._away_since is not None:
            self.say(f"The database is back after {time.monotonic() - self._away_since:.0f} s.")
            self._away_since = None

    def _do_pending(self) -> None:
        while self._pending:
            self._pending[0]()
            self._pending.pop(0)


def _gpu_name(seat: Seat) -> str | None:
    return None if seat.gpu is None else str(seat.gpu)
