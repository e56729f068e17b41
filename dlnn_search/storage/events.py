"""What happened out of the ordinary in a study, as its workers tell it: rows are only added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dlnn_search.storage.database import Database
from dlnn_search.storage.schema import events as table
from dlnn_search.storage.schema import now


@dataclass(frozen=True)
class Event:
    """One thing that happened; `at` is in seconds since 1970 by the database's clock."""

    id: int
    at: float
    kind: str
    worker: str | None
    slot_id: int | None
    words: str


def add_event(
    database: Database,
    study_id: int,
    kind: str,
    words: str,
    *,
    worker: str | None = None,
    slot_id: int | None = None,
) -> None:
    """Note what happened: `kind` is one word for programs, `words` a sentence for people."""
    with database.transaction() as connection:
        insert_event(connection, study_id, kind, words, worker=worker, slot_id=slot_id)


def insert_event(
    connection: Connection,
    study_id: int,
    kind: str,
    words: str,
    *,
    worker: str | None = None,
    slot_id: int | None = None,
) -> None:
    """Note what happened in the transaction that makes it happen: both or neither."""
    connection.execute(
        table.insert().values(
            study_id=study_id, at=now(), kind=kind, worker=worker, slot_id=slot_id, words=words
        )
    )


def last_events(database: Database, study_id: int, n: int) -> Sequence[Event]:
    """Return the last n events, oldest first."""
    query = (
        sa.select(table).where(table.c.study_id == study_id).order_by(table.c.id.desc()).limit(n)
    )
    with database.transaction() as connection:
        rows = connection.execute(query).all()
    return [
        Event(row.id, row.at, row.kind, row.worker, row.slot_id, row.words) for row in rows[::-1]
    ]
