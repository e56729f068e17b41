"""Which pictures a study's trials learn from: to be told apart between machines that share it."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

from dlnn_search.config.data import Data, OwnData
from dlnn_search.data.loading import prepare_data, recipes_of
from dlnn_search.data.own import content_of
from dlnn_search.data.prepared import LABELS, PICTURES

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
