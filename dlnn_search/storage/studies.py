"""`storage info`: which database it is, and what it holds."""

from __future__ import annotations

from pathlib import Path

import optuna
import sqlalchemy as sa
from sqlalchemy.engine import Connection, make_url

from dlnn_search.storage import schema
from dlnn_search.storage.database import Database
from dlnn_search.storage.database.sqlite import BUSY_SECONDS, network_file_system
from dlnn_search.storage.definitions import all_studies
from dlnn_search.storage.halves import lost_words

Facts = list[tuple[str, str]]


def describe(database: Database) -> Facts:
    """Return what there is to say, as pairs of what about and words."""
    with database.transaction() as connection:
        facts = [("database", database.shown)]
        if database.engine.dialect.name == "sqlite":
            facts += _sqlite(connection, Path(make_url(database.url).database or ""))
        else:
            facts += _postgresql(connection)
        row = connection.execute(sa.select(schema.schema)).one()
        facts.append(("our tables", f"version {row.version}, by dlnn-search {row.program}"))
        facts += _contents(connection)
    version = database.optuna.get_current_version()
    facts.insert(-1, ("Optuna's tables", f"{version}, by Optuna {optuna.__version__}"))
    facts.append(("files", str(database.files)))
    for study in all_studies(database):
        lost = lost_words(database, study.id, study.name)
        if lost is not None:
            facts.append(("broken", lost))
    return facts


def _sqlite(connection: Connection, path: Path) -> Facts:
    mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
    version = connection.exec_driver_sql("SELECT sqlite_version()").scalar()
    size = sum(
        file.stat().st_size for file in (path, path.with_name(f"{path.name}-wal")) if file.exists()
    )
    facts = [
        ("server", f"SQLite {version}, journal {mode}, waits {BUSY_SECONDS} s for a writer"),
        ("size", f"{size / 1e6:,.1f} MB"),
    ]
    if (kind := network_file_system(path)) is not None:
        facts.append(
            ("warning", f"on a network file system ({kind}), where SQLite's locks do not hold")
        )
    return facts


def _postgresql(connection: Connection) -> Facts:
    def ask(query: str) -> str:
        return str(connection.exec_driver_sql(query).scalar())

    used = ask("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")
    reserved = ask("SHOW superuser_reserved_connections")
    size = int(ask("SELECT pg_database_size(current_database())"))
    return [
        ("server", f"PostgreSQL {ask('SHOW server_version')}"),
        (
            "connections",
            f"{used} in use of {ask('SHOW max_connections')} ({reserved} reserved); "
            "a worker takes 1, at most 4",
        ),
        ("size", f"{size / 1e6:,.1f} MB"),
    ]


def _contents(connection: Connection) -> Facts:
    def count(table: sa.Table) -> int:
        return connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0

    done = connection.scalar(
        sa.select(sa.func.count()).select_from(schema.slots).where(schema.slots.c.state == "done")
    )
    kept = connection.scalar(sa.select(sa.func.sum(schema.artifacts.c.size_bytes))) or 0
    return [
        (
            "holds",
            f"{count(schema.studies):,} studies, {count(schema.slots):,} slots ({done:,} done), "
            f"{count(schema.curves):,} epochs, {count(schema.ledger):,} openings of test splits",
        ),
        (
            "checkpoints",
            f"{count(schema.artifacts):,} kept, {int(kept) / 1e6:,.1f} MB",
        ),
    ]
