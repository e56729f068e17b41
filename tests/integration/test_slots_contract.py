"""The life of a slot, on every storage: held by one worker at a time and settled once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa

from dlnn_search.storage import schema
from dlnn_search.storage.control import set_lease_seconds
from dlnn_search.storage.database import Database
from dlnn_search.storage.schema import now
from dlnn_search.storage.slots import LEASE_SECONDS, LostLeaseError, Slots
from dlnn_search.storage.studies import register
from dlnn_search.storage.trials import Point, add_points, curve_of_slot

from .slot_life import DEFINITION, claimed, give_trials, let_the_lease_end, note_config, row_of


@pytest.fixture
def study_id(database: Database) -> int:
    return register(database, "some-study", DEFINITION).id


@pytest.fixture
def slots(database: Database, study_id: int) -> Slots:
    return Slots(database, study_id)


def test_a_budget_grows_and_never_shrinks(database: Database, slots: Slots) -> None:
    for asked, held in ((2, 2), (5, 5), (3, 5), (1, 5)):
        give_trials(slots, asked)
        with database.transaction() as connection:
            n_slots = connection.scalar(sa.select(sa.func.count()).select_from(schema.slots))
        assert n_slots == held


def test_studies_of_one_database_have_budgets_of_their_own(
    database: Database, slots: Slots
) -> None:
    other = Slots(database, register(database, "other-study", DEFINITION).id)
    give_trials(slots, 1)
    give_trials(other, 1)
    mine, others = claimed(slots), claimed(other)
    assert mine.id != others.id
    assert slots.claim("w") is None
    slots.settle(mine, "complete", value=1.0)
    assert slots.all_done()
    assert not other.all_done()
    other.release_of_dead("w")
    assert claimed(other).losses == 1


def test_slots_are_claimed_by_number_but_begun_ones_first(database: Database, slots: Slots) -> None:
    give_trials(slots, 3)
    first, second = claimed(slots), claimed(slots)
    assert (first.number, second.number) == (0, 1)
    slots.begin(second, trial_id=77, trial_number=4)
    note_config(database, second, {"some": "config"})
    slots.release(first)
    slots.release(second)
    again = claimed(slots)
    assert (again.number, again.trial_id, again.trial_number) == (1, 77, 4)
    assert again.config == {"some": "config"}
    assert [claimed(slots).number for _ in range(2)] == [0, 2]


def test_a_released_slot_keeps_its_trial_and_counts_no_loss(slots: Slots) -> None:
    give_trials(slots, 1)
    slot = claimed(slots)
    slots.begin(slot, trial_id=7, trial_number=0)
    slots.release(slot)
    again = claimed(slots)
    assert (again.trial_id, again.losses, again.fence) == (7, 0, slot.fence + 1)


def test_a_held_slot_is_not_claimed_until_its_lease_ends(database: Database, slots: Slots) -> None:
    give_trials(slots, 1)
    slot = claimed(slots)
    assert slots.claim("other") is None
    let_the_lease_end(database, slot)
    again = claimed(slots, "other")
    assert (again.id, again.losses, again.fence) == (slot.id, 1, slot.fence + 1)


@pytest.mark.parametrize("call", ["renew", "begin", "note_config"])
def test_each_sign_of_progress_prolongs_the_lease(
    database: Database, slots: Slots, call: str
) -> None:
    give_trials(slots, 1)
    slot = claimed(slots)
    let_the_lease_end(database, slot)
    calls: dict[str, Callable[[], object]] = {
        "renew": lambda: slots.renew(slot),
        "begin": lambda: slots.begin(slot, 1, 0),
        "note_config": lambda: note_config(database, slot, {}),
    }
    calls[call]()
    with database.transaction() as connection:
        left = connection.scalar(sa.select(schema.slots.c.lease_ends_at - now()))
    assert left is not None
    assert LEASE_SECONDS - 10 < left <= LEASE_SECONDS
    assert slots.claim("other") is None


def test_a_study_sets_the_length_of_its_leases(
    database: Database, slots: Slots, study_id: int
) -> None:
    give_trials(slots, 1)
    slot = claimed(slots)
    set_lease_seconds(database, study_id, 5000.0)
    slots.renew(slot)
    with database.transaction() as connection:
        left = connection.scalar(sa.select(schema.slots.c.lease_ends_at - now()))
    assert left is not None
    assert 4990 < left <= 5000


@pytest.mark.parametrize(
    "call", ["renew", "begin", "note_config", "settle", "release", "add_points"]
)
def test_a_worker_that_was_fenced_off_changes_nothing(
    database: Database, slots: Slots, call: str
) -> None:
    give_trials(slots, 1)
    old = claimed(slots, "old")
    let_the_lease_end(database, old)
    claimed(slots, "new")
    before = row_of(database, old)
    if call == "add_points":
        assert not add_points(database, old.id, old.fence, [Point(1, {"loss": 1.0}, 1.0, 1.0)])
    else:
        with pytest.raises(LostLeaseError, match="Slot 0 was claimed by another worker"):
            calls: dict[str, Callable[[], object]] = {
                "renew": lambda: slots.renew(old),
                "begin": lambda: slots.begin(old, 1, 0),
                "note_config": lambda: note_config(database, old, {}),
                "settle": lambda: slots.settle(old, "complete", value=1.0),
                "release": lambda: slots.release(old),
            }
            calls[call]()
    assert row_of(database, old) == before
    assert curve_of_slot(database, old.id) == []


@pytest.mark.parametrize("call", ["renew", "settle", "release", "add_points"])
def test_a_settled_slot_is_settled_for_good(database: Database, slots: Slots, call: str) -> None:
    give_trials(slots, 1)
    slot = claimed(slots)
    slots.settle(slot, "pruned", value=0.5, best_epoch=3, reason="slow")
    before = row_of(database, slot)
    if call == "add_points":
        assert not add_points(database, slot.id, slot.fence, [Point(1, {"loss": 1.0}, 1.0, 1.0)])
    else:
        with pytest.raises(LostLeaseError):
            calls: dict[str, Callable[[], object]] = {
                "renew": lambda: slots.renew(slot),
                "settle": lambda: slots.settle(slot, "complete", value=1.0),
                "release": lambda: slots.release(slot),
            }
            calls[call]()
    slots.release_of_dead("w")
    assert slots.claim("other") is None
    assert row_of(database, slot) == before
    assert (before["outcome"], before["value"], before["best_epoch"]) == ("pruned", 0.5, 3)
    assert (before["state"], before["worker"], before["claimed_at"]) == ("done", None, None)
    assert before["lease_ends_at"] <= before["settled_at"] + 1, "it ended with the hold"


def test_what_a_dead_worker_held_is_open_at_once_and_counts_as_a_loss(slots: Slots) -> None:
    give_trials(slots, 2)
    dead, living = claimed(slots, "dead"), claimed(slots, "living")
    slots.release_of_dead("dead")
    again = claimed(slots, "new")
    assert (again.number, again.losses) == (dead.number, 1)
    with pytest.raises(LostLeaseError):
        slots.renew(dead)
    slots.renew(living)


def test_a_worker_that_is_only_taken_for_dead_loses_its_slot_before_it_is_claimed(
    slots: Slots,
) -> None:
    give_trials(slots, 1)
    slot = claimed(slots, "hung")
    slots.release_of_dead("hung")
    with pytest.raises(LostLeaseError):
        slots.settle(slot, "complete", value=1.0)
    assert not slots.all_done()


def test_an_outcome_is_untold_until_it_is_marked(slots: Slots) -> None:
    give_trials(slots, 3)
    told, untold, without_trial = claimed(slots), claimed(slots), claimed(slots)
    for slot, trial_id in ((told, 11), (untold, 12)):
        slots.begin(slot, trial_id, slot.number)
        assert slots.untold() == []
    slots.settle(told, "complete", value=0.25)
    slots.mark_told(told.id)
    slots.settle(untold, "pruned", value=0.5)
    slots.settle(without_trial, "failed", reason="no trial")
    (one,) = slots.untold()
    assert (one.slot_id, one.trial_id, one.outcome, one.value) == (untold.id, 12, "pruned", 0.5)
    slots.mark_told(untold.id)
    slots.mark_told(untold.id)
    assert slots.untold() == []


def test_a_budget_is_used_up_when_every_slot_is_settled(slots: Slots) -> None:
    assert slots.all_done()
    give_trials(slots, 2)
    for outcome in ("failed", "complete"):
        assert not slots.all_done()
        slots.settle(claimed(slots), outcome)
    assert slots.all_done()
    give_trials(slots, 3)
    assert not slots.all_done()
