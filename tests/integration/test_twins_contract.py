"""The same config in two slots, on every storage: trained once."""

from __future__ import annotations

from typing import Any

import pytest

from dlnn_search.storage.control import set_reuse
from dlnn_search.storage.curves import Point, add_point, curve_of_slot
from dlnn_search.storage.database import Database
from dlnn_search.storage.definitions import register
from dlnn_search.storage.events import last_events
from dlnn_search.storage.slots import LostLeaseError, Slot, Slots
from dlnn_search.storage.twins import Duplicate, find_duplicate, settle_like

from .slot_life import DEFINITION, claimed, let_the_lease_end, row_of


@pytest.fixture
def study_id(database: Database) -> int:
    return register(database, "some-study", DEFINITION).id


@pytest.fixture
def slots(database: Database, study_id: int) -> Slots:
    slots = Slots(database, study_id)
    slots.extend_to(4)
    return slots


def trained(database: Database, slots: Slots, study_id: int, **outcome: Any) -> Slot:
    """Settle a slot that trained the config 'same' for two epochs, as trial 7."""
    slot = claimed(slots)
    slots.begin(slot, 77, 7)
    assert find_duplicate(database, study_id, slot, "same") is None
    for epoch in (1, 2):
        assert add_point(database, slot.id, slot.fence, Point(epoch, {"loss": 1 / epoch}, 2.0, 9.0))
    slots.settle(slot, **outcome)
    return slot


@pytest.mark.parametrize(
    "outcome",
    [
        {"outcome": "complete", "value": 0.5, "best_epoch": 2},
        {"outcome": "pruned", "value": 0.7, "best_epoch": 1},
        {"outcome": "failed", "failure": "diverged", "reason": "Diverged in epoch 3."},
    ],
    ids=lambda outcome: outcome["outcome"],
)
def test_a_config_that_was_trained_gives_its_result_and_curve(
    database: Database, slots: Slots, study_id: int, outcome: dict[str, Any]
) -> None:
    first = trained(database, slots, study_id, **outcome)
    second = claimed(slots, "w2")
    slots.begin(second, 78, 8)
    assert add_point(database, second.id, second.fence, Point(1, {"loss": 9.0}, 1.0, 1.0))
    duplicate = find_duplicate(database, study_id, second, "same")
    assert duplicate is not None and (duplicate.slot_id, duplicate.outcome) == (
        first.id,
        outcome["outcome"],
    )
    settle_like(database, study_id, second, duplicate)
    row, original = row_of(database, second), row_of(database, first)
    for name in ("state", "outcome", "value", "best_epoch", "failure", "reason"):
        assert row[name] == original[name]
    assert row["reused_from"] == first.id
    assert row["note"] == "It has the result of trial 7, which trained the same config."
    assert row["told"] == 0
    assert curve_of_slot(database, second.id) == curve_of_slot(database, first.id)
    assert [point.epoch for point in curve_of_slot(database, second.id)] == [1, 2]
    (event,) = last_events(database, study_id, 9)
    assert (event.kind, event.worker, event.slot_id) == ("reused", "w2", second.id)
    assert event.words == f"Trial 8: {row['note']}"


@pytest.mark.parametrize("failure", ["lost", "bug", "out_of_memory"])
def test_a_failure_that_says_nothing_of_the_config_is_no_result(
    database: Database, slots: Slots, study_id: int, failure: str
) -> None:
    trained(database, slots, study_id, outcome="failed", failure=failure)
    assert find_duplicate(database, study_id, claimed(slots), "same") is None


def test_another_config_or_another_study_is_no_duplicate(
    database: Database, slots: Slots, study_id: int
) -> None:
    trained(database, slots, study_id, outcome="complete", value=0.5)
    assert find_duplicate(database, study_id, claimed(slots), "other") is None
    other_id = register(database, "other-study", DEFINITION).id
    others = Slots(database, other_id)
    others.extend_to(1)
    assert find_duplicate(database, other_id, claimed(others), "same") is None


def test_a_config_that_is_trained_just_now_is_waited_for(
    database: Database, slots: Slots, study_id: int
) -> None:
    first, second, third = claimed(slots), claimed(slots), claimed(slots)
    assert find_duplicate(database, study_id, first, "same") is None
    for waiting in (second, third):
        duplicate = find_duplicate(database, study_id, waiting, "same")
        assert duplicate == Duplicate(first.id, first.number, None, None)
        slots.begin(waiting, 70 + waiting.number, waiting.number)
        slots.release(waiting)
    assert claimed(slots).number == 3, "who waits is passed over"
    assert slots.claim("w") is None
    slots.release(first)
    again = claimed(slots)
    assert again.id == first.id
    assert find_duplicate(database, study_id, again, "same") is None, "nobody waits for who waits"
    slots.settle(again, "complete", value=0.25)
    for waiting in (second, third):
        late = claimed(slots)
        assert late.id == waiting.id
        duplicate = find_duplicate(database, study_id, late, "same")
        assert duplicate is not None and (duplicate.slot_id, duplicate.value) == (first.id, 0.25)
        settle_like(database, study_id, late, duplicate)


def test_who_waited_for_a_trial_that_failed_for_another_reason_trains_itself(
    database: Database, slots: Slots, study_id: int
) -> None:
    first, second = claimed(slots), claimed(slots)
    find_duplicate(database, study_id, first, "same")
    find_duplicate(database, study_id, second, "same")
    slots.begin(second, 71, 1)
    slots.release(second)
    slots.settle(first, "failed", failure="lost")
    again = claimed(slots)
    assert again.id == second.id
    assert find_duplicate(database, study_id, again, "same") is None
    assert row_of(database, again)["waits_for"] is None


def test_a_study_may_ask_for_every_config_to_be_trained(
    database: Database, slots: Slots, study_id: int
) -> None:
    trained(database, slots, study_id, outcome="complete", value=0.5)
    slot = claimed(slots)
    assert find_duplicate(database, study_id, slot, "same", reuse=False) is None
    set_reuse(database, study_id, False)
    assert find_duplicate(database, study_id, slot, "same") is None
    set_reuse(database, study_id, True)
    assert find_duplicate(database, study_id, slot, "same") is not None


def test_a_fenced_worker_neither_waits_nor_reuses(
    database: Database, slots: Slots, study_id: int
) -> None:
    trained(database, slots, study_id, outcome="complete", value=0.5)
    old = claimed(slots, "old")
    duplicate = find_duplicate(database, study_id, old, "same")
    assert duplicate is not None
    let_the_lease_end(database, old)
    claimed(slots, "new")
    before = row_of(database, old)
    with pytest.raises(LostLeaseError):
        find_duplicate(database, study_id, old, "else")
    with pytest.raises(LostLeaseError):
        settle_like(database, study_id, old, duplicate)
    assert row_of(database, old) == before
    assert curve_of_slot(database, old.id) == []
