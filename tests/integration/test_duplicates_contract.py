"""The same config in two slots, on every storage: trained once."""

from __future__ import annotations

from typing import Any

import pytest

from dlnn_search.report.live import budget_words
from dlnn_search.results.status import study_status
from dlnn_search.storage import schema
from dlnn_search.storage.control import set_control, set_reuse
from dlnn_search.storage.database import Database
from dlnn_search.storage.duplicates import (
    Duplicate,
    find_duplicate,
    look_for_duplicate,
    settle_like,
    wait_for_space,
)
from dlnn_search.storage.schema import now
from dlnn_search.storage.slots import LostLeaseError, Slot, Slots
from dlnn_search.storage.studies import all_studies, register
from dlnn_search.storage.trials import Point, add_points, curve_of_slot, trials_of
from dlnn_search.storage.workers import last_events

from .slot_life import DEFINITION, claimed, give_trials, let_the_lease_end, row_of, set_slot


@pytest.fixture
def study_id(database: Database) -> int:
    return register(database, "some-study", DEFINITION).id


@pytest.fixture
def slots(database: Database, study_id: int) -> Slots:
    slots = Slots(database, study_id)
    give_trials(slots, 4)
    return slots


def trained(database: Database, slots: Slots, study_id: int, **outcome: Any) -> Slot:
    """Settle a slot that trained the config 'same' for two epochs, as trial 7."""
    slot = claimed(slots)
    slots.begin(slot, 77, 7)
    assert find_duplicate(database, study_id, slot, "same") is None
    for epoch in (1, 2):
        assert add_points(
            database, slot.id, slot.fence, [Point(epoch, {"loss": 1 / epoch}, 2.0, 9.0)]
        )
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
    assert add_points(database, second.id, second.fence, [Point(1, {"loss": 9.0}, 1.0, 1.0)])
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
    give_trials(others, 1)
    assert find_duplicate(database, other_id, claimed(others), "same") is None


def test_a_config_that_is_trained_just_now_is_waited_for(
    database: Database, slots: Slots, study_id: int
) -> None:
    first, second, third = claimed(slots), claimed(slots), claimed(slots)
    assert find_duplicate(database, study_id, first, "same") is None
    for waiting in (second, third):
        duplicate = find_duplicate(database, study_id, waiting, "same")
        assert duplicate == Duplicate(first.id, first.number, None, None)
        row = row_of(database, waiting)
        assert (row["state"], row["waiting_reason"], row["waits_for"]) == (
            "waiting",
            "duplicate",
            first.id,
        )
        assert (row["worker"], row["claimed_at"]) == (None, None), "nobody holds it"
        assert find_duplicate(database, study_id, waiting, "same") == duplicate, "its answer lost"
        slots.release(waiting)  # harmless: it was given back by waiting
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
    slots.settle(first, "failed", failure="lost")
    again = claimed(slots)
    assert again.id == second.id
    assert find_duplicate(database, study_id, again, "same") is None
    assert row_of(database, again)["waits_for"] is None
    assert row_of(database, again)["waiting_reason"] is None


def test_who_waits_goes_on_when_the_other_s_holder_died_and_the_next_one_settled_it(
    database: Database, slots: Slots, study_id: int
) -> None:
    first, second = claimed(slots, "dies"), claimed(slots)
    slots.begin(first, 70, 0)
    find_duplicate(database, study_id, first, "same")
    find_duplicate(database, study_id, second, "same")
    let_the_lease_end(database, first)
    again = claimed(slots)
    assert again.id == first.id, "what was begun comes first"
    assert find_duplicate(database, study_id, again, "same") is None
    slots.settle(again, "complete", value=0.5)
    assert claimed(slots).id == second.id


def test_who_waits_for_a_slot_that_is_gone_goes_on(
    database: Database, slots: Slots, study_id: int
) -> None:
    first, second = claimed(slots), claimed(slots)
    find_duplicate(database, study_id, first, "same")
    find_duplicate(database, study_id, second, "same")
    with database.transaction() as connection:
        connection.execute(schema.slots.delete().where(schema.slots.c.id == first.id))
    assert claimed(slots).id == second.id


