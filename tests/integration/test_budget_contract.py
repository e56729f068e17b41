"""Budgets of trials and of time, on every storage."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

from dlnn_search.errors import UsageError
from dlnn_search.report.live import limits_words
from dlnn_search.storage import schema
from dlnn_search.storage.budget import Budget, BudgetUse, budget_use, extend_budget, time_words
from dlnn_search.storage.database import Database
from dlnn_search.storage.studies import register

DEFINITION = {"settings": {"metric": "accuracy", "direction": "maximize"}, "code": ""}


@pytest.fixture
def study_id(database: Database) -> int:
    return register(database, "some-study", DEFINITION).id


def study_row(database: Database, study_id: int, **values: Any) -> None:
    with database.transaction() as connection:
        connection.execute(
            schema.studies.update().where(schema.studies.c.id == study_id).values(**values)
        )


def test_a_budget_is_set_extended_and_never_shrinks_without_a_word(
    database: Database, study_id: int
) -> None:
    first = Budget(trials=5, wall_seconds=3600, worker_seconds=7200, deadline_at=2e9)
    assert extend_budget(database, study_id, first) == []
    assert extend_budget(database, study_id, Budget()) == []
    assert extend_budget(database, study_id, first) == []
    smaller = Budget(trials=3, wall_seconds=60, worker_seconds=60, deadline_at=1.9e9)
    kept = extend_budget(database, study_id, smaller)
    assert [sentence.split(" (asked")[0] for sentence in kept] == [
        "The budget stays at 5 trials",
        "The budget's wall time stays at 1 h",
        "The budget's worker-hours stays at 2 h",
        f"The budget's deadline stays at {time_words(2e9)}",
    ]
    use = budget_use(database, study_id)
    assert (use.trials, use.wall_seconds, use.worker_seconds) == (5, 3600, 7200)
    assert use.deadline_at == 2e9
    larger = Budget(trials=6, wall_seconds=3601, worker_seconds=7201, deadline_at=2.1e9)
    assert extend_budget(database, study_id, larger) == []
    use = budget_use(database, study_id)
    assert (use.trials, use.wall_seconds, use.worker_seconds) == (6, 3601, 7201)
    assert use.deadline_at == 2.1e9


def test_a_limit_of_time_is_taken_away_by_an_infinite_one(
    database: Database, study_id: int
) -> None:
    extend_budget(database, study_id, Budget(wall_seconds=60, worker_seconds=60, deadline_at=1))
    forever = Budget(wall_seconds=math.inf, worker_seconds=math.inf, deadline_at=math.inf)
    assert extend_budget(database, study_id, forever) == []
    use = budget_use(database, study_id)
    assert (use.wall_seconds, use.worker_seconds, use.deadline_at) == (None, None, None)
    assert use.seconds_left is None


@pytest.mark.parametrize(
    "limits",
    [
        {"trials": 0},
        {"trials": 10**9},
        {"wall_seconds": 0.0},
        {"worker_seconds": -1.0},
        {"deadline_at": math.nan},
    ],
)
def test_a_budget_that_cannot_be_meant_is_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="Expected a budget of"):
        Budget(**limits)


def used(**values: Any) -> BudgetUse:
    whole = {
        "trials": 10,
        "settled": 4,
        "held": 2,
        "wall_seconds": None,
        "wall_used_seconds": 100.0,
        "worker_seconds": None,
        "worker_used_seconds": 200.0,
        "deadline_at": None,
        "now": 1000.0,
    }
    return BudgetUse(**{**whole, **values})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, None),
        ({"settled": 10}, "exhausted by trials: all 10 are done"),
        ({"wall_seconds": 100.1}, None),
        (
            {"wall_seconds": 100.0},
            "exhausted by wall time: 100 s of 100 s; 4 of 10 trials are done",
        ),
        (
            {"worker_seconds": 180.0},
            "exhausted by worker-hours: 3 min of 3 min; 4 of 10 trials are done",
        ),
        (
            {"deadline_at": 999.0},
            f"exhausted by its deadline, {time_words(999.0)}; 4 of 10 trials are done",
        ),
    ],
)
def test_a_budget_says_what_exhausts_it(values: dict[str, Any], words: str | None) -> None:
    assert used(**values).exhausted == words


@pytest.mark.parametrize(
    ("zone", "words"),
    [
        ("UTC", "2026-11-28 16:00 UTC+00:00"),
        ("Europe/Zurich", "2026-11-28 17:00 UTC+01:00"),
        ("America/St_Johns", "2026-11-28 12:30 UTC-03:30"),
    ],
)
def test_a_deadline_reads_the_same_everywhere_in_local_time_with_its_offset(
    monkeypatch: pytest.MonkeyPatch, zone: str, words: str
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        use = used(deadline_at=1795881600.0, now=1795881600.0)
        assert str(use.exhausted).startswith(f"exhausted by its deadline, {words}; 4 of 10")
        assert limits_words(use) == f"deadline {words} (over)"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_time_that_is_left_is_the_nearest_limits(database: Database) -> None:
    assert used().seconds_left is None
    assert used(deadline_at=1500.0).seconds_left == 500
    assert used(deadline_at=1500.0, wall_seconds=400.0).seconds_left == 300
    # Two workers use up worker-hours at twice the speed.
    assert used(deadline_at=1500.0, worker_seconds=300.0).seconds_left == 50
    assert used(deadline_at=900.0).seconds_left == 0
