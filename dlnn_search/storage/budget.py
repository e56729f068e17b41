"""A study's budget, and the statement that claims a slot: all that must hold is asked in it."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dlnn_search.errors import UsageError
from dlnn_search.storage.database import Database
from dlnn_search.storage.schema import now, slots, studies

#: More rows than any search needs; a slip of the keyboard is refused before it fills a disk.
MAX_TRIALS = 1_000_000

Limit = Literal["trials", "wall time", "worker-hours", "deadline"]


@dataclass(frozen=True)
class Budget:
    """What a study may use in all; None leaves a limit as it is.

    Attributes:
        trials: Number of slots.
        wall_seconds: Time in which some trial is trained; `math.inf` takes the limit away.
        worker_seconds: The same, added up over workers; `math.inf` takes the limit away.
        deadline_at: Seconds since 1970, UTC; `math.inf` takes the limit away.

    Raises:
        UsageError: If a limit cannot be meant.
    """

    trials: int | None = None
    wall_seconds: float | None = None
    worker_seconds: float | None = None
    deadline_at: float | None = None

    def __post_init__(self) -> None:
        if self.trials is not None and not 1 <= self.trials <= MAX_TRIALS:
            raise UsageError(f"Expected a budget of 1 to {MAX_TRIALS:,} trials, got {self.trials}.")
        for name, value in (
            ("wall time", self.wall_seconds),
            ("worker-hours", self.worker_seconds),
            ("a deadline", self.deadline_at),
        ):
            if value is not None and not value > 0:  # NaN, too
                raise UsageError(f"Expected a budget of {name} above 0, got {value}.")


@dataclass(frozen=True)
class BudgetUse:
    """What a study's budget is, and what is used of it. Limits are None where there is none.

    Attributes:
        trials: Number of slots.
        settled: Slots that have their outcome.
        held: Slots that a worker trains just now.
        now: The database's clock, seconds since 1970.
    """

    trials: int
    settled: int
    held: int
    wall_seconds: float | None
    wall_used_seconds: float
    worker_seconds: float | None
    worker_used_seconds: float
    deadline_at: float | None
    now: float

    @property
    def exhausted_by(self) -> Limit | None:
        """Which limit forbids another claim; trials only when each is settled."""
        if self.settled >= self.trials:
            return "trials"
        if self.deadline_at is not None and self.now >= self.deadline_at:
            return "deadline"
        if self.wall_seconds is not None and self.wall_used_seconds >= self.wall_seconds:
            return "wall time"
        if self.worker_seconds is not None and self.worker_used_seconds >= self.worker_seconds:
            return "worker-hours"
        return None

    @property
    def exhausted(self) -> str | None:
        """Why no slot can be claimed, in words; None where one can, or will when it is free."""
        limit = self.exhausted_by
        if limit == "trials":
            return f"exhausted by trials: all {self.trials} are done"
        done = f"{self.settled} of {self.trials} trials are done"
        if limit == "deadline":
            assert self.deadline_at is not None
            return f"exhausted by its deadline, {time_words(self.deadline_at)}; {done}"
        if limit == "wall time":
            used, of = self.wall_used_seconds, self.wall_seconds
        elif limit == "worker-hours":
            used, of = self.worker_used_seconds, self.worker_seconds
        else:
            return None
        assert of is not None
        return f"exhausted by {limit}: {duration_words(used)} of {duration_words(of)}; {done}"

    @property
    def seconds_left(self) -> float | None:
        """Wall time until a limit of time is met; None without one.

        Worker-hours shrink as many times as fast as slots are held.
        """
        left = []
        if self.deadline_at is not None:
            left.append(self.deadline_at - self.now)
        if self.wall_seconds is not None:
            left.append(self.wall_seconds - self.wall_used_seconds)
        if self.worker_seconds is not None:
            left.append((self.worker_seconds - self.worker_used_seconds) / max(1, self.held))
        return max(0.0, min(left)) if left else None


def extend_budget(database: Database, study_id: int, budget: Budget) -> list[str]:
    """Let a study have at least this budget: a limit grows, or is set where there was none.

    Returns:
        One sentence for each limit that was asked to shrink and therefore stays as it was.
    """
    kept = []
    with database.transaction() as connection:
        lock_study(connection, study_id)
        if budget.trials is not None:
            n_slots = extend_slots(connection, study_id, budget.trials)
            if n_slots > budget.trials:
                kept.append(
                    f"The budget stays at {n_slots} trials (asked for {budget.trials}): "
                    "it never shrinks."
                )
        row = connection.execute(sa.select(studies).where(studies.c.id == study_id)).one()
        changed: dict[str, Any] = {}
        for column, name, words in (
            ("wall_seconds", "wall time", duration_words),
            ("worker_seconds", "worker-hours", duration_words),
            ("deadline_at", "deadline", time_words),
        ):
            wanted, present = getattr(budget, column), getattr(row, column)
            if wanted is None or wanted == present:
                continue
            if math.isinf(wanted):
                changed[column] = None
            elif present is None or wanted > present:
                changed[column] = wanted
            else:
                kept.append(
                    f"The budget's {name} stays at {words(present)} (asked for {words(wanted)}): "
                    "it never shrinks. To end the search earlier, use 'dlnn-search stop STUDY'."
                )
        if changed:
            connection.execute(studies.update().where(studies.c.id == study_id).values(**changed))
    return kept


def budget_use(database: Database, study_id: int) -> BudgetUse:
    """Return a study's budget and what is used of it, at one moment of the database's clock."""
    of_study = slots.c.study_id == study_id

    def count(*where: Any) -> sa.ScalarSelect[int]:
        return sa.select(sa.func.count()).select_from(slots).where(*where).scalar_subquery()

    query = sa.select(
        count(of_study).label("trials"),
        count(of_study, slots.c.state == "done").label("settled"),
        count(of_study, slots.c.state == "held", slots.c.lease_ends_at > now()).label("held"),
        studies.c.wall_seconds,
        wall_used(study_id).label("wall_used_seconds"),
        studies.c.worker_seconds,
        worker_used(study_id).label("worker_used_seconds"),
        studies.c.deadline_at,
        now().label("now"),
    ).where(studies.c.id == study_id)
    with database.transaction() as connection:
        row = connection.execute(query).mappings().one()
    return BudgetUse(**row)


def counts_of(database: Database, study_id: int) -> dict[str, int]:
    """Return a study's number of slots by outcome, or by state where they have none."""
    ended = (
        sa.select(slots.c.outcome.label("key"), sa.func.count().label("n"))
        .where(slots.c.study_id == study_id, slots.c.outcome.is_not(None))
        .group_by(slots.c.outcome)
    )
    under_way = (
        sa.select(slots.c.state, sa.func.count())
        .where(slots.c.study_id == study_id, slots.c.state.in_(["open", "held", "waiting"]))
        .group_by(slots.c.state)
    )
    with database.transaction() as connection:
        # Apart, since an index answers each without a look at the rows and their configs.
        return {row.key: row.n for row in connection.execute(ended.union_all(under_way))}


