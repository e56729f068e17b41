"""Files: written whole or not at all, what checkpoints are called, what comes with the package."""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Folder of all checkpoints within a files folder.
CHECKPOINTS = "checkpoints"
#: What a settled trial's checkpoint is called, and one that has a single holder.
CHECKPOINT = "last.npz"

_GENERATION = re.compile(r"last(?:-(\d+))?\.npz", re.ASCII)
_PARTIAL = re.compile(r"\.last(?:-\d+)?\.npz\.\d+(?:\.npz)?", re.ASCII)

#: Where no user writes: this package, Python's own library, and what is installed.
_OTHERS_CODE = (
    Path(__file__).parent,
    *(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")),
)


def is_users_code(file: str) -> bool:
    """Whether a file of code is the user's own: none of ours, of Python's or of a library's."""
    path = Path(file)
    return path.is_file() and not any(map(path.is_relative_to, _OTHERS_CODE))


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a file beside `path` to write; at the end it is on the disk and takes its place.

    An error or a kill at any moment leaves what was there before. The folder is made.

    Raises:
        OSError: If it cannot be written.
    """
    # A name of this process: a worker that lost its lease may still be writing. Keras and Pillow
    # look at the suffix.
    partial = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def checkpoint_name(generation: int = 0) -> str:
    """Return the name of the checkpoint that a training's holder writes: each has its own.

    Args:
        generation: Grows with each holder; 0 where there is one alone, or none any more.
    """
    return f"last-{generation}.npz" if generation else CHECKPOINT


def generations(folder: Path) -> dict[int, Path]:
    """Return the whole checkpoints of a training's folder, by generation: the highest counts.

    Raises:
        OSError: If the folder is there and cannot be read.
    """
    paths = list(folder.iterdir()) if folder.is_dir() else []
    found = [(_GENERATION.fullmatch(path.name), path) for path in paths]
    return {int(match[1] or 0): path for match, path in found if match}


def latest_checkpoint(folder: Path) -> Path | None:
    """Return a training's latest checkpoint; None where it has none.

    Raises:
        OSError: If the folder is there and cannot be read.
    """
    found = generations(folder)
    return found[max(found)] if found else None


def is_cut_off(path: Path) -> bool:
    """Whether a file is a checkpoint that a kill cut off while it was written."""
    return _PARTIAL.fullmatch(path.name) is not None


def slot_path(lasting_name: str, slot_number: int) -> str:
    """Return where a slot's checkpoint lies within a files folder."""
    return f"{CHECKPOINTS}/{lasting_name}/{slot_number}/{CHECKPOINT}"


def shipped(name: str) -> Path:
    """Return a folder that comes with the product, `studies` or `docs`: in a wheel or checkout."""
    package = Path(__file__).parent
    installed = package / f"_{name}"
    return installed if installed.is_dir() else package.parent / name


def study_name(path: Path) -> str:
    """Return what a study file calls its study."""
    return path.stem.replace("_", "-").lower()


def study_files(folder: Path) -> dict[str, Path]:
    """Return a folder's study files by the names of their studies, sorted."""
    return {
        study_name(path): path
        for path in sorted(folder.glob("*.py"))
        if not path.stem.startswith("_")
    }
