"""Checkpoints of a study's best trials, the files folder they lie in, and its tidying."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sqlite3
import time
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from dlnn_search.errors import StorageError
from dlnn_search.files import CHECKPOINT, CHECKPOINTS, is_cut_off, latest_checkpoint, slot_path
from dlnn_search.storage.database import Database
from dlnn_search.storage.duplicates import TRAINED_ITSELF
from dlnn_search.storage.schema import artifacts, best_first, ledger, now, slots, studies
from dlnn_search.storage.schema import artifacts as table

PLACE_FILE = "place"


def place_of(folder: Path) -> str:
    """Return the folder's own name, made at first use: 32 hexadecimal digits.

    A path says nothing across machines; a file inside the folder is shared exactly where the
    folder is.

    Raises:
        StorageError: If the folder cannot be read or written.
    """
    path = folder / PLACE_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            partial = folder / f".{PLACE_FILE}.{os.getpid()}.{uuid.uuid4().hex[:6]}"
            partial.write_text(uuid.uuid4().hex, encoding="ascii")
            try:
                os.link(partial, path)  # the first of several writers wins
            except FileExistsError:
                pass
            finally:
                partial.unlink()
        name = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"Cannot use the folder '{folder}': {error}.") from error
    if len(name) != 32 or not all(letter in "0123456789abcdef" for letter in name):
        raise StorageError(
            f"Expected 32 hexadecimal digits in '{path}', got something else. Remove that file. "
            "A new one is made, and trials that were begun here start over."
        )
    return name


#: In a stored definition: what the study was called before it was renamed, the first name first.
EARLIER_NAMES = "earlier_names"


def lasting_name(name: str, definition: Mapping[str, Any]) -> str:
    """Return a study's first name: its folders keep it when the study is renamed."""
    return str((definition.get(EARLIER_NAMES) or [name])[0])


CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Artifact:
    """A file that belongs to a study.

    Attributes:
        place: Which files folder it lies in, as `place_of` names it.
        path: Within that folder.
    """

    id: int
    slot_id: int | None
    place: str
    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Standing:
    """Where a settled slot stands among its study's, as of one moment.

    Attributes:
        path: Of its checkpoint, within the files folder.
        best: The slots whose checkpoints stay.
        artifacts: All of the study's.
    """

    study_id: int
    path: str
    best: tuple[int, ...]
    artifacts: tuple[Artifact, ...]


def standing_of(database: Database, slot_id: int, keep: int) -> Standing:
    """Return where a settled slot stands; `keep` checkpoints of its study stay."""
    with database.transaction() as connection:
        row = connection.execute(
            sa.select(
                studies.c.id,
                studies.c.name,
                studies.c.definition,
                studies.c.definition["settings"]["direction"].as_string().label("direction"),
                slots.c.number,
            )
            .join(slots, slots.c.study_id == studies.c.id)
            .where(slots.c.id == slot_id)
        ).one()
        best = connection.scalars(
            sa.select(slots.c.id)
            .where(slots.c.study_id == row.id, slots.c.outcome == "complete")
            .where(TRAINED_ITSELF)
            .order_by(best_first(row.direction), slots.c.trial_number)
            .limit(keep)
        )
        path = slot_path(lasting_name(row.name, row.definition), row.number)
        return Standing(row.id, path, tuple(best), tuple(artifacts_of(database, row.id)))


def settle_checkpoint(
    database: Database, slot_id: int, keep: int, found: Standing | None = None
) -> None:
    """Keep a settled slot's checkpoint while it is among the study's best; else remove it.

    A better trial takes the place of the worst that was kept. A file goes before its row: what a
    kill leaves between the two is a row without a file, which `sweep` removes.

    Args:
        database: Where.
        slot_id: Of the slot.
        keep: How many stay. A result that was reused has no checkpoint of its own.
        found: Where it stands, if that was looked at since it was settled.
    """
    files = database.files
    found = found or standing_of(database, slot_id, keep)
    folder = (files / found.path).parent
    file = None
    with contextlib.suppress(OSError):
        file = latest_checkpoint(folder) if slot_id in found.best else None
    if file is not None:
        file.replace(files / found.path)
        _remove_others(folder)
        _register(database, found.study_id, slot_id, found.path)
        # Another worker may have settled a better one, and not seen this one's row.
        found = standing_of(database, slot_id, keep)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    for artifact in found.artifacts:
        if artifact.slot_id not in found.best:
            drop(database, artifact)


def _register(database: Database, study_id: int, slot_id: int, path: str) -> None:
    file = database.files / path
    sha256 = sha256_of(file)
    place = place_of(database.files)
    with database.transaction() as connection:
        connection.execute(table.delete().where(table.c.place == place, table.c.path == path))
        connection.execute(
            table.insert().values(
                study_id=study_id,
                slot_id=slot_id,
                kind="checkpoint",
                place=place,
                path=path,
                sha256=sha256,
                size_bytes=file.stat().st_size,
                created_at=now(),
            )
        )


def artifacts_of(database: Database, study_id: int | None = None) -> Sequence[Artifact]:
    """Return a study's artifacts, or all."""
    query = sa.select(table).order_by(table.c.id)
    if study_id is not None:
        query = query.where(table.c.study_id == study_id)
    with database.transaction() as connection:
        rows = connection.execute(query).all()
    return [
        Artifact(row.id, row.slot_id, row.place, row.path, row.sha256, row.size_bytes)
        for row in rows
    ]


def drop(database: Database, artifact: Artifact) -> bool:
    """Remove an artifact, file first; False where its file lies on another machine."""
    if artifact.place != place_of(database.files):
        return False  # a sweep there finds that no trial keeps it
    path = inside(database.files, artifact.path)
    if path is not None:
        shutil.rmtree(path.parent, ignore_errors=True)
        if path.exists():
            return False
    with database.transaction() as connection:
        connection.execute(table.delete().where(table.c.id == artifact.id))
    return True


def inside(files: Path, path: str) -> Path | None:
    """Return a file's path, unless it is no checkpoint's within the folder."""
    found = files / path
    parts = Path(path).parts
    if len(parts) != 4 or parts[0] != CHECKPOINTS or ".." in parts or parts[3] != CHECKPOINT:
        return None
    return found


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            sha256.update(chunk)
    return sha256.hexdigest()


def _remove_others(folder: Path) -> None:
    """Remove what earlier holders left: a checkpoint each, or one that a kill cut off."""
    for path in folder.iterdir():
        if path.name != CHECKPOINT:
            with contextlib.suppress(OSError):
                path.unlink()


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
    if not (database.files / PLACE_FILE).exists():  # looking makes none
        return []
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
