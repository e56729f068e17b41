"""A trial that was cut short goes on: curve and reports without gap or repeat, or it says so."""

from __future__ import annotations

import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dlnn_search.errors import OutageError
from dlnn_search.storage.database import Database
from dlnn_search.storage.slots import LostLeaseError, Slot
from dlnn_search.storage.trials import note_of_slot, replace_curve
from dlnn_search.storage.workers import last_events
from dlnn_search.study import Halving
from dlnn_search.training import fit as fit_module
from dlnn_search.training.checkpoint import Checkpoint, Epoch, Pace
from dlnn_search.worker import config_trial as module
from dlnn_search.worker import held_trial as outbox_module
from dlnn_search.worker.config_trial import train_config
from dlnn_search.worker.reports import MAX_REPORTS, tell, write_note
from dlnn_search.worker.verdict import Verdict

from .trials_of_a_study import DATA, EPOCHS, Searched, losses, study_of


@pytest.fixture(autouse=True)
def small_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_load", lambda *_: DATA)
    monkeypatch.setenv("DLNN_SEARCH_FILES", str(tmp_path / "files"))


@pytest.fixture
def searched(database: Database) -> Searched:
    return Searched.open(database, study_of())


def stop_after(searched: Searched, monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    """Interrupt the training that comes after an epoch; checkpoints are written each epoch."""
    train = fit_module._Run.epoch

    def epoch(self: fit_module._Run, number: int) -> Epoch:
        searched.interruption.asked = number == last
        return train(self, number)

    monkeypatch.setattr(fit_module._Run, "epoch", epoch)
    monkeypatch.setattr(Pace, "is_due", lambda _: True)


def undisturbed(searched: Searched) -> list[float]:
    """The losses of the first trial's twin, which nothing cuts short."""
    searched.optuna_study.enqueue_trial(searched.optuna_study.trials[0].params)
    verdict, slot = searched.train()
    assert verdict.outcome == "complete"
    assert [point.epoch for point in searched.curve(slot)] == list(range(1, EPOCHS + 1))
    return losses(searched.curve(slot))


def assert_whole(searched: Searched, slot: Slot) -> None:
    """Every epoch once, and the reports equal to the curve."""
    points = searched.curve(slot)
    assert [point.epoch for point in points] == list(range(1, EPOCHS + 1))
    by_epoch = {point.epoch: point.metrics["loss"] for point in points}
    reported = searched.reported()
    assert {1, EPOCHS, min(by_epoch, key=by_epoch.__getitem__)} <= set(reported)
    assert reported == {epoch: by_epoch[epoch] for epoch in reported}


def test_an_interrupted_trial_goes_on_as_if_it_had_not_been(
    searched: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(searched, patch, 5)
        verdict, slot = searched.train()
    assert verdict.outcome is None
    assert len(searched.curve(slot)) == 5
    searched.interruption.asked = False
    verdict, again = searched.train()
    assert again.number == slot.number and verdict.outcome == "complete"
    assert_whole(searched, again)
    assert note_of_slot(searched.database, slot.id) is None
    assert losses(searched.curve(again)) == undisturbed(searched)


WORK = """
import sys
sys.path.insert(0, {tests!r})
from integration.trials_of_a_study import DATA, Searched, study_of
from dlnn_search.worker import config_trial as module
from dlnn_search.storage.database import open_database
from dlnn_search.training import fit as fit_module
module._load = lambda *_: DATA
train = fit_module._Run.epoch
def epoch(self, number):
    print(number, flush=True)
    return train(self, number)
fit_module._Run.epoch = epoch
searched = Searched.open(open_database({url!r}, create=False), study_of())
print("worker", searched.worker_row.worker, flush=True)
searched.train()
"""


def test_a_trial_whose_workers_are_killed_in_an_epoch_equals_one_that_nobody_killed(
    searched: Searched,
) -> None:
    script = WORK.format(tests=str(Path(__file__).parents[1]), url=searched.database.url)
    for last in (4, 8):
        child = subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert child.stdout is not None
        worker = child.stdout.readline().split()[1]
        while int(child.stdout.readline()) < last:
            pass
        child.send_signal(signal.SIGKILL)
        child.communicate()
        searched.slots.release_of_dead(worker)
    verdict, slot = searched.train()
    assert slot.losses == 2 and verdict.outcome == "complete"
    assert_whole(searched, slot)
    assert losses(searched.curve(slot)) == undisturbed(searched)


def begun_then(searched: Searched, monkeypatch: pytest.MonkeyPatch, last: int = 5) -> Slot:
    """Train a trial's first epochs, and give its slot back."""
    with monkeypatch.context() as patched:
        patched.setattr(module, "_load", lambda *_: DATA)
        stop_after(searched, patched, last)
        _, slot = searched.train()
    searched.interruption.asked = False
    assert len(searched.curve(slot)) == last
    return slot


def move_away(searched: Searched) -> None:
    """As on another machine: the files folder is another one, empty."""
    files = searched.database.files
    shutil.rmtree(files / "checkpoints")
    (files / "place").unlink()


def remove(searched: Searched) -> None:
    shutil.rmtree(searched.database.files / "checkpoints")


def damage(searched: Searched) -> None:
    (path,) = searched.database.files.glob("checkpoints/*/*/last*.npz")
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("loss", "why"),
    [
        (move_away, "its checkpoint lies in another machine's files folder"),
        (remove, "its checkpoint is missing"),
        (damage, "its checkpoint is damaged"),
    ],
)
def test_a_trial_whose_checkpoint_is_out_of_reach_starts_over_and_says_so(
    searched: Searched, monkeypatch: pytest.MonkeyPatch, loss: object, why: str
) -> None:
    slot = begun_then(searched, monkeypatch)
    loss(searched)  # type: ignore[operator]
    at_the_start: list[dict[int, float]] = []
    train = fit_module._Run.epoch

    def epoch(self: fit_module._Run, number: int) -> Epoch:
        if number == 1:
            at_the_start.append(searched.reported())
            assert searched.curve(slot) == []
        return train(self, number)

    monkeypatch.setattr(fit_module._Run, "epoch", epoch)
    held = searched.begin()
    trial, again = held.trial, held.slot
    verdict = train_config(held, threads=1)
    assert verdict.outcome == "complete"
    (values,) = at_the_start
    assert len(values) >= 3 and all(math.isnan(value) for value in values.values())
    assert_whole(searched, again)
    words = f"The trial starts over after 5 epochs: {why}."
    assert note_of_slot(searched.database, slot.id) == words
    (event,) = last_events(searched.database, searched.worker_row.study_id, 9)
    assert (event.kind, event.words, event.slot_id) == ("started_over", words, slot.id)
    write_note(trial, again.id, verdict, searched.database, "loss")
    notes = [
        str(value)
        for value in searched.optuna_study._storage.get_study_system_attrs(
            searched.optuna_study._study_id
        ).values()
    ]
    assert any(words in note for note in notes)


def test_a_start_over_does_not_bring_back_what_was_reported_before(
    searched: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap: a trial's old values would stand where the new run has not been."""
    begun_then(searched, monkeypatch, last=8)
    remove(searched)
    stop_after(searched, monkeypatch, 3)
    verdict, _ = searched.train()
    assert verdict.outcome is None
    reported = searched.reported()
    assert not math.isnan(reported[3])
    assert all(math.isnan(reported[epoch]) for epoch in reported if epoch > 3)
    (trial,) = searched.optuna_study.trials
    tell(searched.optuna_study, trial._trial_id, Verdict("pruned", value=0.25))
    assert searched.optuna_study.trials[0].value == 0.25


def test_epochs_that_the_checkpoint_alone_knows_are_added(
    searched: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = begun_then(searched, monkeypatch)
    points = searched.curve(slot)
    held = searched.slots.claim(searched.worker_row.worker)
    assert held is not None
    assert replace_curve(searched.database, held.id, held.fence, points[:2], place="p", worker="w")
    searched.slots.release(held)
    verdict, again = searched.train()
    assert verdict.outcome == "complete"
    assert_whole(searched, again)
    assert searched.curve(again)[:5] == points, "none was trained twice"


def test_epochs_beyond_an_older_checkpoint_are_dropped_and_trained_again(
    searched: Searched, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun_then(searched, monkeypatch, last=3)
    checkpoints = searched.database.files / "checkpoints"
    shutil.copytree(checkpoints, tmp_path / "older")
    slot = begun_then(searched, monkeypatch, last=7)
    shutil.rmtree(checkpoints)
    shutil.copytree(tmp_path / "older", checkpoints)
    verdict, again = searched.train()
    assert verdict.outcome == "complete"
    assert_whole(searched, again)
    note = note_of_slot(searched.database, slot.id)
    assert note == "The trial goes back to epoch 3 after 7 epochs: its checkpoint is missing."


def test_a_worker_that_was_fenced_off_tells_nothing_any_more(
    searched: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = fit_module._Run.epoch
    successor: list[Slot] = []

    def epoch(self: fit_module._Run, number: int) -> Epoch:
        if number == 4 and not successor:
            searched.slots.release_of_dead(searched.worker_row.worker)
            slot = searched.slots.claim("successor")
            assert slot is not None
            successor.append(slot)
        return train(self, number)

    monkeypatch.setattr(fit_module._Run, "epoch", epoch)
    monkeypatch.setattr(Pace, "is_due", lambda _: True)
    monkeypatch.setattr(outbox_module, "RENEW_SECONDS", 0.0)  # each epoch is told, however short
    held = searched.begin()
    slot = held.slot
    with pytest.raises(LostLeaseError):
        train_config(held, threads=1)
    assert [p.epoch for p in searched.curve(slot)] == [1, 2, 3]
    assert max(searched.reported()) <= 3


def test_a_long_trial_reports_few_epochs_and_stores_them_all(database: Database) -> None:
    searched = Searched.open(database, study_of(epochs=100, pruner=Halving(first_rung=5)))
    verdict, slot = searched.train()
    assert verdict.outcome == "complete"
    assert [p.epoch for p in searched.curve(slot)] == list(range(1, 101))
    reported = searched.reported()
    assert {1, 5, 15, 45, 100, verdict.best_epoch} <= set(reported)
    assert 10 <= len(reported) <= MAX_REPORTS == 20


def test_a_disk_that_fills_up_releases_the_trial_and_room_lets_it_go_on(
    searched: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Checkpoint.save
    n_saves = 0

    def full_at_the_second(self: Checkpoint, state: object) -> None:
        nonlocal n_saves
        n_saves += 1
        if n_saves >= 2:
            raise OutageError("No space left for the checkpoint. Make room.")
        save(self, state)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Pace, "is_due", lambda _: True)
        patched.setattr(Checkpoint, "save", full_at_the_second)
        verdict, slot = searched.train()
    assert verdict.outcome is None and verdict.failure is None
    assert verdict.trouble is not None and "No space left" in verdict.trouble
    assert [p.epoch for p in searched.curve(slot)] == [1]
    verdict, again = searched.train()
    assert verdict.outcome == "complete" and again.losses == 0
    assert_whole(searched, again)


def test_too_little_memory_costs_an_attempt_and_the_third_fails_the_trial(
    searched: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def epoch(self: fit_module._Run, number: int) -> Epoch:
        raise MemoryError("cannot allocate 9 TB")

    monkeypatch.setattr(fit_module._Run, "epoch", epoch)
    for n_before in range(3):
        held = searched.begin()
        slot = held.slot
        assert (slot.memory_failures, slot.losses) == (n_before, 0)
        verdict = train_config(held, threads=1)
        assert verdict.failure == "out_of_memory"
        if verdict.outcome is None:
            searched.slots.release(slot, failure="out_of_memory")
    assert verdict.outcome == "failed" and n_before == 2
    assert verdict.reason is not None and "9 TB" in verdict.reason and verdict.bug is None


def test_a_diverged_trial_fails_at_once_and_keeps_the_epochs_before(
    searched: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlnn_search.errors import DivergedError

    train = fit_module._Run.epoch

    def epoch(self: fit_module._Run, number: int) -> Epoch:
        if number == 4:
            raise DivergedError("Diverged in epoch 4: the training loss became nan.")
        return train(self, number)

    monkeypatch.setattr(fit_module._Run, "epoch", epoch)
    held = searched.begin()
    slot = held.slot
    verdict = train_config(held, threads=1)
    assert (verdict.outcome, verdict.failure) == ("failed", "diverged")
    assert [p.epoch for p in searched.curve(slot)] == [1, 2, 3], "though none was due to be kept"
    assert set(searched.reported()) >= {1, 3}
