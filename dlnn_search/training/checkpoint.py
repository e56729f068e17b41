"""The state of a training on disk: the last epoch to go on from, the best one to keep."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from dlnn_search.errors import StorageError, TrainingError

#: Changes when a file of before can no longer be read.
CHECKPOINT_VERSION = 1
FILE = "last.npz"

Arrays = Sequence[NDArray[Any]]


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    Attributes:
        epoch: Counted from 1.
        metrics: The training loss as `train_loss`; of the validation split `loss` and the
            metrics of the config's head.
        seconds: Spent on training and validation.
        images_per_second: Trained, validation time left out.
    """

    epoch: int
    metrics: dict[str, float]
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class State:
    """All that a training needs to go on as if it had never stopped.

    Attributes:
        precision: The concrete one that it began with; `auto` could resolve differently later.
        curve: The epochs so far.
        last: After the last of them: weights, dropout's seeds, the optimiser's state and the
            averaged weights, in the order of the model's, optimiser's and average's variables.
        best: The weights that count after the best epoch (the average, if there is one), as
            `keras.Model.get_weights` orders them.
    """

    precision: str
    curve: tuple[Epoch, ...]
    last: Arrays
    best: Arrays


_CURVE = TypeAdapter(tuple[Epoch, ...])


class Checkpoint:
    """The checkpoint of one training, in a folder of its own.

    One file holds both the last and the best epoch. It is written beside its place and then
    renamed, so a kill at any moment leaves a whole one, and so does a worker that lost its lease
    and writes once more: with a file each, its last could name a best that is gone.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._path = folder / FILE
        self._fingerprint = fingerprint

    def load(self) -> State | None:
        """Return what was saved, None if nothing was.

        Raises:
            TrainingError: If it belongs to another config.
            StorageError: If it cannot be read.
        """
        if not self._path.exists():
            return None
        arrays, meta = _read(self._path)
        if meta.get("fingerprint") != self._fingerprint:
            raise TrainingError(
                f"The checkpoint '{self._path}' belongs to the config {meta.get('fingerprint')}, "
                f"expected {self._fingerprint}. Train this config in a folder of its own."
            )
        try:
            precision = str(meta["precision"])
            curve = _CURVE.validate_python(meta["curve"])
        except (KeyError, ValidationError) as error:
            raise StorageError(
                f"The checkpoint '{self._path}' holds no curve: its description is damaged. "
                "Remove its folder to train from the start."
            ) from error
        return State(
            precision=precision,
            curve=curve,
            last=[array for name, array in arrays.items() if name.startswith("last")],
            best=[array for name, array in arrays.items() if name.startswith("best")],
        )

    def save(self, state: State) -> None:
        """Keep a state in place of the one before.

        Raises:
            StorageError: If the disk is full or cannot be written.
        """
        meta = {
            "version": CHECKPOINT_VERSION,
            "fingerprint": self._fingerprint,
            "precision": state.precision,
            "curve": [asdict(epoch) for epoch in state.curve],
        }
        arrays = {f"last_{number:04d}": array for number, array in enumerate(state.last)}
        arrays |= {f"best_{number:04d}": array for number, array in enumerate(state.best)}
        # One temporary name a process: a worker that lost its lease may still be writing.
        partial = self._path.with_name(f".{FILE}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
                # Not compressed: trained weights hardly shrink.
                np.savez(file, allow_pickle=False, meta=text, **arrays)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise StorageError(_cannot_write(self._path, error)) from error

    def clear(self) -> None:
        """Forget what is kept, for a training from the start."""
        self._path.unlink(missing_ok=True)


def _cannot_write(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"No space left for the checkpoint '{path}' ({error.strerror}). Make room or choose "
            "another folder, then start again: the epochs before this one are kept."
        )
    return (
        f"Cannot write the checkpoint '{path}': {error.strerror or error}. Make the folder "
        "writable, then start again: the epochs before this one are kept."
    )


def _read(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    try:
        with path.open("rb") as raw:
            _check_sizes(raw, path.stat().st_size)
            raw.seek(0)
            # Without pickle: a checkpoint is data and cannot run code.
            with np.load(raw, allow_pickle=False) as file:
                arrays = {name: file[name] for name in sorted(file.files) if name != "meta"}
                meta = json.loads(bytes(file["meta"]))
        if not isinstance(meta, dict):
            raise ValueError("its description is none")
    except MemoryError:  # this machine's want, not the file's fault
        raise
    except Exception as error:  # NumPy raises whatever a damaged file makes it stumble over
        said = str(error).partition("\n")[0] or type(error).__name__
        raise StorageError(
            f"Cannot read the checkpoint '{path}': {said[:200]}. Remove its folder to train from "
            "the start."
        ) from error
    if meta.get("version") != CHECKPOINT_VERSION:
        raise StorageError(
            f"The checkpoint '{path}' has version {meta.get('version')}, expected "
            f"{CHECKPOINT_VERSION}. Remove its folder to train from the start."
        )
    return arrays, meta


def _check_sizes(file: BinaryIO, size: int) -> None:
    """Refuse an archive that would take more memory than it takes on the disk."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("it is compressed, which no checkpoint is")
        if sum(member.file_size for member in members) > size:
            raise ValueError("its parts are larger than itself")
        for member in members:
            with archive.open(member) as part:
                version = npy.read_magic(part)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, _, dtype = read(part)
            if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > member.file_size:
                raise ValueError(f"its part {member.filename} claims to be larger than it is")
