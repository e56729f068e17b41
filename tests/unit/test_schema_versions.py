"""The newest migration makes what the program expects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from dlnn_search.storage import schema
from dlnn_search.storage.database import open_database


def test_what_stands_in_the_schema_stands_in_the_newest_migration_too(tmp_path: Path) -> None:
    def ours(thing: Any, name: str | None, kind: str, reflected: bool, other: Any) -> bool:
        return not (kind == "table" and name not in schema.metadata.tables)

    # Optuna's tables come first, as always: a migration may change what stands in them.
    with (
        open_database(f"sqlite:///{tmp_path / 'dlnn.db'}", create=True) as database,
        database.engine.connect() as connection,
    ):
        context = MigrationContext.configure(connection, opts={"include_object": ours})
        lacking = compare_metadata(context, schema.metadata)
    assert lacking == [], "add it to the newest file in dlnn_search/storage/migrations/versions"
