"""A search that its user stops, once or twice, and goes on with later."""

from __future__ import annotations

import signal
import time

import pytest

from .command_line import SLOW, Place, Running, is_alive, wait_for

EPOCHS = SLOW["epochs"]
EXIT_INTERRUPTED = 130


def until_an_epoch_is_stored(place: Place) -> None:
    wait_for("an epoch", place.curves)


def assert_released(place: Place) -> None:
    """Nothing is held, and what was begun has a checkpoint to go on from."""
    assert set(place.slot_states()) == {"open"}
    begun = place.curves()
    assert begun and all(epochs == list(range(1, len(epochs) + 1)) for epochs in begun.values())
    with_checkpoint = {int(path.parent.name) for path in place.checkpoints()}
    assert with_checkpoint >= set(begun)
    assert not any(map(is_alive, [pid for (pid,) in place.rows("SELECT pid FROM dlnn_workers")]))


def assert_tells_how_to_go_on(start: Running, study: str, n_trials: int) -> None:
    said = start.said()
    assert f"Stopped after 0 of {n_trials} trials; all progress is kept. Continue with:" in said
    assert f"dlnn-search start {study} --workers 2\n" in said
    assert "Traceback" not in said


def assert_start_finishes(place: Place, study: str, n_trials: int) -> None:
    before = place.rows("SELECT slot_id, epoch, seconds FROM dlnn_curves")
    place.succeed("start", study, "--workers", 2)
    place.assert_complete(n_trials, EPOCHS)
    assert set(before) <= set(place.rows("SELECT slot_id, epoch, seconds FROM dlnn_curves"))


def test_one_interruption_lets_the_epochs_end_and_keeps_them(place: Place) -> None:
    study = place.write_study(**SLOW)
    with place.begin("start", study, "--workers", 2, "--trials", 3) as start:
        until_an_epoch_is_stored(place)
        start.interrupt()
        assert start.wait() == EXIT_INTERRUPTED, start.said()
    assert "Stopping after the current epoch. Press Ctrl-C again to stop at once." in start.said()
    assert_tells_how_to_go_on(start, study, 3)
    assert_released(place)
    assert_start_finishes(place, study, 3)


def test_two_interruptions_stop_at_once_and_lose_nothing_stored(place: Place) -> None:
    study = place.write_study(**SLOW)
    with place.begin("start", study, "--workers", 2, "--trials", 2) as start:
        until_an_epoch_is_stored(place)
        start.interrupt()
        wait_for("its answer", lambda: "Ctrl-C again" in start.said())
        start.interrupt()
        assert start.wait() == EXIT_INTERRUPTED, start.said()
    assert_tells_how_to_go_on(start, study, 2)
    assert_released(place)
    # The user's own wish is no sign of a trial that kills its workers.
    assert place.rows("SELECT losses FROM dlnn_slots") == [(0,)] * 2
    assert_start_finishes(place, study, 2)


def test_a_lone_worker_that_is_terminated_releases_its_slot(place: Place) -> None:
    study = place.write_study(**SLOW)
    with place.begin("start", study, "--workers", 1, "--trials", 2) as start:
        until_an_epoch_is_stored(place)
        start.interrupt()
        start.wait()
    n_epochs = len(place.rows("SELECT epoch FROM dlnn_curves"))
    with place.begin("worker", study) as worker:
        wait_for("one more epoch", lambda: len(place.rows("SELECT 1 FROM dlnn_curves")) > n_epochs)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.wait() == EXIT_INTERRUPTED, worker.said()
    assert_released(place)
    assert worker.said() == ""
    assert_start_finishes(place, study, 2)


@pytest.mark.parametrize("command", ["worker", "start"])
def test_however_often_a_process_is_terminated_it_gives_all_back_and_exits_as_interrupted(
    place: Place, command: str
) -> None:
    study = place.write_study(**SLOW)
    place.succeed("start", study, "--workers", 0, "--trials", 2)
    with place.begin(command, study) as running:
        until_an_epoch_is_stored(place)
        running.process.send_signal(signal.SIGTERM)
        for _ in range(2 if command == "start" else 10_000):  # a start's third is for its workers
            time.sleep(0.02 if command == "worker" else 2.0)
            if running.process.poll() is not None:
                break
            running.process.send_signal(signal.SIGTERM)
        assert running.wait() == EXIT_INTERRUPTED, running.said()
    assert "Traceback" not in running.said()
    assert_released(place)
    assert place.rows("SELECT DISTINCT state FROM dlnn_workers") == [("stopped",)]
    assert set(place.rows("SELECT losses FROM dlnn_slots")) == {(0,)}


def test_a_timeout_ends_the_search_and_keeps_its_trials(place: Place) -> None:
    study = place.write_study()
    place.succeed("start", study, "--trials", 1)
    before = place.rows("SELECT * FROM dlnn_slots")
    began = time.monotonic()
    done = place.run("start", study, "--workers", 2, "--trials", 200, "--timeout", "5s")
    assert done.code == EXIT_INTERRUPTED, done.both
    assert time.monotonic() - began >= 5
    assert "The --timeout is reached. Workers finish and save their current epoch." in done.out
    assert "Continue with:\n  dlnn-search start tiny.py --workers 2\n" in done.out
    assert len(place.slot_states()) == 200 and set(place.slot_states()) == {"done", "open"}
    assert place.rows("SELECT * FROM dlnn_slots")[:1] == before


def test_the_quick_version_is_a_study_of_its_own(place: Place) -> None:
    study = place.write_study()
    said = place.succeed("start", study, "--quick")
    assert "All 1 trials of tiny-quick are done" in said
    place.assert_complete(n_trials=1, epochs=1)
    assert place.rows("SELECT name FROM dlnn_studies") == [("tiny-quick",)]
    assert "epoch 1 of 1" in place.succeed("trials", "tiny-quick")
