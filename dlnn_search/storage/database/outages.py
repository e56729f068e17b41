"""What a database's errors mean: one message that says what to do and holds no password."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine, ExceptionContext, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError

from dlnn_search.errors import OutageError, StorageError
from dlnn_search.storage.database import sqlite
from dlnn_search.storage.database.retry import may_pass

#: What is shown of an address's query; any other part of it may be a secret.
_HARMLESS_QUERY = frozenset({"host", "port", "sslmode"})


def shown(url: str) -> str:
    """Return a database's address without its secrets."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return f"sqlite:///{parsed.database}"
    query = {key: value for key, value in parsed.query.items() if key in _HARMLESS_QUERY}
    return parsed.set(query=query).render_as_string(hide_password=True)


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
            f"The disk of the database {shown(url)} is full or fails: {said}. Make room or mend "
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
