"""A slot and its new trial come together, on every storage, whatever fails in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from dlnn_search.errors import OutageError, StorageError
from dlnn_search.storage.database import Database
from dlnn_search.storage.slots import Slots
from dlnn_search.storage.studies import register
from dlnn_search.worker.claiming import Claim
from dlnn_search.worker.optuna_study import (
    begin_made,
    begin_trial,
    open_optuna_study,
    put_back,
    storage_of,
    sweep,
)

from .slot_life import TESTED_ALONE, claimed, row_of
from .trials_of_a_study import study_of

STUDY = study_of()

pytestmark = pytest.mark.usefixtures("optuna_way")


@pytest.fixture
def slots(database: Database) -> Slots:
    slots = Slots(database, register(database, STUDY.name, STUDY.definition()).id)
    slots.extend_to(3)
    return slots


@pytest.fixture
def trials(database: Database, slots: Slots) -> optuna.Study:
    return open_optuna_study(STUDY, database)


@pytest.fixture
def claim(database: Database, slots: Slots, trials: optuna.Study) -> Callable[[], Claim]:
    return lambda: Claim(database, slots, STUDY, trials, "w")


def states(database: Database) -> list[TrialState]:
    """What another process reads."""
    return [trial.state for trial in open_optuna_study(STUDY, database).trials]


@TESTED_ALONE
def test_each_fresh_slot_has_its_trial_at_once(
    database: Database, trials: optuna.Study, claim: Callable[[], Claim]
) -> None:
    rates = []
    for number in range(3):
        found = claim()()
        assert found.slot is not None and found.trial_id is not None
        row = row_of(database, found.slot)
        assert (row["trial_id"], row["trial_number"]) == (found.trial_id, number)
        trial = begin_made(trials, STUDY, found.sampler, found.slot, found.trial_id)
        rates.append(STUDY.config(trial).training.learning_rate)
        assert (trial.number, trial.user_attrs) == (number, {"slot": found.slot.number})
    assert len(set(rates)) == 3
    assert [trial.params["rate"] for trial in trials.trials] == rates
    assert claim()().slot is None
    assert states(database) == [TrialState.RUNNING] * 3


@TESTED_ALONE
def test_a_claim_whose_answer_was_lost_finds_its_slot_and_trial(
    database: Database, trials: optuna.Study, claim: Callable[[], Claim]
) -> None:
    same = claim()
    first, second = same(), same()
    assert first.slot is not None and second.slot is not None
    assert (second.slot.id, second.slot.trial_id) == (first.slot.id, first.trial_id)
    assert second.trial_id is None
    assert begin_trial(trials, STUDY, second.slot, again=True)._trial_id == first.trial_id
    assert len(states(database)) == 1


@TESTED_ALONE
def test_an_outage_in_the_middle_leaves_neither_a_held_slot_nor_a_trial(
    database: Database,
    slots: Slots,
    trials: optuna.Study,
    claim: Callable[[], Claim],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise OutageError("The server stops.")

    tried = claim()
    with monkeypatch.context() as patch:
        patch.setattr(Slots, "begin", fail)
        with pytest.raises(OutageError):
            tried()
    sweep(trials, slots)  # nothing is left in the worker's memory that it would take for a trial
    assert states(database) == []
    found = tried()
    assert found.slot is not None and (found.slot.number, found.slot.fence) == (0, 1)
    assert states(database) == [TrialState.RUNNING]


def test_who_was_enqueued_comes_first_and_who_waits_keeps_its_slot(
    database: Database, slots: Slots, trials: optuna.Study, claim: Callable[[], Claim]
) -> None:
    first = claimed(slots)
    waiting = begin_trial(trials, STUDY, first)
    slots.begin(first, waiting._trial_id, waiting.number)
    put_back(trials, waiting._trial_id)
    slots.release(first)
    trials.enqueue_trial({"rate": 0.005})
    again, enqueued, last = (claim()() for _ in range(3))
    assert again.slot is not None and again.slot.trial_id == waiting._trial_id
    assert begin_trial(trials, STUDY, again.slot).number == 0
    assert enqueued.slot is not None and enqueued.trial_id is None
    trial = begin_trial(trials, STUDY, enqueued.slot)
    assert STUDY.config(trial).training.learning_rate == 0.005
    assert last.slot is not None and last.trial_id is None, "it was enqueued when this was claimed"
    assert begin_trial(trials, STUDY, last.slot).number == 2


def test_what_optuna_does_not_have_comes_first(
    slots: Slots, trials: optuna.Study, claim: Callable[[], Claim]
) -> None:
    vanished = claimed(slots)
    trial = begin_trial(trials, STUDY, vanished)
    slots.begin(vanished, trial._trial_id, trial.number)
    slots.settle(vanished, "complete", value=0.5)
    found = claim()()
    assert found.is_untold and found.slot is None
    slots.mark_told(vanished.id)
    assert claim()().slot is not None


def test_a_study_that_was_deleted_in_the_dashboard_is_told_so(
    database: Database, trials: optuna.Study, claim: Callable[[], Claim]
) -> None:
    tried = claim()
    storage_of(trials).delete_study(trials._study_id)
    with pytest.raises(StorageError, match="is gone from the database"):
        database.retrying(tried)
