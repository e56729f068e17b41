"""Outages that pass are waited for; what will not pass is told at once."""

from __future__ import annotations

import logging
import sqlite3
import time

import psycopg
import pytest
import sqlalchemy as sa

from dlnn_search.errors import OutageError, StorageError, UsageError
from dlnn_search.storage.database.outages import may_pass, patience_seconds, pause_seconds, retry


class Flaky:
    """Fails a number of times, then answers."""

    def __init__(self, n_failures: int, error: Exception) -> None:
        self.n_calls = 0
        self._n_failures = n_failures
        self._error = error

    def __call__(self) -> int:
        self.n_calls += 1
        if self.n_calls <= self._n_failures:
            raise self._error
        return 42


def test_an_outage_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    call = Flaky(3, OutageError("The server restarts."))
    with caplog.at_level(logging.WARNING):
        assert retry(call, seconds=30) == 42
    assert call.n_calls == 4
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2, "once when it begins, once when it is over"
    assert "The server restarts. Trying again for 30 s." in said[0]
    assert "answers again" in said[1]


def test_an_error_that_stays_is_not_tried_again() -> None:
    call = Flaky(3, StorageError("password authentication failed"))
    with pytest.raises(StorageError, match="password"):
        retry(call, seconds=30)
    assert call.n_calls == 1


def test_patience_ends_with_an_error_that_is_no_outage_any_more() -> None:
    call = Flaky(10**6, OutageError("The server is away."))
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"The server is away. It was tried again for \d s") as e:
        retry(call, seconds=0.5)
    assert not isinstance(e.value, OutageError)
    assert 0.5 <= time.monotonic() - began < 30
    assert call.n_calls > 1


def test_a_signal_ends_the_waiting() -> None:
    ends = time.monotonic() + 0.3
    with pytest.raises(OutageError):
        retry(
            Flaky(10**6, OutageError("away")),
            seconds=60,
            interrupted=lambda: time.monotonic() > ends,
        )
    assert time.monotonic() - ends < 30


def test_patience_is_set_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DLNN_SEARCH_PATIENCE", raising=False)
    assert patience_seconds() == 900
    monkeypatch.setenv("DLNN_SEARCH_PATIENCE", "2.5")
    assert patience_seconds() == 2.5


@pytest.mark.parametrize("text", ["long", "-1", "nan", "inf"])
def test_a_patience_that_is_no_number_is_refused(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLNN_SEARCH_PATIENCE", text)
    with pytest.raises(UsageError, match="Expected a number of seconds in DLNN_SEARCH_PATIENCE"):
        patience_seconds()


def test_pauses_grow_to_a_limit_and_are_jittered() -> None:
    assert all(0.5 <= pause_seconds(1) <= 1 for _ in range(20))
    assert all(4 <= pause_seconds(4) <= 8 for _ in range(20))
    assert all(10 <= pause_seconds(10**6, longest=20) <= 20 for _ in range(20))
    assert len({pause_seconds(3) for _ in range(20)}) > 10


def wrapped(error: Exception) -> sa.exc.DBAPIError:
    return sa.exc.OperationalError("SELECT 1", {}, error)


def sqlite_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("whatever it says")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (psycopg.OperationalError('connection to server at "db" failed: Connection refused'), True),
        (
            psycopg.OperationalError(
                'connection to server at "invalid" failed: Connection refused'
            ),
            True,
        ),
        (psycopg.OperationalError("FATAL:  the database system is starting up"), True),
        (psycopg.OperationalError("server closed the connection unexpectedly"), True),
        (psycopg.OperationalError("consuming input failed: SSL connection has been closed"), True),
        (psycopg.OperationalError("connection timeout expired"), True),
        (psycopg.OperationalError('FATAL:  password authentication failed for user "u"'), False),
        (psycopg.OperationalError('FATAL:  database "nothing" does not exist'), False),
        (psycopg.OperationalError("fe_sendauth: no password supplied"), False),
        (psycopg.errors.AdminShutdown(), True),
        (psycopg.errors.CrashShutdown(), True),
        (psycopg.errors.CannotConnectNow(), True),
        (psycopg.errors.DeadlockDetected(), True),
        (psycopg.errors.SerializationFailure(), True),
        (psycopg.errors.TooManyConnections(), True),
        (psycopg.errors.DiskFull(), True),
        (psycopg.errors.ReadOnlySqlTransaction(), True),
        (psycopg.errors.UndefinedTable(), False),
        (psycopg.errors.InvalidPassword(), False),
        (psycopg.errors.InsufficientPrivilege(), False),
        (psycopg.errors.UniqueViolation(), False),
        (sqlite_error(sqlite3.SQLITE_BUSY), True),
        (sqlite_error(sqlite3.SQLITE_BUSY_SNAPSHOT), True),
        (sqlite_error(sqlite3.SQLITE_FULL), True),
        (sqlite_error(sqlite3.SQLITE_CORRUPT), False),
        (sqlite_error(sqlite3.SQLITE_READONLY), False),
        (sqlite3.OperationalError("no such table: dlnn_slots"), False),
    ],
)
def test_which_errors_of_a_database_may_pass(error: Exception, passes: bool) -> None:
    assert may_pass(wrapped(error)) == passes
    told = RuntimeError("Optuna wraps it once more")
    told.__cause__ = wrapped(error)
    assert may_pass(told) == passes
