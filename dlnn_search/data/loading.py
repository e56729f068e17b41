"""From a config's data to splits: prepared where they are not yet, opened where they are."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

from dlnn_search.config.data import Clocks, Data, OwnData
from dlnn_search.data.own import content_of
from dlnn_search.data.prepared import (
    LABELS,
    PICTURES,
    OnProgress,
    ProgressDisplay,
    Recipe,
    open_part,
    prepare,
)
from dlnn_search.data.recipes import curriculum_recipe, recipe_for
from dlnn_search.data.sources import is_imported
from dlnn_search.data.splits import (
    Split,
    TestOpening,
    TrainingData,
    fold_rows,
    shuffled,
    split_rows,
)

if TYPE_CHECKING:
    from pathlib import Path

    from dlnn_search.data.prepared import Recipe

#: Pictures of a study's own data that are looked at: enough to tell one set from another.
N_SAMPLED = 256


def identity_of(data: Data) -> list[str]:
    """Return in words which pictures these are.

    Equal on two machines exactly if they train on the same pictures. Sets that are checked or
    drawn by us are told by what they are made from; a loader of the study's own, which may read
    anything, by what it gave. It is prepared for that.

    Raises:
        DataError: If the pictures can't be had.
        StudyError: If the code of a study's own data is not loaded.
    """
    recipes = recipes_of(data, ())
    if isinstance(data, OwnData):
        folders = prepare_data(data)
        return [
            # An earlier version stored the first part alone: a sample of the pictures.
            f"{_words(recipe, _sample(folder / 'search'))}, all {content_of(folder)[:12]}"
            for recipe, folder in zip(recipes, folders, strict=True)
        ]
    return [_words(recipe, "") for recipe in recipes]


def _words(recipe: Recipe, content: str) -> str:
    made_from = {key: value for key, value in recipe.about.items() if key not in ("layout", "code")}
    text = json.dumps([made_from, content], sort_keys=True)
    return f"{recipe.title}, {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _sample(folder: Path) -> str:
    digest = hashlib.sha256()
    labels = np.load(folder / LABELS, mmap_mode="r", allow_pickle=False)
    pictures = np.load(folder / PICTURES, mmap_mode="r", allow_pickle=False)
    digest.update(repr((labels.shape, pictures.shape)).encode())
    digest.update(np.ascontiguousarray(labels).tobytes())
    for row in np.unique(np.linspace(0, len(pictures) - 1, N_SAMPLED).astype(np.int64)):
        digest.update(np.ascontiguousarray(pictures[row]).tobytes())
    return digest.hexdigest()


if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from dlnn_search.config.training import CurriculumStage

DIGIT_SHAPE = (28, 28)


def resolve(data: Data) -> Data:
    """Return the same data with the clocks' source 'auto' made 'course' or 'rendered'.

    What is kept in a database or a file must be resolved first: 'auto' means other pictures once
    the course's are imported.
    """
    if not isinstance(data, Clocks) or data.source != "auto":
        return data
    return data.model_copy(update={"source": "course" if is_imported() else "rendered"})


def image_shape(data: Data) -> tuple[int, ...]:
    """Return height and width of a data set's pictures, and channels if more than one.

    Nothing is opened or prepared but own pictures, whose size is the loader's to say.

    Raises:
        DataError: If own pictures can't be had.
    """
    if isinstance(data, OwnData):
        return load(data).train.image_shape
    if isinstance(data, Clocks):
        return data.image_size, data.image_size
    return DIGIT_SHAPE


def load(
    data: Data,
    curriculum: Sequence[CurriculumStage] = (),
    *,
    on_progress: OnProgress | None = None,
) -> TrainingData:
    """Open what a search may see of a data set; prepare it first where it is not yet.

    The pictures are memory-mapped: opening a prepared set takes milliseconds, and all workers
    of a machine share one copy. The test split's pictures are in files that this does not open.

    Args:
        data: Which pictures, and how to split them.
        curriculum: Stages that training begins with (clocks only).
        on_progress: Told how far a preparation is; None: shown on standard error.

    Returns:
        Training and validation split, disjoint, and one split for each stage; all shuffled.

    Raises:
        DataError: If the pictures can't be had, or a split would be empty.
    """
    opened, stages = _open_for_search(data, curriculum, on_progress)
    rows = split_rows(
        opened.labels, validation=data.validation, n_training=data.n_training, seed=data.split_seed
    )
    return _parted(opened, rows, stages)


def load_folds(
    data: Data,
    n_folds: int,
    curriculum: Sequence[CurriculumStage] = (),
    *,
    on_progress: OnProgress | None = None,
) -> list[TrainingData]:
    """Open what a search may see of a data set in `n_folds` ways, for cross-validation.

    Each picture that the test split leaves is validated on in one of them. The data's
    `validation` share plays no part.

    Args:
        data: Which pictures; `split_seed` decides the folds.
        n_folds: At least 2.
        curriculum: As in `load`, the same for all.
        on_progress: As in `load`.

    Raises:
        DataError: If the pictures can't be had, or cannot be split so.
    """
    opened, stages = _open_for_search(data, curriculum, on_progress)
    folds = fold_rows(
        opened.labels, n_folds=n_folds, n_training=data.n_training, seed=data.split_seed
    )
    return [_parted(opened, rows, stages) for rows in folds]


def _open_for_search(
    data: Data, curriculum: Sequence[CurriculumStage], on_progress: OnProgress | None
) -> tuple[Split, tuple[Split, ...]]:
    """Return all pictures that a search may see, and those of each stage of a curriculum."""
    recipes = recipes_of(data, curriculum)
    with ProgressDisplay() as display:
        opened = [open_part(recipe, "search", on_progress or display) for recipe in recipes]
    images, labels = opened[0]
    whole = Split(images, np.arange(len(labels), dtype=np.int64), labels)
    stages = []
    for stage_images, stage_labels in opened[1:]:
        rows = np.arange(len(stage_labels), dtype=np.int64)
        rows = shuffled(rows, seed=data.split_seed, purpose="order of a curriculum")
        stages.append(Split(stage_images, rows, stage_labels[rows]))
    return whole, tuple(stages)


def _parted(
    whole: Split, rows: tuple[NDArray[np.int64], NDArray[np.int64]], stages: tuple[Split, ...]
) -> TrainingData:
    train, validation = (Split(whole.images, part, whole.labels[part]) for part in rows)
    return TrainingData(train, validation, stages)


def load_test(data: Data, opening: TestOpening, *, on_progress: OnProgress | None = None) -> Split:
    """Open the test split, after the opening has been recorded: the only way to it.

    Args:
        data: Which pictures; `split_seed` and, for clocks, `test` decide which are the test's.
        opening: The ledger's entry. It is recorded before any file is opened.
        on_progress: Told how far a preparation is; None: shown on standard error.

    Raises:
        StorageError: If the opening could not be recorded; nothing was opened then.
        DataError: If the pictures can't be had.
    """
    opening.record()
    with ProgressDisplay() as display:
        recipe = recipe_for(resolve(data))
        images, labels = open_part(recipe, "test", on_progress or display)
    return Split(images, np.arange(len(labels), dtype=np.int64), labels)


def prepare_data(
    data: Data,
    curriculum: Sequence[CurriculumStage] = (),
    *,
    on_progress: OnProgress | None = None,
) -> list[Path]:
    """Prepare whatever `load` would open, so that workers find it there.

    Returns:
        The folder of the data, then one for each stage of the curriculum.

    Raises:
        DataError: If the pictures can't be had, or can't be written.
    """
    with ProgressDisplay() as display:
        recipes = recipes_of(data, curriculum)
        return [prepare(recipe, on_progress or display) for recipe in recipes]


def recipes_of(data: Data, curriculum: Sequence[CurriculumStage]) -> list[Recipe]:
    """Return the recipe of the data, then one for each stage of the curriculum."""
    data = resolve(data)
    recipes = [recipe_for(data)]
    if isinstance(data, Clocks):
        recipes += [curriculum_recipe(data, stage) for stage in curriculum]
    return recipes
