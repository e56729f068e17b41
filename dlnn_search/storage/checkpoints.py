"""`storage sweep`: what no study needs any more in a database's files folder."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sqlite3
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sqlalchemy as sa

from dlnn_search.errors import StorageError
from dlnn_search.files import CHECKPOINT, CHECKPOINTS, is_cut_off
from dlnn_search.storage.artifacts import Artifact, artifacts_of, drop
from dlnn_search.storage.database import Database
from dlnn_search.storage.place import lasting_name, place_of
from dlnn_search.storage.schema import artifacts, ledger, slots, studies

#: A trial that was settled a moment ago may still get its checkpoint registered, and a file that
#: was written a moment ago may belong to a study that is just being made.
MIN_AGE_SECONDS = 600.0

#: Where evaluations and cross-validations keep their checkpoints, a folder each.
EVALUATIONS, CROSSVALIDATIONS = "evaluations", "crossvalidations"
#: The file that tells a finished evaluation's folder from one that goes on when it is asked again.
FINISHED = "finished"
#: An evaluation of an earlier version that is not at its end may still be running for so long.
EARLIER_SECONDS = 86_400.0

_FOLDS = re.compile(r"[0-9a-f]{12}-(\d+)-folds", re.ASCII)


@dataclass(frozen=True)
class Orphan:
    """Something that no study needs.

    Attributes:
        path: The folder or file; None for a row alone.
        why: In words.
        size_bytes: What its removal gives back.
        artifact: The row that goes with it.
    """

    path: Path | None
    why: str
    size_bytes: int
    artifact: Artifact | None = None


def find_orphans(database: Database, min_age_seconds: float = MIN_AGE_SECONDS) -> list[Orphan]:
    """Return what can go: never anything of a slot that is open or held.

    Args:
        min_age_seconds: What was written or settled since is left alone.
    """
    found = [
        *_rows_without_file(database),
        *_of_evaluations(database, min_age_seconds),
        *_of_crossvalidations(database, min_age_seconds),
    ]
    root = database.files / CHECKPOINTS
    if not root.is_dir():
        return found
    with database.transaction() as connection:
        ids = {
            lasting_name(row.name, row.definition): row.id
            for row in connection.execute(sa.select(studies))
        }
    elsewhere = folders_beside(database)
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if folder.is_symlink():
            continue
        if folder.name not in ids:
            if folder.name not in elsewhere and _is_old(folder, min_age_seconds):
                why = f"no study '{folder.name}' in this database"
                found.append(Orphan(folder, why, _size(folder)))
            continue
        found += _of_study(database, ids[folder.name], folder, min_age_seconds)
    return found


def evaluation_folder(database: Database, fingerprint: str) -> Path:
    """Return where an evaluation of a config keeps a checkpoint for each seed."""
    return database.files / EVALUATIONS / f"{fingerprint}-test"


def is_unfinished(folder: Path) -> bool:
    """Whether an evaluation has begun and is not at its end."""
    return folder.is_dir() and not (folder / FINISHED).exists()


def mark(folder: Path, *, finished: bool) -> None:
    """Note that an evaluation begins, whose checkpoints stay, or is at its end: they may go.

    Raises:
        StorageError: If the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if finished:
            (folder / FINISHED).touch()
        else:
            (folder / FINISHED).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"Cannot write into '{folder}': {error.strerror or error}.") from error


def _of_evaluations(database: Database, min_age: float) -> list[Orphan]:
    with database.transaction() as connection:
        tested = set(
            connection.scalars(
                sa.select(ledger.c.fingerprint).where(ledger.c.closed_at.is_not(None))
            )
        )
    found = []
    for folder in _folders(database.files / EVALUATIONS):
        why = f"evaluation {folder.name}: finished"
        if folder.name.endswith("-test"):
            is_orphan = (folder / FINISHED).exists()
        elif folder.name in tested:  # an earlier version's: a folder a seed, and nothing marked
            is_orphan = _is_old(folder, min_age)
        else:
            is_orphan = _is_old(folder, EARLIER_SECONDS)
            why = f"evaluation {folder.name}: of an earlier version, whose seeds test no more"
        if is_orphan:
            found.append(Orphan(folder, why, _size(folder)))
    return found


