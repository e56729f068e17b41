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
from dlnn_search.report.status import study_status
from dlnn_search.search.optuna_study import begin_trial, open_optuna_study, tell
from dlnn_search.storage.curves import Point, add_point, curve_of_slot
from dlnn_search.storage.database import Database, open_database
from dlnn_search.storage.definitions import find, register
from dlnn_search.storage.presence import Presence
from dlnn_search.storage.slots import Slots
from dlnn_search.study import Halving, RandomSearch, Study

N_WORKERS = 16
N_EPOCHS = 100


def space(trial: optuna.Trial) -> Config:
    trial.suggest_float("x", 0, 1)
    return Config(model=Mlp())


STUDY = Study(
    space=space,
    data=Mnist(),
    minimize="loss",
    sampler=RandomSearch(),
    pruner=Halving(first_rung=200),
    name="some-study",
)


def work(url: str) -> float:
    """Train a trial that takes no time, and return the longest that one epoch's writing took."""
    _barrier.wait()
    database = open_database(url, create=True)
    stored = register(database, STUDY.name, STUDY.definition())
    slots = Slots(database, stored.id)
    slots.extend_to(N_WORKERS)
    trials = open_optuna_study(STUDY, database)
    presence = Presence(database, stored.id)
    slot = slots.claim(presence.worker)
    assert slot is not None
    trial = begin_trial(trials, STUDY, slot)
    slots.begin(slot, trial._trial_id, trial.number)
    slots.set_config(slot, STUDY.config(trial).model_dump(mode="json"))
    longest = 0.0
    for epoch in range(1, N_EPOCHS + 1):
        began = time.monotonic()
        metrics = {"loss": 1 / epoch, "accuracy": 0.5}
        assert add_point(database, slot.id, slot.fence, Point(epoch, metrics, 0.1, 1e4))
        slots.renew(slot)
        presence.show(state="training", epoch=epoch, value=1 / epoch)
        trial.report(1 / epoch, epoch)
        longest = max(longest, time.monotonic() - began)
    slots.settle(slot, "complete", value=0.01, best_epoch=N_EPOCHS)
    tell(trials, trial._trial_id, "complete", 0.01)
    slots.mark_told(slot.id)
    database.close()
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
        ["dlnn_search.search.optuna_study", "alembic.command", "psycopg", "pytest"]
    )
    barrier = context.Barrier(N_WORKERS)
    with ProcessPoolExecutor(
        N_WORKERS, context, initializer=_keep_barrier, initargs=(barrier,)
    ) as pool:
        longest = list(pool.map(work, [url] * N_WORKERS))  # raises where a database was locked
    database = open_database(url, create=False)
    try:
        stored = find(database, STUDY.name)
        status = study_status(database, stored)
        assert status.counts == {"complete": N_WORKERS}
        trials = open_optuna_study(STUDY, database).trials
        assert sorted(trial.number for trial in trials) == list(range(N_WORKERS))
        for trial in trials:
            assert list(trial.intermediate_values) == list(range(1, N_EPOCHS + 1))
            assert trial.state == optuna.trial.TrialState.COMPLETE
        for slot_id in slot_ids(database):
            epochs = [point.epoch for point in curve_of_slot(database, slot_id)]
            assert epochs == list(range(1, N_EPOCHS + 1))
        assert max(longest) < 10, "an epoch waited for the other writers far too long"
    finally:
        database.close()


def slot_ids(database: Database) -> list[int]:
    with database.transaction() as connection:
        return list(connection.scalars(sa.text("SELECT id FROM dlnn_slots")))
