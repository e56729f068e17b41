"""What workers are asked to do, on every storage."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from dlnn_search.errors import UsageError
from dlnn_search.storage import schema
from dlnn_search.storage.control import (
    Orders,
    go_on,
    keep_trial_timeout,
    kept_trial_timeout,
    orders,
    set_control,
    set_lease_seconds,
)
from dlnn_search.storage.database import Database
from dlnn_search.storage.studies import is_same, look_up, register
from dlnn_search.storage.workers import last_events

DEFINITION = {"settings": {"metric": "accuracy", "direction": "maximize"}, "code": ""}


@pytest.fixture
def study_id(database: Database) -> int:
    return register(database, "some-study", DEFINITION).id


def test_a_study_runs_until_it_is_asked_otherwise(database: Database, study_id: int) -> None:
    assert orders(database, study_id) == Orders("run")


def test_what_is_asked_is_kept_with_its_reason_and_an_event(
    database: Database, study_id: int
) -> None:
    other = register(database, "other-study", DEFINITION).id
    assert set_control(database, study_id, "pause", "Moving the disk.", worker="w")
    assert orders(database, study_id) == Orders("pause", "Moving the disk.")
    assert orders(database, other) == Orders("run")
    (event,) = last_events(database, study_id, 9)
    assert (event.kind, event.worker) == ("paused", "w")
    assert event.words == "Moving the disk. Workers keep their epochs and wait."


def test_asking_again_for_the_same_changes_nothing(database: Database, study_id: int) -> None:
    set_control(database, study_id, "stop", "first")
    assert not set_control(database, study_id, "stop", "second")
    assert orders(database, study_id).reason == "first"
    assert len(last_events(database, study_id, 9)) == 1


def test_going_on_takes_the_reason_away(database: Database, study_id: int) -> None:
    assert not go_on(database, study_id)
    for control in ("pause", "stop", "stop_now"):
        set_control(database, study_id, control, "why")
        assert go_on(database, study_id)
        assert orders(database, study_id) == Orders("run")
    kinds = [event.kind for event in last_events(database, study_id, 9)]
    assert kinds == ["paused", "resumed", "stopped", "resumed", "stopped", "resumed"]


def test_a_traceback_stands_with_the_study_and_its_last_line_in_the_event(
    database: Database, study_id: int
) -> None:
    traceback = "Traceback (most recent call last):\n  File ...\nKeyError: 'units'\n"
    set_control(database, study_id, "stop", traceback)
    assert orders(database, study_id).reason == traceback
    (event,) = last_events(database, study_id, 9)
    assert event.words == "KeyError: 'units' Workers finish their trials and end."


@pytest.mark.parametrize("seconds", [0.0, 2.9, -1.0, float("nan"), float("inf")])
def test_a_lease_that_no_worker_can_keep_is_refused(
    database: Database, study_id: int, seconds: float
) -> None:
    with pytest.raises(UsageError, match="Expected a lease of 3 s to 24 h"):
        set_lease_seconds(database, study_id, seconds)
    with database.transaction() as connection:
        assert connection.scalar(sa.select(schema.studies.c.lease_seconds)) == 120


def test_a_trials_limit_of_time_reaches_all_workers_until_it_is_removed(
    database: Database, study_id: int
) -> None:
    other = register(database, "other-study", DEFINITION).id
    assert kept_trial_timeout(database, study_id) == (False, None)
    keep_trial_timeout(database, study_id, 90.5)
    assert orders(database, study_id) == Orders("run", trial_timeout_seconds=90.5)
    assert orders(database, other) == Orders("run")
    keep_trial_timeout(database, study_id, None)
    assert orders(database, study_id) == Orders("run")
    assert kept_trial_timeout(database, study_id) == (True, None)
    assert is_same(look_up(database, "some-study"), DEFINITION)  # it is the same study


@pytest.mark.parametrize("seconds", [0.0, 0.5, -1.0, float("nan")])
def test_a_trials_limit_of_time_is_at_least_a_second(
    database: Database, study_id: int, seconds: float
) -> None:
    with pytest.raises(UsageError, match="at least 1 s"):
        keep_trial_timeout(database, study_id, seconds)
    assert kept_trial_timeout(database, study_id) == (False, None)
