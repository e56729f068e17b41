"""What tests of slots have in common: a study, claims, and leases that end when asked."""

from __future__ import annotations

import time
from typing import Any

import pytest
import sqlalchemy as sa

from dlnn_search.storage import schema
from dlnn_search.storage.budget import Budget, extend_budget
from dlnn_search.storage.database import Database
from dlnn_search.storage.duplicates import find_duplicate
from dlnn_search.storage.schema import now
from dlnn_search.storage.slots import Slot, Slots

#: For tests of what a tested version of Optuna alone can do.
TESTED_ALONE = pytest.mark.parametrize("optuna_way", ["tested"], indirect=True)

DEFINITION = {"settings": {"metric": "accuracy", "direction": "maximize"}, "code": ""}


def claimed(slots: Slots, worker: str = "w") -> Slot:
    slot = slots.claim(worker)
    assert slot is not None
    return slot


def give_trials(slots: Slots, n: int) -> None:
    """Let a study's budget have at least n trials."""
    extend_budget(slots.database, slots.study_id, Budget(trials=n))


def let_the_lease_end(database: Database, slot: Slot, *, seconds_ago: float = 0.0) -> None:
    set_slot(database, slot, lease_ends_at=now() - seconds_ago)
    time.sleep(0.002)  # SQLite's clock counts milliseconds


def note_config(database: Database, slot: Slot, config: dict[str, Any]) -> None:
    """Store what a slot trains, which no other does."""
    study_id = row_of(database, slot)["study_id"]
    assert find_duplicate(database, study_id, slot, f"config {slot.id}", config=config) is None


def set_slot(database: Database, slot: Slot, **values: Any) -> None:
    with database.transaction() as connection:
        connection.execute(
            schema.slots.update().where(schema.slots.c.id == slot.id).values(**values)
        )


def set_study(database: Database, study_id: int, **values: Any) -> None:
    with database.transaction() as connection:
        connection.execute(
            schema.studies.update().where(schema.studies.c.id == study_id).values(**values)
        )


def row_of(database: Database, slot: Slot) -> dict[str, Any]:
    with database.transaction() as connection:
        query = sa.select(schema.slots).where(schema.slots.c.id == slot.id)
        return dict(connection.execute(query).mappings().one())
