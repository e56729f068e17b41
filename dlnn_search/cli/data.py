"""`dlnn-search data`: list, prepare, import and preview data sets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dlnn_search.config.data import Data

app = typer.Typer(
    name="data",
    help="List, prepare, import and preview data sets.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(help="mnist, fashion-mnist or clocks.")]
Source = Annotated[
    str | None, typer.Option(help="Clocks: auto, course or rendered. [default: auto]")
]
Size = Annotated[int | None, typer.Option(help="Clocks: edge in pixels, 32 to 300. [default: 150]")]
ImagesPerTime = Annotated[
    int | None, typer.Option(help="Rendered clocks: for each of 720 times. [default: 25]")
]
AzimuthSpread = Annotated[
    float | None,
    typer.Option(help="Rendered clocks: dials turned by at most this, radians. [default: pi]"),
]
Difficulty = Annotated[
    float | None,
    typer.Option(help="Rendered clocks: 0 (plain and frontal) to 1. [default: 1]"),
]

SIZE_UNIT_BYTES = 1_000_000
#: Wide enough for any path where the table is read by a program.
PIPE_COLUMNS = 400


@app.command("list")
def list_data() -> None:
    """List the data sets, and what this machine has of them."""
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


@app.command("prepare")
def prepare(
    name: Name,
    source: Source = None,
    size: Size = None,
    images_per_time: ImagesPerTime = None,
    azimuth_spread: AzimuthSpread = None,
    difficulty: Difficulty = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", "--render-seed", help="Rendered clocks: which ones. [default: 0]"),
    ] = None,
) -> None:
    """Prepare a data set now, so that no worker has to wait for it."""
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


@app.command("import")
def import_data(
    name: Annotated[str, typer.Argument(help="clocks, the only set that is imported.")],
    images: Annotated[Path, typer.Argument(help="The course's images.npy.")],
    labels: Annotated[Path, typer.Argument(help="The course's labels.npy.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace another set that was imported.")
    ] = False,
) -> None:
    """Copy the course's clock pictures to where data sets are kept."""
    from dlnn_search.data.sources import import_clocks
    from dlnn_search.errors import UsageError

    if _known(name) != "clocks":
        raise UsageError(
            f"Only 'clocks' are imported, got '{name}'. Put the files of '{name}' into a folder, "
            f"set DLNN_SEARCH_DATA to it, and run 'dlnn-search data prepare {name}'."
        )
    course = import_clocks(images, labels, replace=replace)
    typer.echo(f"Imported {course.n:,} clocks of {course.edge} px into {course.folder}")


@app.command("preview")
def preview(
    name: Name,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The PNG to draw, replaced if it is there.")
    ],
    seed: Annotated[int, typer.Option(min=0, help="Which training pictures to take.")] = 0,
    source: Source = None,
    size: Size = None,
    images_per_time: ImagesPerTime = None,
    azimuth_spread: AzimuthSpread = None,
    difficulty: Difficulty = None,
    render_seed: Annotated[
        int | None, typer.Option(help="Rendered clocks: which ones. [default: 0]")
    ] = None,
) -> None:
    """Draw a labelled grid of training pictures."""
    data = _data(
        name,
        source=source,
        image_size=size,
        images_per_time=images_per_time,
        azimuth_spread=azimuth_spread,
        difficulty=difficulty,
        render_seed=render_seed,
    )
    from dlnn_search.data.catalog import draw_preview

    n_images = draw_preview(data, output, seed=seed)
    typer.echo(f"Drew {n_images} training pictures into {output}")


def _known(name: str) -> str:
    from dlnn_search.errors import UsageError, did_you_mean

    names = ("mnist", "fashion-mnist", "clocks")
    if name not in names:
        raise UsageError(f"Unknown data set '{name}'.{did_you_mean(name, names)}")
    return name


def _data(name: str, **options: Any) -> Data:
    """Return the data that a command's options describe, its source resolved."""
    from pydantic import ValidationError

    from dlnn_search.config import Clocks, FashionMnist, Mnist, explain
    from dlnn_search.data import resolve
    from dlnn_search.errors import UsageError

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
        raise UsageError(f"These clocks can't be:\n{explain(error)}") from error
    assert isinstance(data, Clocks)
    drawn = {option: given[option] for option in given if option not in ("source", "image_size")}
    if data.source == "course" and drawn:
        raise UsageError(
            f"The course's clocks take --size only, got {_flags(drawn)}. "
            f"Add --source rendered to have clocks rendered."
        )
    return data


def _flags(options: dict[str, Any]) -> str:
    flags = {"image_size": "--size", "render_seed": "--seed"}
    return ", ".join(
        flags.get(option, f"--{option.replace('_', '-')}") for option in sorted(options)
    )


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / SIZE_UNIT_BYTES:,.1f} MB"
