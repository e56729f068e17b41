"""Which data sets there are, what this machine has of them, and how they look."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dlnn_search import config
from dlnn_search.config.data import CLOCKS_PER_TIME, ClassData, Clocks, Data
from dlnn_search.data.loading import load, resolve
from dlnn_search.data.prepared import is_intact, prepared_root, read_about
from dlnn_search.data.sources import DIGIT_SETS, TIMES_ON_DIAL, find, imported
from dlnn_search.data.splits import choose, shuffled
from dlnn_search.errors import UsageError

#: Source: github.com/zalandoresearch/fashion-mnist, "Labels".
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def class_names(data: ClassData) -> tuple[str, ...]:
    """Return the classes' names by label: numbers, but for the articles of clothing."""
    if data.name == "fashion-mnist":
        return FASHION_CLASSES
    return tuple(str(label) for label in range(data.n_classes))


if TYPE_CHECKING:
    from pathlib import Path

State = Literal["prepared", "available", "imported", "to import", "to render", "to download"]


@dataclass(frozen=True)
class Entry:
    """A data set, as `data list` shows it.

    Attributes:
        name: What `data prepare` calls it.
        variant: Which clocks, or whose own pictures; empty for digits.
        state: `available`: its files were found, and are yet to be prepared.
        n_images: Of all splits; None if not known.
        n_bytes: On disk; None if nothing is.
        where: A folder or file, or how to get it.
    """

    name: str
    variant: str
    state: State
    n_images: int | None
    n_bytes: int | None
    where: str


def catalog() -> list[Entry]:
    """Return every data set that can be used, prepared ones first.

    Raises:
        DataError: If `$DLNN_SEARCH_DATA` is no folder, or a set there lacks files.
    """
    entries = []
    prepared = _prepared()
    for digits in DIGIT_SETS.values():
        ready = [entry for entry in prepared if entry.name == digits.name]
        entries += ready
        if not ready:
            n_images = digits.n_train + digits.n_test
            found = find(digits)
            if found is None:
                where = "downloaded when first used"
                entries.append(Entry(digits.name, "", "to download", n_images, None, where))
            else:
                n_bytes = sum(path.stat().st_size for path in set(found.files.values()))
                where = found.place
                entries.append(Entry(digits.name, "", "available", n_images, n_bytes, where))

    course = imported()
    if course is None:
        where = "dlnn-search data import clocks images.npy labels.npy"
        entries.append(Entry("clocks", "course", "to import", None, None, where))
    else:
        _, n_bytes = size_of(course.folder)
        variant = f"course, {course.edge} px"
        where = str(course.folder)
        entries.append(Entry("clocks", variant, "imported", course.n, n_bytes, where))
    clocks = [entry for entry in prepared if entry.name == "clocks"]
    entries += clocks
    if not any(entry.variant.startswith("rendered") for entry in clocks):
        n_images = TIMES_ON_DIAL * CLOCKS_PER_TIME
        where = "rendered when first used"
        entries.append(Entry("clocks", "rendered", "to render", n_images, None, where))
    return entries + [entry for entry in prepared if entry.name == "own"]


def size_of(folder: Path) -> tuple[int, int]:
    """Return how many pictures a prepared or imported set has, and how many bytes."""
    about = read_about(folder)
    return about["n_images"], sum(about["files"].values())


def _prepared() -> list[Entry]:
    entries = []
    for folder in sorted(prepared_root().glob("*/")):
        about = read_about(folder)
        if folder.suffix == ".partial" or "data" not in about or not is_intact(folder):
            continue
        n_images, n_bytes = size_of(folder)
        variant = _variant(about)
        entries.append(Entry(about["data"], variant, "prepared", n_images, n_bytes, str(folder)))
    return entries


def _variant(about: dict[str, Any]) -> str:
    """Say which clocks, by what differs from the defaults; or whose pictures, and how made."""
    if "study" in about:
        options = [f"{name} {value}" for name, value in about["options"].items()]
        # None where an earlier version prepared it.
        file = [f"from {about['file']}"] if about.get("file") else []
        return ", ".join([about["study"], *options, *file])
    if "kind" not in about:
        return ""
    words = [about["kind"], f"{about['image_size']} px"]
    drawing = about.get("drawing")
    if drawing:
        words += [
            f"{drawing['images_per_time']} a time",
            f"{drawing['azimuth_spread']:.3g} rad",
            f"difficulty {drawing['difficulty']:g}",
        ]
        if about["kind"] == "rendered":
            words.append(f"seed {drawing['seed']}")
    if "split_seed" in about:
        words.append(f"test {about['test']:g}/{about['split_seed']}")
    return ", ".join(words)


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
    _check_png(path)
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
    _save(_grid(tiles, title), path)
    return len(tiles)


def draw_one(data: Data, path: Path, *, seed: int = 0) -> str:
    """Write a single picture that no model was trained on and no test is made with.

    A rendered clock is drawn for this, and belongs to no data set; of other data it is a picture
    of the validation split. The pixels are as a model sees them.

    Args:
        data: What kind of picture; digits are prepared first where they are not yet.
        path: The file to write, ending in `.png`; replaced if it is there.
        seed: Which picture.

    Returns:
        What it shows: a digit, an article, or a time `hh:mm`.

    Raises:
        UsageError: If the file can't be written, or is no `.png`.
        DataError: If the picture can't be had.
    """
    _check_png(path)
    data = resolve(data)
    if isinstance(data, Clocks) and data.source == "rendered":
        picture, label = _fresh_clock(data, seed)
    else:
        validation = load(data).validation
        rows = np.arange(len(validation), dtype=np.int64)
        chosen = shuffled(rows, seed=seed, purpose="a single picture")[:1]
        picture, label = validation.take(chosen)[0], validation.labels[chosen][0]
    _save(Image.fromarray(picture), path)
    return label_text(data, label)


def _fresh_clock(data: Clocks, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    from dlnn_search.data.clocks.renderer import render_times

    # Of no data set: another seed than any that a user would name.
    text = f"a single clock, {data.render_seed}, {seed}"
    drawn = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
    label = np.array(divmod(drawn % TIMES_ON_DIAL, 60), np.uint8)
    pictures = render_times(
        label[:1],
        label[1:],
        image_size=data.image_size,
        azimuth_spread=data.azimuth_spread,
        difficulty=data.difficulty,
        seed=drawn,
    )
    return pictures[0], label


def _check_png(path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise UsageError(f"Expected a file ending in .png to draw into, got '{path}'.")
    if not path.parent.is_dir():
        raise UsageError(f"There is no folder '{path.parent}' to write '{path.name}' into.")


def _save(picture: Image.Image, path: Path) -> None:
    try:
        picture.save(path, format="PNG", optimize=True)
    except OSError as error:
        raise UsageError(
            f"Cannot write '{path}': {error.strerror or error}. Name another file."
        ) from error


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
