"""What a loader reads, so that another process can tell whether it would read the same.

A cache, and no more: whatever cannot be told for sure makes the next process load again.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

#: After these nobody knows what was read.
_ELSEWHERE = {
    "socket.connect", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork",
}  # fmt: skip
_HEARD = _ELSEWHERE | {"open", "os.listdir", "os.scandir"}
#: What the system and Python's packages hold is no data.
_NO_DATA = tuple(
    f"{folder}{os.sep}"
    for folder in {
        *map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")), "/proc", "/sys",
    }
)  # fmt: skip
#: A file system may count time in steps of that: a file that is younger may change unseen.
TIME_STEP_SECONDS = 2.0
#: Read beside the files that Python opened, by other threads for example.
SPARE_BYTES = 200_000

Answer = Literal["same", "gone", "changed"]


@dataclass
class Seen:
    """What was read while something ran.

    Attributes:
        files: State of each file by its path, as it was opened.
        is_known: Whether that is all.
    """

    files: dict[str, list[int]] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    variables: set[str] = field(default_factory=set)
    n_bytes: int = 0
    is_known: bool = True

    def witness(self) -> dict[str, Any] | None:
        """Return what `answer` compares with, as plain data; None where it could not tell."""
        ages = [time.time() - max(state[1:3]) / 1e9 for state in self.files.values()]
        if not self.is_known or min(ages, default=TIME_STEP_SECONDS) < TIME_STEP_SECONDS:
            return None
        variables = sorted(self.variables)
        return {
            "files": self.files,
            "folders": {folder: _listed(folder) for folder in sorted(self.folders)},
            "variables": variables,
            "values": _values(variables),
        }

    def hear(self, event: str, arguments: tuple[Any, ...], *, is_import: bool) -> None:
        """Note what Python says that it does."""
        if event == "open":
            self._opened(*arguments[:3], is_import=is_import)
        elif is_import:
            return
        elif event in _ELSEWHERE:
            self.is_known = False
        else:  # a folder is listed
            path = _path(arguments[0] if arguments[0] is not None else ".")
            if path is None:
                self.is_known = False
            elif not path.startswith(_NO_DATA):
                self.folders.add(path)

    def _opened(self, name: Any, mode: Any, flags: Any, *, is_import: bool) -> None:
        path = _path(name)
        if path is None:
            return  # opened before, by its name
        with suppress(OSError):  # it is not there, which the loader hears, too
            state = os.stat(path)
            if not stat.S_ISREG(state.st_mode):
                return
            self.n_bytes += state.st_size
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
            is_no_data = is_import or path.startswith(_NO_DATA)
            if not (writes or is_no_data or set(mode or "") & set("wax")):
                self.files.setdefault(path, _state(state))


class _Variables(type(os.environ)):  # type: ignore[misc]
    """The process's environment, which notes what is asked for."""

    def __getitem__(self, name: str) -> str:
        if _seen is not None:
            _seen.variables.add(name)
        value: str = super().__getitem__(name)
        return value


_seen: Seen | None = None
_is_listening = False


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is not None and event in _HEARD:  # `sys._getframe` is an event itself
        with suppress(Exception):  # never the loader's trouble
            caller = sys._getframe(1).f_code.co_filename
            _seen.hear(event, arguments, is_import=caller.startswith("<frozen importlib"))


@contextmanager
def watching() -> Iterator[Seen]:
    """Note what this process reads meanwhile: files, folders, environment variables."""
    global _seen, _is_listening
    if not _is_listening:
        sys.addaudithook(_hear)  # there is no way to remove it
        _is_listening = True
    seen, before, kind = Seen(), _n_read(), type(os.environ)
    os.environ.__class__, _seen = _Variables, seen
    try:
        yield seen
    finally:
        os.environ.__class__, _seen = kind, None
        after = _n_read()
        # Code that is no Python, such as HDF5's, opens files without a word.
        if before is None or after is None or after - before > seen.n_bytes + SPARE_BYTES:
            seen.is_known = False


def answer(witness: dict[str, Any]) -> Answer:
    """Tell whether what was read is the same now; `gone`: it can't be read any more."""
    is_gone = False
    if _values(witness["variables"]) != witness["values"]:
        return "changed"
    for path, known in witness["files"].items():
        try:
            if _state(os.stat(path)) != known:
                return "changed"
        except OSError:
            is_gone = True
    for folder, listed in witness["folders"].items():
        now = _listed(folder)
        is_gone = is_gone or now is None
        if now not in (None, listed):
            return "changed"
    return "gone" if is_gone else "same"


def _path(name: Any) -> str | None:
    return None if isinstance(name, int) else os.path.abspath(os.fsdecode(name))


def _state(state: os.stat_result) -> list[int]:
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]


def _listed(folder: str) -> str | None:
    """Return a hash of what a folder holds; None if it is not there."""
    try:
        with os.scandir(folder) as entries:
            states = sorted((entry.name, *_state(entry.stat())[:2]) for entry in entries)
    except OSError:
        return None
    return hashlib.sha256(repr(states).encode()).hexdigest()


def _values(variables: list[str]) -> str:
    """Return a hash of environment variables: they may hold a secret."""
    values = [os.environ.get(name) for name in variables]
    return hashlib.sha256(repr(values).encode()).hexdigest()


def _n_read() -> int | None:
    """Return how many bytes this process has read so far; None where the system doesn't say."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])
    return None
