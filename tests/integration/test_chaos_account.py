"""The books of benchmarks/chaos.py: they balance for a whole search, and not for a damaged one."""

from __future__ import annotations

import sys
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa

from dlnn_search.config import Config, Mlp, Mnist
from dlnn_search.storage.database import Database
from dlnn_search.storage.slots import Slots
from dlnn_search.storage.studies import register
from dlnn_search.storage.trials import Point, add_points
from dlnn_search.study import RandomSearch, Study
from dlnn_search.worker.optuna_study import begin_trial, open_optuna_study
from dlnn_search.worker.reports import tell
from dlnn_search.worker.verdict import Verdict

from .slot_life import give_trials, note_config

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.chaos_account import Account, account_for

N_TRIALS = 2
EPOCHS = 3


def space(trial: optuna.Trial) -> Config:
    trial.suggest_float("x", 0, 1)
    return Config(model=Mlp())


STUDY = Study(
    space=space,
    data=Mnist(),
    epochs=EPOCHS,
    minimize="loss",
    sampler=RandomSearch(),
    name="some-study",
)


@pytest.fixture
def searched(sqlite_database: Database) -> Database:
    """A study whose two trials are complete."""
    stored = register(sqlite_database, STUDY.name, STUDY.definition())
    slots = Slots(sqlite_database, stored.id)
    give_trials(slots, N_TRIALS)
    trials = open_optuna_study(STUDY, sqlite_database)
    for _ in range(N_TRIALS):
        slot = slots.claim("some-worker")
        assert slot is not None
        trial = begin_trial(trials, STUDY, slot)
        slots.begin(slot, trial._trial_id, trial.number)
        note_config(sqlite_database, slot, STUDY.config(trial).model_dump(mode="json"))
        for epoch in range(1, EPOCHS + 1):
            add_points(
                sqlite_database, slot.id, slot.fence, [Point(epoch, {"loss": 1 / epoch}, 0.1, 1e4)]
            )
            trial.report(1 / epoch, epoch)
        slots.settle(slot, "complete", value=1 / EPOCHS, best_epoch=EPOCHS)
        tell(trials, trial._trial_id, Verdict("complete", value=1 / EPOCHS))
        slots.mark_told(slot.id)
    return sqlite_database


def account(database: Database) -> Account:
    return account_for(database, STUDY.name, n_trials=N_TRIALS, metric="loss", n_compared=0)


def test_the_books_of_a_whole_search_balance(searched: Database) -> None:
    found = account(searched)
    assert found.wrong == []
    assert (found.n_settled, found.outcomes) == (N_TRIALS, {"complete": N_TRIALS})


@pytest.mark.parametrize(
    ("damage", "figure"),
    [
        ("UPDATE dlnn_slots SET outcome = NULL WHERE number = 0", "n_lost"),
        ("UPDATE dlnn_slots SET trial_id = 1", "n_doubled"),
        ("UPDATE trials SET state = 'RUNNING' WHERE number = 1", "n_running"),
        ("DELETE FROM dlnn_curves WHERE epoch = 2", "n_gaps"),
        ("DELETE FROM dlnn_curves WHERE epoch = 3", "n_gaps"),
        ("UPDATE trial_intermediate_values SET intermediate_value = 7 WHERE step = 1", "n_unlike"),
        ("DELETE FROM trial_intermediate_values WHERE step = 3", "n_unlike"),
    ],
)
def test_damage_is_found(searched: Database, damage: str, figure: str) -> None:
    with searched.transaction() as connection:
        connection.execute(sa.text(damage))
    found = account(searched)
    assert getattr(found, figure) > 0
    assert found.wrong


def test_a_slot_that_is_not_told_and_a_trial_too_many_are_found(searched: Database) -> None:
    with searched.transaction() as connection:
        connection.execute(sa.text("UPDATE dlnn_slots SET told = 0"))
    open_optuna_study(STUDY, searched).ask()
    found = account(searched)
    assert (found.n_settled, found.n_doubled, found.n_running) == (0, 1, 1)
    assert "3 trials, expected 2." in found.wrong


def test_a_checkpoint_left_behind_is_found(searched: Database) -> None:
    folder = searched.files / "checkpoints" / STUDY.name / "0"
    folder.mkdir(parents=True)
    (folder / "last.npz").write_bytes(b"")
    assert account(searched).wrong == [f"{STUDY.name}/0/last.npz was left behind."]
