"""Workers that join a study by themselves, as compose, Slurm or a colleague start them."""

from __future__ import annotations

from .command_line import Place


def test_a_start_without_workers_makes_what_a_joining_worker_trains(place: Place) -> None:
    study = place.write_study()
    told = place.succeed("start", study, "--workers", 0, "--trials", 2)
    assert "ready: 0 of 2 trials" in told
    assert "dlnn-search worker tiny.py" in told
    assert place.slot_states() == ["open", "open"]
    assert not place.trial_states()
    place.succeed("worker", study)
    place.assert_complete(2, epochs=2)
    again = place.succeed("start", study, "--workers", 0)
    assert "All 2 trials of tiny are done" in again
