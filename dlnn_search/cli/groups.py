"""The two groups of commands: `dlnn-search data`, for data sets, and `dlnn-search storage`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlnn_search.cli.options import (
    HelpCommand,
    HelpGroup,
    StorageOption,
    database_url_of,
    open_any,
    open_known,
    storage_words,
)
from dlnn_search.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dlnn_search.archive.backup import Copied
    from dlnn_search.config.data import Data

data_app = typer.Typer(cls=HelpGroup, no_args_is_help=True)
storage_app = typer.Typer(cls=HelpGroup, no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="mnist, fashion-mnist or clocks.")]
Source = Annotated[
    str | None,
    typer.Option(
        "--source", metavar="NAME", help="Clocks: auto, course or rendered. Defaults to auto."
    ),
]
Size = Annotated[
    int | None,
    typer.Option(
        "--size", metavar="N", help="Clocks: pixels per edge, from 32 to 300. Defaults to 150."
    ),
]
ImagesPerTime = Annotated[
    int | None,
    typer.Option(
        "--images-per-time",
        metavar="N",
        help="Rendered clocks: pictures of each of the 720 times. Defaults to 25.",
    ),
]
AzimuthSpread = Annotated[
    float | None,
    typer.Option(
        "--azimuth-spread",
        metavar="RADIANS",
        help="Rendered clocks: dials are turned by at most this. Defaults to pi.",
    ),
]
Difficulty = Annotated[
    float | None,
    typer.Option(
        "--difficulty",
        metavar="X",
        help="Rendered clocks: from 0 (plain, seen from the front) to 1. Defaults to 1.",
    ),
]

#: Wide enough for any path where the table is read by a program.
PIPE_COLUMNS = 400


@data_app.command("list", cls=HelpCommand)
def list_data() -> None:
    """List the data sets and what this machine has."""
    from rich.console import Console
    from rich.table import Table

    from dlnn_search.data.catalog import catalog

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name", no_wrap=True)
    table.add_column("variant")
    table.add_column("state", no_wrap=True)
    table.add_column("images", justify="right", no_wrap=True)
    table.add_column("on disk", justify="right", no_wrap=True)
    table.add_column("where", overflow="fold")
    for entry in catalog():
        table.add_row(
            entry.name,
            entry.variant,
            entry.state,
            "" if entry.n_images is None else f"{entry.n_images:,}",
            "" if entry.n_bytes is None else _megabytes(entry.n_bytes),
            entry.where,
        )
    console = Console(
        width=None if sys.stdout.isatty() else PIPE_COLUMNS, markup=False, highlight=False
    )
    console.print(table)


@data_app.command("prepare", cls=HelpCommand)
def prepare(
    name: Name,
    source: Source = None,
    size: Size = None,
    images_per_time: ImagesPerTime = None,
    azimuth_spread: AzimuthSpread = None,
    difficulty: Difficulty = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            "--render-seed",
            metavar="N",
            help="Rendered clocks: seed of the renderer. Defaults to 0.",
        ),
    ] = None,
) -> None:
    """Download or render a data set now."""
    from dlnn_search.data import prepare_data
    from dlnn_search.data.catalog import size_of

    data = _data(
        name,
        source=source,
        image_size=size,
        images_per_time=images_per_time,
        azimuth_spread=azimuth_spread,
        difficulty=difficulty,
        render_seed=seed,
    )
    folder = prepare_data(data)[0]
    n_images, n_bytes = size_of(folder)
    typer.echo(f"Prepared {n_images:,} images ({_megabytes(n_bytes)}) in {folder}")


@data_app.command("import", cls=HelpCommand)
def import_data(
    name: Annotated[str, typer.Argument(metavar="NAME", help="clocks (no other set is imported).")],
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="The course's images.npy.")],
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="The course's labels.npy.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the set that was imported before.")
    ] = False,
) -> None:
    """Copy the course's clock pictures into the cache."""
    from dlnn_search.data.sources import import_clocks

    if _known(name) != "clocks":
        raise UsageError(
            f"Only 'clocks' are imported, got '{name}'. Put the files of '{name}' into a folder, "
            f"set DLNN_SEARCH_DATA to it, and run 'dlnn-search data prepare {name}'."
        )
    course = import_clocks(images, labels, replace=replace)
    typer.echo(f"Imported {course.n:,} clocks of {course.edge} px into {course.folder}")


