"""What all workers of a study are asked to do, and what its starts settled for them."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dlnn_search.errors import UsageError, one_line
from dlnn_search.storage.budget import lock_study, time_is_up
from dlnn_search.storage.database import Database
from dlnn_search.storage.schema import curves, now, slots, studies
from dlnn_search.storage.workers import insert_event

RATE = "measured_rate"
STOP_RULE = "stop_when_converged"
TRIAL_TIMEOUT = "trial_timeout_seconds"
_MISSING = object()


@dataclass(frozen=True)
class MeasuredRate:
    """What a range test found; a `rate` of None: it could not tell, and will not be asked again."""

    rate: float | None


def keep_rate(database: Database, study_id: int, rate: float | None) -> MeasuredRate:
    """Keep a measured rate unless there is one, and return the one that counts."""
    return MeasuredRate(_keep(database, study_id, RATE, rate, replace=False))


def kept_rate(database: Database, study_id: int) -> MeasuredRate | None:
    """Return the study's measured rate; None before its test."""
    found = _kept(database, study_id, RATE)
    return None if found is _MISSING else MeasuredRate(found)


def keep_stop_rule(database: Database, study_id: int, rule: dict[str, float] | None) -> None:
    """Keep when the study has converged, as plain data; None: it never stops by itself."""
    _keep(database, study_id, STOP_RULE, rule, replace=True)


def kept_stop_rule(database: Database, study_id: int) -> tuple[bool, dict[str, float] | None]:
    """Return whether a start has settled the rule, and the rule."""
    found = _kept(database, study_id, STOP_RULE)
    return (False, None) if found is _MISSING else (True, found)


def keep_trial_timeout(database: Database, study_id: int, seconds: float | None) -> None:
    """Limit how long each trial may train, for all workers from now on; None: there is no limit.

    Raises:
        UsageError: If that is less than a second, the time between two looks at the clock.
    """
    if seconds is not None and not seconds >= 1:  # NaN, too
        raise UsageError(f"Expected a trial timeout of at least 1 s, got {seconds:g} s.")
    _keep(database, study_id, TRIAL_TIMEOUT, seconds, replace=True)


def kept_trial_timeout(database: Database, study_id: int) -> tuple[bool, float | None]:
    """Return whether a start has settled a trial's limit of time, and the limit in seconds."""
    found = _kept(database, study_id, TRIAL_TIMEOUT)
    return (False, None) if found is _MISSING else (True, found)


def _keep(database: Database, study_id: int, key: str, value: Any, *, replace: bool) -> Any:
    with database.transaction() as connection:
        lock_study(connection, study_id)  # of two first starts one's value is kept
        definition = connection.scalar(
            sa.select(studies.c.definition).where(studies.c.id == study_id)
        )
        assert definition is not None
        if replace or key not in definition:
            definition = {**definition, key: value}
            connection.execute(
                studies.update().where(studies.c.id == study_id).values(definition=definition)
            )
    return definition[key]


def _kept(database: Database, study_id: int, key: str) -> Any:
    with database.transaction() as connection:
        definition = connection.scalar(
            sa.select(studies.c.definition).where(studies.c.id == study_id)
        )
    return _MISSING if definition is None else definition.get(key, _MISSING)


Control = Literal["run", "pause", "stop", "stop_now"]

#: A shorter lease would end between two renewals of a worker that is well.
MIN_LEASE_SECONDS = 3.0
MAX_LEASE_SECONDS = 86_400.0

_EVENTS: dict[Control, str] = {
    "run": "resumed",
    "pause": "paused",
    "stop": "stopped",
    "stop_now": "stopped",
}
_WORDS: dict[Control, str] = {
    "run": "Workers go on.",
    "pause": "Workers keep their epochs and wait.",
    "stop": "Workers finish their trials and end.",
    "stop_now": "Workers give their trials back and end.",
}


@dataclass(frozen=True)
class Orders:
    """What a study's workers are asked to do at this moment.

    Attributes:
        reason: Why, in words; a traceback where a bug of the study stopped it.
        time_is_up: Whether a budget of time is used up: no claims, and running trials are kept at
            their epoch's end.
        trial_timeout_seconds: A trial that has trained for longer ends; None: there is no limit.
    """

    control: Control
    reason: str | None = None
    time_is_up: bool = False
    trial_timeout_seconds: float | None = None


def set_control(
    database: Database,
    study_id: int,
    control: Control,
    reason: str | None = None,
    *,
    worker: str | None = None,
    only_if: Control | None = None,
) -> bool:
    """Ask all workers of a study to do something, with an event that says so.

    Args:
        reason: Why, for whoever looks at the study; None says only what is asked.
        worker: Who asks, where a worker does.
        only_if: What they must be asked to do before.

    Returns:
        Whether that changed anything.
    """
    with database.transaction() as connection:
        return change_control(connection, study_id, control, reason, worker=worker, only_if=only_if)


