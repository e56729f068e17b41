"""SQLite with many writers at once: trap of every search on one machine."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path

import optuna
import sqlalchemy as sa

from dlnn_search.config import Config, Mlp, Mnist
from dlnn_search.results.status import study_status
from dlnn_search.storage.database import Database, open_database
from dlnn_search.storage.slots import Slots, new_token
from dlnn_search.storage.studies import find, register
from dlnn_search.storage.trials import Point, curve_of_slot
from dlnn_search.storage.workers import WorkerRow
from dlnn_search.study import Halving, RandomSearch, Study
from dlnn_search.worker import held_trial as outbox_module
from dlnn_search.worker.held_trial import HeldTrial, Search, claim
from dlnn_search.worker.interruption import Interruption
from dlnn_search.worker.optuna_study import open_optuna_study
from dlnn_search.worker.reports import epochs_to_report
from dlnn_search.worker.verdict import Verdict

from .slot_life import give_trials, note_config

N_WORKERS = 16
N_TRIALS = 48
N_EPOCHS = 50


def space(trial: optuna.Trial) -> Config:
    trial.suggest_float("x", 0, 1)
    return Config(model=Mlp())


STUDY = Study(
    space=space,
    data=Mnist(),
    minimize="loss",
    sampler=RandomSearch(),
    pruner=Halving(first_rung=10),
    name="some-study",
)
RUNGS = [10, 30]


def work(url: str) -> tuple[int, float]:
    """Make trials that train nothing until the budget is used up, as a worker does.

    Returns:
        How many, and the longest that one epoch's writing took, in seconds.
    """
    outbox_module.RENEW_SECONDS = 0.0  # every epoch is sent, as if it took a second
    _barrier.wait()
    database = open_database(url, create=True)
    stored = register(database, STUDY.name, STUDY.definition())
    slots = Slots(database, stored.id)
    give_trials(slots, N_TRIALS)
    trials = open_optuna_study(STUDY, database)
    worker_row = WorkerRow(database, stored.id)
    n_trials, longest = 0, 0.0
    search = Search(STUDY, stored, database, trials, slots, worker_row, Interruption())
    while (held := claim(search, new_token(), again=False)) is not None:
        longest = max(longest, make_trial(search, held))
        n_trials += 1
    database.close()
    return n_trials, longest


def make_trial(search: Search, held: HeldTrial) -> float:
    held.begin()
    note_config(search.database, held.slot, STUDY.config(held.trial).model_dump(mode="json"))
    held.expect(N_EPOCHS)
    held.take_up([])
    longest = 0.0
    for epoch in range(1, N_EPOCHS + 1):
        began = time.monotonic()
        held.progress(epoch, 0.5)
        held.report(Point(epoch, {"loss": 1 / epoch, "accuracy": 0.5}, 0.1, 1e4))
        held.keep(epoch)
        assert not held._waiting, "the database was taken for away"
        held.is_behind(epoch)
        longest = max(longest, time.monotonic() - began)
    held.send_curve()
    held.conclude(Verdict("complete", value=1 / N_EPOCHS, best_epoch=N_EPOCHS))
    return longest


def _keep_barrier(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


_barrier: Barrier


def test_sixteen_workers_that_make_one_file_and_write_into_it_at_once_lose_nothing(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path / 'new' / 'dlnn.db'}"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["dlnn_search.worker.optuna_study", "alembic.command", "psycopg", "pytest"]
    )
    barrier = context.Barrier(N_WORKERS)
    with ProcessPoolExecutor(
        N_WORKERS, context, initializer=_keep_barrier, initargs=(barrier,)
    ) as pool:
        done = list(pool.map(work, [url] * N_WORKERS))  # raises where a database was locked
    assert sum(n_trials for n_trials, _ in done) == N_TRIALS
    database = open_database(url, create=False)
    try:
        stored = find(database, STUDY.name)
        status = study_status(database, stored)
        assert status.counts == {"complete": N_TRIALS}
        trials = open_optuna_study(STUDY, database).trials
        assert sorted(trial.number for trial in trials) == list(range(N_TRIALS))
        due = sorted(epochs_to_report(N_EPOCHS, RUNGS))
        for trial in trials:
            assert sorted(trial.intermediate_values) == due
            assert trial.state == optuna.trial.TrialState.COMPLETE
            assert set(trial.params) == {"x"}
        assert len({trial.params["x"] for trial in trials}) == N_TRIALS
        for slot_id in slot_ids(database):
            epochs = [point.epoch for point in curve_of_slot(database, slot_id)]
            assert epochs == list(range(1, N_EPOCHS + 1))
        longest = max(seconds for _, seconds in done)
        assert longest < 10, "an epoch waited for the other writers far too long"
    finally:
        database.close()


def slot_ids(database: Database) -> list[int]:
    with database.transaction() as connection:
        return list(connection.scalars(sa.text("SELECT id FROM dlnn_slots")))
