"""The course's clock pictures, brought in by the user who got them from the course."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dlnn_search.data.prepared import (
    LABELS,
    PICTURES,
    OnProgress,
    Progress,
    ProgressDisplay,
    cache_root,
    filling,
    is_intact,
    lock,
    prepared_root,
    read_about,
    write_about,
    write_array,
)
from dlnn_search.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

TIMES_ON_DIAL = 720
MIN_EDGE_PX, MAX_EDGE_PX = 32, 300
#: A million pictures of the largest edge would be 90 GB; the course's set has 18,000.
MAX_PICTURES = 1_000_000
CHUNK = 512
COURSE_FORM = "(18000, 150, 150) uint8"
_MAGIC = b"\x93NUMPY"
_TITLE = "the course's clocks"
_NAME = "clocks-course"


@dataclass(frozen=True)
class Imported:
    """The imported set.

    Attributes:
        folder: Where its copy is.
        fingerprint: 16 hexadecimal digits that differ for different pictures or labels.
        n: Number of pictures.
        edge: Their edge in pixels.
    """

    folder: Path
    fingerprint: str
    n: int
    edge: int


def imported() -> Imported | None:
    """Return the imported set, None if there is none."""
    folder = cache_root() / "imported" / _NAME
    if not is_intact(folder):
        return None
    about = read_about(folder)
    try:
        return Imported(folder, about["fingerprint"], int(about["n_images"]), int(about["edge"]))
    except (KeyError, TypeError, ValueError):
        return None


def is_imported() -> bool:
    """Tell whether the course's clocks were imported on this machine."""
    return imported() is not None


