"""A study's slots: claimed, leased, renewed and settled one at a time.

A slot is held by at most one worker. A claim raises the slot's fence; whoever writes with an
older fence has lost the slot and learns it by a `LostLeaseError`. All times are the database's.

Every call may be repeated after a connection was lost at its commit, when nobody knows whether
it was done: the second time it finds its own work, and adds nothing to it.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from dlnn_search.errors import DlnnSearchError
from dlnn_search.storage.budget import (
    HELD,
    OPEN,
    WAITING,
    begin_spell,
    claim_statement,
    end_holds,
    end_spell,
    hold_ended,
    prolong,
    waits_no_more,
)
from dlnn_search.storage.control import Orders, read_orders
from dlnn_search.storage.database import Database
from dlnn_search.storage.schema import now, slots, studies, workers
from dlnn_search.storage.schema import slots as table
from dlnn_search.storage.workers import insert_event

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


#: A study's lease unless it sets another. Longer than any honest silence of a worker: building,
#: compiling and the first batches of a large model took under 40 s on one core.
LEASE_SECONDS = 120.0

Outcome = Literal["complete", "pruned", "failed"]


class LostLeaseError(DlnnSearchError):
    """The slot was claimed by another worker; nothing that this one knows counts any more."""


@dataclass(frozen=True)
class Slot:
    """One unit of a study's budget, as held by a worker.

    Attributes:
        number: From 0 within the study.
        fence: The claim that this holder owns.
        losses: How often an earlier holder vanished.
        trial_id: Optuna's id of the trial begun in this slot, if one was.
        config: What that trial trains, as plain data, once its space has said so.
        memory_failures: How often an earlier holder ran out of memory.
        worker: Its holder.
    """

    id: int
    number: int
    fence: int
    losses: int
    trial_id: int | None
    trial_number: int | None
    config: dict[str, Any] | None
    memory_failures: int = 0
    worker: str | None = None


@dataclass(frozen=True)
class Settled:
    """A slot's outcome that Optuna's trial may not have yet."""

    slot_id: int
    trial_id: int
    outcome: Outcome
    value: float | None
    failure: str | None
    reason: str | None
    duplicate_of: int | None
    best_epoch: int | None


@dataclass(frozen=True)
class Fate:
    """What became of a slot: `outcome` is None until it is settled.

    Attributes:
        duplicate_of: The number of the trial whose result it has, if it has another's.
    """

    number: int
    state: str
    trial_id: int | None
    outcome: Outcome | None
    value: float | None
    failure: str | None
    reason: str | None
    duplicate_of: int | None


class Slots:
    """The slots of one study."""

    def __init__(
        self,
        database: Database,
        study_id: int,
        *,
        on_orders: Callable[[Orders], None] = lambda orders: None,
    ) -> None:
        """Name the study; `on_orders` hears what its workers are asked to do, at each renewal."""
        self.database = self._database = database
        self.study_id = self._study_id = study_id
        self._on_orders = on_orders

    def claim(self, worker: str, token: str | None = None, *, again: bool = True) -> Slot | None:
        """Claim a slot in one statement: a begun one first, then the lowest number.

        The statement asks for everything that must hold: the study runs, no budget of time is
        used up, the slot is open, or what it waited for has come.
        Slots whose lease ran out are opened before, unless the database was away a moment ago.

        Args:
            worker: Who will hold it.
            token: Names this claim. If the answer was lost, a claim with the same token gets
                the same slot.
            again: False says that no claim with this token was tried before.

        Returns:
            The slot, or None where none may be claimed.
        """
        named = token or new_token()
        mine = (
            sa.select(table)
            .where(table.c.study_id == self._study_id, HELD)
            .where(table.c.worker == worker, table.c.claim_token == named)
        )
        with self._database.transaction() as connection:
            row = connection.execute(mine).mappings().first() if token and again else None
            if row is None:
                open_expired(connection, self._study_id, self._database.reach.seconds)
                found = connection.execute(
                    claim_statement(self._study_id),
                    {"by": worker, "with_token": named},
                )
                row = found.mappings().first()
                if row is not None:
                    begin_spell(connection, self._study_id)
        return None if row is None else _slot(row)

    def begin(self, slot: Slot, trial_id: int, trial_number: int) -> None:
        """Note which of Optuna's trials fills the slot.

        Raises:
            LostLeaseError: If another worker holds the slot.
        """
        with self._database.transaction() as connection:
            write_held(connection, slot, trial_id=trial_id, trial_number=trial_number)

    def trial_of(self, slot: Slot) -> int | None:
        """Return Optuna's id of the trial that the slot's present holder fills it with."""
        with self._database.transaction() as connection:
            return connection.scalar(sa.select(table.c.trial_id).where(table.c.id == slot.id))

    def trial_if_held(self, slot: Slot) -> int | None:
        """Return Optuna's id of the slot's trial if this holder still has it, else None."""
        with self._database.transaction() as connection:
            return connection.scalar(
                sa.select(table.c.trial_id).where(
                    table.c.id == slot.id, table.c.fence == slot.fence, HELD
                )
            )

    def renew(self, slot: Slot) -> Orders:
        """Prolong the lease: call it on progress, not on a timer.

        Returns:
            What the study's workers are asked to do, read in the same transaction.

        Raises:
            LostLeaseError: If another worker holds the slot.
        """
        with self._database.transaction() as connection:
            write_held(connection, slot)
            # Another worker may have ended the spell in the moment of this one's claim.
            begin_spell(connection, self._study_id)
            orders = read_orders(connection, self._study_id)
        self._on_orders(orders)
        return orders

    def settle(
        self,
        slot: Slot,
        outcome: Outcome,
        *,
        value: float | None = None,
        best_epoch: int | None = None,
        reason: str | None = None,
        failure: str | None = None,
    ) -> None:
        """Write the slot's outcome, once and for all.

        Raises:
            LostLeaseError: If another worker holds the slot.
        """
        with self._database.transaction() as connection:
            settled = settle_held(
                connection,
                slot,
                outcome,
                value=value,
                best_epoch=best_epoch,
                reason=reason,
                failure=failure,
            )
            if settled:
                kind = {"bug": "bug", "lost": "gave_up", "out_of_memory": "gave_up"}.get(
                    failure or ""
                )
                if kind is not None:
                    self._event(connection, slot, kind, reason or failure or "")

    def release(self, slot: Slot, *, failure: str | None = None, reason: str | None = None) -> None:
        """Give the slot back unsettled; the next holder goes on from the last checkpoint.

        Args:
            slot: Held by this worker.
            failure: `out_of_memory` counts an attempt of that kind; None counts nothing.
            reason: What happened, for the event.

        Raises:
            LostLeaseError: If another worker holds the slot.
        """
        with self._database.transaction() as connection:
            n_memory = table.c.memory_failures + int(failure == "out_of_memory")
            if not end_hold(connection, slot, state="open", memory_failures=n_memory):
                if not any(_is_as(connection, slot, state=state) for state in ("open", "waiting")):
                    raise _lost(slot)
                return
            if failure is not None:
                self._event(connection, slot, failure, reason or failure)

    def release_of_dead(self, worker: str, *, is_loss: bool = True) -> None:
        """Open what a worker held that is known to have died.

        Args:
            worker: Its name.
            is_loss: Whether it counts towards `MAX_LOSSES`; not if the user wanted it dead.
        """
        with self._database.transaction() as connection:
            open_of_dead(connection, self._study_id, worker, is_loss=is_loss)

    def open_expired(self) -> None:
        """Open the slots whose lease ran out, each a loss, for a study that nobody claims in.

        So are those that wait for nothing any more: nobody may claim them before the study stops.
        """
        with self._database.transaction() as connection:
            open_expired(connection, self._study_id, self._database.reach.seconds)
            connection.execute(
                table.update()
                .where(table.c.study_id == self._study_id, waits_no_more())
                .values(state="open", waiting_reason=None, waits_for=None)
            )

    def untold(self) -> Sequence[Settled]:
        """Return the outcomes whose worker vanished before Optuna heard of them."""
        with self._database.transaction() as connection:
            rows = connection.execute(
                sa.select(
                    table.c.id,
                    table.c.trial_id,
                    table.c.outcome,
                    table.c.value,
                    table.c.failure,
                    table.c.reason,
                    _duplicate_of(),
                    table.c.best_epoch,
                )
                .where(table.c.study_id == self._study_id, table.c.state == "done")
                .where(table.c.told == 0, table.c.trial_id.is_not(None))
            ).all()
        return [Settled(*row) for row in rows]

    def fates(self, numbers: Sequence[int]) -> dict[int, Fate]:
        """Return what became of some slots, by number; those that do not exist are left out."""
        columns = [table.c[field.name] for field in fields(Fate) if field.name in table.c]
        query = sa.select(*columns, _duplicate_of().label("duplicate_of")).where(
            table.c.study_id == self._study_id, table.c.number.in_(numbers)
        )
        with self._database.transaction() as connection:
            return {row.number: Fate(**row) for row in connection.execute(query).mappings()}

    def mark_told(self, slot_id: int) -> None:
        """Note that Optuna's trial has the slot's outcome."""
        with self._database.transaction() as connection:
            connection.execute(table.update().where(table.c.id == slot_id).values(told=1))

    def all_done(self) -> bool:
        """Whether every slot is settled."""
        with self._database.transaction() as connection:
            unsettled = connection.scalar(
                sa.select(table.c.id)
                .where(table.c.study_id == self._study_id)
                .where(sa.or_(OPEN, HELD, WAITING))
                .limit(1)
            )
        return unsettled is None

    def _event(self, connection: Connection, slot: Slot, kind: str, words: str) -> None:
        insert_slot_event(connection, self._study_id, slot, kind, words)


def insert_slot_event(
    connection: Connection, study_id: int, slot: Slot, kind: str, words: str
) -> None:
    """Note what happened to a slot, under its trial's name."""
    number = connection.scalar(sa.select(table.c.trial_number).where(table.c.id == slot.id))
    name = f"Slot {slot.number}" if number is None else f"Trial {number}"
    insert_event(
        connection, study_id, kind, f"{name}: {words}", worker=slot.worker, slot_id=slot.id
    )


