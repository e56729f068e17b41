"""Budgets of time, on every storage: enforced by the claim, kept over crashes."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from dlnn_search.storage.budget import Budget, budget_use, extend_budget
from dlnn_search.storage.control import set_control
from dlnn_search.storage.database import Database, open_database
from dlnn_search.storage.schema import now
from dlnn_search.storage.slots import Slots, settle_held
from dlnn_search.storage.studies import register
from dlnn_search.storage.trials import Point, add_points

from .slot_life import (
    DEFINITION,
    claimed,
    give_trials,
    let_the_lease_end,
    note_config,
    set_slot,
    set_study,
)


@pytest.fixture
def study_id(database: Database) -> int:
    return register(database, "some-study", DEFINITION).id


@pytest.fixture
def slots(database: Database, study_id: int) -> Slots:
    slots = Slots(database, study_id)
    give_trials(slots, 4)
    return slots


@pytest.mark.parametrize("control", ["pause", "stop", "stop_now"])
def test_a_study_that_is_asked_to_stop_gives_no_slot(
    database: Database, slots: Slots, study_id: int, control: str
) -> None:
    held = claimed(slots)
    set_control(database, study_id, control, "why")  # type: ignore[arg-type]
    assert slots.claim("w") is None
    orders = slots.renew(held)
    assert (orders.control, orders.reason, orders.time_is_up) == (control, "why", False)
    slots.settle(held, "complete", value=1.0)
    set_control(database, study_id, "run")
    assert claimed(slots).number == 1


def test_no_slot_is_given_after_the_deadline(
    database: Database, slots: Slots, study_id: int
) -> None:
    use = budget_use(database, study_id)
    extend_budget(database, study_id, Budget(deadline_at=use.now + 3600))
    held = claimed(slots)
    assert not slots.renew(held).time_is_up
    set_study(database, study_id, deadline_at=now() - 1)
    assert slots.claim("w") is None
    assert slots.renew(held).time_is_up
    assert budget_use(database, study_id).exhausted_by == "deadline"
    extend_budget(database, study_id, Budget(deadline_at=use.now + 3600))
    assert claimed(slots).number == 1


def test_wall_time_runs_while_a_slot_is_held_and_only_then(
    database: Database, slots: Slots, study_id: int
) -> None:
    def used() -> float:
        return budget_use(database, study_id).wall_used_seconds

    assert used() == 0
    first, second = claimed(slots), claimed(slots)
    set_study(database, study_id, active_since=now() - 100)
    assert 100 <= used() < 150
    slots.settle(first, "complete", value=1.0)
    assert used() < used(), "it runs on with the second"
    slots.release(second)
    ended = used()
    assert 100 <= ended < 150
    time.sleep(0.05)
    assert used() == ended
    claimed(slots)
    set_study(database, study_id, active_since=now() - 10)
    assert ended + 10 <= used() < ended + 60


def test_wall_time_that_is_used_up_gives_no_slot_until_it_is_extended(
    database: Database, slots: Slots, study_id: int
) -> None:
    extend_budget(database, study_id, Budget(wall_seconds=60))
    held = claimed(slots)
    set_study(database, study_id, active_since=now() - 59)
    assert not slots.renew(held).time_is_up
    set_study(database, study_id, active_since=now() - 61)
    assert slots.renew(held).time_is_up
    assert slots.claim("w") is None
    slots.release(held)
    assert slots.claim("w") is None
    use = budget_use(database, study_id)
    assert use.exhausted_by == "wall time" and use.seconds_left == 0
    assert str(use.exhausted).startswith("exhausted by wall time: 61 s of 60 s")
    extend_budget(database, study_id, Budget(wall_seconds=3600))
    assert claimed(slots).id == held.id


def test_wall_time_of_workers_that_crashed_ends_with_the_last_lease(
    database: Database, slots: Slots, study_id: int
) -> None:
    extend_budget(database, study_id, Budget(wall_seconds=600))
    first, second = claimed(slots, "a"), claimed(slots, "b")
    set_study(database, study_id, active_since=now() - 10_000)
    let_the_lease_end(database, first, seconds_ago=9_900)
    let_the_lease_end(database, second, seconds_ago=9_800)
    # Three hours later somebody looks, and somebody claims: 200 s were used.
    assert 199 < budget_use(database, study_id).wall_used_seconds < 201
    again = claimed(slots, "c")
    assert again.losses == 1
    assert 199 < budget_use(database, study_id).wall_used_seconds < 260
    slots.release(again)
    assert 199 < budget_use(database, study_id).wall_used_seconds < 260


@pytest.mark.parametrize(
    "noticed",
    [
        "release_of_dead",
        "open_expired",
        "claim",
        "renew",
        "begin",
        "add_points",
        "find_twin",
        "settle",
        "release",
    ],
)
def test_time_in_which_a_machine_was_off_or_suspended_is_used_by_nobody(
    database: Database, slots: Slots, study_id: int, noticed: str
) -> None:
    """Ten hours after a lease of three minutes ended, whoever comes first: no caller may matter."""

    def used() -> list[float]:
        use = budget_use(database, study_id)
        return [use.wall_used_seconds, use.worker_used_seconds]

    slot = claimed(slots, "w")
    ten_hours_ago = now() - 36_180
    set_study(database, study_id, active_since=ten_hours_ago)
    set_slot(database, slot, claimed_at=ten_hours_ago, lease_ends_at=now() - 36_000)
    assert used() == pytest.approx([180, 180], abs=20)
    calls: dict[str, Callable[[], object]] = {
        "release_of_dead": lambda: slots.release_of_dead("w"),
        "open_expired": slots.open_expired,
        "claim": lambda: slots.claim("other"),
        "renew": lambda: slots.renew(slot),
        "begin": lambda: slots.begin(slot, 1, 0),
        "add_points": lambda: add_points(database, slot.id, slot.fence, [Point(1, {}, 1.0, 1.0)]),
        "find_twin": lambda: note_config(database, slot, {}),
        "settle": lambda: slots.settle(slot, "complete", value=1.0),
        "release": lambda: slots.release(slot),
    }
    calls[noticed]()
    assert used() == pytest.approx([180, 180], abs=20)
    if not budget_use(database, study_id).held:
        slot = claimed(slots, "later")
        assert used() == pytest.approx([180, 180], abs=20)
    # From now on time counts as ever.
    set_study(database, study_id, active_since=now() - 100)
    set_slot(database, slot, claimed_at=now() - 100)
    assert used() == pytest.approx([280, 280], abs=20)


def test_two_workers_that_end_at_the_same_moment_lose_no_wall_time(
    postgresql_database: Database,
) -> None:
    """Each sees the other's slot as held still, and leaves the end of the spell to it."""
    database = postgresql_database
    study_id = register(database, "some-study", DEFINITION).id
    slots = Slots(database, study_id)
    give_trials(slots, 3)
    one, other = claimed(slots, "a"), claimed(slots, "b")
    set_study(database, study_id, active_since=now() - 100)
    second = open_database(database.url, create=False)
    with second.transaction() as connection:
        settle_held(connection, other, "complete")
        slots.settle(one, "complete", value=1.0)
    second.close()
    assert budget_use(database, study_id).wall_used_seconds == pytest.approx(100, abs=20)
    set_study(database, study_id, active_since=now() - 10_000)
    for slot in (one, other):
        set_slot(database, slot, lease_ends_at=now() - 9_900)
    claimed(slots, "c")
    assert budget_use(database, study_id).wall_used_seconds == pytest.approx(100, abs=20)


