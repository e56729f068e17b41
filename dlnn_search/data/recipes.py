"""How each data set is prepared: which folder, how many bytes, what is written."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dlnn_search.config.data import Clocks, Data, OwnData
from dlnn_search.data.own import own_recipe
from dlnn_search.data.prepared import (
    LABELS,
    LAYOUT_VERSION,
    PICTURES,
    OnProgress,
    Progress,
    Recipe,
    map_array,
    write_array,
)
from dlnn_search.data.sources import (
    DIGIT_SETS,
    DigitSet,
    imported,
    open_imported,
    write_digits,
)
from dlnn_search.data.splits import choose, strata_of
from dlnn_search.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from dlnn_search.config.training import CurriculumStage

TIMES_ON_DIAL = 720
#: Counted up when the renderer draws other pictures from the same parameters.
RENDERER_VERSION = 1
#: Pictures taken through memory at a time.
CHUNK = 512


def recipe_for(data: Data) -> Recipe:
    """Return how the data set is prepared; its clocks' source is already resolved.

    Raises:
        DataError: If the course's clocks are asked for and not imported.
        StudyError: If the code of a study's own data is not loaded.
    """
    if isinstance(data, OwnData):
        return own_recipe(data)
    if not isinstance(data, Clocks):
        return digits_recipe(DIGIT_SETS[data.name])
    return _course_recipe(data) if data.source == "course" else _rendered_recipe(data)


def digits_recipe(digits: DigitSet) -> Recipe:
    """Return how a set in MNIST's form is prepared."""
    return Recipe(
        name=f"{digits.name}-v{LAYOUT_VERSION}",
        title=digits.title,
        bytes_needed=digits.n_bytes,
        write=lambda into, on_progress: write_digits(digits, into, on_progress),
        about={"data": digits.name},
    )


def curriculum_recipe(data: Clocks, stage: CurriculumStage) -> Recipe:
    """Return how the clocks of one stage of a curriculum are prepared.

    They are as large and as difficult as the data's own, and as many unless the stage says
    otherwise. Their seed is a hash of the data's seed, the stage's spread and its number of
    pictures, so no stage repeats a picture of the data or of another stage.
    """
    per_time = stage.images_per_time or data.images_per_time
    drawing = {
        "image_size": data.image_size,
        "images_per_time": per_time,
        "azimuth_spread": stage.azimuth_spread,
        "difficulty": data.difficulty,
        "seed": curriculum_seed(data.render_seed, stage),
    }
    title = f"clocks turned by at most {stage.azimuth_spread:.3g} rad ({_edge(data)})"
    n = TIMES_ON_DIAL * per_time

    def write(into: Path, on_progress: OnProgress) -> None:
        pictures = map_array(into / "search" / PICTURES, (n, data.image_size, data.image_size))
        labels = _render(drawing, pictures, title, on_progress)
        write_array(into / "search" / LABELS, labels.shape, [labels])

    return Recipe(
        name=_name(f"clocks-curriculum-{data.image_size}px", drawing),
        title=title,
        bytes_needed=n * (data.image_size**2 + 2),
        write=write,
        about={
            **_about(data, "curriculum"),
            "drawing": drawing,
            "renderer": RENDERER_VERSION,
        },
    )


def curriculum_seed(render_seed: int, stage: CurriculumStage) -> int:
    """Return the render seed of a curriculum's stage, never the data's own `render_seed`."""
    text = f"curriculum of {render_seed}, {stage.azimuth_spread!r}"
    if stage.images_per_time is not None:
        text += f", {stage.images_per_time} of each time"
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
    return seed if seed != render_seed else seed + 1


def _rendered_recipe(data: Clocks) -> Recipe:
    drawing = {
        "image_size": data.image_size,
        "images_per_time": data.images_per_time,
        "azimuth_spread": data.azimuth_spread,
        "difficulty": data.difficulty,
        "seed": data.render_seed,
    }
    title = f"rendered clocks ({_edge(data)})"
    n = TIMES_ON_DIAL * data.images_per_time

    def write(into: Path, on_progress: OnProgress) -> None:
        shape = (n, data.image_size, data.image_size)
        everything = map_array(into / "everything.npy", shape)
        labels = _render(drawing, everything, title, on_progress)
        _separate(everything, labels, data, into, on_progress, title)
        (into / "everything.npy").unlink()

    return Recipe(
        name=_name(f"clocks-rendered-{data.image_size}px", drawing, _test_of(data)),
        title=title,
        # Drawn in one file, then copied into two.
        bytes_needed=2 * n * (data.image_size**2 + 2),
        write=write,
        about={
            **_about(data, "rendered"),
            "drawing": drawing,
            "renderer": RENDERER_VERSION,
            **_test_of(data),
        },
    )


