"""Errors of the database in one sentence each; outages are waited for until they end."""

from __future__ import annotations

import errno
import logging
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import optuna
import sqlalchemy as sa
import tenacity
from sqlalchemy.engine import URL, Engine, ExceptionContext, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError

from dlnn_search.errors import OutageError, StorageError, UsageError
from dlnn_search.storage.database import sqlite

#: How long a database may be away before a process gives up. A restart takes seconds, a
#: fail-over minutes, a machine's update a quarter of an hour.
PATIENCE_SECONDS = 900.0
PATIENCE_VARIABLE = "DLNN_SEARCH_PATIENCE"
#: The longest pause between two tries: a server that is back is noticed within that.
MAX_PAUSE_SECONDS = 10.0

#: SQLSTATEs, or their beginnings, of what ends by itself.
#: Source: PostgreSQL 18, appendix A.
_PASSING_STATES = (
    "08",  # the connection failed
    "40",  # rolled back: serialisation, deadlock
    "53",  # no disk space, memory or connections left
    "25006",  # read-only: a standby that is not yet, or no longer, the primary
    "25P03",  # idle in a transaction for too long
    "55P03",  # a lock is not available
    "57P01",  # shutting down
    "57P02",  # another of its processes crashed
    "57P03",  # starting up
    "57P05",  # idle for too long
    "58",  # system errors: input and output
)
#: While connecting, libpq says no SQLSTATE but words. With these it will refuse for ever...
_LASTING_WORDS = (
    "authentication failed",
    "no password supplied",
    "pg_hba.conf",
    "does not exist",
    "permission denied",
    "certificate",
    "ssl error",
    "server does not support",
    "invalid",
)
#: ... unless one of these stands there, too: a name in the message may look like one of those.
_PASSING_WORDS = (
    "connection refused",
    "closed the connection",
    "ssl connection has been closed",
    "starting up",
    "shutting down",
    "timeout expired",
    "timed out",
    "too many clients",
    "unreachable",
)
#: SQLite's result codes of what ends by itself.
#: Source: https://sqlite.org/rescode.html
_PASSING_CODES = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_PROTOCOL,
    }
)

T = TypeVar("T")

log = logging.getLogger(__name__)


def may_pass(error: BaseException | None) -> bool:
    """Whether a database's error may end by itself: locked, restarting, cut off, out of space.

    A wrong password, a missing table or a damaged file stays what it is, however often one asks.
    """
    while error is not None:
        if isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated:
            return True
        if isinstance(error, sa.exc.TimeoutError):  # all connections of the pool are in use
            return True
        if isinstance(error, sqlite3.Error):
            code = getattr(error, "sqlite_errorcode", None)
            return code is not None and code & 0xFF in _PASSING_CODES
        if type(error).__module__.partition(".")[0] == "psycopg":
            return _psycopg_may_pass(error)
        # SQLAlchemy names the driver's error before Python knows it for the cause.
        error = getattr(error, "orig", None) or error.__cause__
    return False


def _psycopg_may_pass(error: BaseException) -> bool:
    state = getattr(error, "sqlstate", None)
    if state is not None:
        return str(state).startswith(_PASSING_STATES)
    import psycopg

    if not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return False
    said = str(error).lower()
    if any(words in said for words in _PASSING_WORDS):
        return True
    return not any(words in said for words in _LASTING_WORDS)


def patience_seconds() -> float:
    """Return how long an outage may last, by the environment or `PATIENCE_SECONDS`.

    Raises:
        UsageError: If the environment names no number of seconds.
    """
    text = os.environ.get(PATIENCE_VARIABLE, "").strip()
    if not text:
        return PATIENCE_SECONDS
    try:
        seconds = float(text)
        if not 0 <= seconds < float("inf"):
            raise ValueError
    except ValueError:
        raise UsageError(
            f"Expected a number of seconds in {PATIENCE_VARIABLE}, such as 900, got '{text}'."
        ) from None
    return seconds


def retry(
    call: Callable[[], T],
    *,
    seconds: float | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> T:
    """Call until no `OutageError` comes, with growing, jittered pauses.

    Args:
        call: What to do. It may have been done although its answer was lost: it must be safe
            to repeat.
        seconds: How long to try; None for `patience_seconds()`.
        interrupted: Asked several times a second: ends the waiting, so that a signal is heeded.

    Returns:
        What `call` returned.

    Raises:
        StorageError: If it lasts longer; what `call` raises that is no `OutageError` passes.
        OutageError: If `interrupted`.
    """
    patience = patience_seconds() if seconds is None else seconds
    began = time.monotonic()

    def tell(state: tenacity.RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome is not None:
            log.warning("%s Trying again for %.0f s.", state.outcome.exception(), patience)

    attempts = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(OutageError),
        # Jittered, or all workers would knock at the same moments.
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=MAX_PAUSE_SECONDS),
        stop=lambda state: interrupted() or (state.seconds_since_start or 0.0) >= patience,
        sleep=lambda pause: _sleep(min(pause, began + patience - time.monotonic()), interrupted),
        before_sleep=tell,
        reraise=True,
    )
    try:
        result = attempts(call)
    except OutageError as error:
        if interrupted() or not patience:
            raise
        raise StorageError(
            f"{error} It was tried again for {time.monotonic() - began:.0f} s "
            f"({PATIENCE_VARIABLE} sets how long). Checkpoints are kept: start again to go on."
        ) from error
    if attempts.statistics.get("attempt_number", 1) > 1:
        log.warning("The database answers again after %.0f s.", time.monotonic() - began)
    return result


