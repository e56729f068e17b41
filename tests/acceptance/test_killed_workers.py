"""Processes that are killed for good, in the middle of a trial."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import Any

import pytest

from dlnn_search.optuna_version import SWITCH

from .command_line import SLOW, Place, is_alive, wait_for

EPOCHS = SLOW["epochs"]


def in_the_middle(place: Place) -> tuple[int, int] | None:
    """Return a worker's process and its slot, once that has an epoch stored and some to come."""
    found = place.rows(
        "SELECT w.pid, s.number FROM dlnn_slots s JOIN dlnn_workers w ON w.id = s.worker "
        "WHERE s.state = 'held' AND 1 <= "
        "(SELECT count(*) FROM dlnn_curves c WHERE c.slot_id = s.id AND c.epoch < ?) "
        "AND ? > (SELECT count(*) FROM dlnn_curves c WHERE c.slot_id = s.id)",
        EPOCHS,
        EPOCHS - 2,
    )
    return found[0] if found else None


def stored(place: Place, slot: int) -> list[tuple[Any, ...]]:
    """Return a slot's epochs with their seconds, which an epoch trained twice would not repeat."""
    return place.rows(
        "SELECT c.epoch, c.seconds, c.metrics FROM dlnn_curves c "
        "JOIN dlnn_slots s ON s.id = c.slot_id WHERE s.number = ? ORDER BY c.epoch",
        slot,
    )


def losses(place: Place) -> list[int]:
    return [n for (n,) in place.rows("SELECT losses FROM dlnn_slots ORDER BY number")]


@pytest.mark.parametrize("switch", ["", "public"])
def test_the_trial_of_a_killed_worker_goes_on_from_its_checkpoint(
    place: Place, switch: str
) -> None:
    """With what a tested Optuna offers, and with the documented interface of any version 5."""
    place = replace(place, environment={**place.environment, SWITCH: switch})
    study = place.write_study(**SLOW)
    with place.begin("start", study, "--workers", 2, "--trials", 3) as start:
        pid, slot = wait_for("a trial in its middle", lambda: in_the_middle(place))
        os.kill(pid, signal.SIGKILL)
        before = stored(place, slot)
        assert start.wait() == 0, start.said()
    place.assert_complete(n_trials=3, epochs=EPOCHS)
    assert stored(place, slot)[: len(before)] == before
    assert sum(losses(place)) == losses(place)[slot] == 1
    said = start.said()
    assert "died by signal 9 (SIGKILL). Its trial continues from the last checkpoint" in said
    assert "All 3 trials of tiny are done: 3 complete" in said


def test_a_killed_supervisor_leaves_a_search_that_start_finishes(place: Place) -> None:
    study = place.write_study(**SLOW)
    with place.begin("start", study, "--workers", 2, "--trials", 3) as start:
        wait_for("a trial in its middle", lambda: in_the_middle(place))
        start.process.kill()
        start.process.wait()
    said = place.succeed("start", study, "--workers", 2, "--trials", 3)
    assert "All 3 trials of tiny are done" in said
    place.assert_complete(n_trials=3, epochs=EPOCHS)
    pids = [pid for (pid,) in place.rows("SELECT pid FROM dlnn_workers")]
    wait_for("every worker's end", lambda: not any(map(is_alive, pids)))


def test_a_search_whose_processes_all_died_at_once_is_finished_by_start(place: Place) -> None:
    study = place.write_study(**SLOW)
    with place.begin("start", study, "--workers", 2, "--trials", 3) as start:
        _, slot = wait_for("a trial in its middle", lambda: in_the_middle(place))
        start.process.kill()
        start.process.wait()
        for (pid,) in place.rows("SELECT pid FROM dlnn_workers"):
            os.kill(pid, signal.SIGKILL)
    before = stored(place, slot)
    place.execute("UPDATE dlnn_slots SET lease_ends_at = 0")  # as if two minutes had passed
    place.succeed("start", study, "--workers", 2, "--trials", 3)
    place.assert_complete(n_trials=3, epochs=EPOCHS)
    assert stored(place, slot)[: len(before)] == before
