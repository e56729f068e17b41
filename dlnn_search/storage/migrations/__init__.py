"""Versions of our tables, and the way from an older one to the newest (Alembic).

`dlnn_schema` holds the version that programs read, also those of before Alembic; Alembic's own
note is `dlnn_alembic_version`, beside `alembic_version`, which is Optuna's. Both change in the
transaction that changes the tables.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from dlnn_search._version import __version__
from dlnn_search.errors import StorageError
from dlnn_search.storage import schema

VERSION_TABLE = "dlnn_alembic_version"
#: How long a change of tables waits for transactions that use them (PostgreSQL).
LOCK_SECONDS = 60

State = Literal["none", "older", "current"]


def state_of(engine: Engine, shown: str) -> State:
    """Return how the database's tables compare to this program's.

    Args:
        shown: The database's address without secrets, for the error.

    Raises:
        StorageError: If a newer program made them.
    """
    with engine.connect() as connection:
        return _state(connection, shown)


def upgrade(engine: Engine, shown: str) -> tuple[int, int]:
    """Make our tables, or bring older ones to the newest version: all of it or nothing.

    Of several programs that do so at once, one does it and the others find it done.

    Returns:
        The version before, 0 where there was none, and the one now.

    Raises:
        StorageError: If a newer program made the tables.
    """
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            # Python's driver begins no transaction by itself for a CREATE or an ALTER.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'")
        before = _version(connection)
        if _state(connection, shown) != "current" or not _is_noted(connection):
            run_steps(connection, before[0] if before else None)
            connection.execute(schema.schema.delete())
            connection.execute(
                schema.schema.insert().values(version=schema.SCHEMA_VERSION, program=__version__)
            )
    return (before or (0, ""))[0], schema.SCHEMA_VERSION


def run_steps(connection: Connection, made: int | None, to: str = "head") -> None:
    """Run the migrations that are lacking, in the transaction of a connection.

    Args:
        made: The version that is there, if Alembic has no note of one.
        to: The version to come to.
    """
    from alembic.migration import MigrationContext
    from alembic.operations import Operations
    from alembic.script import ScriptDirectory

    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    steps = ScriptDirectory(str(Path(__file__).parent))
    noted = context.get_current_revision() or (made and str(made)) or "base"
    with Operations.context(context):
        for step in reversed(list(steps.iterate_revisions(to, noted))):
            step.module.upgrade()
    context.stamp(steps, to)


def _state(connection: Connection, shown: str) -> State:
    found = _version(connection)
    if found is None:
        return "none"
    version, program = found
    if version > schema.SCHEMA_VERSION:
        raise StorageError(
            f"The database {shown} has tables of version {version} (made by dlnn-search "
            f"{program}). This is dlnn-search {__version__}, which expects version "
            f"{schema.SCHEMA_VERSION}. Install the newer dlnn-search, or name another database "
            "with --storage."
        )
    return "older" if version < schema.SCHEMA_VERSION else "current"


def _version(connection: Connection) -> tuple[int, str] | None:
    if not sa.inspect(connection).has_table(schema.schema.name):
        return None
    row = connection.execute(sa.select(schema.schema)).first()
    return None if row is None else (row.version, row.program)  # None: its making was cut off


def _is_noted(connection: Connection) -> bool:
    return sa.inspect(connection).has_table(VERSION_TABLE)


def too_old(engine: Engine, shown: str) -> StorageError:
    """Return the error for who only looks at a database of an older program."""
    with engine.connect() as connection:
        version, program = _version(connection) or (0, "")
    return StorageError(
        f"The database {shown} has tables of version {version} (made by dlnn-search "
        f"{program}). This is dlnn-search {__version__}, which expects version "
        f"{schema.SCHEMA_VERSION}. Stop workers of the older program, then upgrade the database "
        "with 'dlnn-search storage upgrade', which keeps everything. 'dlnn-search start STUDY' "
        "upgrades it, too."
    )
