"""Open the one database of a search, or say why it cannot be opened."""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from filelock import FileLock
from optuna.storages import RDBStorage
from sqlalchemy.engine import URL, Connection, Engine, make_url

from dlnn_search import __version__
from dlnn_search.errors import StorageError, UsageError
from dlnn_search.storage import schema

DEFAULT_URL = "sqlite:///storage/data/dlnn.db"
#: Longest wait for another writer; a write holds SQLite's lock for milliseconds.
SQLITE_BUSY_SECONDS = 60
CONNECT_SECONDS = 10


@dataclass(frozen=True, eq=False)
class Database:
    """Optuna's storage and our tables, behind one engine.

    Attributes:
        url: The database's address, password included: never print it, print `shown`.
        optuna: The storage for `optuna.load_study`.
    """

    url: str
    optuna: RDBStorage

    @property
    def engine(self) -> Engine:
        return self.optuna.engine

    @property
    def shown(self) -> str:
        """The address without its password."""
        return make_url(self.url).render_as_string(hide_password=True)

    @property
    def files(self) -> Path:
        """Where checkpoints, logs and models of this database's studies are kept."""
        return files_folder(self.url)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction that commits at its end, or fails with a StorageError."""
        with storage_errors(self.url), self.engine.begin() as connection:
            yield connection

    def close(self) -> None:
        self.optuna.remove_session()
        self.engine.dispose()


def files_folder(url: str) -> Path:
    """Return the folder beside an SQLite database, or `storage/data` for a server's."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        return Path(parsed.database).resolve().parent
    return Path(os.environ.get("DLNN_SEARCH_FILES", "storage/data")).resolve()


def database_url(given: str | None) -> str:
    """Return the address to use: as given, from the environment, or SQLite in this folder.

    Raises:
        UsageError: If it is no address of a database that is supported.
    """
    text = given or os.environ.get("DLNN_SEARCH_STORAGE") or DEFAULT_URL
    try:
        url = make_url(text)
    except (sa.exc.ArgumentError, ValueError):
        # The text itself is not repeated: it may hold a password.
        raise UsageError(
            "Expected a database URL such as sqlite:///storage/data/dlnn.db or "
            "postgresql+psycopg://user@host/name, got something that is none. "
            "Give it with --storage or DLNN_SEARCH_STORAGE."
        ) from None
    backend = url.get_backend_name()
    if backend == "postgresql":
        return _postgresql(url)
    if backend != "sqlite":
        raise UsageError(
            f"Expected a database of SQLite or PostgreSQL, got '{url.drivername}'. "
            "Use sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME."
        )
    if not url.database or url.database == ":memory:":
        raise UsageError(
            "Expected an SQLite file, got a database in memory, which workers cannot share. "
            "Use sqlite:///FILE."
        )
    return f"sqlite:///{Path(url.database).resolve()}"


def _postgresql(url: URL) -> str:
    """Psycopg 3 is the one driver we test with; a bare `postgresql://` means it, too."""
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise UsageError(
            "PostgreSQL needs its driver, which is not installed: "
            "pip install 'dlnn-search[postgres]'"
        ) from None
    return url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def open_database(url: str, *, create: bool) -> Database:
    """Open a database, and make the tables where `create` says so and they are missing.

    Raises:
        StorageError: If it cannot be reached, is none, or is another version's; or, without
            `create`, if it has no tables of ours.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with storage_errors(url):
        kwargs = _engine_kwargs(url, create)
        # Optuna makes its tables in any database that it opens, so we look first.
        engine = sa.create_engine(url, **kwargs)
        try:
            if not _has_our_tables(engine, url):
                if not create:
                    raise StorageError(
                        f"The database {shown(url)} holds no study yet. "
                        "Begin one with 'dlnn-search start STUDY', or name another with --storage."
                    )
                with _alone(engine, url):
                    optuna_storage = RDBStorage(url, engine_kwargs=kwargs)
                    _create_tables(engine)
            else:
                optuna_storage = RDBStorage(url, engine_kwargs=kwargs)
        finally:
            engine.dispose()
    return Database(url, optuna_storage)


def shown(url: str) -> str:
    """Return a database's address without its password."""
    return make_url(url).render_as_string(hide_password=True)