def _course_recipe(data: Clocks) -> Recipe:
    course = imported()
    if course is None:
        raise DataError(
            "The course's clocks are not imported: expected its images.npy and labels.npy, got "
            "none. Run 'dlnn-search data import clocks images.npy labels.npy', or take "
            "source='rendered'."
        )
    title = f"the course's clocks ({_edge(data)})"

    def write(into: Path, on_progress: OnProgress) -> None:
        pictures, labels = open_imported()
        _separate(pictures, labels, data, into, on_progress, title)

    return Recipe(
        name=_name(
            f"clocks-course-{data.image_size}px", {"set": course.fingerprint}, _test_of(data)
        ),
        title=title,
        bytes_needed=course.n * (data.image_size**2 + 2),
        write=write,
        about={**_about(data, "course"), "set": course.fingerprint, **_test_of(data)},
    )


def _about(data: Clocks, kind: str) -> dict[str, Any]:
    return {"data": data.name, "kind": kind, "image_size": data.image_size}


def _test_of(data: Clocks) -> dict[str, Any]:
    return {"test": data.test, "split_seed": data.split_seed}


def _edge(data: Clocks) -> str:
    return f"{data.image_size} px"


def _name(prefix: str, *parameters: dict[str, Any]) -> str:
    versions = {"layout": LAYOUT_VERSION, "renderer": RENDERER_VERSION}
    text = json.dumps([*parameters, versions], sort_keys=True)
    return f"{prefix}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def _render(
    drawing: dict[str, Any], out: NDArray[np.uint8], title: str, on_progress: OnProgress
) -> NDArray[np.uint8]:
    from dlnn_search.data.clocks.renderer import render_clocks

    n_done = 0

    def report(n_more: int) -> None:
        nonlocal n_done
        n_done += n_more
        on_progress(Progress(f"Drawing {title}", n_done, len(out)))

    try:
        _, labels = render_clocks(out=out, on_progress=report, **drawing)
    except RuntimeError as error:
        raise DataError(f"Cannot draw {title}. {error}") from error
    return labels


def _separate(
    pictures: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    data: Clocks,
    into: Path,
    on_progress: OnProgress,
    title: str,
) -> None:
    """Write the test split's pictures to files of their own, and the others to theirs."""
    n_test = round(data.test * len(labels))
    if not 0 < n_test < len(labels):
        raise DataError(
            f"A test share of {data.test} takes {n_test:,} of {len(labels):,} pictures: expected "
            f"some, and some left to train on. Choose another `test`."
        )
    tests = choose(strata_of(labels), n_test, seed=data.split_seed, purpose="test")
    for part, rows in (("search", np.flatnonzero(~tests)), ("test", np.flatnonzero(tests))):
        shape = (len(rows), data.image_size, data.image_size)
        what = f"Writing the {part} part of {title}"
        write_array(into / part / PICTURES, shape, _taken(pictures, rows, data, what, on_progress))
        write_array(into / part / LABELS, (len(rows), 2), [labels[rows]])


def _taken(
    pictures: NDArray[np.uint8],
    rows: NDArray[np.int64],
    data: Clocks,
    what: str,
    on_progress: OnProgress,
) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(rows), CHUNK):
        yield _scaled(pictures[rows[start : start + CHUNK]], data.image_size)
        on_progress(Progress(what, min(start + CHUNK, len(rows)), len(rows)))


def _scaled(pictures: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Scale (n, h, h) to (n, size, size); Lanczos filters over the area where it shrinks."""
    if pictures.shape[1:] == (size, size):
        return pictures
    from PIL import Image

    scale = partial(Image.Image.resize, size=(size, size), resample=Image.Resampling.LANCZOS)
    return np.stack([np.asarray(scale(Image.fromarray(picture))) for picture in pictures])
