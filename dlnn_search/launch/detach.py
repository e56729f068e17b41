"""A supervisor in the background: one a study and host, found again by a lock that it holds.

The lock is the kernel's and ends with the process, however that ends: what the file beside it says
of the process holds exactly as long as the lock is held.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from dlnn_search.errors import DlnnSearchError, StorageError
from dlnn_search.files import written_whole
from dlnn_search.launch.processes import last_words

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
            raise StorageError(
                f"Another process searches this study in the background: {self.running()}."
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
            told = last_words(log) if log.stat().st_size > began_at else "(it wrote nothing)"
            failure = DlnnSearchError(told.removeprefix("Error: "))
            failure.exit_code = code if code > 0 else DlnnSearchError.exit_code
            raise failure
        time.sleep(0.1)
    process.terminate()
    raise DlnnSearchError(
        f"The process in the background did not begin within {START_SECONDS:.0f} s. Its log: {log}"
    )
