"""A slot and its new trial come together, on every storage, whatever fails in between."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from dlnn_search.errors import OutageError, StorageError
from dlnn_search.storage.database import Database
from dlnn_search.storage.slots import Slots, new_token
from dlnn_search.storage.studies import register
from dlnn_search.storage.workers import WorkerRow
from dlnn_search.worker.held_trial import HeldTrial, Search, claim
from dlnn_search.worker.interruption import Interruption
from dlnn_search.worker.optuna_study import (
    begin_trial,
    open_optuna_study,
    put_back,
    storage_of,
)
from dlnn_search.worker.reports import sweep

from .slot_life import TESTED_ALONE, claimed, give_trials, row_of
from .trials_of_a_study import study_of

STUDY = study_of()

pytestmark = pytest.mark.usefixtures("optuna_way")


@pytest.fixture
def slots(database: Database) -> Slots:
    slots = Slots(database, register(database, STUDY.name, STUDY.definition()).id)
    give_trials(slots, 3)
    return slots


@pytest.fixture
def trials(database: Database, slots: Slots) -> optuna.Study:
    return open_optuna_study(STUDY, database)


@pytest.fixture
def search(database: Database, slots: Slots, trials: optuna.Study) -> Search:
    stored = register(database, STUDY.name, STUDY.definition())
    worker_row = WorkerRow(database, stored.id, "w")
    return Search(STUDY, stored, database, trials, slots, worker_row, Interruption())


def claimed_now(search: Search) -> HeldTrial | None:
    return claim(search, new_token(), again=False)


def states(database: Database) -> list[TrialState]:
    """What another process reads."""
    return [trial.state for trial in open_optuna_study(STUDY, database).trials]


@TESTED_ALONE
def test_each_fresh_slot_has_its_trial_at_once(
    database: Database, trials: optuna.Study, search: Search
) -> None:
    rates = []
    for number in range(3):
        held = claimed_now(search)
        assert held is not None and held.made_id is not None
        row = row_of(database, held.slot)
        assert (row["trial_id"], row["trial_number"]) == (held.made_id, number)
        held.begin()
        rates.append(STUDY.config(held.trial).training.learning_rate)
        assert (held.trial.number, held.trial.user_attrs) == (number, {"slot": held.slot.number})
    assert len(set(rates)) == 3
    assert [trial.params["rate"] for trial in trials.trials] == rates
    assert claimed_now(search) is None
    assert states(database) == [TrialState.RUNNING] * 3


@TESTED_ALONE
def test_a_claim_whose_answer_was_lost_finds_its_slot_and_trial(
    database: Database, search: Search
) -> None:
    token = new_token()
    first, second = claim(search, token, again=False), claim(search, token, again=True)
    assert first is not None and second is not None
    assert (second.slot.id, second.slot.trial_id) == (first.slot.id, first.made_id)
    assert second.made_id is None
    second.begin()
    assert second.trial_id == first.made_id
    assert len(states(database)) == 1


@TESTED_ALONE
def test_an_outage_in_the_middle_leaves_neither_a_held_slot_nor_a_trial(
    database: Database,
    slots: Slots,
    trials: optuna.Study,
    search: Search,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise OutageError("The server stops.")

    token = new_token()
    with monkeypatch.context() as patch:
        patch.setattr(Slots, "begin", fail)
        with pytest.raises(OutageError):
            claim(search, token, again=False)
    sweep(trials, slots)  # nothing is left in the worker's memory that it would take for a trial
    assert states(database) == []
    held = claim(search, token, again=True)
    assert held is not None and (held.slot.number, held.slot.fence) == (0, 1)
    assert states(database) == [TrialState.RUNNING]


def test_who_was_enqueued_comes_first_and_who_waits_keeps_its_slot(
    slots: Slots, trials: optuna.Study, search: Search
) -> None:
    first = claimed(slots)
    waiting = begin_trial(trials, STUDY, first)
    slots.begin(first, waiting._trial_id, waiting.number)
    put_back(trials, waiting._trial_id)
    slots.release(first)
    trials.enqueue_trial({"rate": 0.005})
    again, enqueued, last = (claimed_now(search) for _ in range(3))
    assert again is not None and again.slot.trial_id == waiting._trial_id
    again.begin()
    assert again.trial.number == 0
    assert enqueued is not None and enqueued.made_id is None
    enqueued.begin()
    assert STUDY.config(enqueued.trial).training.learning_rate == 0.005
    assert last is not None and last.made_id is None, "it was enqueued when this was claimed"
    last.begin()
    assert last.trial.number == 2


def test_what_optuna_does_not_have_comes_first(
    slots: Slots, trials: optuna.Study, search: Search
) -> None:
    vanished = claimed(slots)
    trial = begin_trial(trials, STUDY, vanished)
    slots.begin(vanished, trial._trial_id, trial.number)
    slots.settle(vanished, "complete", value=0.5)
    assert claimed_now(search) is not None
    assert not slots.untold()
    assert trials.trials[trial.number].value == 0.5


def test_a_study_that_was_deleted_in_the_dashboard_is_told_so(
    database: Database, trials: optuna.Study, search: Search
) -> None:
    storage_of(trials).delete_study(trials._study_id)
    with pytest.raises(StorageError, match="is gone from the database"):
        database.retrying(lambda: claimed_now(search))
