"""Trials that nobody runs, on every storage: none stays RUNNING."""

from __future__ import annotations

from datetime import datetime, timedelta

import optuna
import pytest
from optuna.trial import TrialState

from dlnn_search.storage.database import Database
from dlnn_search.storage.slots import Slot, Slots
from dlnn_search.storage.studies import register
from dlnn_search.worker import reports as module
from dlnn_search.worker.optuna_study import SLOT_ATTRIBUTE, begin_trial, open_optuna_study
from dlnn_search.worker.reports import sweep

from .slot_life import claimed, give_trials, let_the_lease_end
from .trials_of_a_study import study_of

STUDY = study_of()

pytestmark = pytest.mark.usefixtures("optuna_way")


@pytest.fixture
def slots(database: Database) -> Slots:
    slots = Slots(database, register(database, STUDY.name, STUDY.definition()).id)
    give_trials(slots, 6)
    return slots


@pytest.fixture
def trials(database: Database, slots: Slots) -> optuna.Study:
    return open_optuna_study(STUDY, database)


def begun(trials: optuna.Study, slots: Slots, worker: str = "w") -> tuple[Slot, optuna.Trial]:
    slot = claimed(slots, worker)
    trial = begin_trial(trials, STUDY, slot)
    slots.begin(slot, trial._trial_id, trial.number)
    return slot, trial


def states(trials: optuna.Study) -> list[str]:
    return [trial.state.name for trial in trials.trials]


def test_trials_are_brought_in_line_with_their_slots(
    database: Database, trials: optuna.Study, slots: Slots
) -> None:
    running, _ = begun(trials, slots)
    released, _ = begun(trials, slots)
    hung, _ = begun(trials, slots)
    settled, _ = begun(trials, slots)
    between = claimed(slots, "killed between two rows")
    orphan = begin_trial(trials, STUDY, between)
    slots.release(released)
    let_the_lease_end(database, hung)
    slots.settle(settled, "complete", value=0.5)
    slots.mark_told(settled.id)  # ... as a restored backup may have it
    slots.release_of_dead("killed between two rows")
    for _ in range(2):
        sweep(trials, slots)
        assert states(trials) == ["RUNNING", "WAITING", "WAITING", "COMPLETE", "WAITING"]
    assert trials.trials[3].value == 0.5
    assert orphan.number == 4
    slots.renew(running)
    # Each goes on as the same trial, and a new slot takes none of them.
    for number in (1, 2, 4):
        slot, trial = begun(trials, slots)
        assert (slot.number, trial.number) == (number, number)
    assert begun(trials, slots)[1].number == 5
    assert states(trials)[:3] == ["RUNNING"] * 3


def test_the_second_trial_of_a_slot_is_ended_with_its_reason(
    trials: optuna.Study, slots: Slots
) -> None:
    slot, trial = begun(trials, slots)
    # Frozen at the moment of making it, its worker made it after the slot was another's.
    template = optuna.trial.create_trial(
        state=TrialState.RUNNING, user_attrs={SLOT_ATTRIBUTE: slot.number}
    )
    trials.add_trial(template)
    assert trial.number == 0
    sweep(trials, slots)
    assert states(trials) == ["RUNNING", "FAIL"]
    assert "had lost slot 0" in trials.trials[1].user_attrs["reason"]


def test_an_enqueued_trial_whose_taker_vanished_waits_again(
    trials: optuna.Study, slots: Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials.enqueue_trial({"rate": 0.005})
    (waiting,) = trials.trials
    trials._storage.set_trial_state_values(waiting._trial_id, TrialState.RUNNING)
    sweep(trials, slots)
    assert states(trials) == ["RUNNING"], "its taker may be about to write its number"

    class Later(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now() + timedelta(seconds=1000)

    monkeypatch.setattr(module, "datetime", Later)
    sweep(trials, slots)
    assert states(trials) == ["WAITING"]
    slot, trial = begun(trials, slots)
    assert trial.number == 0
    assert trials.trials[0].user_attrs[SLOT_ATTRIBUTE] == slot.number


def test_trials_that_are_none_of_ours_are_left_alone(trials: optuna.Study, slots: Slots) -> None:
    trials.ask()
    sweep(trials, slots)
    assert states(trials) == ["RUNNING"]