def pause_seconds(attempt: int, longest: float = 60.0) -> float:
    """Return the pause after the n-th try, from 1: doubling from a second, up to half less."""
    return random.uniform(0.5, 1.0) * min(longest, 2.0 ** min(attempt - 1, 30))


def _sleep(seconds: float, interrupted: Callable[[], bool]) -> None:
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0 and not interrupted():
        time.sleep(min(left, 0.1))


#: No outage was seen: longer than any lease.
EVER_SECONDS = 1e9


class Reach:
    """What one process has seen of a database's outages.

    While a database is away no living worker renews its lease. The first process that reaches it
    again must not take these for dead: for as long as a lease lasts they have their chance.
    A process that comes new has seen no outage, and waits for nothing.
    """

    def __init__(self) -> None:
        self._is_away = False
        self._since: float | None = None

    def failed(self) -> None:
        """Note that the database did not answer."""
        self._is_away = True

    def answered(self) -> None:
        """Note that the database answers."""
        if self._is_away:
            self._is_away, self._since = False, time.monotonic()

    @property
    def seconds(self) -> float:
        """For how long it has answered; `EVER_SECONDS` where it never failed to."""
        return EVER_SECONDS if self._since is None else time.monotonic() - self._since


#: What is shown of an address's query; any other part of it may be a secret.
_HARMLESS_QUERY = frozenset({"host", "port", "sslmode"})


def shown(url: str) -> str:
    """Return a database's address without its secrets."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return f"sqlite:///{parsed.database}"
    query = {key: value for key, value in parsed.query.items() if key in _HARMLESS_QUERY}
    return parsed.set(query=query).render_as_string(hide_password=True)


def without_secrets(url: str) -> str:
    """Return an address without its password that opens the database where that is elsewhere."""
    if make_url(url).get_backend_name() == "sqlite":  # it has none, and `shown` is to be read
        return url
    return shown(url).replace(":***@", "@")


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn the database's errors into one message that holds no password.

    Raises:
        StorageError: For every error of SQLAlchemy, SQLite or Optuna's storage.
        OutageError: For those of them that may end by themselves.
    """
    try:
        yield
    except StorageError:
        raise
    except (sa.exc.SQLAlchemyError, sqlite3.Error, optuna.exceptions.StorageInternalError) as error:
        kind = OutageError if may_pass(error) else StorageError
        raise kind(_explain(error, url)) from error
    except RuntimeError as error:  # Optuna's word for tables of another version
        if "table schema" not in str(error) and "upgrade" not in str(error):
            raise
        raise StorageError(
            f"The database {shown(url)} was made by another version of Optuna: {error}"
        ) from error
    except KeyError as error:  # Optuna's word for a row that is gone
        if error.args != ("Record does not exist.",):
            raise
        raise StorageError(
            f"A study or a trial that is being searched is gone from the database {shown(url)}: "
            "deleted in the dashboard, or by another program. Start the study again."
        ) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OutageError(_full(url)) from error
        raise StorageError(f"Cannot use the database {shown(url)}: {error}.") from error


def _full(url: str) -> str:
    return (
        f"The disk of the database {shown(url)} is full. Nothing that was stored is lost: "
        "make room, then start again and the study goes on."
    )


def _explain(error: BaseException, url: str) -> str:
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    said = str(root).strip().splitlines()[0] if str(root).strip() else type(root).__name__
    parsed = make_url(url)
    for secret in (parsed.password, *parsed.query.values()):
        if secret and secret not in (parsed.host, *_harmless(parsed)):
            said = said.replace(str(secret), "***")
    if "disk is full" in said or "No space left" in said:
        return _full(url)
    if "disk I/O error" in said:
        return (
            f"The disk of the database {shown(url)} is full or fails: {said}. Make room or repair "
            "it, then start again and the study goes on."
        )
    if "not a database" in said:
        return (
            f"{shown(url)} is a file, but no SQLite database. "
            "Name another with --storage, or move it away."
        )
    if "malformed" in said:
        return (
            f"The database {shown(url)} is damaged: {said}. Restore a backup, or name another "
            "with --storage."
        )
    if "readonly" in said or "unable to open" in said:
        return (
            f"The database {shown(url)} cannot be opened for writing: {said}. "
            "Check the folder and its permissions, or name another with --storage."
        )
    if "database is locked" in said:
        return (
            f"Another program keeps the database {shown(url)} locked for over "
            f"{sqlite.BUSY_SECONDS} s. End that program, or use PostgreSQL for many workers."
        )
    return (
        f"Cannot use the database {shown(url)}: {said}. "
        "Check that it runs and that the address, user and password are right."
    )


def _harmless(url: URL) -> list[object]:
    return [value for key, value in url.query.items() if key in _HARMLESS_QUERY]


def tell_errors_at_their_source(engine: Engine, url: str) -> None:
    """Raise StorageErrors where the database fails, inside of Optuna, too.

    A suggestion or a report that fails by the database is thus never taken for a bug of the
    study whose space made it.
    """

    @sa.event.listens_for(engine, "handle_error")
    def tell(context: ExceptionContext) -> None:
        error = context.sqlalchemy_exception
        # Optuna and `register` live by integrity errors; a ping that fails connects again.
        if not isinstance(error, DBAPIError) or isinstance(error, IntegrityError):
            return
        if context.is_pre_ping:
            return
        lost = context.is_disconnect or may_pass(error)
        raise (OutageError if lost else StorageError)(_explain(context.original_exception, url))
