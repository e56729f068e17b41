"""Two slots of a study with the same config: the second waits for the first, and has its result.

Which is first is decided under a lock that equal configs share, so that two workers that draw the
same config at the same moment do not both train it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dlnn_search.storage.database import Database
from dlnn_search.storage.schema import curves, slots, studies
from dlnn_search.storage.slots import (
    LostLeaseError,
    Outcome,
    Slot,
    end_hold,
    insert_slot_event,
    settle_held,
    write_held,
)

#: Why a slot waits for another: its config is trained there just now; or the space brought nothing
#: but configs that are trained, some of them just now.
Reason = Literal["duplicate", "space"]

#: The one filter in queries: what trained by itself, and has no other's result.
TRAINED_ITSELF = slots.c.reused_from.is_(None)


@dataclass(frozen=True)
class Duplicate:
    """Another slot of the study with the same config.

    Attributes:
        outcome: None where it is trained just now; its result is waited for.
        failure: `diverged`, if it failed: other failures are no result of a config.
    """

    slot_id: int
    number: int
    trial_number: int | None
    outcome: Outcome | None
    value: float | None = None
    best_epoch: int | None = None
    failure: str | None = None
    reason: str | None = None

    @property
    def words(self) -> str:
        """Which one it is, for people."""
        if self.trial_number is None:
            return f"slot {self.number}"
        return f"trial {self.trial_number}"


def find_duplicate(
    database: Database,
    study_id: int,
    slot: Slot,
    fingerprint: str,
    *,
    config: dict[str, Any] | None = None,
    reuse: bool = True,
) -> Duplicate | None:
    """Note what a slot will train, and find another that has trained it, or does so now.

    Where it is trained now, this slot waits from this moment on: nobody holds it, and no claim
    gets it before the other is settled.

    Args:
        slot: Held by this worker.
        fingerprint: `Config.fingerprint()`: equal for configs that mean the same.
        config: What the slot trains, as plain data, where that is not stored yet.
        reuse: False trains every config, whatever was trained; `studies.reuse` can say so, too.

    Raises:
        LostLeaseError: If another worker holds the slot.
    """
    values: dict[str, Any] = {"fingerprint": fingerprint}
    if config is not None:
        values["config"] = config
    with database.transaction() as connection:
        _lock_fingerprint(connection, study_id, fingerprint)
        if (first := _waits_already(connection, slot)) is not None:
            return first
        write_held(connection, slot, **values)
        duplicate = _first(connection, study_id, slot, fingerprint) if reuse else None
        if duplicate is not None and duplicate.outcome is None:
            _wait(connection, slot, "duplicate", duplicate.slot_id)
    return duplicate


def look_for_duplicate(
    database: Database, study_id: int, slot: Slot, fingerprint: str, *, reuse: bool = True
) -> Duplicate | None:
    """Find another slot that has trained a config, or does so now, and note nothing.

    In one transaction with `find_duplicate`, no other worker comes in between.

    Raises:
        LostLeaseError: If another worker holds the slot.
    """
    with database.transaction() as connection:
        _lock_fingerprint(connection, study_id, fingerprint)
        if _waits_already(connection, slot) is not None:
            return None  # as this holder noted it; the answer was lost
        # A write comes first: from then on SQLite has no other writer.
        write_held(connection, slot)
        return _first(connection, study_id, slot, fingerprint) if reuse else None


def wait_for_space(database: Database, study_id: int, slot: Slot, seen: int | None) -> bool:
    """Let a slot for which the space brought nothing new wait for a trial that goes on.

    Should that one be lost or fail for no fault of its config's, the config is there again.

    Args:
        slot: Held by this worker.
        seen: A slot whose config was drawn for this one while it was trained.

    Returns:
        False where no trial goes on: the slot is still held, and the space used up.

    Raises:
        LostLeaseError: If another worker holds the slot.
    """
    goes_on = (
        sa.select(slots.c.id)
        .where(slots.c.study_id == study_id, slots.c.id != slot.id, slots.c.state != "done")
        .where(slots.c.fingerprint.is_not(None))
        .order_by(slots.c.number.desc())
        .limit(1)
    )
    with database.transaction() as connection:
        if _waits_already(connection, slot) is not None:
            return True
        first = connection.scalar(goes_on) or seen
        if first is None:  # nor has anybody else anything to wait for
            connection.execute(
                slots.update()
                .where(slots.c.study_id == study_id, slots.c.state == "waiting")
                .where(slots.c.waiting_reason == "space")
                .values(state="open", waiting_reason=None, waits_for=None)
            )
            return False
        _wait(connection, slot, "space", first)
    return True


def settle_like(database: Database, study_id: int, slot: Slot, duplicate: Duplicate) -> None:
    """Give a slot its duplicate's outcome and curve, with an event.

    Raises:
        LostLeaseError: If another worker holds the slot.
    """
    if duplicate.outcome is None:
        raise ValueError(
            f"Expected a duplicate that is settled, got {duplicate.words}, which is not."
        )
    words = f"It has the result of {duplicate.words}, which trained the same config."
    with database.transaction() as connection:
        settled = settle_held(
            connection,
            slot,
            duplicate.outcome,
            value=duplicate.value,
            best_epoch=duplicate.best_epoch,
            reason=duplicate.reason,
            failure=duplicate.failure,
            reused_from=duplicate.slot_id,
            note=words,
        )
        if not settled:
            return
        connection.execute(curves.delete().where(curves.c.slot_id == slot.id))
        names = ["epoch", "metrics", "seconds", "images_per_second"]
        copied = sa.select(sa.literal(slot.id), *(curves.c[name] for name in names)).where(
            curves.c.slot_id == duplicate.slot_id
        )
        connection.execute(curves.insert().from_select(["slot_id", *names], copied))
        insert_slot_event(connection, study_id, slot, "reused", words)


def _wait(connection: Connection, slot: Slot, reason: Reason, first: int) -> None:
    """Let a held slot wait until another one is settled."""
    if not end_hold(connection, slot, state="waiting", waiting_reason=reason, waits_for=first):
        raise LostLeaseError(f"Slot {slot.number} was claimed by another worker.")


def _waits_already(connection: Connection, slot: Slot) -> Duplicate | None:
    """Return what this holder let its slot wait for, where the answer to that was lost."""
    first = slots.alias()
    row = connection.execute(
        sa.select(first)
        .join(slots, slots.c.waits_for == first.c.id)
        .where(slots.c.id == slot.id, slots.c.fence == slot.fence, slots.c.state == "waiting")
    ).first()
    return None if row is None else _duplicate(row)


def _lock_fingerprint(connection: Connection, study_id: int, fingerprint: str) -> None:
    """Let who has the same config wait for this transaction's end; others are not held up.

    SQLite has one writer at a time.
    """
    if connection.dialect.name == "postgresql":
        key = sa.func.hashtextextended(fingerprint, study_id)
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))


def _first(connection: Connection, study_id: int, slot: Slot, fingerprint: str) -> Duplicate | None:
    """Return the first duplicate: settled before in training, by itself before one that reused."""
    is_result = sa.or_(slots.c.outcome.in_(["complete", "pruned"]), slots.c.failure == "diverged")
    is_settled = sa.and_(slots.c.state == "done", is_result)
    # Who waits itself is no one to wait for, or two would wait for each other.
    is_in_flight = slots.c.state.in_(["open", "held"])
    row = connection.execute(
        sa.select(slots)
        .where(slots.c.study_id == study_id, slots.c.fingerprint == fingerprint)
        .where(slots.c.id != slot.id, sa.or_(is_settled, is_in_flight))
        .where(sa.exists().where(studies.c.id == study_id, studies.c.reuse != 0))
        .order_by(
            sa.case((slots.c.state == "done", 0), else_=1),
            slots.c.reused_from.is_not(None),
            slots.c.number,
        )
        .limit(1)
    ).first()
    return None if row is None else _duplicate(row)


def _duplicate(row: sa.Row[Any]) -> Duplicate:
    return Duplicate(
        row.id,
        row.number,
        row.trial_number,
        row.outcome,
        row.value,
        row.best_epoch,
        row.failure,
        row.reason,
    )