def _of_crossvalidations(database: Database, min_age: float) -> list[Orphan]:
    """Return those whose last fold was trained for as many epochs as the first one."""
    found = []
    for folder in _folders(database.files / CROSSVALIDATIONS):
        match = _FOLDS.fullmatch(folder.name)
        last = None if match is None else folder / match[1]
        if last is None or not last.is_dir() or not _is_old(folder, min_age):
            continue
        n_epochs = _n_epochs(last)
        if n_epochs and n_epochs == _n_epochs(folder / "1"):
            words = f"cross-validation {folder.name}: finished"
            found.append(Orphan(folder, words, _size(folder)))
    return found


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.is_symlink())


def _n_epochs(folder: Path) -> int:
    """Return how many epochs a checkpoint holds; 0 where it cannot be read."""
    with (
        contextlib.suppress(OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile),
        np.load(folder / CHECKPOINT, allow_pickle=False) as file,
    ):
        return len(json.loads(bytes(file["meta"]))["curve"])
    return 0


def _of_study(database: Database, study_id: int, folder: Path, min_age: float) -> list[Orphan]:
    with database.transaction() as connection:
        states = {
            row.number: row
            for row in connection.execute(
                sa.select(slots.c.id, slots.c.number, slots.c.state).where(
                    slots.c.study_id == study_id
                )
            )
        }
        kept = set(
            connection.execute(
                sa.select(artifacts.c.slot_id).where(artifacts.c.study_id == study_id)
            ).scalars()
        )
    found = []
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        if place.is_symlink() or not place.name.isdecimal():
            continue
        row = states.get(int(place.name))
        if row is not None and row.state != "done":
            continue
        if not _is_old(place, min_age):
            continue
        words = f"{folder.name}, slot {place.name}"
        if row is None:
            found.append(Orphan(place, f"{words}: no such slot", _size(place)))
        elif row.id not in kept:
            found.append(Orphan(place, f"{words}: settled, and not kept", _size(place)))
        else:
            found += [
                Orphan(path, f"{words}: cut off while it was written", path.stat().st_size)
                for path in sorted(place.iterdir())
                if is_cut_off(path)
            ]
    return found


def _rows_without_file(database: Database) -> list[Orphan]:
    here = place_of(database.files)
    return [
        Orphan(None, f"row {row.id}: its file '{row.path}' is gone", 0, row)
        for row in artifacts_of(database)
        if row.place == here and not (database.files / row.path).is_file()
    ]


def remove(database: Database, orphans: Sequence[Orphan]) -> tuple[int, int]:
    """Remove what was found; return how many are gone, and their bytes."""
    n_gone, n_bytes = 0, 0
    for orphan in orphans:
        if orphan.artifact is not None:
            gone = drop(database, orphan.artifact)
        elif orphan.path is None:
            gone = False
        else:
            with contextlib.suppress(OSError):
                if orphan.path.is_dir():
                    shutil.rmtree(orphan.path, ignore_errors=True)
                else:
                    orphan.path.unlink()
            gone = not orphan.path.exists()
        if gone:
            n_gone, n_bytes = n_gone + 1, n_bytes + orphan.size_bytes
    return n_gone, n_bytes


def folders_beside(database: Database) -> set[str]:
    """Return how folders are named by the SQLite databases that share the files folder."""
    names: set[str] = set()
    for path in database.files.glob("*.db"):
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection,
        ):
            rows = connection.execute("SELECT name, definition FROM dlnn_studies")
            names |= {lasting_name(name, json.loads(definition)) for name, definition in rows}
    return names


def _is_old(folder: Path, min_age: float) -> bool:
    newest = max((path.stat().st_mtime for path in [folder, *folder.rglob("*")]), default=0.0)
    return time.time() - newest >= min_age


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