def test_a_slot_that_waits_is_neither_done_nor_held_and_is_said(
    database: Database, slots: Slots, study_id: int
) -> None:
    first, second = claimed(slots), claimed(slots)
    for number, slot in enumerate((first, second)):
        slots.begin(slot, 70 + number, number)
        find_duplicate(database, study_id, slot, "same")
    stored = all_studies(database)[0]
    status = study_status(database, stored)
    assert (status.counts["held"], status.counts["waiting"], status.budget) == (1, 1, 4)
    assert "1 waiting for another trial" in budget_words(status)
    waiting = trials_of(database, stored)[1]
    assert (waiting.outcome, waiting.reason) == (
        "waiting",
        "Waits for another trial, which trains the same config just now.",
    )
    for slot in (first, claimed(slots), claimed(slots)):
        slots.settle(slot, "complete", value=0.5)
    assert not slots.all_done(), "who waits has no outcome yet"


def test_a_look_for_a_duplicate_notes_nothing_and_renews_the_lease(
    database: Database, slots: Slots, study_id: int
) -> None:
    first = trained(database, slots, study_id, outcome="complete", value=0.5)
    slot = claimed(slots)
    set_slot(database, slot, lease_ends_at=now() + 1)
    before = row_of(database, slot)
    found = look_for_duplicate(database, study_id, slot, "same")
    assert found is not None and found.slot_id == first.id
    assert look_for_duplicate(database, study_id, slot, "other") is None
    after = row_of(database, slot)
    assert after.pop("lease_ends_at") > before.pop("lease_ends_at") + 60
    assert after == before


def test_no_fresh_slot_is_begun_while_one_waits_for_a_space_that_brings_nothing_new(
    database: Database, slots: Slots, study_id: int
) -> None:
    first, second = claimed(slots), claimed(slots)
    slots.begin(first, 70, 0)
    find_duplicate(database, study_id, first, "same")
    assert wait_for_space(database, study_id, second, None)
    assert wait_for_space(database, study_id, second, None), "its answer lost"
    assert slots.claim("w") is None
    slots.settle(first, "complete", value=0.5)
    again = claimed(slots)
    assert again.id == second.id
    assert not wait_for_space(database, study_id, again, None), "nothing goes on: it is used up"
    assert claimed(slots).number == 2


def test_when_a_space_is_used_up_no_slot_waits_for_it_any_more(
    database: Database, slots: Slots, study_id: int
) -> None:
    first, second, third = claimed(slots), claimed(slots), claimed(slots)
    find_duplicate(database, study_id, first, "same")
    for slot in (second, third):
        assert wait_for_space(database, study_id, slot, None)
    slots.settle(first, "complete", value=0.5)
    again = claimed(slots)
    assert again.id == second.id
    assert not wait_for_space(database, study_id, again, None)
    row = row_of(database, third)
    assert (row["state"], row["waiting_reason"], row["waits_for"]) == ("open", None, None)


def test_who_drew_only_what_was_trained_asks_again_when_that_is_settled(
    database: Database, slots: Slots, study_id: int
) -> None:
    first, second = claimed(slots), claimed(slots)
    find_duplicate(database, study_id, first, "same")
    slots.settle(first, "failed", failure="bug")
    assert wait_for_space(database, study_id, second, first.id), "it was trained at that moment"
    assert claimed(slots).id == second.id


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


def test_what_waits_for_nothing_any_more_is_open_when_the_study_has_stopped(
    database: Database, slots: Slots, study_id: int
) -> None:
    first, second = claimed(slots), claimed(slots)
    find_duplicate(database, study_id, first, "same")
    find_duplicate(database, study_id, second, "same")
    slots.open_expired()
    assert row_of(database, second)["state"] == "waiting"
    slots.settle(first, "complete", value=0.5)
    set_control(database, study_id, "stop")
    slots.open_expired()
    row = row_of(database, second)
    assert (row["state"], row["waiting_reason"], row["waits_for"]) == ("open", None, None)
