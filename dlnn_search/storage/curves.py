"""Curves: every metric of every epoch of every trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from dlnn_search.storage.database import Database
from dlnn_search.storage.schema import curves as table
from dlnn_search.storage.schema import slots


@dataclass(frozen=True)
class Point:
    """One epoch of a curve; `epoch` counts from 1."""

    epoch: int
    metrics: Mapping[str, float]
    seconds: float
    images_per_second: float


def add_point(database: Database, slot_id: int, fence: int, point: Point) -> bool:
    """Store an epoch, unless the slot was claimed by another worker since, or it is there.

    Returns:
        Whether the fence still holds.
    """
    with database.transaction() as connection:
        # Touching the slot's row locks it: nobody claims it between the check and the insert.
        held = connection.execute(
            slots.update()
            .where(slots.c.id == slot_id, slots.c.fence == fence, slots.c.state == "held")
            .values(fence=fence)
        )
        if held.rowcount != 1:
            return False
        known = connection.scalar(
            sa.select(table.c.epoch).where(table.c.slot_id == slot_id, table.c.epoch == point.epoch)
        )
        if known is None:
            connection.execute(
                table.insert().values(
                    slot_id=slot_id,
                    epoch=point.epoch,
                    metrics=dict(point.metrics),
                    seconds=point.seconds,
                    images_per_second=point.images_per_second,
                )
            )
    return True


def curve_of_slot(database: Database, slot_id: int) -> list[Point]:
    """Return a slot's epochs in order; empty where none was finished."""
    with database.transaction() as connection:
        rows = connection.execute(
            sa.select(table).where(table.c.slot_id == slot_id).order_by(table.c.epoch)
        ).all()
    return [Point(row.epoch, row.metrics, row.seconds, row.images_per_second) for row in rows]