def open_imported() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Open the imported copy: pictures (n, h, h), memory-mapped, and labels (n, 2), both uint8.

    Raises:
        DataError: If it is damaged.
    """
    folder = cache_root() / "imported" / _NAME
    try:
        return (
            np.load(folder / PICTURES, mmap_mode="r", allow_pickle=False),
            np.load(folder / LABELS, allow_pickle=False),
        )
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"Cannot read the imported clocks in '{folder}': {error}. Remove that folder and "
            f"import them again with 'dlnn-search data import clocks images.npy labels.npy'."
        ) from error


def import_clocks(
    images_path: Path,
    labels_path: Path,
    *,
    replace: bool = False,
    on_progress: OnProgress | None = None,
) -> Imported:
    """Check the course's two files and copy them to where data sets are kept.

    Args:
        images_path: `.npy` of shape (n, h, h), uint8: n a multiple of 720 (the course's: 18,000),
            h from 32 to 300 pixels (the course's: 150).
        labels_path: `.npy` of shape (n, 2), integers: hour 0-11, minute 0-59.
        replace: Throw away another set that was imported before.
        on_progress: Told how far the copy is; None: shown on standard error.

    Raises:
        DataError: If a file is not what it should be, another set is there already, or the copy
            can't be written.
    """
    images = _open(images_path, "images")
    labels = _checked_labels(_open(labels_path, "labels"), labels_path)
    _check_images(images, images_path)
    if len(images) != len(labels):
        raise DataError(
            f"Expected a label for each picture, got {len(images):,} pictures in '{images_path}' "
            f"and {len(labels):,} labels in '{labels_path}'. Give the two files of one set."
        )
    folder = cache_root() / "imported" / _NAME
    with (
        ProgressDisplay() as display,
        lock(_NAME, _TITLE, on_progress or display),
    ):
        before = imported()
        fingerprint = _fingerprint(images, labels)
        if before is not None and before.fingerprint == fingerprint:
            return before
        if before is not None and not replace:
            raise DataError(
                f"Another set of {before.n:,} clocks is imported already, in '{folder}': "
                f"expected the same pictures, got others. Give --replace to replace it; "
                f"configs with source='course' then mean the new set."
            )
        n_bytes = images.size + labels.size
        with filling(folder, n_bytes, _TITLE) as partial:
            write_array(partial / PICTURES, images.shape, _chunks(images, on_progress or display))
            write_array(partial / LABELS, labels.shape, [labels])
            files = {name: (partial / name).stat().st_size for name in (PICTURES, LABELS)}
            write_about(
                partial,
                {
                    "title": _TITLE,
                    "fingerprint": fingerprint,
                    "n_images": len(images),
                    "edge": images.shape[1],
                    "from": [str(images_path.absolute()), str(labels_path.absolute())],
                    "files": files,
                },
            )
        if before is not None:
            for old in prepared_root().glob(f"{_NAME}-*"):
                shutil.rmtree(old, ignore_errors=True)
    return Imported(folder, fingerprint, len(images), images.shape[1])


def _open(path: Path, what: str) -> NDArray[Any]:
    instruction = (
        f"Expected a .npy file as the course hands it out; give the path of its {what}.npy."
    )
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
        if magic.startswith(b"PK"):
            raise DataError(
                f"Expected one array in a .npy file, got an archive of arrays: '{path}'. "
                f"Give the path of the course's {what}.npy."
            )
        if magic != _MAGIC:
            raise ValueError("it does not begin as one does")
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except DataError:
        raise
    except Exception as error:  # NumPy raises whatever a damaged header makes it stumble over
        said = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"Cannot read the {what} '{path}': {said[:200]}. {instruction}") from error
    return array


def _check_images(images: NDArray[Any], path: Path) -> None:
    came = f"got {images.shape} {images.dtype} in '{path}'"
    instruction = f"Give the course's images.npy, {COURSE_FORM}."
    if images.dtype != np.uint8:
        raise DataError(f"Expected pictures of dtype uint8, {came}. {instruction}")
    if images.ndim != 3 or images.shape[1] != images.shape[2]:
        raise DataError(f"Expected square gray pictures of shape (n, h, h), {came}. {instruction}")
    if not MIN_EDGE_PX <= images.shape[1] <= MAX_EDGE_PX:
        raise DataError(
            f"Expected pictures of {MIN_EDGE_PX} to {MAX_EDGE_PX} pixels, {came}. {instruction}"
        )
    n = len(images)
    if n == 0 or n % TIMES_ON_DIAL or n > MAX_PICTURES:
        raise DataError(
            f"Expected a multiple of {TIMES_ON_DIAL} pictures (one for each time, "
            f"at most {MAX_PICTURES:,}), {came}. {instruction}"
        )


def _checked_labels(labels: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    """Return hour and minute, shape (n, 2), uint8."""
    came = f"got {labels.shape} {labels.dtype} in '{path}'"
    instruction = "Give the course's labels.npy, (18000, 2): hour 0-11, minute 0-59."
    if labels.dtype.kind not in "iu":
        raise DataError(f"Expected labels of an integer dtype, {came}. {instruction}")
    if labels.ndim != 2 or labels.shape[1] != 2:
        raise DataError(f"Expected labels of shape (n, 2), hour and minute, {came}. {instruction}")
    if len(labels) > MAX_PICTURES:
        raise DataError(f"Expected labels of at most {MAX_PICTURES:,} pictures, {came}.")
    for column, (what, last) in enumerate((("hours", 11), ("minutes", 59))):
        values = labels[:, column]
        if len(values) and (values.min() < 0 or values.max() > last):
            raise DataError(
                f"Expected {what} from 0 to {last} in column {column}, got {values.min()} to "
                f"{values.max()} in '{path}'. {instruction}"
            )
    return labels.astype(np.uint8)


def _fingerprint(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> str:
    digest = hashlib.sha256(f"{images.shape}".encode())
    for start in range(0, len(images), CHUNK):
        digest.update(images[start : start + CHUNK].tobytes())
    digest.update(labels.tobytes())
    return digest.hexdigest()[:16]


def _chunks(images: NDArray[np.uint8], on_progress: OnProgress) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(images), CHUNK):
        yield images[start : start + CHUNK]
        done = min(start + CHUNK, len(images))
        on_progress(Progress(f"Importing {_TITLE}", done, len(images)))