def change_control(
    connection: Connection,
    study_id: int,
    control: Control,
    reason: str | None = None,
    *,
    worker: str | None = None,
    only_if: Control | None = None,
) -> bool:
    """Do the same in a transaction that is open."""
    where = [studies.c.id == study_id, studies.c.control != control]
    if only_if is not None:
        where.append(studies.c.control == only_if)
    changed = connection.execute(
        studies.update()
        .where(*where)
        .values(control=control, control_reason=reason, control_at=now())
    )
    if not changed.rowcount:
        return False
    # A traceback stands with the study, once; the event has its last line.
    first = "" if reason is None else f"{reason.strip().splitlines()[-1]} "
    insert_event(connection, study_id, _EVENTS[control], first + _WORDS[control], worker=worker)
    return True


def go_on(database: Database, study_id: int) -> bool:
    """Let workers run, as `start` and `resume` do; return whether they were asked otherwise."""
    return set_control(database, study_id, "run")


def stop_after_bugs(
    database: Database, study_id: int, n: int, traceback: str, *, worker: str
) -> bool:
    """Stop a study if its last n trials to end, on any worker, all failed by a bug.

    Trials that ended before the study was last set going do not count.

    Args:
        database: Where.
        study_id: Which.
        n: How many.
        traceback: The last one's: kept once, as the reason why the study is stopped.
        worker: Who noticed.

    Returns:
        Whether this call stopped it.
    """
    since = sa.select(sa.func.coalesce(studies.c.control_at, 0.0)).where(studies.c.id == study_id)
    query = (
        sa.select(slots.c.failure)
        .where(slots.c.study_id == study_id, slots.c.state == "done")
        .where(slots.c.settled_at > since.scalar_subquery())
        .order_by(slots.c.settled_at.desc())
        .limit(n)
    )
    with database.transaction() as connection:
        last = connection.scalars(query).all()
        if len(last) < n or any(failure != "bug" for failure in last):
            return False
        return change_control(connection, study_id, "stop", traceback, worker=worker, only_if="run")


def is_first(database: Database, study_id: int, slot_id: int) -> bool:
    """Whether no trial of a study has ended, and none but this slot's has trained an epoch.

    Several workers that begin at once all have a first trial.
    """
    ended = sa.exists().where(slots.c.study_id == study_id, slots.c.state == "done")
    trained = (
        sa.exists()
        .where(curves.c.slot_id == slots.c.id)
        .where(slots.c.study_id == study_id, slots.c.id != slot_id)
    )
    with database.transaction() as connection:
        return not connection.scalar(sa.select(sa.or_(ended, trained)))


def in_short(reason: str) -> str:
    """Return why a study was stopped in one line: of a bug the error, without its traceback."""
    before, mark, trace = reason.partition("Traceback (most recent call last)")
    if before.strip() or not mark:
        return one_line(before or reason)
    # An earlier version kept the traceback alone: the error stands behind the last frame.
    behind = itertools.dropwhile(
        lambda line: line.startswith(" "), trace.rpartition('\n  File "')[2].splitlines()[1:]
    )
    return one_line("\n".join(behind)) or one_line(reason)


def orders(database: Database, study_id: int) -> Orders:
    """Return what a study's workers are asked to do."""
    with database.transaction() as connection:
        return read_orders(connection, study_id)


def read_orders(connection: Connection, study_id: int) -> Orders:
    """Do the same in a transaction that is open."""
    row = connection.execute(orders_query(study_id)).one()
    limit = row.trial_timeout_seconds
    return Orders(row.control, row.control_reason, bool(row.time_is_up), limit)


@functools.lru_cache(maxsize=16)
def orders_query(study_id: int) -> sa.Select[Any]:
    """Return the query of what `Orders` holds."""
    return sa.select(
        studies.c.control,
        studies.c.control_reason,
        time_is_up(study_id).label("time_is_up"),
        studies.c.definition[TRIAL_TIMEOUT].as_float().label(TRIAL_TIMEOUT),
    ).where(studies.c.id == study_id)


def set_lease_seconds(database: Database, study_id: int, seconds: float) -> None:
    """Let the study's leases last that long, from the next claim or renewal of each on.

    A worker that makes no progress for that long loses its slot. Building and compiling a
    large model are no progress: 120 s, the default, suit all that was measured.

    Raises:
        UsageError: If that is too short for any worker, or longer than a day.
    """
    if not MIN_LEASE_SECONDS <= seconds <= MAX_LEASE_SECONDS:
        raise UsageError(
            f"Expected a lease of {MIN_LEASE_SECONDS:g} s to {MAX_LEASE_SECONDS / 3600:g} h, "
            f"got {seconds:g} s. 120 s, the default, suit most studies."
        )
    with database.transaction() as connection:
        connection.execute(
            studies.update().where(studies.c.id == study_id).values(lease_seconds=seconds)
        )


def set_reuse(database: Database, study_id: int, reuse: bool) -> None:
    """Say whether a config that was trained already has that result, or is trained anew."""
    with database.transaction() as connection:
        connection.execute(
            studies.update().where(studies.c.id == study_id).values(reuse=int(reuse))
        )
