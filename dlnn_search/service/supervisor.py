"""Starts worker processes, restarts the dead, and stops them when asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dlnn_search.errors import DataError, DlnnSearchError, StorageError, StudyError, UsageError
from dlnn_search.service.worker import EXIT_DONE, EXIT_INTERRUPTED
from dlnn_search.storage.presence import new_worker_name
from dlnn_search.storage.slots import Slots

POLL_SECOND = 0.2
FIRST_BACK_OFF_SECONDS = 1.0
LONGEST_BACK_OFF_SECONDS = 60.0
#: A worker that dies that often without living for `STEADY_SECONDS` in between is given up.
MAX_CRASHES = 5
STEADY_SECONDS = 120.0
#: Errors that a new process would only meet again.
FATAL_EXIT_CODES = {
    error.exit_code: error for error in (UsageError, StudyError, DataError, StorageError)
}
#: After the second signal a worker has that long to give its slot back.
GRACE_SECONDS = 5.0
#: Lines of a dead worker's log that are told.
LOG_LINES = 4


@dataclass
class _Place:
    """One of the N places for a worker, and the process that fills it now."""

    process: subprocess.Popen[bytes] | None = None
    worker: str = ""
    log: Path = Path()
    started: float = 0.0
    crashes: int = 0
    restart_at: float = 0.0
    done: bool = False


@dataclass
class Supervisor:
    """N worker processes of one study on this machine.

    Attributes:
        command: Arguments after `python -m dlnn_search` that run a worker.
        environment: Added to the workers' environment; holds the database's address, which
            must not be seen in a list of processes.
        logs: Folder of the workers' log files.
    """

    command: list[str]
    environment: dict[str, str]
    n_workers: int
    slots: Slots
    logs: Path
    say: Callable[[str], None]
    _places: list[_Place] = field(default_factory=list)
    _n_stop_signals: int = 0
    _kill_at: float | None = None

    def run(self, tick: Callable[[], None], deadline: float | None) -> bool:
        """Run the workers until the budget is used up or somebody stops them.

        Args:
            tick: Called several times a second, to draw.
            deadline: `time.monotonic()` at which the workers are asked to stop.

        Returns:
            Whether the workers ended by themselves, for want of open slots.

        Raises:
            DlnnSearchError: If the workers cannot work: what the last of them said.
        """
        self._places = [_Place() for _ in range(self.n_workers)]
        previous = {
            number: signal.signal(number, lambda *_: self._stop_signal())
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        try:
            while not all(place.done for place in self._places):
                for place in self._places:
                    self._look_after(place)
                if deadline is not None and time.monotonic() > deadline:
                    if not self._n_stop_signals:
                        self.say("Time is up: the workers finish their epoch and keep it.")
                        self._stop_signal()
                    deadline = None
                if self._kill_at is not None and time.monotonic() > self._kill_at:
                    self._send(signal.SIGKILL)
                tick()
                time.sleep(POLL_SECOND)
            return not self._n_stop_signals
        finally:
            self._end_all()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _look_after(self, place: _Place) -> None:
        if place.done:
            return
        if place.process is None:
            if self._n_stop_signals:
                place.done = True
            elif time.monotonic() >= place.restart_at:
                self._start(place)
            return
        code = place.process.poll()
        if code is None:
            return
        place.process = None
        if code in (EXIT_DONE, EXIT_INTERRUPTED) or self._n_stop_signals:
            if code not in (EXIT_DONE, EXIT_INTERRUPTED):
                self.slots.release_of_dead(place.worker, is_loss=False)
            place.done = True
            return
        self._crashed(place, code)

    def _crashed(self, place: _Place, code: int) -> None:
        self.slots.release_of_dead(place.worker)
        told = _tail(place.log)
        if code in FATAL_EXIT_CODES:
            raise FATAL_EXIT_CODES[code](told.removeprefix("Error: "))
        if time.monotonic() - place.started > STEADY_SECONDS:
            place.crashes = 0
        place.crashes += 1
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        if place.crashes >= MAX_CRASHES:
            raise DlnnSearchError(
                f"A worker died {place.crashes} times in a row, the last time by {how}:\n{told}\n"
                f"Its log: {place.log}"
            )
        wait = min(FIRST_BACK_OFF_SECONDS * 2 ** (place.crashes - 1), LONGEST_BACK_OFF_SECONDS)
        place.restart_at = time.monotonic() + wait
        self.say(
            f"Worker {place.worker} died by {how}; its trial goes on from the last checkpoint. "
            f"A new worker starts in {wait:.0f} s. Log: {place.log}"
        )

    def _start(self, place: _Place) -> None:
        place.worker = new_worker_name()
        place.log = self.logs / f"{place.worker}.log"
        place.started = time.monotonic()
        self.logs.mkdir(parents=True, exist_ok=True)
        with place.log.open("wb") as log:
            place.process = subprocess.Popen(
                [sys.executable, "-m", "dlnn_search", *self.command, "--name", place.worker],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Of its own, so that Ctrl-C reaches the supervisor alone.
                start_new_session=True,
            )

    def _stop_signal(self) -> None:
        """Once: the workers finish their epoch. Twice: they end now. Thrice: they are killed."""
        self._n_stop_signals += 1
        if self._n_stop_signals == 1:
            self.say("Stopping after the running epochs; Ctrl-C again stops at once.")
        if self._n_stop_signals == 2:
            # Not killed yet: a worker that gives its slot back has not lost it.
            self._kill_at = time.monotonic() + GRACE_SECONDS
        self._send(signal.SIGTERM if self._n_stop_signals <= 2 else signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        for place in self._places:
            if place.process is not None and place.process.poll() is None:
                place.process.send_signal(number)

    def _end_all(self) -> None:
        for place in self._places:
            if place.process is not None and place.process.poll() is None:
                place.process.terminate()
        for place in self._places:
            if place.process is not None:
                try:
                    place.process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    place.process.kill()
                    place.process.wait()
                self.slots.release_of_dead(place.worker, is_loss=False)


def threads_per_worker(n_workers: int) -> int:
    """Return the cores that this process may use, shared out; at least one."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, cores // n_workers)


def worker_environment(threads: int) -> dict[str, str]:
    """Return what must be set before TensorFlow is imported."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "TF_NUM_INTRAOP_THREADS": str(threads),
        "TF_NUM_INTEROP_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "KERAS_BACKEND": "tensorflow",
        "PYTHONUNBUFFERED": "1",
    }


def _tail(log: Path) -> str:
    """Return the last lines of a log, from its error on if it holds one."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "(no log)"
    for number in range(len(lines) - 1, -1, -1):
        if lines[number].startswith("Error: "):
            return "\n".join(lines[number:])
    return "\n".join(lines[-LOG_LINES:]) or "(it wrote nothing)"