def test_a_spell_that_another_ended_in_the_moment_of_a_claim_goes_on_by_the_next_renewal(
    database: Database, slots: Slots, study_id: int
) -> None:
    slot = claimed(slots)
    set_study(database, study_id, active_since=None, wall_used_seconds=7.0)
    slots.renew(slot)
    set_study(database, study_id, active_since=now() - 50)
    assert budget_use(database, study_id).wall_used_seconds >= 57


def test_worker_hours_add_up_over_workers_crashes_and_attempts(
    database: Database, slots: Slots, study_id: int
) -> None:
    def used() -> float:
        return budget_use(database, study_id).worker_used_seconds

    settled, released, hung = (claimed(slots, name) for name in "abc")
    for slot, seconds in ((settled, 100), (released, 200), (hung, 10_000)):
        set_slot(database, slot, claimed_at=now() - seconds)
    set_slot(database, hung, lease_ends_at=now() - 9_600)
    assert 700 <= used() < 760
    slots.settle(settled, "complete", value=1.0)
    slots.release(released)
    assert 700 <= used() < 760
    again = claimed(slots, "d")  # opens the hung one's slot, too
    assert again.number == released.number
    assert 700 <= used() < 760
    set_slot(database, again, claimed_at=now() - 1_000)
    assert 1_700 <= used() < 1_760


def test_worker_hours_that_are_used_up_give_no_slot_until_they_are_extended(
    database: Database, slots: Slots, study_id: int
) -> None:
    extend_budget(database, study_id, Budget(worker_seconds=3600))
    one, other = claimed(slots), claimed(slots)
    for slot in (one, other):
        set_slot(database, slot, claimed_at=now() - 1790)
    assert not slots.renew(one).time_is_up
    set_slot(database, other, claimed_at=now() - 1811)
    assert slots.renew(one).time_is_up
    assert slots.claim("w") is None
    assert budget_use(database, study_id).exhausted_by == "worker-hours"
    extend_budget(database, study_id, Budget(worker_seconds=7200))
    assert claimed(slots).number == 2


def test_a_claim_takes_milliseconds_among_ten_thousand_slots(
    database: Database, slots: Slots, study_id: int
) -> None:
    give_trials(slots, 10_000)
    forever = Budget(wall_seconds=1e9, worker_seconds=1e9, deadline_at=1e12)
    extend_budget(database, study_id, forever)
    if database.engine.dialect.name == "postgresql":
        with database.transaction() as connection:
            connection.exec_driver_sql("ANALYZE")
    begun = claimed(slots)
    slots.begin(begun, 1, 0)
    seconds = []
    for _ in range(40):
        began = time.perf_counter()
        slot = claimed(slots)
        seconds.append(time.perf_counter() - began)
        slots.settle(slot, "complete", value=1.0)
    slots.release(begun)
    assert claimed(slots).id == begun.id
    # 2 ms on a quiet core; a scan of all slots takes 20 and more. The quickest, since other work
    # on the machine only ever adds.
    assert min(seconds) < 0.02, seconds
