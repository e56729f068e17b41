"""Optuna's trials and our slots belong together, on every storage."""

from __future__ import annotations

import dataclasses
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timedelta
from multiprocessing.synchronize import Barrier

import optuna
import pytest
from optuna.trial import TrialState
from optuna_dashboard import get_note, save_note

from dlnn_search.config import Config, Mlp, Mnist, Training
from dlnn_search.errors import StorageError
from dlnn_search.storage.control import go_on
from dlnn_search.storage.database import Database, open_database
from dlnn_search.storage.halves import archive, rename_study
from dlnn_search.storage.slots import Slot, Slots
from dlnn_search.storage.studies import all_studies, register
from dlnn_search.study import RandomSearch, Study, Tpe
from dlnn_search.worker import optuna_study as module
from dlnn_search.worker.optuna_study import SLOT_ATTRIBUTE, begin_trial, open_optuna_study
from dlnn_search.worker.reports import tell
from dlnn_search.worker.verdict import Verdict

from .slot_life import give_trials


def space(trial: optuna.Trial) -> Config:
    rate = trial.suggest_float("rate", 1e-5, 1e-1, log=True)
    return Config(model=Mlp(), training=Training(learning_rate=rate))


STUDY = Study(space=space, data=Mnist(), minimize="loss", sampler=RandomSearch(), name="some-study")
TPE_STUDY = Study(
    space=space, data=Mnist(), minimize="loss", sampler=Tpe(n_startup_trials=2), name="some-study"
)

pytestmark = pytest.mark.usefixtures("optuna_way")


@pytest.fixture
def slots(database: Database) -> Slots:
    slots = Slots(database, register(database, STUDY.name, STUDY.definition()).id)
    give_trials(slots, 12)
    return slots


@pytest.fixture
def trials(database: Database, slots: Slots) -> optuna.Study:
    return open_optuna_study(STUDY, database)


def claimed(slots: Slots) -> Slot:
    slot = slots.claim("w")
    assert slot is not None
    return slot


def begun(trials: optuna.Study, slots: Slots, study: Study = STUDY) -> tuple[Slot, optuna.Trial]:
    slot = claimed(slots)
    trial = begin_trial(trials, study, slot)
    slots.begin(slot, trial._trial_id, trial.number)
    return slot, trial


def rate(trial: optuna.Trial, study: Study = STUDY) -> float | None:
    return study.config(trial).training.learning_rate


@pytest.mark.parametrize("study", [STUDY, TPE_STUDY], ids=["random", "tpe"])
def test_each_slot_is_suggested_something_else(
    trials: optuna.Study, slots: Slots, study: Study
) -> None:
    rates = set()
    for _ in range(6):
        slot, trial = begun(trials, slots, study)
        rates.add(rate(trial, study))
        tell(trials, trial._trial_id, Verdict("complete", value=1.0))
        slots.settle(slot, "complete", value=1.0)
    assert len(rates) == 6


def test_a_slot_is_suggested_the_same_by_whichever_worker(
    database: Database, trials: optuna.Study, slots: Slots
) -> None:
    slot = claimed(slots)
    first = rate(begin_trial(trials, STUDY, slot))
    trials.tell(0, state=TrialState.FAIL)  # else it would be adopted
    elsewhere = open_database(database.url, create=False)
    try:
        begin_trial(open_optuna_study(STUDY, elsewhere), STUDY, claimed(slots))
        again = begin_trial(open_optuna_study(STUDY, elsewhere), STUDY, slot)
        assert again.number == 2
        assert rate(again) == first
    finally:
        elsewhere.close()


def test_a_trial_that_goes_on_keeps_what_was_suggested(trials: optuna.Study, slots: Slots) -> None:
    slot, trial = begun(trials, slots)
    suggested = rate(trial)
    slots.release(slot)
    again, same = begun(trials, slots)
    assert (again.number, same.number) == (slot.number, trial.number)
    assert rate(same) == suggested


def test_the_trial_of_a_worker_killed_at_its_beginning_is_adopted(
    trials: optuna.Study, slots: Slots
) -> None:
    lost = claimed(slots)
    orphan = begin_trial(trials, STUDY, lost)  # and the worker is killed before slots.begin
    suggested = rate(orphan)
    slots.release_of_dead("w")
    slot, trial = begun(trials, slots)
    assert (slot.number, trial.number) == (lost.number, orphan.number)
    assert rate(trial) == suggested
    assert len(trials.trials) == 1


def test_a_new_slot_adopts_no_trial_of_another(trials: optuna.Study, slots: Slots) -> None:
    first, second = claimed(slots), claimed(slots)
    assert begin_trial(trials, STUDY, first).number == 0
    assert begin_trial(trials, STUDY, second).number == 1


def test_a_trial_that_was_enqueued_is_taken_first(trials: optuna.Study, slots: Slots) -> None:
    trials.enqueue_trial({"rate": 0.0123})
    slot, trial = begun(trials, slots)
    assert rate(trial) == 0.0123
    assert trials.trials[0].state == TrialState.RUNNING
    assert trials.trials[0].user_attrs[SLOT_ATTRIBUTE] == slot.number
    _, other = begun(trials, slots)
    assert other.number == 1
    assert rate(other) != 0.0123


