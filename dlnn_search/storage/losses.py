"""Slots whose worker vanished: opened for others, each loss counted once, with its event."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dlnn_search.storage.budget import end_spell
from dlnn_search.storage.claims import end_holds, hold_ended
from dlnn_search.storage.events import insert_event
from dlnn_search.storage.schema import now, slots, studies, workers

#: How often a slot may be lost (its worker killed or hung) before its trial counts as failed.
MAX_LOSSES = 3


def open_expired(connection: Connection, study_id: int, answered_seconds: float) -> int:
    """Open the slots whose lease ran out; return how many.

    A row that another transaction holds is left to it: that one writes to it just now.

    Args:
        connection: Of a transaction that is open.
        study_id: Whose slots.
        answered_seconds: For how long the database has answered this process. Less than a lease,
            and a living worker may not have been able to renew its own yet: nothing is opened.
    """
    end_spell(connection, study_id)  # whether any is opened or not
    rows = end_holds(connection, _open_expired(study_id), {"answered": answered_seconds})
    _tell(connection, study_id, rows, "made no progress until its lease ended")
    return len(rows)


def open_of_dead(connection: Connection, study_id: int, worker: str, *, is_loss: bool) -> None:
    """Open what a worker held whose process is gone, and say that it stopped.

    Its fence is raised at once: should it live after all, it has lost the slot all the same.
    """
    held = sa.and_(slots.c.study_id == study_id, slots.c.worker == worker)
    rows = end_holds(connection, _open(held, is_loss, fence=slots.c.fence + 1))
    if is_loss:
        _tell(connection, study_id, rows, "died")
    connection.execute(
        workers.update()
        .where(workers.c.id == worker)
        .values(state="stopped", slot_id=None, trial_number=None)
    )


@functools.lru_cache(maxsize=16)  # every claim does it first
def _open_expired(study_id: int) -> Any:
    lease = sa.select(studies.c.lease_seconds).where(studies.c.id == study_id).scalar_subquery()
    expired = (
        sa.select(slots.c.id)
        .where(slots.c.study_id == study_id, slots.c.state == "held")
        .where(slots.c.lease_ends_at < now(), sa.bindparam("answered", type_=sa.Float) >= lease)
        .with_for_update(skip_locked=True)
    )
    return _open(slots.c.id.in_(expired), is_loss=True)


def _open(where: sa.ColumnElement[bool], is_loss: bool, **values: Any) -> Any:
    # Its loser's name stays until the next claim.
    return hold_ended(where, state="open", losses=slots.c.losses + int(is_loss), **values)


def _tell(connection: Connection, study_id: int, rows: Sequence[Any], how: str) -> None:
    for row in rows:
        name = f"Slot {row.number}" if row.trial_number is None else f"Trial {row.trial_number}"
        insert_event(
            connection,
            study_id,
            "lost",
            f"{name} was lost ({row.losses} of {MAX_LOSSES}): {row.worker} {how}.",
            worker=row.worker,
            slot_id=row.id,
        )
