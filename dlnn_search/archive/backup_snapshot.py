"""Read a database as it was at one moment, our tables and Optuna's, while workers write on."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dlnn_search.storage.database import Database, open_database, storage_errors
from dlnn_search.storage.database.sqlite import connect_to_read


@contextmanager
def snapshot(database: Database) -> Iterator[tuple[Database, Connection]]:
    """Yield a database that no longer changes, and a connection in it; for reading only."""
    if database.engine.dialect.name == "sqlite":
        with _copy_of_file(database) as copy, copy.transaction() as connection:
            yield copy, connection
        return
    with storage_errors(database.url), _same_view(database) as pair:
        yield pair


@contextmanager
def _copy_of_file(database: Database) -> Iterator[Database]:
    with tempfile.TemporaryDirectory(prefix="dlnn-search-") as folder:
        path = Path(folder) / "copy.db"
        with (
            storage_errors(database.url),
            closing(connect_to_read(database.url)) as source,
            closing(sqlite3.connect(path)) as target,
        ):
            source.backup(target)  # in one step: writers wait for none of it in WAL mode
        with open_database(f"sqlite:///{path}", create=False) as copy:
            yield copy


@contextmanager
def _same_view(database: Database) -> Iterator[tuple[Database, Connection]]:
    """PostgreSQL lends a transaction's view to other transactions, Optuna's among them."""
    with open_database(database.url, create=False, read_only=database.read_only) as reading:
        isolated = reading.engine.execution_options(isolation_level="REPEATABLE READ")
        with isolated.connect() as connection:
            name = connection.execute(sa.select(sa.func.pg_export_snapshot())).scalar_one()

            @sa.event.listens_for(reading.engine, "begin")
            def take_view(other: Connection) -> None:
                other.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                other.exec_driver_sql(f"SET TRANSACTION SNAPSHOT '{name}'")

            yield reading, connection
