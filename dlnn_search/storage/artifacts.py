"""Checkpoints that stay: those of a study's best trials, each with the sum that proves it."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from dlnn_search.files import CHECKPOINT, CHECKPOINTS, latest_checkpoint, slot_path
from dlnn_search.storage.database import Database
from dlnn_search.storage.duplicates import TRAINED_ITSELF
from dlnn_search.storage.place import lasting_name, place_of
from dlnn_search.storage.schema import artifacts as table
from dlnn_search.storage.schema import now, slots, studies

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
        order = slots.c.value.desc() if row.direction == "maximize" else slots.c.value.asc()
        best = connection.scalars(
            sa.select(slots.c.id)
            .where(slots.c.study_id == row.id, slots.c.outcome == "complete")
            .where(TRAINED_ITSELF)
            .order_by(order, slots.c.trial_number)
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
