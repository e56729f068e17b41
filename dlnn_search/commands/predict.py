"""The use case `predict`: read digits, garments or clocks from picture files."""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from dlnn_search.config import Clocks, Config, read_config
from dlnn_search.data.catalog import class_names
from dlnn_search.errors import DataError, StorageError, UsageError

if TYPE_CHECKING:
    import keras

    from dlnn_search.models.heads import Head

#: A phone's picture has 50 million pixels; a file that claims far more is a trap.
MAX_PIXELS = 100_000_000
#: A file of that many bytes is read whole.
MAX_PICTURE_BYTES = 200_000_000
FORMATS = ("PNG", "JPEG")
DIGIT_EDGE_PX = 28
#: MNIST's digits fit a box of 20 px, and their centre of mass is in the pixel right of and below
#: the middle (measured on 5,000: 14.50 +- 0.29 px from the edge, none outside 14 to 15).
DIGIT_BOX_PX = 20
DIGIT_CENTRE_PX = 14.5
DIAL_PX = 300


@dataclass(frozen=True)
class Reading:
    """What was read in one picture.

    Attributes:
        words: A class's name, or a time as hh:mm.
        minutes: Since 12:00, clocks only.
    """

    path: Path
    words: str
    minutes: int | None


def predict(model_path: Path, pictures: Sequence[Path], draw: Path | None) -> Iterator[Reading]:
    """Read pictures of any size with a model that `evaluate` or `export` wrote.

    Args:
        model_path: A `.keras` file; its config stands beside it as `.json`.
        pictures: PNG or JPEG.
        draw: A folder for pictures with the read hands beside them (clocks only).

    Raises:
        UsageError: If the model does not fit its config, or for what `check_arguments` finds.
        DataError: If a picture cannot be read.
        StorageError: If a picture cannot be drawn.
    """
    config = check_arguments(model_path, pictures, draw)
    from dlnn_search.models.heads import by_name, head_of

    head = head_of(config)
    model = _load(model_path)
    _check_fits(model, head, model_path)
    height, width = model.input_shape[1:3]
    for number, path in enumerate(pictures, start=1):
        pixels = read_picture(path, config, (height, width))
        outputs = by_name(head, model(pixels[None, ..., None], training=False))
        answer = int(head.decode({name: np.asarray(value) for name, value in outputs.items()})[0])
        if isinstance(config.data, Clocks):
            words = f"{answer // 60:02d}:{answer % 60:02d}"
            if draw is not None:
                # Numbered: pictures of several folders may have one name.
                draw_hands(pixels, answer, draw / f"{number:03d}-{path.stem}-read.png")
            yield Reading(path, words, answer)
        else:
            yield Reading(path, class_names(config.data)[answer], None)


def check_arguments(model_path: Path, pictures: Sequence[Path], draw: Path | None) -> Config:
    """Return the model's config, where all files are there; without TensorFlow, so at once.

    Args:
        model_path: As `predict` takes it.
        pictures: As `predict` takes them.
        draw: As `predict` takes it.

    Raises:
        UsageError: If the model or its config is missing, or `draw` makes no sense.
        DataError: If a picture is missing, is none, or is too large.
    """
    config = _config_beside(model_path)
    if draw is not None and not isinstance(config.data, Clocks):
        raise UsageError(f"--draw needs a model that reads clocks, got one of {config.data.name}.")
    if draw is not None and draw.exists() and not draw.is_dir():
        raise UsageError(f"Expected a folder to draw into, got the file '{draw}'.")
    for path in pictures:
        with _opened(path):
            pass
    return config