def new_token() -> str:
    """Return a name for one claim."""
    return uuid.uuid4().hex


def settle_held(connection: Connection, slot: Slot, outcome: Outcome, **values: Any) -> bool:
    """Write an outcome in a transaction that is open; False where it was written already.

    Raises:
        LostLeaseError: If another worker holds the slot, or it has another outcome.
    """
    if end_hold(connection, slot, state="done", settled_at=now(), outcome=outcome, **values):
        return True
    if not _is_as(connection, slot, state="done", outcome=outcome):
        raise _lost(slot)
    return False


def end_hold(connection: Connection, slot: Slot, **values: Any) -> bool:
    """Let a holder give its slot up in a transaction that is open; False where it had lost it."""
    mine = sa.and_(table.c.id == slot.id, table.c.fence == slot.fence)
    return len(end_holds(connection, hold_ended(mine, worker=None, **values))) == 1


def write_held(connection: Connection, slot: Slot, **values: Any) -> None:
    """Renew a holder's lease, and write values with it, in a transaction that is open.

    Raises:
        LostLeaseError: If another worker holds the slot.
    """
    if not prolong(connection, slot.id, slot.fence, **values):
        raise _lost(slot)


def _duplicate_of() -> sa.ScalarSelect[int]:
    first = table.alias()
    return (
        sa.select(first.c.trial_number).where(first.c.id == table.c.reused_from).scalar_subquery()
    )


def _is_as(connection: Connection, slot: Slot, **values: Any) -> bool:
    """Whether the slot is as this holder left it: its own call was done, its answer lost."""
    where = [table.c[name] == value for name, value in values.items()]
    mine = sa.select(table.c.id).where(
        table.c.id == slot.id, table.c.fence == slot.fence, table.c.worker.is_(None), *where
    )
    return connection.scalar(mine) is not None


def _lost(slot: Slot) -> LostLeaseError:
    return LostLeaseError(f"Slot {slot.number} was claimed by another worker.")


def _slot(row: RowMapping) -> Slot:
    return Slot(**{field.name: row[field.name] for field in fields(Slot)})
