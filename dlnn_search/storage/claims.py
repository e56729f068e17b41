"""How a slot's hold begins, goes on and ends, with the time that it counts.

One statement claims a slot: all that must hold is asked for in it. A hold that nobody ended has
ended with its lease, whenever that is noticed: by a successor, or by the holder itself that was
suspended with its machine and wakes. What lies between counts towards no budget.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dlnn_search.storage.budget import (
    begin_spell,
    earlier,
    end_spell,
    held_seconds,
    time_is_up,
)
from dlnn_search.storage.schema import now, slots, studies

# Written out, not bound: only so a database sees that its index of just these rows will do.
OPEN = slots.c.state == sa.literal_column("'open'")
HELD = slots.c.state == sa.literal_column("'held'")
WAITING = slots.c.state == sa.literal_column("'waiting'")


@functools.lru_cache(maxsize=16)
def claim_statement(study_id: int) -> Any:
    """Return the statement that claims a begun slot, one that need not wait, or a fresh one.

    Its parameters are `by` and `with_token`. It is made once: that takes longer than to run it.
    It claims only if the study runs, no budget of time is used up, and the slot is open, or
    waits for another that is settled, or gone. No fresh slot is begun while one waits since the
    space brought nothing new. It returns the slot's row, or none.
    """
    other = slots.alias()

    def lowest(*where: sa.ColumnElement[bool]) -> sa.ScalarSelect[int]:
        return (
            sa.select(slots.c.id)
            .where(slots.c.study_id == study_id, *where)
            .order_by(slots.c.number)
            .limit(1)
            .with_for_update(skip_locked=True)  # SQLite has one writer at a time, no such word
            .scalar_subquery()
        )

    is_scarce = sa.exists().where(
        other.c.study_id == study_id, other.c.state == "waiting", other.c.waiting_reason == "space"
    )
    chosen = sa.func.coalesce(  # three searches, each along an index
        lowest(OPEN, slots.c.trial_id.is_not(None)),
        lowest(waits_no_more()),
        lowest(OPEN, slots.c.trial_id.is_(None), ~is_scarce),
    )
    allowed = sa.exists().where(
        studies.c.id == study_id, studies.c.control == "run", time_is_up(study_id) == 0
    )
    return (
        slots.update()
        .where(slots.c.id == chosen, allowed)
        .values(
            state="held",
            worker=sa.bindparam("by"),
            claim_token=sa.bindparam("with_token"),
            fence=slots.c.fence + 1,
            lease_ends_at=lease_end(study_id),
            claimed_at=now(),
            waiting_reason=None,
            waits_for=None,
        )
        .returning(slots)
    )


def waits_no_more() -> sa.ColumnElement[bool]:
    """Return whether a slot's row says that it waits for another, which is settled, or gone."""
    first = slots.alias()
    must_wait = sa.exists().where(first.c.id == slots.c.waits_for, first.c.state != "done")
    return sa.and_(WAITING, slots.c.waits_for.is_not(None), ~must_wait)


def lease_end(study_id: int) -> sa.ColumnElement[float]:
    """Return when a lease ends that begins now."""
    lease = sa.select(studies.c.lease_seconds).where(studies.c.id == study_id)
    return now() + lease.scalar_subquery()


def prolong(connection: Connection, slot_id: int, fence: int, **values: Any) -> bool:
    """Let a held slot's lease begin anew, and write other values with it.

    Returns:
        Whether this fence's holder still has the slot; if not, nothing was written.
    """
    lease = sa.select(studies.c.lease_seconds).where(studies.c.id == slots.c.study_id)
    values["lease_ends_at"] = now() + lease.scalar_subquery()
    mine = slots.update().where(slots.c.id == slot_id, slots.c.fence == fence, HELD)
    if connection.execute(mine.where(slots.c.lease_ends_at > now()).values(values)).rowcount:
        return True
    study_id = connection.scalar(sa.select(slots.c.study_id).where(slots.c.id == slot_id))
    if study_id is None:
        return False
    end_spell(connection, study_id)
    anew = {"claimed_at": now(), "spent_seconds": slots.c.spent_seconds + held_seconds()}
    if not connection.execute(mine.values(values | anew)).rowcount:
        return False
    begin_spell(connection, study_id)
    return True


_RETURNED = ("id", "study_id", "number", "trial_number", "worker", "losses", "lease_ends_at")


def hold_ended(where: sa.ColumnElement[bool], **values: Any) -> Any:
    """Return the statement that ends slots' holds and returns them, for `end_holds`."""
    return (
        slots.update()
        .where(where, HELD)
        .values(
            lease_ends_at=earlier(slots.c.lease_ends_at, now()),
            claimed_at=None,
            spent_seconds=slots.c.spent_seconds + held_seconds(),
            **values,
        )
        .returning(*(slots.c[name] for name in _RETURNED))
    )


def end_holds(
    connection: Connection, statement: Any, parameters: Mapping[str, Any] | None = None
) -> Sequence[sa.Row[Any]]:
    """End the holds of one study's slots, and its wall time if they were the last; return them."""
    rows = connection.execute(statement, parameters or {}).all()
    if rows:
        end_spell(connection, rows[0].study_id, max(row.lease_ends_at for row in rows))
    return rows
