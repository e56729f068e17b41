"""`dlnn-search storage`: look at, upgrade, back up, restore, move and tidy the trials database."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlnn_search.cli.options import StorageOption, database_url_of, open_known, storage_words
from dlnn_search.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dlnn_search.archive.backup import Copied

app = typer.Typer(
    name="storage",
    help="The trials database: look at it, upgrade, back up, restore, move and tidy it.",
    no_args_is_help=True,
)

Studies = Annotated[list[str] | None, typer.Argument(metavar="[STUDY]...", show_default=False)]


@app.command("info")
def info(storage: StorageOption = None) -> None:
    """Say which database it is, its versions, its size, and what it holds."""
    from dlnn_search.storage.halves import describe

    with open_known("storage info", storage) as database:
        facts = describe(database)
        width = max(len(about) for about, _ in facts)
        for about, words in facts:
            print(f"{about:<{width}}  {words}")


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


@app.command("backup")
def backup(
    studies: Studies = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write (zip).")
    ] = Path("dlnn-backup.zip"),
    everything: Annotated[
        bool, typer.Option("--all", help="All studies, and the whole ledger.")
    ] = False,
    storage: StorageOption = None,
) -> None:
    """Write studies into one file, as they are now; workers go on meanwhile."""
    from dlnn_search.archive.backup import back_up

    if bool(studies) == everything:
        raise UsageError(
            "Expected either the names of studies or --all, got "
            + ("both." if studies else "neither: dlnn-search storage backup --all -o FILE")
        )
    with open_known("storage backup", storage) as database:
        copied, n_bytes = back_up(database, None if everything else studies, output)
    _print_copied(copied)
    print(f"Wrote {output} ({n_bytes / 1e6:,.1f} MB)")


@app.command("restore")
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of 'storage backup'.")],
    new_name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="The study's name from now on.")
    ] = None,
    study: Annotated[
        str | None, typer.Option("--study", metavar="STUDY", help="Only this one of the file's.")
    ] = None,
    storage: StorageOption = None,
) -> None:
    """Write a backup's studies into a database, of either kind; it may be empty."""
    from dlnn_search.archive.backup import restore as run
    from dlnn_search.archive.file import BackupReader
    from dlnn_search.storage.database import open_database
    from dlnn_search.study import NAME_PATTERN

    if new_name is not None and not NAME_PATTERN.fullmatch(new_name):
        raise UsageError(
            "Expected a name of at most 100 small letters, digits, '-' and '_', "
            f"got --as '{new_name}'."
        )
    BackupReader(file).close()  # a damaged file makes no database
    with open_database(database_url_of(storage), create=True) as database:
        copied = run(database, file, new_name=new_name, only=study)
        shown = database.shown
    _print_copied(copied)
    print(f"Restored into {shown}. Go on: dlnn-search start STUDY{storage_words(storage)}")
    if new_name is not None:
        print(
            f"A study file named {new_name.replace('-', '_')}.py with the same contents goes on "
            f"with '{new_name}'."
        )


@app.command("migrate-from")
def migrate_from(
    source: Annotated[
        str, typer.Argument(metavar="URL", help="The database to move from, sqlite:///FILE.")
    ],
    study: Annotated[
        list[str] | None,
        typer.Option("--study", metavar="STUDY", help="Only this one; may be given repeatedly."),
    ] = None,
    storage: StorageOption = None,
) -> None:
    """Move studies here from another database, everything along."""
    from dlnn_search.archive.move import migrate
    from dlnn_search.storage.database import database_url, open_database

    url, here = database_url(source), database_url_of(storage)
    if url == here:
        raise UsageError("Expected two databases: the one to move to is named with --storage.")
    with open_database(url, create=False) as origin:
        with open_database(here, create=True) as target:
            copied = migrate(origin, target, study)
            shown = target.shown
        _print_copied(copied)
        print(
            f"Moved to {shown}, and read again there: all rows are equal. What {origin.shown} "
            "holds of it stays to look at, and is not searched on."
        )


@app.command("sweep")
def sweep(
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove it; without, only say what there is.")
    ] = False,
    storage: StorageOption = None,
) -> None:
    """Find files that no study needs, and remove them if asked."""
    from dlnn_search.storage.checkpoints import find_orphans, remove

    with open_known("storage sweep", storage) as database:
        orphans = find_orphans(database)
        for orphan in orphans:
            where = "" if orphan.path is None else f"  {orphan.path}"
            print(f"{orphan.size_bytes / 1e6:>10,.1f} MB  {orphan.why}{where}")
        n_bytes = sum(orphan.size_bytes for orphan in orphans)
        if not orphans:
            print(f"Nothing to sweep in {database.files}")
        elif delete:
            n_gone, n_bytes = remove(database, orphans)
            print(f"Removed {n_gone} of {len(orphans)}, {n_bytes / 1e6:,.1f} MB")
        else:
            print(f"{len(orphans)}, {n_bytes / 1e6:,.1f} MB. Remove them with --delete.")


def _print_copied(copied: Sequence[Copied]) -> None:
    from dlnn_search.archive.backup import words_of

    for study in copied:
        words = f"{study.name}: {words_of(study.counts)}, {study.n_checkpoints} checkpoints"
        if study.n_unreachable:
            words += (
                f"; {study.n_unreachable} checkpoints are not within reach: such trials start over"
            )
        print(words)
