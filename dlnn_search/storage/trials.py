"""What trials trained, reached and cost: the rows of their slots, and their curves by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dlnn_search.metrics import DIRECTIONS, direction_of, loss_sign
from dlnn_search.pruners import Reached
from dlnn_search.storage.budget import prolong
from dlnn_search.storage.database import Database
from dlnn_search.storage.duplicates import TRAINED_ITSELF
from dlnn_search.storage.optuna import INSERT
from dlnn_search.storage.schema import best_first, slots, studies
from dlnn_search.storage.schema import curves as table
from dlnn_search.storage.studies import StoredStudy
from dlnn_search.storage.workers import insert_event


@dataclass(frozen=True)
class Point:
    """One epoch of a curve; `epoch` counts from 1."""

    epoch: int
    metrics: Mapping[str, float]
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class Kept:
    """What the database knows of a slot's earlier holders.

    Attributes:
        points: The epochs that are stored.
        place: Which files folder holds the checkpoint (`storage.place`); None if there is none.
        epochs: How many epochs that checkpoint holds.
    """

    points: tuple[Point, ...]
    place: str | None
    epochs: int


def add_points(
    database: Database,
    slot_id: int,
    fence: int,
    points: Sequence[Point],
    *,
    place: str | None = None,
    epochs: int | None = None,
) -> bool:
    """Store epochs in one transaction, those left out that are there already.

    Args:
        database: Where.
        slot_id: Whose.
        fence: The claim of the slot that the writer owns.
        points: Any number, in order.
        place: Which files folder now holds the slot's checkpoint, if that is to be noted.
        epochs: How many epochs that checkpoint holds.

    Returns:
        Whether the fence still holds; if not, nothing was stored.
    """
    with database.transaction() as connection:
        if not _touch(connection, slot_id, fence, place, epochs):
            return False
        _insert_missing(connection, slot_id, points)
    return True


def replace_curve(
    database: Database,
    slot_id: int,
    fence: int,
    points: Sequence[Point],
    *,
    place: str,
    worker: str,
    words: str | None = None,
) -> bool:
    """Let a slot's curve be exactly what its holder goes on from.

    Args:
        database: Where.
        slot_id: Whose.
        fence: The claim of the slot that the writer owns.
        points: All epochs of the checkpoint, in order; none where the training starts over.
        place: Which files folder the checkpoint is in.
        worker: The writer's name.
        words: Why epochs are lost, if they are: noted on the slot and among the events.

    Returns:
        Whether the fence still holds; if not, nothing was changed.
    """
    ours = {point.epoch: dict(point.metrics) for point in points}
    with database.transaction() as connection:
        if not _touch(connection, slot_id, fence, place if points else None, len(points)):
            return False
        foreign = [
            known.epoch
            for known in _points(connection, slot_id)
            if ours.get(known.epoch) != dict(known.metrics)
        ]
        if foreign:
            of_slot = table.c.slot_id == slot_id
            connection.execute(table.delete().where(of_slot, table.c.epoch.in_(foreign)))
        _insert_missing(connection, slot_id, points)
        if words is not None:
            _note(connection, slot_id, worker, words, has_checkpoint=bool(points))
    return True


def _note(
    connection: Connection, slot_id: int, worker: str, words: str, *, has_checkpoint: bool
) -> None:
    values: dict[str, object] = {"note": words}
    if not has_checkpoint:
        values |= {"checkpoint_place": None, "checkpoint_epoch": None}
    mine = slots.update().where(slots.c.id == slot_id)
    study_id = connection.execute(mine.values(values).returning(slots.c.study_id)).scalar_one()
    insert_event(connection, study_id, "started_over", words, worker=worker, slot_id=slot_id)


def kept_of_slot(database: Database, slot_id: int) -> Kept:
    """Return what a slot's earlier holders left in the database."""
    with database.transaction() as connection:
        row = connection.execute(
            sa.select(slots.c.checkpoint_place, slots.c.checkpoint_epoch).where(
                slots.c.id == slot_id
            )
        ).one()
        points = tuple(_points(connection, slot_id))
    return Kept(points, row.checkpoint_place, row.checkpoint_epoch or 0)


def note_of_slot(database: Database, slot_id: int) -> str | None:
    """Return what a reader of the slot's trial should know, such as that it started over."""
    with database.transaction() as connection:
        return connection.scalar(sa.select(slots.c.note).where(slots.c.id == slot_id))


def curve_of_slot(database: Database, slot_id: int) -> list[Point]:
    """Return a slot's epochs in order; empty where none was finished."""
    with database.transaction() as connection:
        return _points(connection, slot_id)


def curves_of(database: Database, slot_ids: Sequence[int]) -> dict[int, list[Point]]:
    """Return several slots' epochs in order; a slot without any is left out."""
    query = sa.select(table).where(table.c.slot_id.in_(slot_ids))
    found: dict[int, list[Point]] = {}
    with database.transaction() as connection:
        for row in connection.execute(query.order_by(table.c.slot_id, table.c.epoch)):
            found.setdefault(row.slot_id, []).append(_point(row))
    return found


