"""A study's budget: slots that are claimed, leased, renewed and settled one at a time.

A slot is held by at most one worker. A claim raises the slot's fence; whoever writes with an
older fence has lost the slot and learns it by a `LostLeaseError`. All times are the database's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import RowMapping

from dlnn_search.errors import DlnnSearchError
from dlnn_search.storage.budget import extend_slots, lock_study
from dlnn_search.storage.database import Database
from dlnn_search.storage.schema import now, workers
from dlnn_search.storage.schema import slots as table

#: Longer than any honest silence of a worker: building, compiling and the first batches of a
#: large model took under 40 s on one core.
LEASE_SECONDS = 120.0
#: How often a slot may be lost (its worker killed or hung) before its trial counts as failed.
MAX_LOSSES = 3

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
    """

    id: int
    number: int
    fence: int
    losses: int
    trial_id: int | None
    trial_number: int | None
    config: dict[str, Any] | None


@dataclass(frozen=True)
class Settled:
    """A slot's outcome that Optuna's trial may not have yet."""

    slot_id: int
    trial_id: int
    outcome: Outcome
    value: float | None
    failure: str | None
    reason: str | None


class Slots:
    """The slots of one study."""

    def __init__(self, database: Database, study_id: int) -> None:
        self._database = database
        self._study_id = study_id

    def extend_to(self, n_slots: int) -> None:
        """Let the budget have at least `n_slots`; it never shrinks."""
        with self._database.transaction() as connection:
            lock_study(connection, self._study_id)
            extend_slots(connection, self._study_id, n_slots)

    def claim(self, worker: str) -> Slot | None:
        """Claim a slot in one statement: a begun one first, then the lowest number.

        Returns:
            The slot, or None where each is done or held by a worker that makes progress.
        """
        expired = sa.and_(table.c.state == "held", table.c.lease_ends_at < now())
        free = (
            sa.select(table.c.id)
            .where(table.c.study_id == self._study_id)
            .where(sa.or_(table.c.state == "open", expired))
            .order_by(table.c.trial_id.is_(None), table.c.number)
            .limit(1)
            .with_for_update(skip_locked=True)  # SQLite has one writer at a time, and no such word
            .scalar_subquery()
        )
        statement = (
            table.update()
            .where(table.c.id == free)
            .values(
                state="held",
                worker=worker,
                fence=table.c.fence + 1,
                losses=table.c.losses + sa.case((table.c.state == "held", 1), else_=0),
                lease_ends_at=now() + LEASE_SECONDS,
            )
            .returning(table)
        )
        with self._database.transaction() as connection:
            row = connection.execute(statement).mappings().first()
        return None if row is None else _slot(row)

    def begin(self, slot: Slot, trial_id: int, trial_number: int) -> None:
        """Note which of Optuna's trials fills the slot.

        Raises:
            LostLeaseError: If another worker holds the slot.
        """
        self._update_held(slot, trial_id=trial_id, trial_number=trial_number)

    def trial_of(self, slot: Slot) -> int | None:
        """Return Optuna's id of the trial that the slot's present holder fills it with."""
        with self._database.transaction() as connection:
            return connection.scalar(sa.select(table.c.trial_id).where(table.c.id == slot.id))

    def set_config(self, slot: Slot, config: dict[str, Any]) -> None:
        """Note what the slot's trial trains, for whoever goes on with it.

        Raises:
            LostLeaseError: If another worker holds the slot.
        """
        self._update_held(slot, config=config)

    def renew(self, slot: Slot) -> None:
        """Prolong the lease: call it on progress, not on a timer.

        Raises:
            LostLeaseError: If another worker holds the slot.
        """
        self._update_held(slot)

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
        self._update_held(
            slot,
            state="done",
            worker=None,
            lease_ends_at=None,
            outcome=outcome,
            value=value,
            best_epoch=best_epoch,
            reason=reason,
            failure=failure,
        )

    def release(self, slot: Slot, *, is_loss: bool = False) -> None:
        """Give the slot back unsettled; the next holder goes on from the last checkpoint.

        Args:
            slot: Held by this worker.
            is_loss: Whether it counts towards `MAX_LOSSES`.

        Raises:
            LostLeaseError: If another worker holds the slot.
        """
        losses = table.c.losses + int(is_loss)
        self._update_held(slot, state="open", worker=None, lease_ends_at=None, losses=losses)

    def release_of_dead(self, worker: str, *, is_loss: bool = True) -> None:
        """Open what a worker held that is known to have died.

        Args:
            worker: Its name.
            is_loss: Whether it counts towards `MAX_LOSSES`; not if the user wanted it dead.
        """
        with self._database.transaction() as connection:
            connection.execute(
                table.update()
                .where(table.c.study_id == self._study_id, table.c.worker == worker)
                .where(table.c.state == "held")
                .values(
                    state="open",
                    worker=None,
                    lease_ends_at=None,
                    losses=table.c.losses + int(is_loss),
                    fence=table.c.fence + 1,
                )
            )
            connection.execute(
                workers.update().where(workers.c.id == worker).values(state="stopped")
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
                )
                .where(table.c.study_id == self._study_id, table.c.state == "done")
                .where(table.c.told == 0, table.c.trial_id.is_not(None))
            ).all()
        return [Settled(*row) for row in rows]

    def mark_told(self, slot_id: int) -> None:
        """Note that Optuna's trial has the slot's outcome."""
        with self._database.transaction() as connection:
            connection.execute(table.update().where(table.c.id == slot_id).values(told=1))

    def all_done(self) -> bool:
        """Whether the budget is used up."""
        with self._database.transaction() as connection:
            unsettled = connection.scalar(
                sa.select(sa.func.count())
                .where(table.c.study_id == self._study_id)
                .where(table.c.state != "done")
            )
        return not unsettled

    def last_failures(self, n: int) -> list[str | None]:
        """Return the last n settled slots' reasons, newest first; None for what did not fail."""
        with self._database.transaction() as connection:
            rows = connection.execute(
                sa.select(table.c.outcome, table.c.reason)
                .where(table.c.study_id == self._study_id, table.c.state == "done")
                .order_by(table.c.number.desc())
                .limit(n)
            ).all()
        return [row.reason if row.outcome == "failed" else None for row in rows]

    def _update_held(self, slot: Slot, **values: Any) -> None:
        values.setdefault("lease_ends_at", now() + LEASE_SECONDS)
        with self._database.transaction() as connection:
            result = connection.execute(
                table.update()
                .where(table.c.id == slot.id, table.c.fence == slot.fence)
                .where(table.c.state == "held")
                .values(**values)
            )
            if result.rowcount != 1:
                raise LostLeaseError(f"Slot {slot.number} was claimed by another worker.")


def _slot(row: RowMapping) -> Slot:
    return Slot(
        id=row["id"],
        number=row["number"],
        fence=row["fence"],
        losses=row["losses"],
        trial_id=row["trial_id"],
        trial_number=row["trial_number"],
        config=row["config"],
    )
