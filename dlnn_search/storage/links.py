"""Linked studies: those that train given configs again, and the study that these come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dlnn_search.storage.database import Database
from dlnn_search.storage.definitions import StoredStudy, all_studies
from dlnn_search.storage.halves import Kind, linked_name
from dlnn_search.storage.schema import slots, studies

#: Tells of a config in plain data what makes it this one.
Identity = Callable[[dict[str, Any]], str]


def linked(database: Database, parent: StoredStudy, kind: Kind) -> StoredStudy | None:
    """Return a study's linked study, if it has one."""
    name = linked_name(parent.name, kind)
    return next((stored for stored in all_studies(database) if stored.name == name), None)


def set_parent(database: Database, study_id: int, parent: str) -> None:
    """Note whose trials a study trains again."""
    with database.transaction() as connection:
        connection.execute(studies.update().where(studies.c.id == study_id).values(parent=parent))


def parent_of(database: Database, study_id: int) -> str | None:
    """Return whose trials a study trains again; None where it searches by itself."""
    with database.transaction() as connection:
        return connection.scalar(sa.select(studies.c.parent).where(studies.c.id == study_id))


def first_config(database: Database, study_id: int) -> dict[str, Any] | None:
    """Return the config of a study's first slot that has one."""
    with database.transaction() as connection:
        return connection.scalar(
            sa.select(slots.c.config)
            .where(slots.c.study_id == study_id, slots.c.number == 0)
            .limit(1)
        )


def seeds_of(database: Database, study_ids: Sequence[int]) -> list[int]:
    """Return the seeds that studies' trials were trained with, in their order, each once."""
    seed = slots.c.config["training"]["seed"].as_string()
    with database.transaction() as connection:
        rows = connection.execute(
            sa.select(seed.label("its_seed"), sa.func.min(slots.c.number).label("first"))
            .where(slots.c.study_id.in_(study_ids), seed.is_not(None))
            .group_by("its_seed")
            .order_by("first")
        ).all()
    return [int(row[0]) for row in rows]


def family_of(database: Database, name: str) -> list[int]:
    """Return a study with all that are linked with it; nothing where it is not known here."""
    with database.transaction() as connection:
        parent = connection.scalar(
            sa.select(sa.func.coalesce(studies.c.parent, studies.c.name)).where(
                studies.c.name == name
            )
        )
        query = sa.select(studies.c.id).where(
            sa.or_(studies.c.name == parent, studies.c.parent == parent)
        )
        return list(connection.scalars(query))


def seed_of_trial(database: Database, study_id: int, trial: int) -> int | None:
    """Return the seed that a study's trial was trained with; None where it has no such trial."""
    with database.transaction() as connection:
        config = connection.scalar(
            sa.select(slots.c.config).where(
                slots.c.study_id == study_id, slots.c.trial_number == trial
            )
        )
    return None if config is None else int(config["training"]["seed"])


def add_given(
    database: Database, study_id: int, configs: Sequence[dict[str, Any]], identity: Identity
) -> int:
    """Extend a study's budget by slots that train given configs, unless it has them.

    Returns:
        How many were added.
    """
    with database.transaction() as connection:
        _lock(connection, study_id)
        fresh, n_slots = _fresh(connection, study_id, configs, identity)
        if fresh:
            connection.execute(
                slots.insert(),
                [
                    {
                        "study_id": study_id,
                        "number": n_slots + place,
                        "state": "open",
                        "fence": 0,
                        "losses": 0,
                        "told": 0,
                        "config": config,
                    }
                    for place, config in enumerate(fresh)
                ],
            )
    return len(fresh)


def give_first(
    database: Database, study_id: int, configs: Sequence[dict[str, Any]], identity: Identity
) -> tuple[int, int]:
    """Let the first slots that nobody has begun train given configs, unless the study has them.

    Returns:
        How many configs were given a slot, and how many were left without one.
    """
    with database.transaction() as connection:
        _lock(connection, study_id)
        fresh, _ = _fresh(connection, study_id, configs, identity)
        open_slots = connection.execute(
            sa.select(slots.c.id, slots.c.config)
            .where(slots.c.study_id == study_id, slots.c.state == "open")
            .where(slots.c.fence == 0, slots.c.trial_id.is_(None))
            .order_by(slots.c.number)
        ).all()
        places = [row.id for row in open_slots if not row.config]
        n_given = 0
        for slot_id, config in zip(places, fresh, strict=False):
            # A worker that claims it this moment wins: the slot is then not untouched any more.
            result = connection.execute(
                slots.update()
                .where(slots.c.id == slot_id, slots.c.state == "open", slots.c.fence == 0)
                .values(config=config)
            )
            n_given += result.rowcount
    return n_given, len(fresh) - n_given


def _fresh(
    connection: Connection, study_id: int, configs: Sequence[dict[str, Any]], identity: Identity
) -> tuple[list[dict[str, Any]], int]:
    """Return the configs that no slot of the study has, each once, and the number of slots."""
    rows = connection.execute(
        sa.select(slots.c.number, slots.c.config).where(slots.c.study_id == study_id)
    ).all()
    known = {identity(row.config) for row in rows if row.config}
    fresh = []
    for config in configs:
        if identity(config) not in known:
            known.add(identity(config))
            fresh.append(config)
    return fresh, len(rows)


def _lock(connection: Connection, study_id: int) -> None:
    # An update that changes nothing takes the row's lock (PostgreSQL) or the writer's (SQLite).
    connection.execute(studies.update().where(studies.c.id == study_id).values(name=studies.c.name))
