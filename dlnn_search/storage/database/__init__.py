"""Open the one database of a search, or say why it cannot be opened."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import optuna
import sqlalchemy as sa
from filelock import FileLock
from optuna.storages import RDBStorage
from sqlalchemy.engine import URL, Connection, Engine, make_url

from dlnn_search.errors import OutageError, StorageError, UsageError
from dlnn_search.optuna_version import check_optuna, lacking
from dlnn_search.secret import STORAGE_PASSWORD, read_secret, remember
from dlnn_search.storage import migrations
from dlnn_search.storage.database import sqlite
from dlnn_search.storage.database.outages import Reach, retry, tell_errors_at_their_source
from dlnn_search.storage.database.outages import shown as shown
from dlnn_search.storage.database.outages import storage_errors as storage_errors
from dlnn_search.storage.database.outages import without_secrets as without_secrets
from dlnn_search.storage.optuna import rdb_storage

DEFAULT_URL = "sqlite:///storage/data/dlnn.db"
CONNECT_SECONDS = 10
#: A connection whose other end vanished without a word (power cut, firewall) fails after that.
SILENT_SECONDS = 30
#: A transaction that says nothing for so long is undone by the server.
FROZEN_SECONDS = 60

T = TypeVar("T")

_SECRET_QUERY = frozenset({"password", "sslpassword"})


class UndoneError(StorageError):
    """A call of Optuna's failed and undid the transaction that it was a part of."""


@dataclass(frozen=True, eq=False)
class Database:
    """Optuna's storage and our tables, behind one engine.

    Attributes:
        url: The database's address, password included: never print it, print `shown`.
        optuna: The storage for `optuna.load_study`.
        reach: For how long it has answered this process.
        read_only: Whether nothing can be written through it.
    """

    url: str
    optuna: RDBStorage
    _file: sqlite.FileIdentity | None = None
    #: Of each thread: the connection of `together`, while that is open.
    _open: threading.local = field(default_factory=threading.local)
    reach: Reach = field(default_factory=Reach, repr=False)
    read_only: bool = False

    @property
    def engine(self) -> Engine:
        return self.optuna.engine

    @property
    def joins(self) -> bool:
        """Whether Optuna's calls can be a part of one of our transactions."""
        return hasattr(self.optuna, "joined")

    @property
    def shown(self) -> str:
        """The address without its secrets."""
        return shown(self.url)

    @property
    def files(self) -> Path:
        """Where checkpoints, logs and models of this database's studies are kept."""
        return files_folder(self.url)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction that commits at its end, or fails with a StorageError.

        Within `together` it is a part of that one, and commits with it.
        """
        joint: Connection | None = getattr(self._open, "connection", None)
        if joint is not None and not joint.closed:
            if not joint.in_transaction():
                raise UndoneError(f"A transaction in {self.shown} was undone by a part of it.")
            yield joint
            return
        if sqlite.file_identity(self.url) != self._file:
            # SQLite would go on writing into the file that nobody can open any more.
            raise StorageError(
                f"The database {self.shown} was deleted or replaced while it was in use. "
                "Put it back (or restore a backup), then start again."
            )
        with self._watched(), self.engine.begin() as connection:
            self.reach.answered()
            yield connection

    @contextmanager
    def together(self) -> Iterator[None]:
        """One transaction of all that is done inside, ours and Optuna's: all of it or nothing.

        With an Optuna that cannot join (`optuna_version`), the calls are done one after the other,
        each as a whole: they are to stand in an order in which whoever comes next can go on
        wherever a kill cuts them off.

        Raises:
            UndoneError: If a call of Optuna's failed, even if its error was caught: nothing was
                done. Errors of the database, and our own, come out as they are.
            RuntimeError: Inside of another one, which would not be a whole any more.
        """
        if getattr(self._open, "is_together", False):
            raise RuntimeError("A together() is inside of another one: make them one.")
        self._open.is_together = True
        try:
            if self.joins:
                with self._joined():
                    yield
            else:
                yield
        finally:
            self._open.is_together = False

    @contextmanager
    def _joined(self) -> Iterator[None]:
        joined: Any = getattr(self.optuna, "joined")  # noqa: B009
        with self.transaction() as connection, joined(connection):
            self._open.connection = connection
            try:
                yield
                if not connection.in_transaction():
                    raise UndoneError(f"A transaction in {self.shown} was undone by a part of it.")
            except OutageError:
                raise
            except Exception as error:
                if connection.in_transaction() or isinstance(error, UndoneError):
                    raise
                raise UndoneError(f"A transaction in {self.shown} was undone: {error}") from error
            finally:
                self._open.connection = None

    def at_once(self, *calls: Callable[[], object]) -> None:
        """Do several things in one transaction; where a part undoes it, one after the other.

        Args:
            calls: In this order; each is safe to repeat, and may be the last that is done.
        """
        try:
            with self.together():
                for call in calls:
                    call()
        except UndoneError:
            for call in calls:
                call()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            with storage_errors(self.url):
                yield
        except OutageError:
            self.reach.failed()
            raise

    def retrying(
        self,
        call: Callable[[], T],
        *,
        seconds: float | None = None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> T:
        """Call what works on this database, ours or Optuna's, until no outage stops it.

        Args:
            call: What to do; safe to repeat, since its answer alone may have been lost.
            seconds: How long an outage may last; None for `retry.patience_seconds()`.
            interrupted: Ends the waiting, so that a signal is heeded.

        Raises:
            StorageError: If the outage lasts longer, or is none that may end by itself.
            OutageError: If `interrupted`.
        """

        def told() -> T:
            with self._watched():
                return call()

        return retry(told, seconds=seconds, interrupted=interrupted)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.optuna.remove_session()
        self.engine.dispose()


def files_folder(url: str) -> Path:
    """Return the folder beside an SQLite database, or `storage/data` for a server's."""
    if (path := sqlite.file_of(url)) is not None:
        return path.resolve().parent
    return Path(os.environ.get("DLNN_SEARCH_FILES", "storage/data")).resolve()


