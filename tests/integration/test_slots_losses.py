"""Workers that vanish, on every storage: each loss is counted once and told."""

from __future__ import annotations

import time
from datetime import datetime

import pytest

from dlnn_search.storage import schema
from dlnn_search.storage.control import go_on, orders, stop_after_bugs
from dlnn_search.storage.database import Database
from dlnn_search.storage.slots import LostLeaseError, Slots
from dlnn_search.storage.studies import register
from dlnn_search.storage.workers import last_events

from .slot_life import DEFINITION, claimed, give_trials, let_the_lease_end, row_of


@pytest.fixture
def study_id(database: Database) -> int:
    return register(database, "some-study", DEFINITION).id


@pytest.fixture
def slots(database: Database, study_id: int) -> Slots:
    slots = Slots(database, study_id)
    give_trials(slots, 2)
    return slots


def test_each_loss_is_an_event_that_names_the_worker_and_the_trial(
    database: Database, slots: Slots, study_id: int
) -> None:
    hung = claimed(slots, "hung")
    slots.begin(hung, 77, 5)
    let_the_lease_end(database, hung)
    slots.open_expired()
    slots.open_expired()  # counts nothing twice
    dead = claimed(slots, "dead")
    slots.release_of_dead("dead")
    slots.release_of_dead("dead")
    again = claimed(slots, "stopped")
    slots.release_of_dead("stopped", is_loss=False)
    assert (dead.id, dead.losses, again.losses) == (hung.id, 1, 2)
    events = [(e.kind, e.worker, e.slot_id, e.words) for e in last_events(database, study_id, 9)]
    assert events == [
        (
            "lost",
            "hung",
            hung.id,
            "Trial 5 was lost (1 of 3): hung made no progress until its lease ended.",
        ),
        ("lost", "dead", hung.id, "Trial 5 was lost (2 of 3): dead died."),
    ]


def test_a_hung_worker_that_wakes_finds_its_slot_gone_before_anyone_claimed_it(
    database: Database, slots: Slots
) -> None:
    slot = claimed(slots, "hung")
    let_the_lease_end(database, slot)
    slots.open_expired()
    before = row_of(database, slot)
    for call in (
        lambda: slots.renew(slot),
        lambda: slots.settle(slot, "complete", value=1.0),
        lambda: slots.release(slot),
    ):
        with pytest.raises(LostLeaseError):
            call()
    assert row_of(database, slot) == before


def test_running_out_of_memory_is_counted_apart_from_losses(
    database: Database, slots: Slots, study_id: int
) -> None:
    slot = claimed(slots)
    slots.release(slot, failure="out_of_memory", reason="OOM when allocating a tensor")
    again = claimed(slots)
    assert (again.id, again.losses, again.memory_failures) == (slot.id, 0, 1)
    (event,) = last_events(database, study_id, 9)
    assert (event.kind, event.worker) == ("out_of_memory", "w")
    assert event.words == "Slot 0: OOM when allocating a tensor"


@pytest.mark.parametrize("hours", [-3, 3])
def test_a_worker_whose_clock_is_wrong_keeps_its_lease_and_takes_no_others(
    database: Database, slots: Slots, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    slot = claimed(slots, "right")
    real = time.time

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.fromtimestamp(real() + hours * 3600)

    monkeypatch.setattr(time, "time", lambda: real() + hours * 3600)
    monkeypatch.setattr("datetime.datetime", Wrong)
    other = claimed(slots, "wrong")
    assert other.id != slot.id
    assert slots.claim("wrong") is None, "a lease ended by the wrong clock"
    slots.renew(other)
    row = row_of(database, other)
    monkeypatch.undo()
    assert slots.claim("right") is None
    assert abs(row["claimed_at"] - row_of(database, slot)["claimed_at"]) < 60
    assert row["lease_ends_at"] - row["claimed_at"] < 130


def test_three_bugs_in_a_row_over_all_workers_stop_the_study_once(
    database: Database, slots: Slots, study_id: int
) -> None:
    give_trials(slots, 12)

    def end(worker: str, failure: str | None) -> bool:
        outcome = "complete" if failure is None else "failed"
        slots.settle(claimed(slots, worker), outcome, failure=failure)  # type: ignore[arg-type]
        time.sleep(0.002)  # SQLite's clock counts milliseconds
        return stop_after_bugs(
            database, study_id, 3, f"Traceback\nKeyError: {worker}", worker=worker
        )

    for failure in ("bug", "bug", None, "bug", "diverged", "bug", "bug"):
        assert not end("a", failure)
    running = claimed(slots, "c")
    assert end("b", "bug")
    assert orders(database, study_id).control == "stop"
    assert orders(database, study_id).reason == "Traceback\nKeyError: b"
    slots.settle(running, "failed", failure="bug")
    assert not stop_after_bugs(database, study_id, 3, "another", worker="c"), (
        "the traceback stands once"
    )
    assert orders(database, study_id).reason == "Traceback\nKeyError: b"
    assert slots.claim("a") is None
    go_on(database, study_id)
    time.sleep(0.002)
    assert not end("a", "bug"), "bugs of before the study was set going again count no more"
    assert not end("a", "bug")
    assert end("a", "bug")


def test_settling_tells_what_gave_up(database: Database, slots: Slots, study_id: int) -> None:
    slot = claimed(slots)
    slots.begin(slot, 7, 3)
    slots.settle(slot, "failed", failure="lost", reason="Lost 3 times.")
    (event,) = last_events(database, study_id, 9)
    assert (event.kind, event.words) == ("gave_up", "Trial 3: Lost 3 times.")
    with database.transaction() as connection:
        assert connection.execute(schema.slots.select()).first() is not None
