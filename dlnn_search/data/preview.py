"""A labelled grid of training pictures, to see what a data set is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dlnn_search import config
from dlnn_search.config.data import Clocks, Data
from dlnn_search.data.loading import load, resolve
from dlnn_search.data.names import class_names
from dlnn_search.data.splits import choose, shuffled
from dlnn_search.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

TITLES = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}
N_ROWS_DIGITS = 6
N_COLUMNS_CLOCKS, N_ROWS_CLOCKS = 8, 5
#: Small pictures are enlarged by a whole factor to about this, large ones shrunk to it.
TILE_PX = 128
MAX_TILE_PX = 192
GAP_PX = 12
MARGIN_PX = 24
LABEL_PX = 16
TITLE_PX = 24
INK = (38, 38, 38)
PAPER = (250, 250, 248)


@dataclass(frozen=True, eq=False)
class Tile:
    """A picture, shape (h, h), uint8, with its label and its place in the grid."""

    row: int
    column: int
    picture: NDArray[np.uint8]
    label: str


def draw_preview(data: Data, path: Path, *, seed: int = 0) -> int:
    """Draw some pictures of the training split with their labels into a PNG.

    Args:
        data: Which pictures; prepared first where they are not yet.
        path: The file to write, ending in `.png`; replaced if it is there.
        seed: Which pictures to take.

    Returns:
        How many pictures were drawn.

    Raises:
        UsageError: If the file can't be written, or is no `.png`.
        DataError: If the pictures can't be had.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"Expected a file ending in .png to draw into, got '{path}'.")
    if not path.parent.is_dir():
        raise UsageError(
            f"Expected a folder to put '{path.name}' in, found no '{path.parent}'. "
            f"Create it, or name another."
        )
    data = resolve(data)
    train = load(data).train
    if isinstance(data, Clocks):
        places = _round_the_dial(train.labels, seed)
    else:
        places = _a_column_a_class(train.labels, data.n_classes, seed)
    positions = np.array(list(places.values()), np.int64)
    tiles = [
        Tile(*place, picture, label_text(data, label))
        for place, picture, label in zip(
            places, train.take(positions), train.labels[positions], strict=True
        )
    ]
    title = f"{title_of(data)}: {len(tiles)} of {len(train):,} training pictures"
    grid = _grid(tiles, title)
    try:
        grid.save(path, format="PNG", optimize=True)
    except OSError as error:
        raise UsageError(
            f"Cannot write '{path}': {error}. Name a file that can be written."
        ) from error
    return len(tiles)


def title_of(data: Data) -> str:
    """Return the data set's name as a heading."""
    if not isinstance(data, Clocks):
        return TITLES.get(data.name, config.title_of(data))
    return f"{data.source.capitalize()} clocks, {data.image_size} px"


def label_text(data: Data, label: NDArray[np.uint8]) -> str:
    """Return a label as a reader says it: a digit, an article, or a time `hh:mm` from 00:00."""
    if isinstance(data, Clocks):
        return f"{label[0]:02d}:{label[1]:02d}"
    return class_names(data)[int(label)]


def _round_the_dial(labels: NDArray[np.uint8], seed: int) -> dict[tuple[int, int], int]:
    """Return row and column of some positions, from every hour as many, in the order of time."""
    n_shown = min(N_COLUMNS_CLOCKS * N_ROWS_CLOCKS, len(labels))
    hours = labels[:, 0].astype(np.int64)
    chosen = np.flatnonzero(choose(hours, n_shown, seed=seed, purpose="preview"))
    in_time = chosen[np.lexsort((labels[chosen, 1], labels[chosen, 0]))]
    return {divmod(i, N_COLUMNS_CLOCKS): int(position) for i, position in enumerate(in_time)}


def _a_column_a_class(
    labels: NDArray[np.uint8], n_classes: int, seed: int
) -> dict[tuple[int, int], int]:
    """Return row and column of some positions, each class in a column of its own."""
    places = {}
    for column in range(n_classes):
        of_class = np.flatnonzero(labels == column)
        mixed = shuffled(of_class, seed=seed, purpose=f"preview of class {column}")
        for row, position in enumerate(mixed[:N_ROWS_DIGITS]):
            places[row, column] = int(position)
    return places


def _grid(tiles: list[Tile], title: str) -> Image.Image:
    size = tiles[0].picture.shape[0]
    edge = _tile_edge(size)
    step_x, step_y = edge + GAP_PX, edge + LABEL_PX + 2 * GAP_PX
    n_columns = max(tile.column for tile in tiles) + 1
    n_rows = max(tile.row for tile in tiles) + 1
    heading, font = ImageFont.load_default(TITLE_PX), ImageFont.load_default(LABEL_PX)
    width = max(n_columns * step_x - GAP_PX, math.ceil(heading.getlength(title))) + 2 * MARGIN_PX
    top = MARGIN_PX + TITLE_PX + MARGIN_PX
    grid = Image.new("RGB", (width, top + n_rows * step_y - GAP_PX + MARGIN_PX), PAPER)
    draw = ImageDraw.Draw(grid)
    draw.text((MARGIN_PX, MARGIN_PX), title, INK, font=heading)
    # Whole factors keep the pixels of small pictures square; the others are resampled.
    how = Image.Resampling.NEAREST if edge % size == 0 else Image.Resampling.LANCZOS
    for tile in tiles:
        x, y = MARGIN_PX + tile.column * step_x, top + tile.row * step_y
        picture = Image.fromarray(tile.picture).resize((edge, edge), how).convert("RGB")
        grid.paste(picture, (x, y))
        below = (x + edge // 2, y + edge + GAP_PX // 2)
        draw.text(below, tile.label, INK, font=font, anchor="ma")
    return grid


def _tile_edge(size: int) -> int:
    if size > MAX_TILE_PX:
        return MAX_TILE_PX
    return size * max(1, TILE_PX // size)
