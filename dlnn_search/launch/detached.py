"""A supervisor in the background, the processes it watches, and what they wrote."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from dlnn_search.errors import (
    DlnnSearchError,
    StorageError,
    UsageError,
    did_you_mean,
    error_from_words,
)
from dlnn_search.files import written_whole
from dlnn_search.storage.database import Database
from dlnn_search.storage.studies import StoredStudy
from dlnn_search.storage.workers import WorkerLog, worker_logs

#: Lines of a dead worker's log that are told.
LOG_LINES = 4


class Started:
    """A process that the supervisor started."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str], log: Path) -> None:
        """Start `python -m dlnn_search` with arguments; what it writes goes to a log file.

        Raises:
            OSError: If the log cannot be written, or no process can be started.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dlnn_search", *arguments],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                # Of its own, so that Ctrl-C reaches the supervisor alone.
                start_new_session=True,
            )

    def exit_code(self) -> int | None:
        """Return None while it runs, minus the signal's number where one killed it."""
        return self._process.poll()

    def send(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)

    def wait(self, seconds: float) -> bool:
        """Wait for its end; return whether it came."""
        try:
            self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


class Adopted:
    """A process whose supervisor died: nobody hears its exit code any more."""

    def __init__(self, pid: int) -> None:
        self._process: psutil.Process | None = None
        with suppress(psutil.NoSuchProcess):
            self._process = psutil.Process(pid)

    def exit_code(self) -> int | None:
        """Return None while it runs, then 0: whatever it held tells how it ended."""
        return None if self._runs() else 0

    def send(self, number: signal.Signals) -> None:
        if self._runs() and self._process is not None:
            with suppress(psutil.NoSuchProcess):
                self._process.send_signal(number)

    def wait(self, seconds: float) -> bool:
        """Wait for its end; return whether it came."""
        if self._process is not None:
            try:
                self._process.wait(timeout=seconds)
            except psutil.TimeoutExpired:
                return False
        return True

    def _runs(self) -> bool:
        if self._process is None:
            return False
        with suppress(psutil.NoSuchProcess):
            return self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE
        return False


WorkerProcess = Started | Adopted


def exit_words(code: int) -> str:
    """Return how a process ended: `signal 9 (SIGKILL)`, `exit code 1`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"signal {-code}"


def last_words(log: Path) -> DlnnSearchError:
    """Return the last error in a log with its details, or else what the log ends with."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return DlnnSearchError("(no log)")
    for number in range(len(lines) - 1, -1, -1):
        if lines[number].startswith("Error: "):
            # What native libraries write while the process ends belongs to no error.
            details = itertools.takewhile(lambda line: line.startswith("  "), lines[number + 1 :])
            return error_from_words("\n".join([lines[number], *details]))
    last = [line for line in lines if line.strip()][-LOG_LINES:]
    return DlnnSearchError(" ".join(last) or "(it wrote nothing)")


#: The parent has prepared everything before: the child only loads its modules once more.
START_SECONDS = 60.0
#: Name of the supervisor's log among the workers'.
LOG_NAME = "supervisor.log"


@dataclass(frozen=True)
class Background:
    """A supervisor that runs in the background.

    Attributes:
        log: What it writes.
    """

    pid: int
    log: str


