"""`storage sweep`: what no study needs any more in a database's files folder."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from dlnn_search.storage.artifacts import (
    CHECKPOINTS,
    Artifact,
    artifacts_of,
    drop,
)
from dlnn_search.storage.database import Database
from dlnn_search.storage.place import lasting_name, place_of
from dlnn_search.storage.schema import artifacts, slots, studies

#: A trial that was settled a moment ago may still get its checkpoint registered, and a file that
#: was written a moment ago may belong to a study that is just being made.
MIN_AGE_SECONDS = 600.0

_PARTIAL = re.compile(r"\.last(-\d+)?\.npz\.\d+")


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
    found = _rows_without_file(database)
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
                if _PARTIAL.fullmatch(path.name)
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
