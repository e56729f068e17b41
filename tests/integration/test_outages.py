"""A database that goes away in the middle: training goes on, and all is told when it is back."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from dlnn_search.errors import OutageError, StorageError
from dlnn_search.storage.database import Database, open_database
from dlnn_search.storage.trials import Point
from dlnn_search.storage.workers import last_events
from dlnn_search.training import fit as fit_module
from dlnn_search.training.checkpoint import Epoch, Pace
from dlnn_search.worker import config_trial as module
from dlnn_search.worker import held_trial as outbox
from dlnn_search.worker.config_trial import train_config

from .trials_of_a_study import DATA, EPOCHS, Searched, losses, study_of

if TYPE_CHECKING:
    from tests.conftest import RestartablePostgresql


@pytest.fixture(autouse=True)
def small_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_load", lambda *_: DATA)


@pytest.fixture
def on_server(
    restartable: RestartablePostgresql,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Searched]:
    monkeypatch.setenv("DLNN_SEARCH_FILES", str(tmp_path_factory.mktemp("files")))
    database = open_database(restartable.url, create=True)
    yield Searched.open(database, study_of())
    database.close()


def at_epochs(monkeypatch: pytest.MonkeyPatch, actions: dict[int, Callable[[], None]]) -> list[int]:
    """Do something right before an epoch is trained; return the list of epochs as they come."""
    trained: list[int] = []
    train = fit_module._Run.epoch

    def epoch(self: fit_module._Run, number: int) -> Epoch:
        actions.get(number, lambda: None)()
        trained.append(number)
        return train(self, number)

    monkeypatch.setattr(fit_module._Run, "epoch", epoch)
    # Each epoch has a checkpoint: whatever of it is not in the database is due to the outage.
    monkeypatch.setattr(Pace, "is_due", lambda _: True)
    monkeypatch.setattr(outbox, "RENEW_SECONDS", 0.0)
    return trained


def whole(searched: Searched) -> list[float]:
    """The losses of the second slot's twin that nothing disturbs: the same config again."""
    first = next(iter(searched.optuna_study.trials))
    searched.optuna_study.enqueue_trial(first.params)
    verdict, slot = searched.train()
    assert verdict.outcome == "complete"
    return losses(searched.curve(slot))


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_training_goes_on_while_the_server_is_down_and_everything_is_told_after(
    restartable: RestartablePostgresql,
    on_server: Searched,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
) -> None:
    at_that_time: list[int] = []

    def start() -> None:
        at_that_time.append(trained[-1])
        restartable.start()

    trained = at_epochs(monkeypatch, {3: lambda: restartable.stop(mode), 8: start})
    verdict, slot = on_server.train()
    assert verdict.outcome == "complete", verdict
    assert trained == list(range(1, EPOCHS + 1)), "no epoch twice, none left out"
    assert at_that_time == [7], "five epochs were trained without a database"
    curve = on_server.curve(slot)
    assert [point.epoch for point in curve] == list(range(1, EPOCHS + 1))
    assert on_server.reported() == {point.epoch: point.metrics["loss"] for point in curve}
    (event,) = last_events(on_server.database, on_server.worker_row.study_id, 9)
    assert event.kind == "recovered" and "The database was away for" in event.words
    assert losses(curve) == whole(on_server), "the outage left no trace in the results"


