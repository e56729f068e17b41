"""Prepared data sets: memory-mapped files that all workers of a machine share, made once."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from dlnn_search.errors import DataError

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

#: Without a terminal, a line is written each time this share of the work is done.
LINE_EVERY_PERCENT = 20


@dataclass(frozen=True)
class Progress:
    """How far a preparation is; `total` 0: nothing to count, `what` is all there is to say."""

    what: str
    done: int = 0
    total: int = 0


OnProgress = Callable[[Progress], None]


class ProgressDisplay:
    """Draws `Progress` on standard error; draws nothing as long as nothing comes in."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._percents: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __call__(self, progress: Progress) -> None:
        """Show it."""
        if sys.stderr.isatty():
            self._draw(progress)
        else:
            self._write_line(progress)

    def _draw(self, progress: Progress) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(console=Console(stderr=True))
            self._bar.start()
        if progress.total == 0:
            self._bar.console.print(progress.what, highlight=False, markup=False)
            return
        if progress.what not in self._tasks:
            from rich.markup import escape

            self._tasks[progress.what] = self._bar.add_task(escape(progress.what))
        self._bar.update(self._tasks[progress.what], completed=progress.done, total=progress.total)

    def _write_line(self, progress: Progress) -> None:
        if progress.total == 0:
            print(progress.what, file=sys.stderr, flush=True)
            return
        percent = 100 * progress.done // progress.total
        last = self._percents.get(progress.what, -LINE_EVERY_PERCENT)
        if percent >= last + LINE_EVERY_PERCENT or (percent == 100 and last < 100):
            self._percents[progress.what] = percent
            print(f"{progress.what}: {percent} %", file=sys.stderr, flush=True)


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

Part = Literal["search", "test"]
"""`search`: training and validation pictures; `test`: the others, in files of their own."""

PICTURES = "pictures.npy"
LABELS = "labels.npy"
ABOUT = "about.json"
#: Counted up when the files of a prepared set change their meaning.
LAYOUT_VERSION = 1
#: Added to what a preparation needs, for file systems that count in large blocks.
SPARE_BYTES = 1_000_000


@dataclass(frozen=True)
class Recipe:
    """How a data set is prepared.

    Attributes:
        name: Its folder's name: different for different pictures.
        title: What a user calls it.
        bytes_needed: Disk space taken while it is prepared, in bytes.
        write: Writes `<part>/pictures.npy` and `<part>/labels.npy` into an empty folder.
        about: What it was made from, as plain data, for `data list`.
        find: Returns the recipe to go by, where that is known only from the pictures themselves.
    """

    name: str
    title: str
    bytes_needed: int
    write: Callable[[Path, OnProgress], None]
    about: Mapping[str, Any] = field(default_factory=dict)
    find: Callable[[OnProgress], Recipe] | None = None