def count_epochs(database: Database, study_id: int) -> int:
    """Return how many epochs are stored of a study's trials."""
    query = sa.select(sa.func.count()).select_from(table.join(slots))
    with database.transaction() as connection:
        return connection.scalar(query.where(slots.c.study_id == study_id)) or 0


def _touch(
    connection: Connection, slot_id: int, fence: int, place: str | None, epochs: int | None
) -> bool:
    """Renew the lease, which locks the slot's row: nobody claims it before the transaction ends."""
    kept = {} if place is None else {"checkpoint_place": place, "checkpoint_epoch": epochs}
    return prolong(connection, slot_id, fence, **kept)


def _points(connection: Connection, slot_id: int) -> list[Point]:
    rows = connection.execute(
        sa.select(table).where(table.c.slot_id == slot_id).order_by(table.c.epoch)
    )
    return [_point(row) for row in rows]


def _point(row: sa.Row[Any]) -> Point:
    return Point(row.epoch, row.metrics, row.seconds, row.images_per_second)


def _insert_missing(connection: Connection, slot_id: int, points: Sequence[Point]) -> None:
    if not points:
        return
    rows = [
        {
            "slot_id": slot_id,
            "epoch": point.epoch,
            "metrics": dict(point.metrics),
            "seconds": point.seconds,
            "images_per_second": point.images_per_second,
        }
        for point in points
    ]
    insert = INSERT[connection.dialect.name](table)
    connection.execute(insert.on_conflict_do_nothing(), rows)


class StoredRungValues:
    """Reads every epoch from the curves' table, however thinly trials report to Optuna.

    Args:
        database: Of the study.
        metric: What the study optimises.
        judge: What the pruner ranks by; one of a curve's metrics.
    """

    def __init__(self, database: Database, metric: str, judge: str) -> None:
        self._database = database
        self._metric = metric
        self._judge = judge

    def __call__(self, study: optuna.Study, step: int) -> Mapping[int, Reached]:
        query = (
            sa.select(slots.c.trial_number, _best(self._metric), _best(self._judge))
            .select_from(table)
            .join(slots, slots.c.id == table.c.slot_id)
            .join(studies, studies.c.id == slots.c.study_id)
            .where(studies.c.name == study.study_name)
            .where(slots.c.trial_number.is_not(None), TRAINED_ITSELF, table.c.epoch <= step)
            .group_by(slots.c.id, slots.c.trial_number)
            .having(sa.func.max(table.c.epoch) == step)
        )
        with self._database.transaction() as connection:
            rows = connection.execute(query).all()
        return {row[0]: Reached(row[1], row[2]) for row in rows}


def _best(metric: str) -> sa.ColumnElement[float]:
    best = sa.func.min if loss_sign(direction_of(metric)) > 0 else sa.func.max
    return best(table.c.metrics[metric].as_float())


#: Trials that the time of the next ones is estimated from.
N_TRIALS_FOR_ESTIMATE = 50
_UNSETTLED = {"held": "running", "waiting": "waiting", "open": "interrupted"}
#: Why a slot waits, in words.
WAITING_WORDS = {
    "duplicate": "Waits for another trial, which trains the same config just now.",
    "space": "Waits for another trial: the space brought only configs that are trained already.",
}


@dataclass(frozen=True)
class Trial:
    """One trial, settled or under way.

    Attributes:
        number: -1 where a slot's config was given, and nobody has begun it.
        trial_id: Optuna's.
        outcome: complete, pruned, failed, running, waiting (for another trial), or interrupted
            (it goes on at the next start).
        reason: Why it failed, was pruned, or waits.
        epochs_done: Of its curve, as `seconds`; where it has another's result, of that one's.
        reused_from: The slot whose result it has, if it did not train itself.
    """

    number: int
    slot_id: int
    trial_id: int | None
    is_settled: bool
    outcome: str
    value: float | None
    best_epoch: int | None
    reason: str | None
    config: dict[str, Any] | None
    epochs_done: int
    seconds: float
    reused_from: int | None