class PidFile:
    """Who supervises a study in the background of this host."""

    def __init__(self, files: Path, study: str) -> None:
        # A files folder may be shared by several hosts, each with a supervisor of its own.
        base = files / "supervisors" / f"{study}@{socket.gethostname()[:80]}"
        self._about = base.with_name(f"{base.name}.json")
        self._lock = base.with_name(f"{base.name}.lock")

    @contextmanager
    def held(self, log: Path) -> Iterator[None]:
        """Be the one, for the time of the block.

        Raises:
            StorageError: If another process is, or the folder cannot be written.
        """
        lock = self._new_lock()
        try:
            with lock.acquire(timeout=0):
                self._write(Background(os.getpid(), str(log)))
                yield
        except Timeout:
            other = self.running()
            which = "" if other is None else f" (process {other.pid}, log '{other.log}')"
            raise StorageError(
                f"Another process searches this study in the background already{which}."
            ) from None

    def running(self) -> Background | None:
        """Return the one that runs, None if none does."""
        if not self._lock.exists():
            return None
        try:
            with self._new_lock().acquire(timeout=0):
                return None
        except Timeout:
            pass
        try:
            return Background(**json.loads(self._about.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # it is just about to write
            return None

    def _new_lock(self) -> FileLock:
        try:
            self._lock.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"Cannot make the folder '{self._lock.parent}': {error.strerror}. "
                "Make it writable, then start again."
            ) from error
        return FileLock(self._lock)

    def _write(self, background: Background) -> None:
        with written_whole(self._about) as partial:
            partial.write_text(json.dumps(asdict(background)), encoding="utf-8")


def run_in_background(
    arguments: Sequence[str], environment: dict[str, str], pid_file: PidFile, log: Path
) -> Background:
    """Run `dlnn-search` with arguments in a session of its own, and wait until it supervises.

    Raises:
        DlnnSearchError: If it ends before, with what it said.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            began_at = file.tell()
            process = subprocess.Popen(
                [sys.executable, "-m", "dlnn_search", *arguments],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                # No terminal: whatever becomes of ours, nobody hangs up on it.
                start_new_session=True,
            )
    except OSError as error:
        raise StorageError(
            f"Cannot run in the background with the log '{log}': {error.strerror or error}."
        ) from error
    ends = time.monotonic() + START_SECONDS
    while time.monotonic() < ends:
        running = pid_file.running()
        if running is not None and running.pid == process.pid:
            return running
        code = process.poll()
        if code == 0:  # nothing was left to do
            return Background(process.pid, str(log))
        if code is not None:
            wrote = log.stat().st_size > began_at
            failure = last_words(log) if wrote else DlnnSearchError("(it wrote nothing)")
            failure.exit_code = code if code > 0 else DlnnSearchError.exit_code
            raise failure
        time.sleep(0.1)
    process.terminate()
    raise DlnnSearchError(
        f"The background process did not start within {START_SECONDS:.0f} s. Read its log: {log}"
    )


FOLLOW_SECONDS = 0.5
#: A long study has had hundreds of workers, each with a log: the latest are shown unasked.
N_LATEST = 8
SUPERVISOR = "supervisor"


@dataclass(frozen=True)
class Log:
    """A log file of this machine; `about` is who wrote it."""

    about: str
    path: Path


def logs_folder(database: Database, lasting_name: str) -> Path:
    """Return where this machine's workers of a study write."""
    return database.files / "logs" / lasting_name


def find_logs(
    database: Database, study: StoredStudy, worker: str | None
) -> tuple[list[Log], list[WorkerLog]]:
    """Return the logs that lie here, oldest first, and those that another host has.

    Args:
        database: That knows the workers.
        study: Whose workers.
        worker: Its name or a part of it that no other has; `supervisor`; None: the latest.

    Raises:
        UsageError: If there is no such worker, or the name means several.
    """
    known = worker_logs(database, study.id)
    supervisor = Log(SUPERVISOR, logs_folder(database, study.lasting_name) / LOG_NAME)
    if worker == SUPERVISOR:
        if not supervisor.path.exists():
            raise UsageError(
                f"There is no supervisor's log at '{supervisor.path}'. "
                f"'dlnn-search start {study.name} --detach' writes one on its machine."
            )
        return [supervisor], []
    if worker is not None:
        known = [_named(known, worker, study)]
    here, elsewhere = [], []
    for entry in known:
        # A shared folder shows other hosts' logs, too.
        if entry.log is not None and Path(entry.log).exists():
            here.append(Log(entry.worker, Path(entry.log)))
        elif entry.host != socket.gethostname():
            elsewhere.append(entry)
    if worker is not None and not here and not elsewhere:
        raise UsageError(
            f"The worker '{known[0].worker}' has no log on this machine. "
            "A worker that 'dlnn-search start' did not start writes to its own terminal."
            if known[0].log is None
            else f"The log '{known[0].log}' of the worker '{known[0].worker}' is gone."
        )
    if worker is None:
        here, elsewhere = here[-N_LATEST:], elsewhere[-N_LATEST:]
        if supervisor.path.exists():
            here.insert(0, supervisor)
    return here, elsewhere


def _named(known: Sequence[WorkerLog], worker: str, study: StoredStudy) -> WorkerLog:
    exact = [entry for entry in known if entry.worker == worker]
    near = exact or [entry for entry in known if worker in entry.worker]
    if len(near) == 1:
        return near[0]
    names = [entry.worker for entry in (near or known)]
    if near:
        raise UsageError(
            f"Expected a worker of '{study.name}', got '{worker}', which is part of several names: "
            f"{', '.join(names[-N_LATEST:])}."
        )
    raise UsageError(
        f"The study '{study.name}' has had no worker '{worker}'."
        + did_you_mean(worker, names[-N_LATEST:])
    )


def last_lines(log: Log, n: int) -> list[str]:
    """Return the last n lines of a log; none where it cannot be read."""
    try:
        with log.path.open(encoding="utf-8", errors="replace") as file:
            return [line.rstrip("\n") for line in deque(file, maxlen=n)]
    except OSError:
        return []


def follow(
    find: Callable[[], Sequence[Log]], has_ended: Callable[[], bool]
) -> Iterator[tuple[Log, str]]:
    """Yield each line written to the logs from now on, those of new workers from their start.

    Args:
        find: The logs to follow at this moment.
        has_ended: Whether nothing more is to come.
    """
    at = {log.path: _size(log.path) for log in find()}
    while True:
        ended = has_ended()
        for log in find():
            lines, at[log.path] = _lines_from(log.path, at.get(log.path, 0))
            for line in lines:
                yield log, line
        if ended:
            return
        time.sleep(FOLLOW_SECONDS)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _lines_from(path: Path, start: int) -> tuple[list[str], int]:
    """Return the whole lines behind an offset in bytes, and the offset behind them."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            text = file.read()
    except OSError:
        return [], start
    whole = text[: text.rfind(b"\n") + 1]
    return whole.decode("utf-8", errors="replace").splitlines(), start + len(whole)
