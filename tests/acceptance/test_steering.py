"""A search in the background, watched and steered by commands, as its user does."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

from .command_line import SLOW, Place, is_alive, wait_for

EPOCHS = SLOW["epochs"]


def status(place: Place) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(place.succeed("status", "tiny", "--json"))
    return found


def states(place: Place) -> set[str]:
    return {str(worker["state"]) for worker in status(place)["workers"]}


def supervisor(place: Place) -> int:
    (about,) = (place.data / "supervisors").glob("*.json")
    return int(json.loads(about.read_text())["pid"])


def test_a_search_in_the_background_is_paused_resumed_and_stopped(place: Place) -> None:
    study = place.write_study(**SLOW)
    told = place.succeed(
        "start", study, "--workers", 1, "--trials", 3, "--detach", "--lease", "90s"
    )
    pid = supervisor(place)
    try:
        assert f"as process {pid}" in told and "dlnn-search stop tiny" in told
        again = place.succeed("start", study, "--workers", 1, "--trials", 40, "--detach")
        assert f"already, as process {pid}" in again
        wait_for("an epoch", place.curves)
        assert "its worker (on " in place.succeed("pause", "tiny")
        wait_for("the pause", lambda: states(place) == {"paused"})
        n_epochs = len(place.rows("SELECT 1 FROM dlnn_curves"))
        found = status(place)
        assert found["state"] == "paused" and found["budget"]["trials"] == 40
        assert found["trials"]["held"] == 0
        assert "Paused: its worker waits" in place.succeed("status", "tiny")
        place.succeed("resume", "tiny")
        wait_for("more", lambda: len(place.rows("SELECT 1 FROM dlnn_curves")) > n_epochs)
        place.succeed("stop", "tiny", "--now")
        wait_for("its end", lambda: not is_alive(pid))
        assert "stopped" in place.succeed("status")
        assert set(place.slot_states()) <= {"open", "done"}
        assert "Trial 0 begins." in place.succeed("logs", "tiny")
        resumed = place.succeed("resume", "tiny")
        assert "it has no worker now" in resumed and "dlnn-search start tiny" in resumed
    finally:
        if is_alive(pid):
            os.kill(pid, signal.SIGTERM)


def test_a_killed_supervisors_workers_are_adopted_not_doubled(place: Place) -> None:
    study = place.write_study(**SLOW)
    with place.begin("start", study, "--workers", 1, "--trials", 3) as start:
        wait_for("an epoch", place.curves)
        start.process.kill()
        start.process.wait()
    ((worker,),) = place.rows("SELECT id FROM dlnn_workers")
    said = place.succeed("start", study, "--workers", 1)
    assert f"Worker {worker} of an earlier start continues under this one." in said
    place.assert_complete(3, EPOCHS)
    assert place.rows("SELECT losses FROM dlnn_slots") == [(0,)] * 3


def test_a_study_that_was_never_started_is_no_study_to_steer(place: Place) -> None:
    place.write_study()
    place.succeed("start", "tiny.py", "--workers", 0, "--trials", 1)
    for command in ("status", "stop", "pause", "resume", "logs"):
        done = place.run(command, "tinny")
        assert done.code == 2, done.both
        assert "no study 'tinny'" in done.err and "Did you mean 'tiny'?" in done.err