def database_url(given: str | None, password: str = STORAGE_PASSWORD) -> str:
    """Return the address to use: as given, from the environment, or SQLite in this folder.

    Args:
        given: An address; None: DLNN_SEARCH_STORAGE, else the default.
        password: Names the secret (of the environment, or in a file) that is a server's
            password where its address holds none.

    Raises:
        UsageError: If it is no address of a database that is supported.
    """
    text = given or os.environ.get("DLNN_SEARCH_STORAGE") or DEFAULT_URL
    try:
        url = make_url(sqlite.with_whole_path(text))
    except (sa.exc.ArgumentError, ValueError):
        raise _no_address() from None
    backend = url.get_backend_name()
    if backend in ("postgresql", "postgres"):
        return _postgresql(url, password)
    if backend != "sqlite":
        raise UsageError(
            f"Expected a database of SQLite or PostgreSQL, got '{url.drivername}'. "
            "Use sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME."
        )
    if url.host or "\0" in (url.database or ""):
        raise _no_address()
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise UsageError(
            "Expected an SQLite file, got a database in memory or a URI, which workers cannot "
            "share. Use sqlite:///FILE."
        )
    # A folder's name may hold what is special in a URL.
    return URL.create("sqlite", database=str(Path(url.database).resolve())).render_as_string()


def _no_address() -> UsageError:
    # The text itself is not repeated: it may hold a password.
    return UsageError(
        "Expected a database URL such as sqlite:///storage/data/dlnn.db or "
        "postgresql+psycopg://user@host/name, got something else. "
        "Give it with --storage or DLNN_SEARCH_STORAGE; in a password, write '@', '/', ':' and "
        "'%' as %40, %2F, %3A and %25."
    )


def _postgresql(url: URL, password: str) -> str:
    """Psycopg 3 is the one driver we test with; a bare `postgresql://` means it, too."""
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise UsageError(
            "PostgreSQL needs its driver, which is not installed. Install it with "
            "pip install '.[postgres]' in dlnn-search's folder."
        ) from None
    url = url.set(drivername="postgresql+psycopg")
    if not url.password and "password" not in url.query and (secret := read_secret(password)):
        url = url.set(password=secret)
    remember(str(url.password or ""))
    for key, value in url.query.items():
        if key in _SECRET_QUERY:
            remember(str(value))
    return url.render_as_string(hide_password=False)


def open_database(url: str, *, create: bool, read_only: bool = False) -> Database:
    """Open a database; where `create` says so, make missing tables and bring older ones up.

    Args:
        url: As `database_url` returns it.
        create: Whether missing tables are made.
        read_only: Write nothing at all: a user who may only read suffices, and every attempt
            to write fails, whoever makes it.

    Raises:
        StorageError: If it cannot be reached, is none, or is a newer version's; or, without
            `create`, if it has no tables of ours or those of an older version.
    """
    check_optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with storage_errors(url):
        if sqlite.file_of(url) is not None:
            sqlite.look_for_file(url, create=create)
        kwargs = _engine_kwargs(url, read_only)
        # Optuna makes its tables in any database that it opens, so we look first.
        engine = sa.create_engine(url, **kwargs)
        try:
            found = migrations.state_of(engine, shown(url))
            if found == "current":
                if engine.dialect.name == "sqlite" and not read_only:
                    sqlite.use_write_ahead_log(engine)
                storage = _optuna_storage(url, kwargs, read_only)
            elif create:
                with _alone(engine, url):
                    if engine.dialect.name == "sqlite":
                        sqlite.use_write_ahead_log(engine)
                    optunas = _optuna_storage(url, kwargs)  # makes its tables
                    optunas.remove_session()
                    optunas.engine.dispose()
                    migrations.upgrade(engine, shown(url))
                storage = _optuna_storage(url, kwargs)
            elif found == "older":
                raise migrations.too_old(engine, shown(url))
            else:
                raise _no_study_yet(url)
        finally:
            engine.dispose()
    tell_errors_at_their_source(storage.engine, url)
    if storage.engine.dialect.name == "sqlite":
        sqlite.lock_where_asked(storage.engine)
    return Database(url, storage, sqlite.file_identity(url), read_only=read_only)