def cache_root() -> Path:
    """Return where data sets are kept: `$DLNN_SEARCH_CACHE`, else the user's cache folder."""
    named = os.environ.get("DLNN_SEARCH_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("dlnn-search", appauthor=False))


def prepared_root() -> Path:
    """Return the folder that holds the prepared sets, one folder each."""
    return cache_root() / "prepared"


def open_part(
    recipe: Recipe, part: Part, on_progress: OnProgress
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Open one part of a prepared set; prepare it first where it is missing or damaged.

    Returns:
        Pictures (n, height, width) or (n, height, width, channels), memory-mapped and read-only,
        and their labels, (n,) or (n, 2); both uint8.

    Raises:
        DataError: If it can't be prepared.
    """
    folder = prepare(recipe, on_progress)
    opened = _open_arrays(folder / part)
    if opened is None:
        # Right in size, unreadable inside: only opening tells.
        prepare(recipe, on_progress, again=True)
        opened = _open_arrays(folder / part)
    if opened is None:
        raise DataError(
            f"Prepared {recipe.title} in '{folder}', but cannot read it back. "
            f"Check that disk, or name another folder with DLNN_SEARCH_CACHE."
        )
    return opened


def prepare(recipe: Recipe, on_progress: OnProgress, *, again: bool = False) -> Path:
    """Prepare a data set unless it is there; of many processes at once, one does the work.

    Args:
        recipe: The data set.
        on_progress: Told how far it is, and that another process is being waited for.
        again: Throw away what is there.

    Returns:
        Its folder.

    Raises:
        DataError: If the pictures can't be had, or can't be written.
    """
    if recipe.find is not None:
        recipe = recipe.find(on_progress)
    folder = prepared_root() / recipe.name
    if not again and is_intact(folder):
        return folder
    with lock(recipe.name, recipe.title, on_progress) as waited:
        if is_intact(folder) and (waited or not again):
            return folder
        if folder.exists():
            on_progress(Progress(f"The prepared {recipe.title} is damaged: preparing it again."))
            shutil.rmtree(folder)
        _sweep(folder.parent, lambda name: name != recipe.name)
        with filling(folder, recipe.bytes_needed, recipe.title) as partial:
            recipe.write(partial, on_progress)
            _describe(partial, recipe)
    return folder


def is_intact(folder: Path) -> bool:
    """Tell by names and sizes whether a prepared set is whole, without opening its pictures."""
    about = read_about(folder)
    try:
        sizes = about["files"]
        return bool(sizes) and all(
            (folder / name).stat().st_size == size for name, size in sizes.items()
        )
    except (OSError, KeyError, AttributeError, TypeError):
        return False


def read_about(folder: Path) -> dict[str, Any]:
    """Return what a prepared or imported set says about itself; {} if it says nothing."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def write_about(folder: Path, about: Mapping[str, Any]) -> None:
    """Let a set say about itself what `read_about` reads."""
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


@contextmanager
def lock(name: str, title: str, on_progress: OnProgress) -> Iterator[bool]:
    """Hold the machine's lock on a data set; yields whether another process had to be awaited.

    Raises:
        DataError: If the cache folder can't be written.
    """
    from filelock import FileLock, Timeout

    path = _lock_path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(path)
        try:
            held.acquire(timeout=0)
            waited = False
        except Timeout:
            on_progress(Progress(f"Another process is preparing {title}: waiting for it."))
            held.acquire()
            waited = True
    except OSError as error:
        raise _cannot_write(path.parent, title, error) from error
    try:
        yield waited
    finally:
        held.release()


@contextmanager
def filling(folder: Path, bytes_needed: int, title: str) -> Iterator[Path]:
    """Fill a folder whole or not at all: yields a sibling that becomes it in one step.

    Hold the folder's `lock`. Whatever goes wrong inside, the sibling is removed; after a kill,
    the next preparation removes it.

    Raises:
        DataError: If the disk has fewer than `bytes_needed` free, gets full, or can't be written.
    """
    partial = _partial(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        free = shutil.disk_usage(folder.parent).free
        if free < bytes_needed + SPARE_BYTES:
            raise _disk_full(folder, bytes_needed, title, free)
        partial.mkdir()
        yield partial
        _sync(partial)
        if folder.exists():
            shutil.rmtree(folder)  # a full folder can't be renamed over
        partial.rename(folder)
        _sync_one(folder.parent)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(folder.parent).free
            raise _disk_full(folder, bytes_needed, title, free) from error
        raise _cannot_write(folder, title, error) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_array(path: Path, shape: tuple[int, ...], chunks: Iterable[NDArray[np.uint8]]) -> None:
    """Write a uint8 `.npy` file chunk by chunk, so that no more than one is in memory.

    Args:
        path: The file; its folder is created.
        shape: Of the whole array.
        chunks: The array, cut along its first axis.

    Raises:
        OSError: If it can't be written (ENOSPC where the disk is full).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks:
            # `ndarray.tofile` would lose the reason why it can't write.
            file.write(np.ascontiguousarray(chunk).data)


def map_array(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Create a memory-mapped uint8 `.npy` file to be filled.

    Raises:
        OSError: If the disk is too full for it (ENOSPC).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    array: NDArray[np.uint8] = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.uint8, shape=shape
    )
    # The new file has holes. Writing to one through the mapping of a full disk kills the process
    # (SIGBUS), so claim every block now, where a full disk is still an error.
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _open_arrays(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
    try:
        pictures = np.load(folder / PICTURES, mmap_mode="r", allow_pickle=False)
        labels = np.load(folder / LABELS, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if pictures.dtype != np.uint8 or pictures.ndim not in (3, 4) or labels.dtype != np.uint8:
        return None
    return (pictures, labels) if len(pictures) == len(labels) else None


def _describe(partial: Path, recipe: Recipe) -> None:
    files = {
        path.relative_to(partial).as_posix(): path.stat().st_size
        for path in sorted(partial.rglob("*.npy"))
    }
    n_images = sum(
        len(np.load(path, mmap_mode="r", allow_pickle=False)) for path in partial.rglob(LABELS)
    )
    write_about(
        partial, {"title": recipe.title, **recipe.about, "n_images": n_images, "files": files}
    )


def _lock_path(name: str) -> Path:
    return cache_root() / "locks" / f"{name}.lock"


def _partial(folder: Path) -> Path:
    # One name for all processes: whoever holds the lock knows that its maker is gone.
    return folder.with_name(f"{folder.name}.partial")


def _sweep(parent: Path, is_other: Callable[[str], bool]) -> None:
    """Remove what killed preparations of other sets left behind."""
    from filelock import FileLock, Timeout

    for partial in parent.glob("*.partial"):
        name = partial.name.removesuffix(".partial")
        if not is_other(name):
            continue
        try:
            with FileLock(_lock_path(name), timeout=0):
                shutil.rmtree(partial, ignore_errors=True)
        except Timeout:
            continue  # somebody is at work in there


def _sync(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        _sync_one(path)
    _sync_one(folder)


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _disk_full(folder: Path, bytes_needed: int, title: str, free: int) -> DataError:
    return DataError(
        f"The disk of '{folder}' is too full to prepare {title}: expected "
        f"{bytes_needed:,} bytes free, found {free:,}. Free some space, or name a folder on "
        f"another disk with DLNN_SEARCH_CACHE."
    )


def _cannot_write(folder: Path, title: str, error: OSError) -> DataError:
    return DataError(
        f"Cannot prepare {title} in '{folder}': {error}. "
        f"Make that folder writable, or name another with DLNN_SEARCH_CACHE."
    )
