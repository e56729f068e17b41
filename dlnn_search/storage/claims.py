"""The one statement that claims a slot: all that must hold is asked for in it."""

from __future__ import annotations

import functools
from typing import Any

import sqlalchemy as sa

from dlnn_search.storage.budget import time_is_up
from dlnn_search.storage.schema import now, slots, studies

# Written out, not bound: only so a database sees that its index of just these rows will do.
OPEN = slots.c.state == sa.literal_column("'open'")
HELD = slots.c.state == sa.literal_column("'held'")


@functools.lru_cache(maxsize=16)
def claim_statement(study_id: int) -> Any:
    """Return the statement that claims a begun slot, else the one with the lowest number.

    Its parameters are `by` and `with_token`. It is made once: that takes longer than to run it.
    It claims only if the study runs, no budget of time is used up, and the slot is open and
    waits for no other that trains the same config. It returns the slot's row, or none.
    """
    duplicate = slots.alias()
    waits = sa.exists().where(duplicate.c.id == slots.c.waits_for, duplicate.c.state != "done")
    ready = (
        sa.select(slots.c.id)
        .where(slots.c.study_id == study_id, OPEN)
        .where(sa.or_(slots.c.waits_for.is_(None), ~waits))
        .order_by(slots.c.number)
        .limit(1)
        .with_for_update(skip_locked=True)  # SQLite has one writer at a time, and no such word
    )
    chosen = sa.func.coalesce(  # two searches, each along an index of its own
        ready.where(slots.c.trial_id.is_not(None)).scalar_subquery(),
        ready.where(slots.c.trial_id.is_(None)).scalar_subquery(),
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
            waits_for=None,
        )
        .returning(slots)
    )


def lease_end(study_id: int) -> sa.ColumnElement[float]:
    """Return when a lease ends that begins now."""
    lease = sa.select(studies.c.lease_seconds).where(studies.c.id == study_id)
    return now() + lease.scalar_subquery()
