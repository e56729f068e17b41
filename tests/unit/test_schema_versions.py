"""The newest migration makes what the program expects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from dlnn_search.storage import migrations, schema


def test_what_stands_in_the_schema_stands_in_the_newest_migration_too(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'dlnn.db'}")
    migrations.upgrade(engine, "the test's")

    def ours(thing: Any, name: str | None, kind: str, reflected: bool, other: Any) -> bool:
        return not (kind == "table" and name == migrations.VERSION_TABLE)

    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_object": ours})
        lacking = compare_metadata(context, schema.metadata)
    engine.dispose()
    assert lacking == [], "add it to the newest file in dlnn_search/storage/migrations/versions"