def _engine_kwargs(url: str, create: bool) -> dict[str, Any]:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return {
            "pool_pre_ping": True,
            # A worker reports, renews and claims one thing after the other.
            "pool_size": 2,
            "max_overflow": 2,
            "connect_args": {"connect_timeout": CONNECT_SECONDS},
        }
    path = Path(parsed.database or "")
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
    elif not path.exists():
        raise StorageError(
            f"There is no database at '{path}'. Begin a search in this folder with "
            "'dlnn-search start STUDY', or name another database with --storage."
        )
    connection = sqlite3.connect(path, timeout=SQLITE_BUSY_SECONDS)
    try:
        # Readers and one writer side by side; the mode stays with the file.
        connection.execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()
    return {
        "connect_args": {
            "timeout": SQLITE_BUSY_SECONDS,
            # A transaction that will write takes the lock at its first write, not between two:
            # otherwise two half-done ones wait for each other ("database is locked").
            "isolation_level": "IMMEDIATE",
        }
    }


def _has_our_tables(engine: Engine, url: str) -> bool:
    if not sa.inspect(engine).has_table(schema.schema.name):
        return False
    with engine.connect() as connection:
        row = connection.execute(sa.select(schema.schema)).one()
    if row.version != schema.SCHEMA_VERSION:
        newer = row.version > schema.SCHEMA_VERSION
        raise StorageError(
            f"The database {shown(url)} has our tables in version {row.version} (made by "
            f"dlnn-search {row.program}); this is dlnn-search {__version__}, which expects "
            f"version {schema.SCHEMA_VERSION}. "
            + (
                "Install the newer dlnn-search, or name another database with --storage."
                if newer
                else "Name another database with --storage, or go on with the older dlnn-search."
            )
        )
    return True


def _create_tables(engine: Engine) -> None:
    with engine.begin() as connection:
        schema.metadata.create_all(connection)
        if connection.execute(sa.select(schema.schema)).first() is None:
            connection.execute(
                schema.schema.insert().values(version=schema.SCHEMA_VERSION, program=__version__)
            )


#: Any number that no other program is likely to lock in the same database.
_CREATION_LOCK = 0x646C6E6E


@contextmanager
def _alone(engine: Engine, url: str) -> Iterator[None]:
    """Let one process at a time make the tables."""
    if engine.dialect.name == "sqlite":
        with FileLock(f"{make_url(url).database}.lock", timeout=SQLITE_BUSY_SECONDS):
            yield
        return
    with engine.connect() as connection:
        connection.execute(sa.select(sa.func.pg_advisory_lock(_CREATION_LOCK)))
        yield  # the lock ends with the connection, which is closed by the engine's dispose


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn the database's errors into one message that holds no password.

    Raises:
        StorageError: For every error of SQLAlchemy, SQLite or Optuna's storage.
    """
    try:
        yield
    except StorageError:
        raise
    except (sa.exc.SQLAlchemyError, sqlite3.Error, optuna.exceptions.StorageInternalError) as error:
        raise StorageError(_explain(error, url)) from error
    except RuntimeError as error:  # Optuna's word for tables of another version
        if "table schema" not in str(error) and "upgrade" not in str(error):
            raise
        raise StorageError(
            f"The database {shown(url)} was made by another version of Optuna: {error}"
        ) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StorageError(_full(url)) from error
        raise StorageError(f"Cannot use the database {shown(url)}: {error}.") from error


def _full(url: str) -> str:
    return (
        f"The disk of the database {shown(url)} is full. Nothing that was stored is lost: "
        "make room, then start again and the study goes on."
    )


def _explain(error: Exception, url: str) -> str:
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    said = str(root).strip().splitlines()[0] if str(root).strip() else type(root).__name__
    password = make_url(url).password
    if password:
        said = said.replace(str(password), "***")
    if "disk is full" in said or "disk I/O error" in said or "No space left" in said:
        return _full(url)
    if "not a database" in said:
        return (
            f"{shown(url)} is a file, but no SQLite database. "
            "Name another with --storage, or move it away."
        )
    if "readonly" in said or "unable to open" in said:
        return (
            f"The database {shown(url)} cannot be opened for writing: {said}. "
            "Check the folder and its permissions, or name another with --storage."
        )
    return (
        f"Cannot use the database {shown(url)}: {said}. "
        "Check that it runs and that the address, user and password are right."
    )