def extend_slots(connection: Connection, study_id: int, n_slots: int) -> int:
    """Let a study whose row is locked have at least `n_slots`; return how many it has."""
    there = connection.scalar(sa.select(sa.func.count()).where(slots.c.study_id == study_id)) or 0
    rows = [new_slot(study_id, number) for number in range(there, n_slots)]
    if rows:
        connection.execute(slots.insert(), rows)
    return max(there, n_slots)


def new_slot(study_id: int, number: int) -> dict[str, Any]:
    """Return the row of a slot that nobody has begun."""
    row = {"study_id": study_id, "number": number, "state": "open"}
    return row | dict.fromkeys(("fence", "losses", "told"), 0)


def lock_study(connection: Connection, study_id: int) -> None:
    """Keep others from changing the same study until the transaction's end."""
    lock_studies(connection, studies.c.id == study_id)


def lock_studies(connection: Connection, which: sa.ColumnElement[bool]) -> None:
    """Keep others from changing some studies, or claiming in them, until the transaction's end."""
    # An update that changes nothing takes the rows' locks (PostgreSQL) or the writer's (SQLite).
    connection.execute(studies.update().where(which).values(name=studies.c.name))


def earlier(one: sa.ColumnElement[Any], other: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """Return the smaller of two times: SQLite and PostgreSQL have other words for it."""
    return sa.case((one < other, one), else_=other)


def held_seconds() -> sa.ColumnElement[float]:
    """Return how long a held slot's worker has it: until now, or until its lease ran out."""
    until = earlier(slots.c.lease_ends_at, now())
    return sa.case(
        (slots.c.state == "held", until - sa.func.coalesce(slots.c.claimed_at, until)), else_=0.0
    )


def spell_seconds(study_id: int, given_back_at: Any = None) -> sa.ColumnElement[float]:
    """Return how long slots have been held without a gap: until now, or the last lease's end.

    Args:
        study_id: Whose.
        given_back_at: Until when a slot was held that is not any more.
    """
    last = sa.select(sa.func.max(slots.c.lease_ends_at)).where(slots.c.study_id == study_id)
    held = last.where(slots.c.state == "held").scalar_subquery()
    # All slots are asked only where two gave back their last ones at once: each saw the other's.
    known = [held, last.scalar_subquery(), studies.c.active_since]
    if given_back_at is not None:
        known = [sa.case((held > given_back_at, held), else_=given_back_at), *known]
    until = earlier(sa.func.coalesce(*known), now())
    return sa.case(
        (
            sa.and_(studies.c.active_since.is_not(None), until > studies.c.active_since),
            until - studies.c.active_since,
        ),
        else_=0.0,
    )


def wall_used(study_id: int) -> sa.ColumnElement[float]:
    """Return a study's wall time so far, as a part of a query of its row."""
    return studies.c.wall_used_seconds + spell_seconds(study_id)


def worker_used(study_id: int) -> sa.ColumnElement[float]:
    """Return the time that workers held a study's slots, as a part of a query."""
    spent = sa.select(sa.func.coalesce(sa.func.sum(slots.c.spent_seconds), 0.0)).where(
        slots.c.study_id == study_id
    )
    live = sa.select(sa.func.coalesce(sa.func.sum(held_seconds()), 0.0)).where(
        slots.c.study_id == study_id, slots.c.state == "held"
    )
    return spent.scalar_subquery() + live.scalar_subquery()


def time_is_up(study_id: int) -> sa.ColumnElement[int]:
    """Return 1 where a limit of time is met, else 0, as a part of a query of the study's row.

    A limit that is not set costs nothing: its sum stands behind a CASE.
    """
    row = studies.c
    return sa.case(
        (sa.and_(row.deadline_at.is_not(None), now() >= row.deadline_at), 1),
        (
            row.wall_seconds.is_not(None),
            sa.case((wall_used(study_id) >= row.wall_seconds, 1), else_=0),
        ),
        else_=0,
    ) + sa.case(
        (
            row.worker_seconds.is_not(None),
            sa.case((worker_used(study_id) >= row.worker_seconds, 1), else_=0),
        ),
        else_=0,
    )


def begin_spell(connection: Connection, study_id: int) -> None:
    """Let wall time run from now on, unless it does. `end_spell` comes before a lease is made."""
    connection.execute(_begin_spell(study_id))


def end_spell(connection: Connection, study_id: int, given_back_at: float | None = None) -> None:
    """Stop wall time where no slot is held any more: then when the last lease ended, not now.

    Args:
        connection: Of a transaction that is open.
        study_id: Whose.
        given_back_at: Until when a slot was held that this transaction gave back.
    """
    connection.execute(_end_spell(study_id), {"given_back_at": given_back_at})


# Made once: that takes longer than to run them, and every claim and settlement does.
@functools.lru_cache(maxsize=16)
def _begin_spell(study_id: int) -> Any:
    return (
        studies.update()
        .where(studies.c.id == study_id, studies.c.active_since.is_(None))
        .values(active_since=now())
    )


@functools.lru_cache(maxsize=16)
def _end_spell(study_id: int) -> Any:
    alive = sa.exists().where(
        slots.c.study_id == study_id, slots.c.state == "held", slots.c.lease_ends_at > now()
    )
    spell = spell_seconds(study_id, sa.bindparam("given_back_at", type_=sa.Float))
    return (
        studies.update()
        .where(studies.c.id == study_id, studies.c.active_since.is_not(None), ~alive)
        .values(wall_used_seconds=studies.c.wall_used_seconds + spell, active_since=None)
    )


def duration_words(seconds: float) -> str:
    """Return a duration as people say it: `45 s`, `12 min`, `2 h 5 min`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min".removesuffix(" 0 min") if hours else f"{minutes} min"


def time_words(at: float) -> str:
    """Return a moment as this machine's clock shows it, and how far that is from UTC."""
    words = time.strftime("%Y-%m-%d %H:%M UTC%z", time.localtime(at))
    return f"{words[:-2]}:{words[-2:]}"


# Written out, not bound: only so a database sees that its index of just these rows will do.
OPEN = slots.c.state == sa.literal_column("'open'")
HELD = slots.c.state == sa.literal_column("'held'")
WAITING = slots.c.state == sa.literal_column("'waiting'")


def waits_no_more() -> sa.ColumnElement[bool]:
    """Return whether a slot's row says that it waits for another, which is settled, or gone."""
    first = slots.alias()
    must_wait = sa.exists().where(first.c.id == slots.c.waits_for, first.c.state != "done")
    return sa.and_(WAITING, slots.c.waits_for.is_not(None), ~must_wait)


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
