"""A study's own pictures: prepared like all others, or refused with what is wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlnn_search.config import OwnData
from dlnn_search.data import Split, load, load_folds, load_test, prepare_data
from dlnn_search.data.catalog import catalog
from dlnn_search.data.progress import Progress
from dlnn_search.errors import DataError, StudyError
from dlnn_search.own_code import OwnCode, OwnImages, register

RANDOM = np.random.default_rng(0)
GRAY = RANDOM.integers(0, 256, (90, 5, 7), np.uint8)
COLOUR = RANDOM.integers(0, 256, (90, 5, 7, 3), np.uint8)
LABELS = np.arange(90) % 3
MINE = OwnData(study="mine", n_classes=3)


class Opening:
    def record(self) -> None:
        """Allow it."""


def quiet(progress: Progress) -> None:
    """Show nothing."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLNN_SEARCH_CACHE", str(tmp_path / "cache"))


def loading(
    function: Callable[[dict[str, Any]], Any], data: OwnData = MINE, version: str = "0" * 12
) -> tuple[Split, Split, Split]:
    """Return training, validation and test split of a loader."""
    register(OwnCode("mine", version, load=function))
    splits = load(data, on_progress=quiet)
    return splits.train, splits.validation, load_test(data, Opening(), on_progress=quiet)


def refused(*values: Any, n_classes: int = 3) -> str:
    with pytest.raises(DataError) as caught:
        loading(lambda _: OwnImages(*values), OwnData(study="mine", n_classes=n_classes))
    return str(caught.value)


@pytest.mark.parametrize(
    "images, shape",
    [(GRAY, (5, 7)), (GRAY[..., None], (5, 7)), (COLOUR, (5, 7, 3))],
    ids=["gray", "one channel", "colour"],
)
def test_pictures_of_any_form_are_split_by_class(images: Any, shape: tuple[int, ...]) -> None:
    train, validation, test = loading(lambda _: OwnImages(images, LABELS))
    assert [len(split) for split in (train, validation, test)] == [61, 11, 18]
    assert np.all(np.bincount(test.labels) == 6)
    for split in (train, validation, test):
        assert split.image_shape == shape
        assert split.batch(slice(2)).shape == (2, *shape[:2], *(shape[2:] or (1,)))
    together = np.concatenate([split.take(slice(None)) for split in (train, validation, test)])
    wanted = images.reshape(90, *shape)
    assert sorted(image.tobytes() for image in together) == sorted(i.tobytes() for i in wanted)
    label_of = {image.tobytes(): label for image, label in zip(wanted, LABELS, strict=True)}
    for split in (train, validation, test):
        taken = split.take(slice(None))
        assert [label_of[image.tobytes()] for image in taken] == split.labels.tolist()


def test_a_test_split_of_the_loader_s_own_is_the_test_split() -> None:
    def function(_: dict[str, Any]) -> OwnImages:
        return OwnImages(COLOUR[:60], LABELS[:60], COLOUR[60:], LABELS[60:])

    train, validation, test = loading(function)
    assert len(train) + len(validation) == 60
    assert np.array_equal(test.take(slice(None)), COLOUR[60:])
    assert np.array_equal(test.labels, LABELS[60:])


def test_own_pictures_can_be_cross_validated() -> None:
    loading(lambda _: OwnImages(COLOUR, LABELS))
    folds = load_folds(MINE, 4, on_progress=quiet)
    assert sum(len(fold.validation) for fold in folds) == 72


def test_a_loader_runs_once_for_its_options_and_its_code() -> None:
    calls = []

    def function(options: dict[str, Any]) -> OwnImages:
        calls.append(options.pop("n", 0))  # a loader may do with its options what it likes
        return OwnImages(GRAY, LABELS)

    loading(function)
    loading(function)
    assert calls == [0]
    other = OwnData(study="mine", n_classes=3, options={"n": 2})
    loading(function, other)
    assert calls == [0, 2] and other.options == {"n": 2}
    loading(function, version="1" * 12)
    assert calls == [0, 2, 0]
    assert [entry.variant for entry in catalog() if entry.name == "own"].count("mine, n 2") == 1


def test_code_that_is_not_loaded_or_another_version_is_refused() -> None:
    with pytest.raises(StudyError, match="the study 'nobody-s', which is not loaded"):
        prepare_data(OwnData(study="nobody-s", n_classes=2))
    register(OwnCode("mine", "0" * 12, load=lambda _: OwnImages(GRAY, LABELS)))
    with pytest.raises(StudyError, match=f"expected code {'1' * 12}, got {'0' * 12}"):
        prepare_data(MINE.model_copy(update={"code": "1" * 12}))
    register(OwnCode("mine", "0" * 12))
    with pytest.raises(StudyError, match="has no loader"):
        prepare_data(MINE)


def test_an_error_of_the_loader_is_told_with_its_line_and_leaves_nothing_behind() -> None:
    def function(_: dict[str, Any]) -> OwnImages:
        raise FileNotFoundError("no such folder")

    with pytest.raises(DataError) as caught:
        loading(function)
    line = function.__code__.co_firstlineno + 1
    assert str(caught.value) == (
        f"The loader of 'mine' failed: line {line}: FileNotFoundError: no such folder"
    )
    assert len(loading(lambda _: OwnImages(GRAY, LABELS))[0]) == 61


def test_what_is_no_set_of_pictures_is_refused() -> None:
    with pytest.raises(DataError, match=r"returned tuple: expected OwnImages\(images="):
        loading(lambda _: (GRAY, LABELS))
    floats = GRAY / 255
    floats[0] = np.nan
    assert "images of float64 with NaN: expected a NumPy array of uint8" in refused(floats, LABELS)
    assert "images of type list" in refused([[[0]]], LABELS)
    assert "images of shape (90, 35): expected (n, height, width)" in refused(
        GRAY.reshape(90, -1), LABELS
    )
    assert "none of them 0" in refused(GRAY[:0], LABELS[:0])


def test_labels_that_are_no_classes_are_refused() -> None:
    assert "labels of float64: expected a NumPy array of whole numbers from 0 to 2" in refused(
        GRAY, LABELS / 1
    )
    assert "labels of float64 with NaN" in refused(GRAY, np.full(90, np.nan))
    assert "labels of shape (90, 1): expected (90,)" in refused(GRAY, LABELS[:, None])
    assert "labels of shape (89,): expected (90,)" in refused(GRAY, LABELS[:89])
    assert "no class: 3. Expected 0 to 2" in refused(GRAY, LABELS + 1)
    assert "no class: -1. Expected 0 to 2" in refused(GRAY, LABELS - 1)
    assert "no class: 300" in refused(GRAY, LABELS * 300)  # and not 300 - 256
    assert "no picture of 2 of 5 classes: 3, 4." in refused(GRAY, LABELS, n_classes=5)


def test_a_test_split_that_does_not_fit_is_refused() -> None:
    assert "expected both or neither" in refused(GRAY, LABELS, GRAY)
    assert "test pictures of (5, 7, 3): expected (5, 7)" in refused(GRAY, LABELS, COLOUR, LABELS)
    assert "for the test, labels that are no class: 3" in refused(GRAY, LABELS, GRAY, LABELS + 1)
    few = refused(GRAY[:2], LABELS[:2], n_classes=2)
    assert "takes 0 of the 2 pictures of the loader of 'mine'" in few