@data_app.command("preview", cls=HelpCommand)
def preview(
    name: Name,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE.png", help="File to write or to replace."),
    ],
    one: Annotated[
        bool,
        typer.Option("--one", help="Draw a single picture to try 'predict' on, not trained on."),
    ] = False,
    seed: Annotated[
        int,
        typer.Option("--seed", metavar="N", min=0, help="Seed of the choice of pictures."),
    ] = 0,
    source: Source = None,
    size: Size = None,
    images_per_time: ImagesPerTime = None,
    azimuth_spread: AzimuthSpread = None,
    difficulty: Difficulty = None,
    render_seed: Annotated[
        int | None,
        typer.Option(
            "--render-seed",
            metavar="N",
            help="Rendered clocks: seed of the renderer. Defaults to 0.",
        ),
    ] = None,
) -> None:
    """Draw labelled pictures, or one picture to read."""
    data = _data(
        name,
        source=source,
        image_size=size,
        images_per_time=images_per_time,
        azimuth_spread=azimuth_spread,
        difficulty=difficulty,
        render_seed=render_seed,
    )
    from dlnn_search.data.catalog import draw_one, draw_preview

    if one:
        shown = draw_one(data, output, seed=seed)
        typer.echo(f"Wrote {output}, which shows: {shown}")
        return
    n_images = draw_preview(data, output, seed=seed)
    typer.echo(f"Drew {n_images} training pictures into {output}")


def _known(name: str) -> str:
    names = ("mnist", "fashion-mnist", "clocks")
    if name not in names:
        raise UsageError(f"Unknown data set '{name}'.{did_you_mean(name, names)}")
    return name


def _data(name: str, **options: Any) -> Data:
    """Return the data that a command's options describe, its source resolved."""
    from pydantic import ValidationError

    from dlnn_search.config import Clocks, FashionMnist, Mnist, explain
    from dlnn_search.data import resolve

    given = {option: value for option, value in options.items() if value is not None}
    if _known(name) != "clocks":
        if given:
            raise UsageError(
                f"Expected no options for '{name}', got {_flags(given)}: these are for clocks."
            )
        return (Mnist if name == "mnist" else FashionMnist).model_validate({})
    try:
        data = resolve(Clocks(**given))
    except ValidationError as error:
        raise UsageError(f"These clocks cannot be rendered: {explain(error)}.") from error
    assert isinstance(data, Clocks)
    drawn = {option: given[option] for option in given if option not in ("source", "image_size")}
    if data.source == "course" and drawn:
        raise UsageError(
            f"The course's clocks take --size only, got {_flags(drawn)}. "
            f"Add --source rendered to render clocks."
        )
    return data


def _flags(options: dict[str, Any]) -> str:
    flags = {"image_size": "--size", "render_seed": "--seed"}
    return ", ".join(
        flags.get(option, f"--{option.replace('_', '-')}") for option in sorted(options)
    )


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB"


Studies = Annotated[
    list[str] | None, typer.Argument(metavar="STUDY", help="Names of studies in the database.")
]


@storage_app.command("info", cls=HelpCommand)
def info(storage: StorageOption = None) -> None:
    """Show which database is used and what it holds."""
    from dlnn_search.storage.halves import describe

    with open_any("storage info", storage) as database:
        facts = describe(database)
        width = max(len(about) for about, _ in facts)
        for about, words in facts:
            print(f"{about:<{width}}  {words}")


