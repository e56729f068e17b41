"""What SQLite needs for many writing processes, and says too late or not at all."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import suppress
from pathlib import Path
from shlex import quote as quote_word
from typing import Any
from urllib.parse import quote

import psutil
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, make_url

from dlnn_search.errors import StorageError, UsageError

log = logging.getLogger(__name__)

#: Longest wait for another writer; a write holds SQLite's lock for milliseconds.
BUSY_SECONDS = 60

#: Device and inode.
FileIdentity = tuple[int, int]


class _Connection(sqlite3.Connection):
    """A connection whose commits wait for the system's page cache, not for the disk.

    In WAL mode a killed process loses nothing by that, and a machine without power at most its
    last moments, never the order of things. 16 writers are twice to ten times as fast.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.execute("PRAGMA synchronous=NORMAL")


def connect_args() -> dict[str, Any]:
    """Return what `sqlite3.connect` is called with."""
    return {
        "factory": _Connection,
        "timeout": BUSY_SECONDS,
        # A transaction that will write takes the lock at its first write, not between two:
        # otherwise two half-done ones wait for each other ("database is locked").
        "isolation_level": "IMMEDIATE",
    }


def connect_to_read(url: str) -> sqlite3.Connection:
    """Return a connection that cannot write, also to a file in a folder that cannot be written.

    A file with a write-ahead log is read with the help of `FILE-shm`, which every reader shares
    and the first one makes. Where it can be neither found nor made, no writer is at work
    (it would have one), and without a log the file alone holds all that there is: `immutable`
    reads it so. Such a connection sees no writer that comes later: keep it for one transaction.

    Raises:
        StorageError: If a log holds changes that cannot be read.
    """
    path = Path(make_url(url).database or "")
    connection = _connect_to_read(path, "mode=ro")
    try:
        connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
        return connection
    except sqlite3.OperationalError as error:
        connection.close()
        is_refused = error.sqlite_errorcode & 0xFF in (
            sqlite3.SQLITE_CANTOPEN,
            sqlite3.SQLITE_READONLY,
        )
        if not is_refused or path.with_name(f"{path.name}-shm").exists():
            raise
    except BaseException:
        connection.close()
        raise
    log_file = path.with_name(f"{path.name}-wal")
    if log_file.exists() and log_file.stat().st_size:
        raise StorageError(
            f"The database '{path}' cannot be read without writing beside it: '{log_file.name}' "
            f"holds changes, and its index '{path.name}-shm' is missing. Copy both files into a "
            "folder that you may write, and name the copy with --storage."
        )
    return _connect_to_read(path, "mode=ro&immutable=1")


def _connect_to_read(path: Path, how: str) -> sqlite3.Connection:
    # SQLAlchemy hands connections from thread to thread.
    return sqlite3.connect(
        f"file:{quote(str(path))}?{how}", uri=True, timeout=BUSY_SECONDS, check_same_thread=False
    )


def with_whole_path(text: str) -> str:
    """Return an address in which a '?' of an SQLite file's path ends that path no more.

    Raises:
        UsageError: If it begins options, as another program may take them.
    """
    if not text.startswith("sqlite:") or text.startswith("sqlite:///file:"):
        return text
    options = text.partition("?")[2]
    if "=" in options and "/" not in options:
        raise UsageError(
            f"Expected sqlite:///FILE without options, got '?{options}'. Leave it out; in a file's "
            "name, write '?' as %3F."
        )
    return text.replace("?", "%3F")


def file_of(url: str) -> Path | None:
    """Return the file that an address names, there or not; None for a server's."""
    parsed = make_url(url)
    return Path(parsed.database or "") if parsed.get_backend_name() == "sqlite" else None


def look_for_file(url: str, *, create: bool) -> None:
    """Make the database's folder, or say that there is no database.

    Raises:
        StorageError: If the path is a folder, or, without `create`, is not there.
    """
    path = Path(make_url(url).database or "")
    if path.is_dir():
        raise StorageError(
            f"Expected an SQLite file, got the folder '{path}'. "
            f"Name a file in it: --storage {quote_word(f'sqlite:///{path}/dlnn.db')}"
        )
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
        if (kind := network_file_system(path)) is not None:
            log.warning(
                "The database '%s' lies on a network file system (%s), where SQLite's locks do not "
                "hold: with workers on several machines it gets damaged. Use PostgreSQL for "
                "several machines, or a local disk for one.",
                path,
                kind,
            )
    elif not path.exists():
        raise StorageError(
            f"There is no database at '{path}'. Start a search in this folder with "
            "'dlnn-search start STUDY', or name another database with --storage."
        )


#: Where locks between machines are missing or not to be trusted (sqlite.org/howtocorrupt.html).
_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "fuse.sshfs", "lustre"})


def network_file_system(path: Path) -> str | None:
    """Return the kind of network file system that a file lies on; None where it is on none."""
    try:
        partitions = psutil.disk_partitions(all=True)
    except OSError:
        return None
    real = path.resolve()
    mounts = {Path(each.mountpoint): each.fstype for each in partitions}
    for folder in (real, *real.parents):
        if folder in mounts:
            return mounts[folder] if mounts[folder] in _NETWORK else None
    return None


def file_identity(url: str) -> FileIdentity | None:
    """Return which file an SQLite address names at this moment; None for a server, or none."""
    if (path := file_of(url)) is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def use_write_ahead_log(engine: Engine) -> None:
    """Let readers and the one writer work side by side; the mode stays with the file."""
    # Another connection or a read-only file is no reason to stop: the next opening tries again.
    with suppress(sa.exc.OperationalError), engine.connect() as connection:
        if connection.exec_driver_sql("PRAGMA journal_mode").scalar() != "wal":
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")


def lock_where_asked(engine: Engine) -> None:
    """Give SQLite a `SELECT ... FOR UPDATE`: it begins a transaction that writes.

    SQLite has no such words, SQLAlchemy leaves them out, and two workers take the same enqueued
    trial between Optuna's look at its state and its change of it.
    """

    @sa.event.listens_for(engine, "before_cursor_execute")
    def lock(
        connection: Connection,
        cursor: Any,
        statement: str,
        parameters: Any,
        context: Any,
        executemany: bool,
    ) -> None:
        asked = getattr(context.invoked_statement, "_for_update_arg", None)
        driver: Any = connection.connection.dbapi_connection
        if asked is not None and not driver.in_transaction:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
