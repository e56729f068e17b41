"""`dlnn-search storage`: upgrade, back up, restore and move the trials database."""

from __future__ import annotations

import typer

from dlnn_search.cli_options import StorageOption, database_url_of

app = typer.Typer(
    name="storage",
    help="The trials database: upgrade it after an update of dlnn-search.",
    no_args_is_help=True,
)


@app.command("upgrade")
def upgrade(storage: StorageOption = None) -> None:
    """Bring an older database's tables to this program's version."""
    from dlnn_search.storage.database import shown, upgrade_database

    url = database_url_of(storage)
    before, now = upgrade_database(url)
    if before == now:
        print(f"{shown(url)} has version {now} of our tables already.")
    else:
        print(f"Upgraded {shown(url)} from version {before} to {now} of our tables.")
