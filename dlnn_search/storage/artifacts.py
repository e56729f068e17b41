"""Checkpoints that stay: those of a study's best trials, each with the sum that proves it."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dlnn_search.storage.database import Database
from dlnn_search.storage.place import place_of
from dlnn_search.storage.schema import artifacts as table
from dlnn_search.storage.schema import now, slots, studies

CHECKPOINTS = "checkpoints"
#: What a settled trial's checkpoint is called. While it is trained each holder writes one of its
#: own, `last-GENERATION.npz`, and the highest counts (`dlnn_search.training.checkpoint`).
FILE = "last.npz"
_GENERATION = re.compile(r"last(?:-(\d+))?\.npz", re.ASCII)
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


def slot_path(study_name: str, slot_number: int) -> str:
    """Return where a slot's checkpoint lies within a files folder."""
    return f"{CHECKPOINTS}/{study_name}/{slot_number}/{FILE}"


def checkpoint_file(folder: Path) -> Path | None:
    """Return a slot's latest checkpoint; None where it has none."""
    with contextlib.suppress(OSError):
        found = [
            (int(match[1] or 0), path)
            for path in folder.iterdir()
            if (match := _GENERATION.fullmatch(path.name))
        ]
        if found:
            return max(found)[1]
    return None


def settle_checkpoint(database: Database, slot_id: int, keep: int) -> None:
    """Keep a settled slot's checkpoint while it is among the study's best; else remove it.

    A better trial takes the place of the worst that was kept. A file goes before its row: what a
    kill leaves between the two is a row without a file, which `sweep` removes.

    Args:
        keep: How many stay. A result that was reused has no checkpoint of its own.
    """
    files = database.files
    with database.transaction() as connection:
        study_id, name, number = connection.execute(
            sa.select(studies.c.id, studies.c.name, slots.c.number)
            .join(slots, slots.c.study_id == studies.c.id)
            .where(slots.c.id == slot_id)
        ).one()
        best = _best_slots(connection, study_id, keep)
    path = slot_path(name, number)
    folder = (files / path).parent
    file = checkpoint_file(folder) if slot_id in best else None
    if file is not None:
        file.replace(files / path)
        _remove_others(folder)
        _register(database, study_id, slot_id, path)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    with database.transaction() as connection:  # another worker may have settled a better one
        best = _best_slots(connection, study_id, keep)
    for artifact in artifacts_of(database, study_id):
        if artifact.slot_id not in best:
            drop(database, artifact)


def _best_slots(connection: Connection, study_id: int, n: int) -> list[int]:
    definition = connection.scalar(sa.select(studies.c.definition).where(studies.c.id == study_id))
    minimizes = definition["settings"]["direction"] == "minimize" if definition else True
    order = slots.c.value.asc() if minimizes else slots.c.value.desc()
    query = (
        sa.select(slots.c.id)
        .where(slots.c.study_id == study_id, slots.c.outcome == "complete")
        .where(slots.c.reused_from.is_(None))
        .order_by(order, slots.c.trial_number)
        .limit(n)
    )
    return list(connection.execute(query).scalars())


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
    if len(parts) != 4 or parts[0] != CHECKPOINTS or ".." in parts or parts[3] != FILE:
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
        if path.name != FILE:
            with contextlib.suppress(OSError):
                path.unlink()