def _config_beside(model_path: Path) -> Config:
    if not model_path.is_file() or model_path.suffix != ".keras":
        raise UsageError(
            f"There is no model '{model_path}'. Expected a .keras file, as 'dlnn-search evaluate' "
            "and 'dlnn-search export --model' write."
        )
    path = model_path.with_suffix(".json")
    if not path.is_file():
        raise UsageError(
            f"There is no '{path}': expected the model's config beside it, as 'dlnn-search "
            "evaluate' and 'dlnn-search export --model' write both."
        )
    config = read_config(path)
    if config.own_parts:
        raise UsageError(
            f"'{path}' is of a study's own data or model: expected one that reads digits, garments "
            "or clocks. Load the model with Keras."
        )
    return config


def _load(path: Path) -> keras.Model:
    try:
        import keras

        # Safe mode refuses code inside the file.
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises whatever a damaged file makes it stumble over
        first_line = str(error).strip().partition("\n")[0].rstrip(".")
        raise UsageError(f"'{path}' is no Keras model that can be loaded: {first_line}.") from error


def _check_fits(model: keras.Model, head: Head, path: Path) -> None:
    """Refuse a model that another config's file stands beside."""
    shape = model.input_shape
    names = set(model.output) if isinstance(model.output, dict) else {head.names[0]}
    if not isinstance(shape, tuple) or len(shape) != 4 or shape[3] != 1 or names != {*head.names}:
        raise UsageError(
            f"'{path}' takes {shape} and puts out {sorted(names)}: expected gray pictures and "
            f"{sorted(head.names)}, as its config beside it says. Keep both files of one model."
        )


def read_picture(path: Path, config: Config, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a picture as the config's data look: gray, (height, width), uint8.

    A clock is cut to its middle square and scaled. Digits and garments are light on dark, as in
    their data sets; dark on light is turned round, and a digit is centred as MNIST's are.

    Raises:
        DataError: If it is no picture, or too large.
    """
    gray = _gray(path)
    if isinstance(config.data, Clocks):
        return np.asarray(ImageOps.fit(gray, (shape[1], shape[0]), Image.Resampling.LANCZOS))
    if gray.size == (DIGIT_EDGE_PX, DIGIT_EDGE_PX) and not _is_dark_on_light(gray):
        return np.asarray(gray)
    if _is_dark_on_light(gray):
        gray = ImageOps.invert(gray)
    return _centred(gray, box=DIGIT_BOX_PX if config.data.name == "mnist" else DIGIT_EDGE_PX)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture whose size is known and whose pixels are not read yet."""
    if not path.is_file():
        raise DataError(f"There is no picture '{path}'. Expected a PNG or JPEG file.")
    if (size := path.stat().st_size) > MAX_PICTURE_BYTES:
        raise DataError(
            f"'{path}' has {size:,} bytes: expected a picture of at most {MAX_PICTURE_BYTES:,}."
        )
    try:
        with warnings.catch_warnings():
            # Pillow's own limit is near ours, and told below in our words; of metadata it cannot
            # make sense of it only warns.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    raise _too_large(path, f"{opened.width} x {opened.height}")
                yield opened
    except Image.DecompressionBombError as error:  # twice Pillow's limit, told by the header
        raise _too_large(path, "too many") from error
    except (OSError, ValueError, SyntaxError, TypeError, struct.error) as error:
        words = str(error).rstrip(".")
        raise DataError(f"'{path}' is no PNG or JPEG that can be read: {words}.") from error


def _gray(path: Path) -> Image.Image:
    """Return a picture as it is meant to be seen, in gray levels of 8 bits."""
    with _opened(path) as opened:
        upright = ImageOps.exif_transpose(opened)
        if upright.mode.startswith("I"):
            # 16 bits: `convert` would clip all above 255 to white.
            levels = np.asarray(upright).astype(np.float64) * (255 / 65_535)
            return Image.fromarray(np.rint(levels).astype(np.uint8))
        # Transparent parts are white paper.
        ink = upright.convert("RGBA")
    paper = Image.new("RGBA", ink.size, "white")
    return Image.alpha_composite(paper, ink).convert("L")


def _too_large(path: Path, size: str) -> DataError:
    return DataError(f"'{path}' has {size} pixels: expected a picture of at most {MAX_PIXELS:,}.")


def _is_dark_on_light(gray: Image.Image) -> bool:
    pixels = np.asarray(gray)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return bool(np.median(border) > 127)


def _centred(gray: Image.Image, box: int) -> NDArray[np.uint8]:
    """Scale what is drawn to fit a box, and put its centre of mass where MNIST has it.

    Source: yann.lecun.com/exdb/mnist, how the original digits were made.
    """
    pixels = np.asarray(gray).astype(np.float32)
    background = float(np.median(np.concatenate([pixels[0], pixels[-1]])))
    ink = np.clip(pixels - background, 0, None)
    ink[ink < 0.1 * ink.max(initial=0.0)] = 0
    if not ink.any():
        return np.zeros((DIGIT_EDGE_PX, DIGIT_EDGE_PX), np.uint8)
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    cut = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] * (255.0 / ink.max())
    scale = box / max(cut.shape)
    size = (max(1, round(cut.shape[1] * scale)), max(1, round(cut.shape[0] * scale)))
    small = np.asarray(Image.fromarray(cut.astype(np.uint8)).resize(size, Image.Resampling.LANCZOS))
    top, left = _offset(small, axis=0), _offset(small, axis=1)
    canvas = np.zeros((DIGIT_EDGE_PX, DIGIT_EDGE_PX), np.uint8)
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas


def _offset(small: NDArray[np.uint8], axis: int) -> int:
    """Return where to put a picture so that its mass is centred, but inside the frame."""
    mass = small.astype(np.float64).sum(axis=1 - axis)
    centre = float(np.average(np.arange(len(mass)) + 0.5, weights=mass))
    return int(np.clip(round(DIGIT_CENTRE_PX - centre), 0, DIGIT_EDGE_PX - len(mass)))


def draw_hands(pixels: NDArray[np.uint8], minutes: int, path: Path) -> None:
    """Draw a picture and, beside it, a dial whose hands stand as they were read.

    Raises:
        StorageError: If the file cannot be written.
    """
    sheet = Image.new("L", (2 * DIAL_PX, DIAL_PX), 255)
    picture = Image.fromarray(pixels).resize((DIAL_PX, DIAL_PX), Image.Resampling.LANCZOS)
    sheet.paste(picture, (0, 0))
    # Drawn four times as large and scaled down: Pillow's lines have hard edges.
    large = 4
    dial = Image.new("L", (large * DIAL_PX, large * DIAL_PX), 255)
    pen = ImageDraw.Draw(dial)
    centre, radius = large * DIAL_PX / 2, large * DIAL_PX * 0.44
    box = (centre - radius, centre - radius, centre + radius, centre + radius)
    pen.ellipse(box, outline=60, width=6 * large)

    def point(turn: float, share: float) -> tuple[float, float]:
        angle = 2 * math.pi * turn
        return (
            centre + share * radius * math.sin(angle),
            centre - share * radius * math.cos(angle),
        )

    for tick in range(60):
        bold = tick % 5 == 0
        ends = [point(tick / 60, 0.82 if bold else 0.9), point(tick / 60, 0.95)]
        pen.line(ends, fill=60 if bold else 170, width=(4 if bold else 2) * large)
    for turn, length, width in ((minutes / 720, 0.52, 8), (minutes % 60 / 60, 0.76, 5)):
        pen.line([point(turn + 0.5, 0.08), point(turn, length)], fill=20, width=width * large)
    sheet.paste(dial.resize((DIAL_PX, DIAL_PX), Image.Resampling.LANCZOS), (DIAL_PX, 0))
    caption = f"{minutes // 60:02d}:{minutes % 60:02d}"
    ImageDraw.Draw(sheet).text((DIAL_PX + 6, 4), caption, fill=0, font_size=22)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path, format="PNG")
    except OSError as error:
        raise StorageError(f"Cannot write '{path}': {error.strerror or error}.") from error
