"""A study's own pictures: its loader run, watched for what it reads, checked and split."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dlnn_search.data.prepared import (
    ABOUT,
    LABELS,
    LAYOUT_VERSION,
    PICTURES,
    OnProgress,
    Progress,
    Recipe,
    cache_root,
    is_intact,
    lock,
    prepared_root,
    read_about,
    write_array,
)
from dlnn_search.data.splits import choose, strata_of
from dlnn_search.errors import DataError, StudyError
from dlnn_search.files import written_whole
from dlnn_search.study.finding import OwnCode, OwnImages, call, code_of

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
            "folders": {folder: _names_in(folder) for folder in sorted(self.folders)},
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
        now = _names_in(folder)
        is_gone = is_gone or now is None
        if now not in (None, listed):
            return "changed"
    return "gone" if is_gone else "same"


def _path(name: Any) -> str | None:
    return None if isinstance(name, int) else os.path.abspath(os.fsdecode(name))


def _state(state: os.stat_result) -> list[int]:
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]


def _names_in(folder: str) -> str | None:
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


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from dlnn_search.config.data import OwnData
    from dlnn_search.data.prepared import Part

    #: Pictures and labels.
    _Parts = dict[Part, tuple[NDArray[np.uint8], NDArray[np.uint8]]]

#: Pictures copied at a time.
CHUNK = 512
#: Counted up when notes of what loaders gave change their form.
NOTE_VERSION = 1


def own_recipe(data: OwnData) -> Recipe:
    """Return how a study's own pictures are prepared: known by what the loader returns.

    Machines mount folders differently: the same pictures in two places are one set, and others
    under the same file are another.

    Raises:
        StudyError: If the study's code is not loaded, another version, or has no loader.
    """
    code = code_of(data)
    if code.load is None:
        raise StudyError(
            f"The study '{code.study}' has no loader for its OwnData: Study(..., load=my_loader)."
        )
    parameters = {
        "options": data.options,
        "code": code.fingerprint,
        "n_classes": data.n_classes,
        "test": data.test,
        "split_seed": data.split_seed,
        "layout": LAYOUT_VERSION,
    }
    text = json.dumps(parameters, sort_keys=True)
    title = f"the pictures of '{code.study}'"
    name = f"own-{code.study}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
    about = {"data": data.name, "study": code.study, **parameters}

    def load(on_progress: OnProgress) -> _Parts:
        on_progress(Progress(f"Loading {title}"))
        return _parts(_loaded(data, code), data, f"The loader of '{code.study}'")

    def find(on_progress: OnProgress) -> Recipe:
        content, parts = _content(name, title, code, load, on_progress)
        # By options and code alone, as an earlier version did it.
        former = prepared_root() / name
        is_former = is_intact(former) and content_of(former) == content

        def write_found(into: Path, on_progress: OnProgress) -> None:
            nonlocal parts
            if parts is None:
                parts = load(on_progress)
                if _hash(parts) != content:
                    raise DataError(
                        f"The loader of '{code.study}' returned other pictures than a moment ago. "
                        "Let it draw at random with a seed only, and leave its files alone."
                    )
            for part, (images, labels) in parts.items():
                what = f"Writing the {part} part of {title}"
                pieces = _pieces(images, what, on_progress)
                write_array(into / part / PICTURES, images.shape, pieces)
                write_array(into / part / LABELS, labels.shape, [labels])

        return Recipe(
            name=name if is_former else f"{name}-{content[:10]}",
            title=title,
            bytes_needed=0,  # said by the disk while they are written
            write=write_found,
            about={**about, "content": content, "file": code.file},
        )

    def write(into: Path, on_progress: OnProgress) -> None:
        find(on_progress).write(into, on_progress)

    return Recipe(name, title, bytes_needed=0, write=write, about=about, find=find)


#: What loaders gave in this process, by what decides it.
_contents: dict[tuple[Any, ...], str] = {}


def _content(
    name: str,
    title: str,
    code: OwnCode,
    load: Callable[[OnProgress], _Parts],
    on_progress: OnProgress,
) -> tuple[str, _Parts | None]:
    """Return a hash of what a loader gives, and that itself where it had to be loaded.

    A loader runs once a process at most, and not at all where an earlier process noted what it
    gave, here and from the same files.
    """
    here = (name, code.file, os.getcwd())
    key = (*here, code.load, cache_root())
    if key in _contents:
        return _contents[key], None
    note = cache_root() / "loaded" / f"{hashlib.sha256(repr(here).encode()).hexdigest()[:20]}.json"
    parts: _Parts | None = None
    with lock(name, title, on_progress):
        known = _read_note(note)
        told = "changed" if known is None else answer(known["witness"])
        if known is not None and told != "changed":
            content = str(known["content"])
            if told == "gone":
                on_progress(
                    Progress(f"The files of {title} are gone: what was kept of them counts.")
                )
        else:
            with watching() as seen:
                parts = load(on_progress)
            content = _hash(parts)
            _write_note(note, content, seen.witness())
    _contents[key] = content
    return content, parts


def _read_note(note: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        known = json.loads(note.read_text(encoding="utf-8"))
        if isinstance(known, dict) and known.get("version") == NOTE_VERSION:
            return known
    return None


def _write_note(note: Path, content: str, witness: dict[str, Any] | None) -> None:
    with suppress(OSError):  # the next process loads again
        if witness is None:
            note.unlink(missing_ok=True)
            return
        text = json.dumps({"version": NOTE_VERSION, "content": content, "witness": witness})
        with written_whole(note) as partial:
            partial.write_text(text, encoding="utf-8")


def content_of(folder: Path) -> str:
    """Return a hash of all pictures and labels that a prepared set of own pictures holds."""
    about = read_about(folder)
    if "content" in about:
        return str(about["content"])
    return _content_on_disk(folder, (folder / ABOUT).stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _content_on_disk(folder: Path, changed: int) -> str:
    def opened(path: Path) -> NDArray[np.uint8]:
        array: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
        return array

    parts: tuple[Part, Part] = ("search", "test")
    try:
        return _hash(
            {
                part: (opened(folder / part / PICTURES), opened(folder / part / LABELS))
                for part in parts
            }
        )
    except (OSError, ValueError, EOFError):  # damaged: nothing is like it
        return ""


def _hash(parts: _Parts) -> str:
    digest = hashlib.sha256()
    for part, (images, labels) in sorted(parts.items()):
        digest.update(repr((part, images.shape)).encode())
        digest.update(np.ascontiguousarray(labels).data)
        for start in range(0, len(images), CHUNK):
            digest.update(np.ascontiguousarray(images[start : start + CHUNK]).data)
    return digest.hexdigest()


def _loaded(data: OwnData, code: OwnCode) -> OwnImages:
    what = f"The loader of '{code.study}'"
    assert code.load is not None
    loaded = call(code.load, what, DataError, data.options)
    if not isinstance(loaded, OwnImages):
        raise DataError(
            f"{what} returned {type(loaded).__name__}: expected OwnImages(images=..., labels=...)."
        )
    return loaded


def _parts(loaded: OwnImages, data: OwnData, what: str) -> _Parts:
    """Return checked pictures and labels of both parts, the test's taken off where it is not given.

    Raises:
        DataError: Saying what was expected, what came, and what to do.
    """
    images, labels = _checked(loaded.images, loaded.labels, data, f"{what} returned")
    missing = np.setdiff1d(np.arange(data.n_classes), labels)
    if len(missing):
        raise DataError(
            f"{what} returned no picture of {len(missing)} of {data.n_classes} classes: "
            f"{_listed(missing)}. Expected each label from 0 to {data.n_classes - 1} at least "
            "once: count labels from 0 without gaps, or lower n_classes."
        )
    if (loaded.test_images is None) != (loaded.test_labels is None):
        raise DataError(
            f"{what} returned one of test_images and test_labels: expected both or neither."
        )
    if loaded.test_images is None or loaded.test_labels is None:
        n_test = round(data.test * len(labels))
        if not 0 < n_test < len(labels):
            raise DataError(
                f"A test share of {data.test:g} takes {n_test:,} of the {len(labels):,} pictures "
                f"of {what[0].lower()}{what[1:]}: expected some, and some left to train on. "
                "Choose another `test`, or load more."
            )
        tests = choose(strata_of(labels), n_test, seed=data.split_seed, purpose="test")
        return {
            "search": (images[~tests], labels[~tests]),
            "test": (images[tests], labels[tests]),
        }
    tested = _checked(
        loaded.test_images, loaded.test_labels, data, f"{what} returned, for the test,"
    )
    if tested[0].shape[1:] != images.shape[1:]:
        raise DataError(
            f"{what} returned test pictures of {tested[0].shape[1:]}: expected "
            f"{images.shape[1:]}, as those to train on."
        )
    return {"search": (images, labels), "test": tested}


def _checked(
    images: Any, labels: Any, data: OwnData, what: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return pictures, (n, h, w) or (n, h, w, channels > 1), and labels, (n,); both uint8."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        raise DataError(
            f"{what} images of {_kind(images)}: expected a NumPy array of uint8, gray levels from "
            "0 to 255. Scale what is in [0, 1] by 255, round it, then .astype('uint8')."
        )
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise DataError(
            f"{what} images of shape {images.shape}: expected (n, height, width) or "
            "(n, height, width, channels), none of them 0."
        )
    if not isinstance(labels, np.ndarray) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{what} labels of {_kind(labels)}: expected a NumPy array of whole numbers from 0 to "
            f"{data.n_classes - 1}."
        )
    if labels.shape != images.shape[:1]:
        raise DataError(
            f"{what} labels of shape {labels.shape}: expected {images.shape[:1]}, one class for "
            "each picture."
        )
    wrong = np.unique(labels[(labels < 0) | (labels >= data.n_classes)])
    if len(wrong):
        raise DataError(
            f"{what} labels that are no class: {_listed(wrong)}. Expected 0 to "
            f"{data.n_classes - 1}: count from 0, or raise n_classes."
        )
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    return images, labels.astype(np.uint8)


def _kind(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return f"type {type(value).__name__}"
    floats = np.issubdtype(value.dtype, np.floating)
    return f"{value.dtype}{' with NaN' if floats and np.isnan(value).any() else ''}"


def _listed(values: NDArray[Any], most: int = 10) -> str:
    shown = ", ".join(str(value) for value in values[:most])
    return f"{shown}, ..." if len(values) > most else shown


def _pieces(
    images: NDArray[np.uint8], what: str, on_progress: OnProgress
) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(images), CHUNK):
        yield images[start : start + CHUNK]
        on_progress(Progress(what, min(start + CHUNK, len(images)), len(images)))