@storage_app.command("upgrade", cls=HelpCommand)
def upgrade(storage: StorageOption = None) -> None:
    """Upgrade an older database to this version."""
    from dlnn_search.storage.database import shown, upgrade_database

    url = database_url_of(storage)
    before, now = upgrade_database(url)
    if before == now:
        print(f"{shown(url)} is up to date: its tables have version {now}.")
    else:
        print(f"Upgraded the tables of {shown(url)} from version {before} to {now}.")


@storage_app.command("backup", cls=HelpCommand)
def backup(
    studies: Studies = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.zip", help="File to write.")
    ] = Path("dlnn-backup.zip"),
    everything: Annotated[
        bool, typer.Option("--all", help="Back up all studies and the whole ledger.")
    ] = False,
    storage: StorageOption = None,
) -> None:
    """Write studies into one file. Workers may go on."""
    from dlnn_search.archive.backup import back_up

    if bool(studies) == everything:
        raise UsageError(
            "Expected either the names of studies or --all, got "
            + ("both." if studies else "neither: dlnn-search storage backup --all -o FILE")
        )
    with open_known("storage backup", storage) as database:
        copied, n_bytes = back_up(database, None if everything else studies, output)
    _print_copied(copied)
    print(f"Wrote {output} ({_megabytes(n_bytes)})")


@storage_app.command("restore", cls=HelpCommand)
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File that 'storage backup' wrote.")],
    new_name: Annotated[
        str | None,
        typer.Option("--as", metavar="NAME", help="New name of the study. Defaults to its own."),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(
            "--study", metavar="STUDY", help="Restore only this study. Defaults to all in the file."
        ),
    ] = None,
    storage: StorageOption = None,
) -> None:
    """Bring studies of a backup into a database."""
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
    print(f"Restored into {shown}.")
    for each in copied[:1]:  # a backup may hold the ledger alone
        print(f"Continue: dlnn-search start {each.name}{storage_words(storage)}")
    if new_name is not None:
        print(
            f"To continue '{new_name}', copy the study's file to "
            f"{new_name.replace('-', '_')}.py and start that."
        )


@storage_app.command("migrate-from", cls=HelpCommand)
def migrate_from(
    source: Annotated[
        str, typer.Argument(metavar="URL", help="Database to move from, such as sqlite:///FILE.")
    ],
    study: Annotated[
        list[str] | None,
        typer.Option(
            "--study",
            metavar="STUDY",
            help="Move only this study. You can give it several times. Defaults to all studies.",
        ),
    ] = None,
    storage: StorageOption = None,
) -> None:
    """Move studies here from another database."""
    from dlnn_search.archive.backup import migrate
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
            f"Moved to {shown} and compared there: all rows are equal. {origin.shown} keeps its "
            "copy to look at, but does not continue it."
        )


@storage_app.command("sweep", cls=HelpCommand)
def sweep(
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove these files. Defaults to a list only.")
    ] = False,
    storage: StorageOption = None,
) -> None:
    """Find files that no study needs."""
    from dlnn_search.storage.checkpoints import find_orphans, remove

    with open_known("storage sweep", storage, writes=delete) as database:
        orphans = find_orphans(database)
        for orphan in orphans:
            where = "" if orphan.path is None else f"  {orphan.path}"
            print(f"{orphan.size_bytes / 1e6:>10,.1f} MB  {orphan.why}{where}")
        n_bytes = sum(orphan.size_bytes for orphan in orphans)
        if not orphans:
            print(f"Nothing to sweep in {database.files}")
        elif delete:
            n_gone, n_bytes = remove(database, orphans)
            print(f"Removed {n_gone} of {len(orphans)}, {_megabytes(n_bytes)}")
        else:
            print(f"{len(orphans)}, {_megabytes(n_bytes)}. Remove them with --delete.")


def _print_copied(copied: Sequence[Copied]) -> None:
    from dlnn_search.archive.backup import words_of

    for study in copied:
        words = f"{study.name}: {words_of(study.counts)}, {study.n_checkpoints} checkpoints"
        if study.n_unreachable:
            words += (
                f"; {study.n_unreachable} checkpoints cannot be reached: these trials start over"
            )
        print(words)
