"""The live view of a search looks at the database no more often than it must."""

from __future__ import annotations

import dataclasses
import io
import time
from typing import Any

import pytest
from rich.console import Console

from dlnn_search.report import live
from dlnn_search.results.status import StudyStatus
from dlnn_search.storage.budget import BudgetUse
from dlnn_search.storage.trials import Trial
from dlnn_search.storage.workers import WorkerStatus


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


def worker(number: int, host: str, **values: Any) -> WorkerStatus:
    plain: dict[str, Any] = {
        "name": f"{host}-{number}-{number:04x}",
        "host": host,
        "pid": 1,
        "state": "training",
        "silent_seconds": 0.1,
        "trial_number": 1000 + number,
        "epoch": 99,
        "epochs": 100,
        "share": 0.5,
        "value": 123.45,
        "images_per_second": 12_345.0,
        "memory_bytes": 12 * 2**30,
        "lease_age_seconds": 1_000.0,
    }
    return WorkerStatus(**{**plain, **values})


def busy(host: str) -> StudyStatus:
    params: dict[str, Any] = {"learning_rate": 0.000721034, "head": "two_softmax", "batch": 21}
    params |= {f"parameter_{n}": n for n in range(12)}
    return dataclasses.replace(
        status(4),
        metric="common_sense_error",
        direction="minimize",
        counts={"complete": 4, "pruned": 3, "failed": 1, "waiting": 2, "held": 2, "open": 8},
        budget=20,
        workers=(worker(1, host), worker(2, host, state="starting", trial_number=None)),
        best=Trial(2, 2, 2, True, "complete", 6.2345, 8, None, None, 8, 20.0, None),
        best_params=params,
        mean_trial_seconds=4_000.0,
    )


def shown(status: StudyStatus, width: int) -> list[str]:
    written = io.StringIO()
    Console(file=written, width=width).print(live.picture(status, width, elapsed=12.0))
    return [line.rstrip() for line in written.getvalue().splitlines()]


@pytest.mark.parametrize("width", [60, 80, 100, 140])
@pytest.mark.parametrize("host", ["box", "a-cluster-node-with-a-long-name.example.org"])
def test_no_row_is_wrapped_or_cut_at_any_width(width: int, host: str) -> None:
    lines = shown(busy(host), width)
    assert max(map(len, lines)) <= width
    (head,) = [line for line in lines if line.startswith("worker")]
    row, starting = lines[lines.index(head) + 1 : lines.index(head) + 3]
    assert "1001" in row and "99/100" in row and "123.45 min" in row and "…" not in row
    assert "starting" in starting
    assert lines[-1] == starting, "a row was wrapped"
    assert any("4 complete" not in line and line.startswith("8 of 20 trials") for line in lines)
    assert any(line.endswith("left") for line in lines)


def test_memory_is_shown_at_100_columns_and_bars_where_there_is_room() -> None:
    at_100, at_140 = shown(busy("box"), 100), shown(busy("box"), 140)
    assert any("memory" in line for line in at_100) and any("12.0 GiB" in line for line in at_100)
    assert not any("memory" in line for line in shown(busy("box"), 60))
    assert any("━" in line and "1001" in line for line in at_140)


@pytest.mark.parametrize("width", [60, 140])
def test_the_best_trials_parameters_stand_in_one_line_cut_between_two_of_them(width: int) -> None:
    lines = shown(busy("box"), width)
    (row,) = [line for line in lines if "learning_rate" in line]
    assert lines[lines.index(row) - 1] == "best 6.23 min (trial 2, epoch 8)"
    assert row.startswith("  learning_rate=0.000721 head=two_softmax batch=21 ")
    assert row.endswith(" …") and len(row) <= width
    assert all("=" in part for part in row.removesuffix(" …").split())


def test_why_a_study_stopped_is_shown_as_one_line_without_terminal_codes() -> None:
    reason = "KeyError: 'units\x1b[31m' (mine.py, line 3)\nTraceback (most recent call last):\n  x"
    stopped = dataclasses.replace(status(1), control="stop", control_reason=reason)
    assert live.control_lines(stopped)[1:] == ["  KeyError: 'units' (mine.py, line 3)"]
