"""Where pictures come from: MNIST's files, downloaded or found; the course's clocks, imported."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

#: Without a byte for so long, the connection is given up. Keras sets no limit of its own.
SILENCE_SECONDS = 30
#: However slowly the bytes come in: 65 MB in this time is 0.3 Mbit/s.
LIMIT_SECONDS = 1_800

# A fresh process, because importing Keras takes in TensorFlow: 4 s and half a gigabyte, and
# device settings that a worker has yet to choose.
_SCRIPT = """
import socket, sys
import numpy as np
socket.setdefaulttimeout(float(sys.argv[3]))
from keras import datasets
(x_train, y_train), (x_test, y_test) = getattr(datasets, sys.argv[1]).load_data()
np.savez(sys.argv[2], x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
"""


def download_with_keras(keras_name: str, path: Path) -> None:
    """Write a data set of `keras.datasets` to an `.npz` file; Keras keeps a copy of its own.

    Args:
        keras_name: The module in `keras.datasets`: `mnist` or `fashion_mnist`.
        path: The file to write, ending in `.npz`.

    Raises:
        DataError: If Keras fails, or takes longer than `LIMIT_SECONDS`; begins in lower case, to
            be put into a longer message.
    """
    command = [sys.executable, "-c", _SCRIPT, keras_name, str(path), str(SILENCE_SECONDS)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        ended = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(
            f"Keras's download did not end within {LIMIT_SECONDS // 60} minutes."
        ) from error
    if ended.returncode != 0 or not path.is_file():
        lines = [line for line in ended.stderr.splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else f"exit code {ended.returncode}"
        reason = reason[:300].rstrip(".")
        raise DataError(f"Keras's download failed (is this machine online?): {reason}.")


Payload = Literal["train_images", "train_labels", "test_images", "test_labels"]

#: Keras's keys for the four payloads.
NPZ_KEYS: dict[Payload, str] = {
    "train_images": "x_train",
    "train_labels": "y_train",
    "test_images": "x_test",
    "test_labels": "y_test",
}
#: The names of the four idx files; both spellings are about.
IDX_STEMS: dict[Payload, tuple[str, str]] = {
    "train_images": ("train-images-idx3-ubyte", "train-images.idx3-ubyte"),
    "train_labels": ("train-labels-idx1-ubyte", "train-labels.idx1-ubyte"),
    "test_images": ("t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte"),
    "test_labels": ("t10k-labels-idx1-ubyte", "t10k-labels.idx1-ubyte"),
}
#: No payload is read beyond this; the largest has 47 MB.
MAX_PAYLOAD_BYTES = 256_000_000


@dataclass(frozen=True)
class DigitSet:
    """A data set in MNIST's form.

    Attributes:
        name: As a config names it; also its name in `keras.datasets`, with an underscore.
        title: As a user reads it.
        md5: Of each raw idx payload, header and bytes.
        n_train: Pictures a search may see.
        n_test: Pictures of the original test split.
        size: Edge of a picture in pixels.
        system_folder: Where an operating system's package puts the idx files.
    """

    name: str
    title: str
    md5: dict[Payload, str]
    n_train: int = 60_000
    n_test: int = 10_000
    size: int = 28
    system_folder: Path | None = None

    @property
    def keras_name(self) -> str:
        """Its module in `keras.datasets`."""
        return self.name.replace("-", "_")

    @property
    def spellings(self) -> tuple[str, ...]:
        """Its name in files and folders."""
        return tuple(dict.fromkeys((self.name, self.keras_name)))

    def shape(self, payload: Payload) -> tuple[int, ...]:
        """Return the shape that a payload must have."""
        n = self.n_train if payload.startswith("train") else self.n_test
        return (n, self.size, self.size) if payload.endswith("images") else (n,)

    @property
    def n_bytes(self) -> int:
        """Bytes of all pictures and labels."""
        return (self.n_train + self.n_test) * (self.size**2 + 1)


MNIST = DigitSet(
    name="mnist",
    title="MNIST",
    md5={
        "train_images": "6bbc9ace898e44ae57da46a324031adb",
        "train_labels": "a25bea736e30d166cdddb491f175f624",
        "test_images": "2646ac647ad5339dbf082846283269ea",
        "test_labels": "27ae3e4e09519cfbb04c329615203637",
    },
)
FASHION_MNIST = DigitSet(
    name="fashion-mnist",
    title="Fashion-MNIST",
    md5={
        "train_images": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train_labels": "9018921c3c673c538a1fc5bad174d6f9",
        "test_images": "8181f5470baa50b63fa0f6fddb340f0a",
        "test_labels": "15d484375f8d13e6eb1aabb0c3f46965",
    },
    system_folder=Path("/usr/share/datasets/fashion-mnist"),
)
DIGIT_SETS: dict[str, DigitSet] = {digits.name: digits for digits in (MNIST, FASHION_MNIST)}


@dataclass(frozen=True)
class Found:
    """Files that hold a data set: one `.npz`, or four idx files.

    Attributes:
        place: What to show: the `.npz`, or the idx files' folder.
        files: The file of each payload.
        remedy: What to do if they turn out to be wrong.
    """

    place: str
    files: dict[Payload, Path]
    remedy: str = "Replace the file, or remove it to have the set downloaded."


def find(digits: DigitSet) -> Found | None:
    """Look for a data set in `$DLNN_SEARCH_DATA`, then where the system keeps its packages'.

    Raises:
        DataError: If `$DLNN_SEARCH_DATA` is no folder, or only some idx files are there.
    """
    folder = _named_folder()
    if folder is not None:
        for base in (folder, *(folder / name for name in digits.spellings)):
            for name in digits.spellings:
                if (base / f"{name}.npz").is_file():
                    path = base / f"{name}.npz"
                    return Found(str(path), dict.fromkeys(NPZ_KEYS, path))
        # A folder of its name before the folder itself, whose idx files may be another set's.
        for base in (*(folder / name for name in digits.spellings), folder):
            found = _find_idx(base)
            if found is not None:
                return found
    if digits.system_folder is not None:
        return _find_idx(digits.system_folder)
    return None


def write_digits(
    digits: DigitSet,
    into: Path,
    on_progress: OnProgress,
    download: Callable[[DigitSet, Path], Path] | None = None,
) -> None:
    """Find a data set, check it, and write it as the parts of a prepared set.

    Args:
        digits: Which set, with its checksums.
        into: An empty folder.
        on_progress: Told where the set comes from, and of each payload.
        download: Called where no file is found: `download(digits, folder)` returns an `.npz`.

    Raises:
        DataError: If it is found nowhere, or the files found are not this set.
    """
    found = find(digits)
    if found is None:
        on_progress(Progress(f"{digits.title} is not on this machine: downloading it with Keras."))
        path = (download or _download)(digits, into)
        found = Found(
            "Keras's download",
            dict.fromkeys(NPZ_KEYS, path),
            "Remove Keras's own copy (in ~/.keras/datasets) and try again.",
        )
    what = f"Preparing {digits.title} from {found.place}"
    for done, payload in enumerate(NPZ_KEYS):
        on_progress(Progress(what, done, len(NPZ_KEYS)))
        array = _checked(digits, payload, found)
        part = "search" if payload.startswith("train") else "test"
        name = PICTURES if payload.endswith("images") else LABELS
        write_array(into / part / name, array.shape, [array])
    for path in set(found.files.values()):
        if path.parent == into:
            path.unlink()  # the download, now taken apart
    on_progress(Progress(what, len(NPZ_KEYS), len(NPZ_KEYS)))


def places_looked_in(digits: DigitSet) -> str:
    """Return the places that `find` looks in, as part of a message."""
    folder = _named_folder()
    places = [f"'{folder}' ($DLNN_SEARCH_DATA)" if folder else "$DLNN_SEARCH_DATA (not set)"]
    if digits.system_folder is not None:
        places.append(f"'{digits.system_folder}'")
    return ", ".join(places)


def _download(digits: DigitSet, folder: Path) -> Path:

    path = folder / "download.npz"
    try:
        download_with_keras(digits.keras_name, path)
    except DataError as error:
        raise DataError(
            f"Cannot get {digits.title}: it is not in {places_looked_in(digits)}, and {error} "
            f"Put {digits.keras_name}.npz (Keras's form) or the four idx files into a folder, "
            f"set DLNN_SEARCH_DATA to it, and run 'dlnn-search data prepare {digits.name}'."
        ) from error
    return path


def _named_folder() -> Path | None:
    named = os.environ.get("DLNN_SEARCH_DATA")
    if not named:
        return None
    folder = Path(named).expanduser().absolute()
    if not folder.is_dir():
        raise DataError(
            f"DLNN_SEARCH_DATA names '{folder}': expected a folder with data sets, found none. "
            f"Create it, name another, or unset the variable."
        )
    return folder


def _find_idx(folder: Path) -> Found | None:
    files: dict[Payload, Path] = {}
    for payload, stems in IDX_STEMS.items():
        for name in (name for stem in stems for name in (stem, f"{stem}.gz")):
            if (folder / name).is_file():
                files[payload] = folder / name
                break
    if not files:
        return None
    missing = [stems[0] for payload, stems in IDX_STEMS.items() if payload not in files]
    if missing:
        raise DataError(
            f"Expected four idx files in '{folder}', found {len(files)}: {', '.join(missing)} "
            f"missing (plain or .gz). Add the missing ones, or move the others away."
        )
    return Found(str(folder), files)


def _checked(digits: DigitSet, payload: Payload, source: Found) -> NDArray[np.uint8]:
    """Read a payload and prove it by its checksum; shape as `digits.shape(payload)`."""
    path = source.files[payload]
    try:
        if path.suffix == ".npz":
            where, raw = f"'{NPZ_KEYS[payload]}' of '{path}'", _read_npz(path, payload)
        else:
            where, raw = f"'{path}'", _read_idx(path)
    except (OSError, EOFError, ValueError, KeyError, MemoryError, zipfile.BadZipFile,
            zlib.error) as error:  # fmt: skip
        raise DataError(
            f"Cannot read {digits.title} from '{path}': {error}. Expected "
            f"{'the arrays x_train, y_train, x_test, y_test' if path.suffix == '.npz' else 'idx'}"
            f", not damaged. {source.remedy}"
        ) from error
    found = hashlib.md5(raw, usedforsecurity=False).hexdigest()
    if found != digits.md5[payload]:
        raise DataError(
            f"{where} is not {digits.title}'s {payload.replace('_', ' ')}: expected the MD5 "
            f"{digits.md5[payload]} of its idx form, found {found}.{_whose(found, digits)} "
            f"{source.remedy}"
        )
    shape = digits.shape(payload)
    return np.frombuffer(raw, np.uint8, offset=len(_idx_header(shape))).reshape(shape)


def _whose(md5: str, asked: DigitSet) -> str:
    for digits in DIGIT_SETS.values():
        if digits.name != asked.name and md5 in digits.md5.values():
            return (
                f" This is {digits.title}: keep the two sets' idx files in subfolders "
                f"'{digits.name}' and '{asked.name}'."
            )
    return ""


def _idx_header(shape: tuple[int, ...]) -> bytes:
    # 0x08: unsigned bytes; then the number of dimensions, then each as a big-endian int32.
    return struct.pack(f">HBB{len(shape)}I", 0, 0x08, len(shape), *shape)


def _read_npz(path: Path, payload: Payload) -> bytes:
    key = NPZ_KEYS[payload]
    with zipfile.ZipFile(path) as archive:
        size = archive.getinfo(f"{key}.npy").file_size
    if size > MAX_PAYLOAD_BYTES:
        raise ValueError(f"{key} has {size:,} bytes, more than {MAX_PAYLOAD_BYTES:,}")
    with np.load(path, allow_pickle=False) as arrays:
        array = arrays[key]
    whole = array.astype(np.uint8)
    if not np.array_equal(whole, array):
        raise ValueError(f"{key} holds {array.dtype} values that are no whole numbers 0 to 255")
    payload_bytes: bytes = _idx_header(whole.shape) + whole.tobytes()
    return payload_bytes


def _read_idx(path: Path) -> bytes:
    with path.open("rb") as stored:
        file = gzip.GzipFile(fileobj=stored) if path.suffix == ".gz" else stored
        raw = file.read(MAX_PAYLOAD_BYTES + 1)
    if len(raw) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"it has more than {MAX_PAYLOAD_BYTES:,} bytes")
    return raw


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
