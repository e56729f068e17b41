"""Curves: every metric of every epoch of every trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import optuna
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dlnn_search.metrics import direction_of
from dlnn_search.pruners import Reached
from dlnn_search.storage.budget import prolong
from dlnn_search.storage.database import Database
from dlnn_search.storage.duplicates import TRAINED_ITSELF
from dlnn_search.storage.optuna import INSERT
from dlnn_search.storage.schema import curves as table
from dlnn_search.storage.schema import events, now, slots, studies


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
    study_id = connection.scalar(
        slots.update().where(slots.c.id == slot_id).values(values).returning(slots.c.study_id)
    )
    connection.execute(
        events.insert().values(
            study_id=study_id,
            at=now(),
            kind="started_over",
            worker=worker,
            slot_id=slot_id,
            words=words,
        )
    )


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
    return [Point(row.epoch, row.metrics, row.seconds, row.images_per_second) for row in rows]


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
    best = sa.func.max if direction_of(metric) == "maximize" else sa.func.min
    return best(table.c.metrics[metric].as_float())
