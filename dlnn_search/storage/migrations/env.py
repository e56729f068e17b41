"""What Alembic runs for each change of the tables: on the connection that it is given."""

from __future__ import annotations

from alembic import context

from dlnn_search.storage.migrations import VERSION_TABLE
from dlnn_search.storage.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    # SQLite changes a column by making the table anew.
    render_as_batch=True,
)
# The connection is in a transaction already, whose owner commits all or nothing.
context.run_migrations()
