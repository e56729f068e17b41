"""A database that was away for longer than a lease: no living worker loses its slot by that."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from dlnn_search.errors import OutageError
from dlnn_search.storage.database import Database, open_database
from dlnn_search.storage.database.outages import Reach
from dlnn_search.storage.slots import LostLeaseError, Slots
from dlnn_search.storage.studies import register
from dlnn_search.storage.workers import last_events

from .slot_life import DEFINITION, claimed, give_trials, let_the_lease_end, set_study

if TYPE_CHECKING:
    from tests.conftest import RestartablePostgresql

LEASE_SECONDS = 120.0


def see_an_outage(database: Database) -> None:
    """Let a call fail once, as of a database that is away, and come through the second time."""
    tries = 0

    def call() -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise OutageError("It is away.")
        with database.transaction():
            pass

    database.retrying(call)
    assert tries == 2


def test_after_an_outage_expired_leases_are_left_alone_for_the_time_of_one(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_id = register(database, "some-study", DEFINITION).id
    slots = Slots(database, study_id)
    give_trials(slots, 1)
    held = claimed(slots, "living")
    see_an_outage(database)
    let_the_lease_end(database, held)
    assert slots.claim("idle") is None
    slots.open_expired()
    slots.renew(held)
    let_the_lease_end(database, held)
    monkeypatch.setattr(Reach, "seconds", LEASE_SECONDS - 1)
    assert slots.claim("idle") is None
    monkeypatch.setattr(Reach, "seconds", LEASE_SECONDS + 1)
    assert claimed(slots, "idle").losses == 1
    with pytest.raises(LostLeaseError):
        slots.renew(held)


def test_who_has_seen_no_outage_takes_what_has_expired_at_once(database: Database) -> None:
    slots = Slots(database, register(database, "some-study", DEFINITION).id)
    give_trials(slots, 1)
    let_the_lease_end(database, claimed(slots, "dead"))
    assert claimed(slots, "idle").losses == 1


def test_a_server_that_restarts_costs_no_living_worker_its_slot(
    restartable: RestartablePostgresql,
) -> None:
    living, idle = (open_database(restartable.url, create=True) for _ in range(2))
    study_id = register(living, "some-study", DEFINITION).id
    set_study(living, study_id, lease_seconds=3.0)
    theirs, others = Slots(living, study_id), Slots(idle, study_id)
    give_trials(theirs, 1)
    held = claimed(theirs, "living")
    assert others.claim("idle") is None
    restartable.stop()
    with pytest.raises(OutageError):
        others.claim("idle")
    time.sleep(3.5)
    restartable.start()
    assert idle.retrying(lambda: others.claim("idle")) is None
    living.retrying(lambda: theirs.renew(held))
    time.sleep(1.5)
    assert others.claim("idle") is None
    assert last_events(idle, study_id, 9) == []
    time.sleep(3.0)  # now it makes no progress
    assert claimed(others, "idle").losses == 1
    living.close()
    idle.close()
