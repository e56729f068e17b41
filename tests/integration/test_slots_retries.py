"""A connection that dies at COMMIT, on every storage: nobody knows whether it was done.

Every call is repeated then. Here each is done twice, as after an answer that was lost.
"""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from dlnn_search.storage import schema
from dlnn_search.storage.budget import Budget, budget_use, extend_budget
from dlnn_search.storage.database import Database
from dlnn_search.storage.duplicates import find_duplicate, settle_like
from dlnn_search.storage.schema import now
from dlnn_search.storage.slots import LostLeaseError, Slots, new_token
from dlnn_search.storage.studies import register
from dlnn_search.storage.workers import last_events

from .slot_life import (
    DEFINITION,
    claimed,
    give_trials,
    let_the_lease_end,
    note_config,
    row_of,
    set_slot,
)


@pytest.fixture
def study_id(database: Database) -> int:
    return register(database, "some-study", DEFINITION).id


@pytest.fixture
def slots(database: Database, study_id: int) -> Slots:
    slots = Slots(database, study_id)
    give_trials(slots, 3)
    return slots


def test_a_claim_whose_answer_was_lost_is_found_again(database: Database, slots: Slots) -> None:
    token = new_token()
    first = slots.claim("w", token)
    assert first is not None
    assert slots.claim("w", token) == first
    other = slots.claim("w", new_token())
    assert other is not None and other.id != first.id
    # Where the lease ended in the meantime, the slot is another's.
    let_the_lease_end(database, first)
    slots.open_expired()
    taken = claimed(slots, "x")
    assert taken.id == first.id
    third = slots.claim("w", token)
    assert third is not None and third.id not in (first.id, other.id)


def test_settling_twice_is_settling_once(database: Database, slots: Slots, study_id: int) -> None:
    slot = claimed(slots)
    set_slot(database, slot, claimed_at=now() - 100)
    slots.settle(slot, "failed", failure="bug", reason="KeyError")
    before = row_of(database, slot)
    slots.settle(slot, "failed", failure="bug", reason="KeyError")
    assert row_of(database, slot) == before
    assert 100 <= before["spent_seconds"] < 160
    assert len(last_events(database, study_id, 9)) == 1
    with pytest.raises(LostLeaseError):
        slots.settle(slot, "complete", value=1.0)


def test_releasing_twice_counts_once(database: Database, slots: Slots, study_id: int) -> None:
    slot = claimed(slots)
    for _ in range(2):
        slots.release(slot, failure="out_of_memory", reason="OOM")
    assert row_of(database, slot)["memory_failures"] == 1
    assert len(last_events(database, study_id, 9)) == 1
    claimed(slots, "x")
    with pytest.raises(LostLeaseError):
        slots.release(slot)


def test_beginning_twice_is_beginning_once(database: Database, slots: Slots) -> None:
    slot = claimed(slots)
    for _ in range(2):
        slots.begin(slot, 77, 4)
        note_config(database, slot, {"some": "config"})
    row = row_of(database, slot)
    assert (row["trial_id"], row["trial_number"], row["config"]) == (77, 4, {"some": "config"})


def test_extending_twice_is_extending_once(database: Database, slots: Slots, study_id: int) -> None:
    for _ in range(2):
        assert extend_budget(database, study_id, Budget(trials=9, wall_seconds=60)) == []
    assert budget_use(database, study_id).trials == 9


def test_reusing_a_result_twice_is_reusing_it_once(
    database: Database, slots: Slots, study_id: int
) -> None:
    first, second = claimed(slots), claimed(slots)
    find_duplicate(database, study_id, first, "same")
    slots.settle(first, "complete", value=0.5)
    duplicate = find_duplicate(database, study_id, second, "same")
    assert duplicate is not None
    assert find_duplicate(database, study_id, second, "same") == duplicate
    for _ in range(2):
        settle_like(database, study_id, second, duplicate)
    with database.transaction() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(schema.events)) == 1
    assert row_of(database, second)["value"] == 0.5
