"""Slots whose worker vanished: opened for others, each loss counted once, with its event."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dlnn_search.storage.budget import held_seconds
from dlnn_search.storage.events import insert_event
from dlnn_search.storage.schema import now, slots, workers

#: How often a slot may be lost (its worker killed or hung) before its trial counts as failed.
MAX_LOSSES = 3


def open_expired(connection: Connection, study_id: int) -> int:
    """Open the slots whose lease ran out; return how many.

    A row that another transaction holds is left to it: that one writes to it just now.
    """
    expired = (
        sa.select(slots.c.id)
        .where(slots.c.study_id == study_id, slots.c.state == "held")
        .where(slots.c.lease_ends_at < now())
        .with_for_update(skip_locked=True)
    )
    return _open(
        connection, study_id, slots.c.id.in_(expired), "made no progress until its lease ended"
    )


def open_of_dead(connection: Connection, study_id: int, worker: str, *, is_loss: bool) -> None:
    """Open what a worker held whose process is gone, and say that it stopped.

    Its fence is raised at once: should it live after all, it has lost the slot all the same.
    """
    held = sa.and_(slots.c.study_id == study_id, slots.c.state == "held", slots.c.worker == worker)
    _open(connection, study_id, held, "died" if is_loss else None, fence=slots.c.fence + 1)
    connection.execute(
        workers.update()
        .where(workers.c.id == worker)
        .values(state="stopped", slot_id=None, trial_number=None)
    )


def _open(
    connection: Connection,
    study_id: int,
    where: sa.ColumnElement[bool],
    how: str | None,
    **values: Any,
) -> int:
    """Open slots; `how` they were lost, None where that is no loss."""
    rows = connection.execute(
        slots.update()
        .where(where, slots.c.state == "held")
        .values(
            state="open",  # its loser's name stays until the next claim
            lease_ends_at=None,
            claimed_at=None,
            spent_seconds=slots.c.spent_seconds + held_seconds(),
            losses=slots.c.losses + int(how is not None),
            **values,
        )
        .returning(slots.c.id, slots.c.number, slots.c.trial_number, slots.c.worker, slots.c.losses)
    ).all()
    for row in rows if how is not None else ():
        name = f"Slot {row.number}" if row.trial_number is None else f"Trial {row.trial_number}"
        insert_event(
            connection,
            study_id,
            "lost",
            f"{name} was lost ({row.losses} of {MAX_LOSSES}): {row.worker} {how}.",
            worker=row.worker,
            slot_id=row.id,
        )
    return len(rows)