def test_a_server_that_restarts_at_the_last_epoch_is_waited_for(
    restartable: RestartablePostgresql, on_server: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def restart_in_a_while() -> None:
        restartable.stop()
        threading.Timer(3.0, restartable.start).start()

    at_epochs(monkeypatch, {EPOCHS: restart_in_a_while})
    verdict, slot = on_server.train()
    assert verdict.outcome == "complete"
    assert len(on_server.curve(slot)) == EPOCHS


def test_a_server_that_stays_away_stops_the_worker_and_the_checkpoint_has_it_all(
    restartable: RestartablePostgresql, on_server: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLNN_SEARCH_PATIENCE", "1")
    trained = at_epochs(monkeypatch, {5: restartable.stop})
    with pytest.raises(StorageError, match="It was tried again for") as caught:
        on_server.train()
    assert not isinstance(caught.value, OutageError)
    assert trained == list(range(1, EPOCHS + 1))
    restartable.start()
    on_server.slots.release_of_dead(on_server.worker_row.worker)
    trained.clear()
    verdict, slot = on_server.train()
    assert verdict.outcome == "complete"
    assert trained == [], "nothing was left to train"
    assert [p.epoch for p in on_server.curve(slot)] == list(range(1, EPOCHS + 1))
    assert sorted(on_server.reported()) == list(range(1, EPOCHS + 1))


def test_a_signal_while_the_server_is_down_ends_the_worker_at_once(
    restartable: RestartablePostgresql, on_server: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_both() -> None:
        restartable.stop()
        on_server.interruption.asked = True

    at_epochs(monkeypatch, {4: stop_both})
    began = time.monotonic()
    held = on_server.begin()
    slot = held.slot
    verdict = train_config(held, threads=1)
    assert verdict.outcome is None and verdict.trouble is None
    assert time.monotonic() - began < 30
    restartable.start()
    on_server.interruption.asked = False
    on_server.slots.release_of_dead(on_server.worker_row.worker)
    verdict, slot = on_server.train()
    assert verdict.outcome == "complete"
    assert [p.epoch for p in on_server.curve(slot)] == list(range(1, EPOCHS + 1))


def test_connections_that_the_server_cuts_off_are_made_again(
    restartable: RestartablePostgresql, on_server: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = sa.create_engine(restartable.url, isolation_level="AUTOCOMMIT")

    def cut_off() -> None:
        with elsewhere.connect() as connection:
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name LIKE 'dlnn-search%%'"
            )

    at_epochs(monkeypatch, {3: cut_off, 6: cut_off, 9: cut_off})
    verdict, slot = on_server.train()
    elsewhere.dispose()
    assert verdict.outcome == "complete"
    assert [p.epoch for p in on_server.curve(slot)] == list(range(1, EPOCHS + 1))


def test_a_transaction_that_the_server_breaks_is_done_again_and_leaves_optuna_usable(
    restartable: RestartablePostgresql, on_server: Searched
) -> None:
    """The server dies between a statement and its commit, in Optuna's code."""
    trial = on_server.begin().trial
    storage = on_server.database.optuna
    calls: list[int] = []

    @sa.event.listens_for(storage.engine, "commit")
    def crash(connection: sa.engine.Connection) -> None:
        calls.append(1)
        if len(calls) == 1:
            restartable.stop("immediate")
            restartable.start()

    on_server.database.retrying(
        lambda: storage.set_trial_intermediate_value(trial._trial_id, 7, 0.5), seconds=30
    )
    assert len(calls) >= 2
    assert on_server.reported() == {7: 0.5}


def test_a_database_that_is_locked_for_a_while_is_waited_for(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = Searched.open(sqlite_database, study_of())
    sqlite_database.engine.dispose()

    @sa.event.listens_for(sqlite_database.engine, "connect")
    def impatient(driver: object, record: object) -> None:
        driver.execute("PRAGMA busy_timeout = 50")  # type: ignore[attr-defined]

    other = sa.create_engine(sqlite_database.url)
    holder = other.connect()

    def lock() -> None:
        holder.exec_driver_sql("BEGIN IMMEDIATE")

    def unlock() -> None:
        holder.exec_driver_sql("COMMIT")

    trained = at_epochs(monkeypatch, {3: lock, 7: unlock})
    verdict, slot = searched.train()
    holder.close()
    other.dispose()
    assert verdict.outcome == "complete"
    assert trained == list(range(1, EPOCHS + 1))
    assert [p.epoch for p in searched.curve(slot)] == list(range(1, EPOCHS + 1))


def test_points_written_twice_are_stored_once(database: Database) -> None:
    from dlnn_search.storage.trials import add_points

    searched = Searched.open(database, study_of())
    slot = searched.slots.claim(searched.worker_row.worker)
    assert slot is not None
    points = [Point(epoch, {"loss": 1 / epoch}, 0.1, 1e3) for epoch in range(1, 6)]
    for part in (points[:3], points[:3], points[1:]):
        assert add_points(database, slot.id, slot.fence, part)
    assert [p.epoch for p in searched.curve(slot)] == [1, 2, 3, 4, 5]
    assert not add_points(database, slot.id, slot.fence - 1, points)


def test_a_supervised_worker_waits_for_a_server_that_is_away_when_it_starts(
    restartable: RestartablePostgresql,
) -> None:
    restartable.stop("fast")
    command = [sys.executable, "-m", "dlnn_search", "worker", "task1-mnist-mlp"]
    with subprocess.Popen(
        [*command, "--supervisor", "1 1"],
        env={**os.environ, "DLNN_SEARCH_STORAGE": restartable.url},
        stderr=subprocess.PIPE,
        text=True,
    ) as worker:
        assert worker.stderr is not None
        try:
            first = worker.stderr.readline()
        finally:
            restartable.start()
        rest = worker.stderr.read()
    assert "Trying again for" in first
    assert "holds no study yet" in rest, "and then it says what it found"
