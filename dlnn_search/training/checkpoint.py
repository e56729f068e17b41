"""The state of a training on disk: the last epoch to go on from, the best one to keep."""

from __future__ import annotations

import errno
import json
import math
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from dlnn_search.errors import OutageError, StorageError, TrainingError
from dlnn_search.files import checkpoint_name, generations, latest_checkpoint, written_whole

#: Changes when a file of before can no longer be read.
CHECKPOINT_VERSION = 1
#: The least time between two checkpoints: what a kill costs at most, beside the epoch that runs.
SAVE_SECONDS = 2.0
#: Saving may take a twentieth of the time, and a kill may cost so much.
SAVE_SHARE = 0.05
MAX_SAVE_SECONDS = 60.0

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


class DamagedCheckpointError(StorageError):
    """A checkpoint that is there, but cannot be understood."""


class OtherCheckpointError(TrainingError):
    """A checkpoint of another config."""


class Checkpoint:
    """The checkpoint of one training, in a folder of its own.

    One file holds both the last and the best epoch. It is written beside its place and then
    renamed, so a kill at any moment leaves a whole one.

    Each holder of a training writes a file of its own generation and goes on from the latest:
    one that lost the training and wakes later overwrites nothing that its successor wrote.
    """

    def __init__(self, folder: Path, fingerprint: str, generation: int = 0) -> None:
        """Name the folder; it is made when something is saved.

        Args:
            folder: Of this training alone.
            fingerprint: Of the config that is trained.
            generation: Grows with each holder; 0 where there is only one.
        """
        self._folder = folder
        self._path = folder / checkpoint_name(generation)
        self._generation = generation
        self._fingerprint = fingerprint

    def load(self) -> State | None:
        """Return what was saved last, None if nothing was.

        Raises:
            OtherCheckpointError: If it belongs to another config.
            DamagedCheckpointError: If it cannot be understood.
            OutageError: If it cannot be read now.
        """
        path = latest_checkpoint(self._folder)
        if path is None:
            return None
        arrays, meta = _read(path)
        if meta.get("fingerprint") != self._fingerprint:
            raise OtherCheckpointError(
                f"The checkpoint '{path}' belongs to the config {meta.get('fingerprint')}, "
                f"expected {self._fingerprint}. Train this config in a folder of its own."
            )
        try:
            precision = str(meta["precision"])
            curve = _CURVE.validate_python(meta["curve"])
        except (KeyError, ValidationError) as error:
            raise DamagedCheckpointError(
                f"The checkpoint '{path}' holds no curve: its description is damaged. "
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
            OutageError: If the disk is full or cannot be written.
        """
        meta = {
            "version": CHECKPOINT_VERSION,
            "fingerprint": self._fingerprint,
            "precision": state.precision,
            "curve": [asdict(epoch) for epoch in state.curve],
        }
        arrays = {f"last_{number:04d}": array for number, array in enumerate(state.last)}
        arrays |= {f"best_{number:04d}": array for number, array in enumerate(state.best)}
        text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
        try:
            with written_whole(self._path) as partial, partial.open("wb") as file:
                # Not compressed: trained weights hardly shrink.
                np.savez(file, allow_pickle=False, meta=text, **arrays)
            for generation, path in generations(self._folder).items():
                if generation < self._generation:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise OutageError(_cannot_write(self._path, error)) from error

    def clear(self) -> None:
        """Forget what is kept, for a training from the start.

        Raises:
            OutageError: If the disk cannot be written.
        """
        try:
            for path in generations(self._folder).values():
                path.unlink(missing_ok=True)
        except OSError as error:
            raise OutageError(_cannot_write(self._path, error)) from error


class Pace:
    """When to save: seldom enough to cost little, often enough to lose little."""

    def __init__(self, seconds: float = SAVE_SECONDS) -> None:
        self._seconds = seconds
        self._next = 0.0

    def is_due(self) -> bool:
        """Whether it is time to save again; so it is at first."""
        return time.monotonic() >= self._next

    def saved(self, took_seconds: float) -> None:
        """Note a save that has just ended."""
        pause = min(took_seconds / SAVE_SHARE, MAX_SAVE_SECONDS)
        self._next = time.monotonic() + max(self._seconds, pause)


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
        if isinstance(error, OSError) and error.errno is not None:  # the disk's fault, or gone
            raise OutageError(f"Cannot read the checkpoint '{path}': {error}.") from error
        said = str(error).partition("\n")[0] or type(error).__name__
        raise DamagedCheckpointError(
            f"Cannot read the checkpoint '{path}': {said[:200]}. Remove its folder to train from "
            "the start."
        ) from error
    if meta.get("version") != CHECKPOINT_VERSION:
        raise DamagedCheckpointError(
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