def trials_of(
    database: Database,
    study: StoredStudy,
    *,
    number: int | None = None,
    outcome: Literal["complete", "pruned", "failed"] | None = None,
    failure: str | None = None,
    order: Literal["number", "latest", "best"] = "number",
    limit: int | None = None,
    begun: bool = True,
) -> list[Trial]:
    """Return trials of a study.

    Args:
        database: Where.
        study: Whose.
        number: Only this one.
        outcome: Only those that came to this.
        failure: Only those that failed by this.
        order: `best` has those that are not settled first; of equal ones the first counts, as
            Optuna counts.
        limit: So many at most; None is all.
        begun: False returns every slot that has a config, by the slots' numbers.
    """
    where = [slots.c.study_id == study.id]
    where.append(slots.c.trial_number.is_not(None) if begun else slots.c.config.is_not(None))
    for column, wanted in (
        (slots.c.trial_number, number),
        (slots.c.outcome, "failed" if failure else outcome),  # which an index has
        (slots.c.failure, failure),
    ):
        if wanted is not None:
            where.append(column == wanted)
    by: list[sa.ColumnElement[Any]] = [slots.c.trial_number if begun else slots.c.number]
    if order == "latest":
        by = [by[0].desc()]
    elif order == "best":
        value = best_first(study.direction)
        # Of one outcome all have a value, or none: then an index has them in this order.
        by = [value, *by] if outcome else [slots.c.state == "done", value.nulls_last(), *by]
    # The trials first, then their curves: a sum over all curves of the database takes 0.4 s.
    chosen = sa.select(slots.c.id).where(*where).order_by(*by).limit(limit)
    spent = (
        sa.select(
            table.c.slot_id,
            sa.func.count().label("epochs_done"),
            sa.func.sum(table.c.seconds).label("seconds"),
        )
        .where(table.c.slot_id.in_(chosen))
        .group_by(table.c.slot_id)
        .subquery()
    )
    query = (
        sa.select(slots, spent.c.epochs_done, spent.c.seconds)
        .outerjoin(spent, spent.c.slot_id == slots.c.id)
        .where(slots.c.id.in_(chosen))
        .order_by(*by)
    )
    with database.transaction() as connection:
        rows = connection.execute(query).all()
    return [
        Trial(
            number=-1 if row.trial_number is None else row.trial_number,
            slot_id=row.id,
            trial_id=row.trial_id,
            is_settled=row.state == "done",
            outcome=row.outcome or _UNSETTLED[row.state],
            value=row.value,
            best_epoch=row.best_epoch,
            reason=row.reason or WAITING_WORDS.get(row.waiting_reason),
            config=row.config,
            epochs_done=row.epochs_done or 0,
            seconds=row.seconds or 0.0,
            reused_from=row.reused_from,
        )
        for row in rows
    ]


def values_of(database: Database, study_id: int) -> Sequence[float]:
    """Return the values of complete trials by number; another's result says nothing new."""
    with database.transaction() as connection:
        return connection.scalars(
            sa.select(slots.c.value)
            .where(slots.c.study_id == study_id, slots.c.outcome == "complete", TRAINED_ITSELF)
            .order_by(slots.c.trial_number)
        ).all()


def is_best_so_far(database: Database, slot_id: int, value: float, metric: str) -> bool:
    """Whether no complete trial of the slot's study has a better value."""
    mine, other = slots.alias("mine"), slots.alias("other")
    less_is_better = loss_sign(DIRECTIONS[metric]) > 0
    is_better = other.c.value < value if less_is_better else other.c.value > value
    query = (
        sa.select(other.c.id)
        .join(mine, mine.c.study_id == other.c.study_id)
        .where(mine.c.id == slot_id, other.c.outcome == "complete", is_better)
        .limit(1)
    )
    with database.transaction() as connection:
        return connection.scalar(query) is None


@dataclass(frozen=True)
class Failures:
    """The failed trials of one kind: diverged, out_of_memory, lost, bug."""

    kind: str
    n: int
    last_trial: int | None
    last_reason: str


def failures_of(database: Database, study_id: int) -> list[Failures]:
    """Return each kind of failure, the most frequent first."""
    kinds = (
        sa.select(sa.func.count().label("n"), sa.func.max(slots.c.id).label("last"))
        .where(slots.c.study_id == study_id, slots.c.outcome == "failed")
        .group_by(slots.c.failure)
        .subquery()
    )
    query = (
        sa.select(slots.c.failure, slots.c.trial_number, slots.c.reason, kinds.c.n)
        .join(kinds, kinds.c.last == slots.c.id)
        .order_by(kinds.c.n.desc())
    )
    with database.transaction() as connection:
        rows = connection.execute(query).all()
    # Trials of the time before failures were told apart have no kind.
    return [
        Failures(row.failure or "other", row.n, row.trial_number, row.reason or "") for row in rows
    ]


def mean_trial_seconds(database: Database, study_id: int) -> float | None:
    """Return what the last trials took on average; None before the first.

    Of the last only: a view asks each second, and a sum over 1,000,000 epochs takes 0.4 s.
    """
    last = (
        sa.select(slots.c.id)
        .where(slots.c.study_id == study_id, slots.c.state == "done", TRAINED_ITSELF)
        .order_by(slots.c.number.desc())
        .limit(N_TRIALS_FOR_ESTIMATE)
        .subquery()
    )
    n = sa.select(sa.func.count()).select_from(last).scalar_subquery()
    mean: sa.ColumnElement[Any] = sa.func.sum(table.c.seconds) / n
    query = sa.select(mean).join(last, last.c.id == table.c.slot_id)
    with database.transaction() as connection:
        return connection.scalar(query)
