"""The state of a training on disk: the last epoch to go on from, the best one to keep."""

from __future__ import annotations

import errno
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlnn_search.errors import StorageError, TrainingError

#: Changes when a file of before can no longer be read.
CHECKPOINT_VERSION = 1
LAST = "last.npz"

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
        fingerprint: Of the config.
        precision: The concrete one that it began with; `auto` could resolve differently later.
        curve: The epochs so far.
        best_epoch: The number of the best of them.
        arrays: Weights, optimiser state and seeds, in the order of the model's variables.
    """

    fingerprint: str
    precision: str
    curve: tuple[Epoch, ...]
    best_epoch: int
    arrays: Arrays


class Checkpoints:
    """The checkpoints of one training in a folder of its own.

    `last.npz` holds the state after the last epoch and names the best one, whose weights are in
    `best-<epoch>.npz`. A file is written beside its place and then renamed, and an old best is
    removed only when `last.npz` no longer names it: a kill at any moment leaves a whole pair.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._folder = folder
        self._fingerprint = fingerprint

    def load(self) -> State | None:
        """Return the state after the last epoch, None if there is none.

        Raises:
            TrainingError: If it belongs to another config.
            StorageError: If it cannot be read.
        """
        path = self._folder / LAST
        if not path.exists():
            return None
        arrays, meta = _read(path)
        if meta.get("fingerprint") != self._fingerprint:
            raise TrainingError(
                f"The checkpoint '{path}' belongs to the config {meta.get('fingerprint')}, "
                f"expected {self._fingerprint}. Train this config in a folder of its own."
            )
        return State(
            fingerprint=meta["fingerprint"],
            precision=meta["precision"],
            curve=tuple(Epoch(**epoch) for epoch in meta["curve"]),
            best_epoch=meta["best_epoch"],
            arrays=arrays,
        )

    def load_best(self) -> tuple[Arrays, str]:
        """Return the best epoch's weights, and the precision that they were trained in.

        Raises:
            TrainingError: If no epoch was kept here, or another config's.
            StorageError: If it cannot be read.
        """
        state = self.load()
        if state is None:
            raise TrainingError(
                f"No checkpoint in '{self._folder}': expected the folder of a training that "
                "has finished an epoch."
            )
        arrays, _ = _read(self._best(state.best_epoch))
        return arrays, state.precision

    def save(self, state: State, weights: Arrays) -> None:
        """Keep an epoch, and its weights if it is the best one.

        Raises:
            StorageError: If the disk is full or cannot be written.
        """
        best = self._best(state.best_epoch)
        meta: dict[str, Any] = {
            "version": CHECKPOINT_VERSION,
            "fingerprint": state.fingerprint,
            "precision": state.precision,
            "best_epoch": state.best_epoch,
        }
        if state.best_epoch == state.curve[-1].epoch:
            self._write(best, weights, meta)
        curve = [asdict(epoch) for epoch in state.curve]
        self._write(self._folder / LAST, state.arrays, {**meta, "curve": curve})
        for old in self._folder.glob("best-*.npz"):
            if old != best:
                old.unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget what is kept, for a training from the start."""
        for path in (self._folder / LAST, *self._folder.glob("best-*.npz")):
            path.unlink(missing_ok=True)

    def _best(self, epoch: int) -> Path:
        return self._folder / f"best-{epoch:05d}.npz"

    def _write(self, path: Path, arrays: Arrays, meta: Mapping[str, Any]) -> None:
        # One temporary name a process: a worker that was fenced off may still be writing.
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
        named = {f"array_{number:04d}": array for number, array in enumerate(arrays)}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                np.savez(file, meta=text, **named)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise StorageError(_cannot_write(path, error)) from error


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


def _read(path: Path) -> tuple[Arrays, dict[str, Any]]:
    try:
        # Without pickle: a checkpoint is data and cannot run code.
        with np.load(path, allow_pickle=False) as file:
            names = sorted(name for name in file.files if name != "meta")
            arrays = [file[name] for name in names]
            meta: dict[str, Any] = json.loads(bytes(file["meta"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise StorageError(
            f"Cannot read the checkpoint '{path}': {error}. Remove its folder to train from the "
            "start."
        ) from error
    if meta.get("version") != CHECKPOINT_VERSION:
        raise StorageError(
            f"The checkpoint '{path}' has version {meta.get('version')}, expected "
            f"{CHECKPOINT_VERSION}. Remove its folder to train from the start."
        )
    return arrays, meta