def upgrade_database(url: str) -> tuple[int, int]:
    """Bring a database of ours to this program's version, Optuna's tables included.

    Returns:
        The version of our tables before, and the one now.

    Raises:
        StorageError: If there is none, or a newer program made it.
    """
    with storage_errors(url):
        if sqlite.file_of(url) is not None:
            sqlite.look_for_file(url, create=False)
        kwargs = _engine_kwargs(url)
        engine = sa.create_engine(url, **kwargs)
        try:
            if migrations.state_of(engine, shown(url)) == "none":
                raise _no_study_yet(url)
            with _alone(engine, url):
                optunas = _optuna_storage(url, kwargs, skip_compatibility_check=True)
                try:
                    if optunas.get_current_version() != optunas.get_head_version():
                        optunas.upgrade()
                finally:
                    optunas.remove_session()
                    optunas.engine.dispose()
                return migrations.upgrade(engine, shown(url))
        finally:
            engine.dispose()


def _no_study_yet(url: str) -> StorageError:
    return StorageError(
        f"The database {shown(url)} holds no study yet. "
        "Start one with 'dlnn-search start STUDY', or name another database with --storage."
    )


def _engine_kwargs(url: str, read_only: bool = False) -> dict[str, Any]:
    if sqlite.file_of(url) is None:
        settings = _connection_settings(url)
        if read_only:
            # After the address's own, which would be overwritten: of two settings the last counts.
            own = make_url(url).query.get("options", ())
            asked = [own] if isinstance(own, str) else list(own)
            settings["options"] = " ".join([*asked, "-c default_transaction_read_only=on"])
        return {
            "pool_pre_ping": True,
            # A worker reports, renews and claims one thing after the other: it keeps one open.
            "pool_size": 1,
            "max_overflow": 3,
            "connect_args": settings,
        }
    if read_only:
        return {"creator": lambda: sqlite.connect_to_read(url), "poolclass": sa.pool.NullPool}
    return {"connect_args": sqlite.connect_args()}


def _connection_settings(url: str) -> dict[str, Any]:
    """Return libpq's settings, less what the address sets itself."""
    settings = {
        "connect_timeout": CONNECT_SECONDS,
        # A database in SQL_ASCII, as a server without a locale makes it, else answers in bytes.
        "client_encoding": "UTF8",
        "application_name": f"dlnn-search {socket.gethostname()[:40]} {os.getpid()}",
        "keepalives": 1,
        "keepalives_idle": SILENT_SECONDS // 2,
        "keepalives_interval": SILENT_SECONDS // 6,
        "keepalives_count": 3,
        "tcp_user_timeout": 1000 * SILENT_SECONDS,
        # A worker that is frozen in the middle of a transaction must not keep its locks.
        "options": f"-c idle_in_transaction_session_timeout={1000 * FROZEN_SECONDS}",
    }
    return {name: value for name, value in settings.items() if name not in make_url(url).query}


def _optuna_storage(
    url: str,
    kwargs: dict[str, Any],
    read_only: bool = False,
    *,
    skip_compatibility_check: bool = False,
) -> RDBStorage:
    # Where Optuna refuses the database it leaves connections open: it gets a pool to be closed.
    pool = sa.create_engine(url, **kwargs).pool
    # Optuna takes the address for a template: a brace in a password or a folder's name is not one.
    template = url.replace("{", "{{").replace("}", "}}")
    try:
        storage = rdb_storage(
            template,
            engine_kwargs={"pool": pool},
            skip_compatibility_check=skip_compatibility_check,
            skip_table_creation=read_only,
        )
        if not hasattr(storage, "engine"):
            raise lacking("optuna.storages.RDBStorage.engine")
        return storage
    except BaseException:
        pool.dispose()
        raise


#: Any number that no other program is likely to lock in the same database.
_CREATION_LOCK = 0x646C6E6E


@contextmanager
def _alone(engine: Engine, url: str) -> Iterator[None]:
    """Let one process at a time make the tables."""
    if engine.dialect.name == "sqlite":
        with FileLock(f"{make_url(url).database}.lock", timeout=sqlite.BUSY_SECONDS):
            yield
        return
    with engine.connect() as connection:
        connection.execute(sa.select(sa.func.pg_advisory_lock(_CREATION_LOCK)))
        yield  # the lock ends with the connection, which is closed by the engine's dispose
