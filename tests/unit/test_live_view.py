"""The live view of a search looks at the database no more often than it must."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from dlnn_search.report import live
from dlnn_search.results.status import StudyStatus
from dlnn_search.storage.budget import BudgetUse


def status(n_complete: int) -> StudyStatus:
    return StudyStatus(
        name="mine",
        metric="accuracy",
        direction="maximize",
        budget=10,
        counts={"complete": n_complete, "open": 10 - n_complete},
        workers=(),
        best=None,
        mean_trial_seconds=None,
        use=BudgetUse(10, n_complete, 0, None, 0.0, None, 0.0, None, 0.0),
        control="run",
        control_reason=None,
        failures=(),
    )


@pytest.mark.parametrize("terminal", [True, False])
def test_the_database_is_looked_at_once_a_second_in_a_terminal_and_without_one(
    monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    looks: list[float] = []

    def look() -> StudyStatus:
        looks.append(now)
        return status(0)

    view = live.LiveView(Console(file=io.StringIO(), force_terminal=terminal), look)
    with view:
        for _ in range(100):  # ten seconds of a supervisor that turns ten times a second
            view.refresh()
            now += 0.1
        assert 9 <= len(looks) <= 11


def test_without_a_terminal_a_line_says_that_a_trial_ended_within_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, n_complete = 100.0, 0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    written = io.StringIO()
    view = live.LiveView(Console(file=written, width=200), lambda: status(n_complete))
    for n_ended in (0, 1, 1, 1, 2):
        n_complete = n_ended
        view.refresh()
        now += 1.01
    assert len(written.getvalue().splitlines()) == 3