def test_an_enqueued_trial_whose_taker_was_killed_is_taken_again(
    trials: optuna.Study, slots: Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials.enqueue_trial({"rate": 0.0123})
    lost = claimed(slots)
    (waiting,) = trials.trials
    trials._storage.set_trial_state_values(waiting._trial_id, TrialState.RUNNING)  # ... killed
    slots.release_of_dead("w")
    assert begin_trial(trials, STUDY, claimed(slots)).number == 1, "its taker may still live"
    slots.release_of_dead("w")

    class Later(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now() + timedelta(seconds=1000)

    trials.tell(1, state=TrialState.FAIL)
    monkeypatch.setattr(module, "datetime", Later)
    again = claimed(slots)
    assert again.number == lost.number
    assert rate(begin_trial(trials, STUDY, again)) == 0.0123


def take_one(url: str, number: int) -> int:
    database = open_database(url, create=False)
    trials = open_optuna_study(STUDY, database)
    slot = Slot(-1, number, fence=1, losses=0, trial_id=None, trial_number=None, config=None)
    _barrier.wait()
    taken = begin_trial(trials, STUDY, slot).number
    database.close()
    return taken


def _keep_barrier(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


_barrier: Barrier


def test_six_processes_take_six_enqueued_trials(database: Database, trials: optuna.Study) -> None:
    for n in range(6):
        trials.enqueue_trial({"rate": 10.0 ** -(n + 1)})
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["dlnn_search.worker.optuna_study", "alembic.command", "psycopg", "pytest"]
    )
    barrier = context.Barrier(6)
    with ProcessPoolExecutor(6, context, initializer=_keep_barrier, initargs=(barrier,)) as pool:
        taken = list(pool.map(take_one, [database.url] * 6, range(6)))
    assert sorted(taken) == list(range(6))
    assert len(trials.trials) == 6


@pytest.mark.parametrize(
    ("outcome", "value", "state", "stored"),
    [
        ("complete", 0.25, TrialState.COMPLETE, 0.25),
        ("pruned", 0.25, TrialState.PRUNED, 0.5),  # Optuna's own: the last report
        ("failed", None, TrialState.FAIL, None),
    ],
)
def test_telling_an_outcome_twice_is_harmless(
    trials: optuna.Study,
    slots: Slots,
    outcome: str,
    value: float | None,
    state: TrialState,
    stored: float | None,
) -> None:
    _, trial = begun(trials, slots)
    trial.report(0.5, 1)
    for _ in range(2):
        tell(trials, trial._trial_id, Verdict(outcome, value=value))  # type: ignore[arg-type]
    (frozen,) = trials.trials
    assert (frozen.state, frozen.value) == (state, stored)


def test_an_outcome_that_another_worker_tells_at_the_same_moment_is_harmless(
    trials: optuna.Study, slots: Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, trial = begun(trials, slots)
    finish = type(trials._storage).set_trial_state_values

    def finish_twice(self: object, trial_id: int, state: TrialState, values: object) -> bool:
        finish(self, trial_id, state, values)  # type: ignore[arg-type]
        return finish(self, trial_id, state, values)  # type: ignore[arg-type]

    monkeypatch.setattr(type(trials._storage), "set_trial_state_values", finish_twice)
    tell(trials, trial._trial_id, Verdict("complete", value=0.25))
    assert trials.trials[0].value == 0.25


def test_a_failure_s_kind_and_reason_stand_on_the_trial(trials: optuna.Study, slots: Slots) -> None:
    _, trial = begun(trials, slots)
    for _ in range(2):
        tell(
            trials,
            trial._trial_id,
            Verdict("failed", failure="diverged", reason="Diverged in epoch 2" + "!" * 1000),
        )
    (frozen,) = trials.trials
    assert frozen.state == TrialState.FAIL
    assert frozen.user_attrs["failure"] == "diverged"
    assert frozen.user_attrs["reason"].startswith("Diverged in epoch 2!!")
    assert len(frozen.user_attrs["reason"]) <= 300, "all of them are sent at each refresh"


def test_a_slot_whose_study_was_deleted_in_optuna_is_refused_not_mixed_up(
    database: Database, trials: optuna.Study, slots: Slots
) -> None:
    slot, _ = begun(trials, slots)
    optuna.delete_study(study_name=STUDY.name, storage=database.optuna)
    slots.release(slot)
    with pytest.raises(StorageError, match="Trial 0 of the study 'some-study' is gone"):
        begun(open_optuna_study(STUDY, database), slots)


def test_a_study_is_renamed_and_archived_with_its_trials_and_notes(
    database: Database, trials: optuna.Study, slots: Slots
) -> None:
    slot, trial = begun(trials, slots)
    suggested = rate(trial)
    save_note(trial, "a note")
    slots.release(slot)
    (study_id,) = [study.id for study in all_studies(database)]
    rename_study(database, study_id, STUDY.name, "renamed")
    archived = archive(database, study_id, "renamed")
    assert optuna.get_all_study_names(database.optuna) == [archived]
    renamed = dataclasses.replace(STUDY, name=archived)
    go_on(database, study_id)
    again = slots.claim("another")
    assert again is not None
    found = begin_trial(open_optuna_study(renamed, database), renamed, again)
    assert (again.trial_id, found.number) == (found._trial_id, trial.number)
    assert (found.params["rate"], get_note(found)) == (suggested, "a note")
