"""A worker's process as its supervisor sees it: started here, or left over by one that died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

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


def last_words(log: Path) -> str:
    """Return the last lines of a log, from its error on if it holds one."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "(no log)"
    for number in range(len(lines) - 1, -1, -1):
        if lines[number].startswith("Error: "):
            return "\n".join(lines[number:])
    return "\n".join(lines[-LOG_LINES:]) or "(it wrote nothing)"
