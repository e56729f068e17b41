"""A study's own pictures: prepared like all others, or refused with what is wrong."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlnn_search.config import OwnData
from dlnn_search.data import Split, load, load_folds, load_test, prepare_data
from dlnn_search.data import own as own_pictures
from dlnn_search.data import own as watching
from dlnn_search.data.catalog import catalog
from dlnn_search.data.loading import identity_of
from dlnn_search.data.prepared import Progress
from dlnn_search.errors import DataError, StudyError
from dlnn_search.study.finding import OwnCode, OwnImages, register

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


def as_a_new_process() -> None:
    own_pictures._contents.clear()
    own_pictures._content_on_disk.cache_clear()


@pytest.fixture
def no_steps_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "TIME_STEP_SECONDS", 0.0)


def reading(calls: list[str]) -> Callable[[dict[str, Any]], OwnImages]:
    """Return a loader that reads a file of the folder in which it runs."""

    def function(_: dict[str, Any]) -> OwnImages:
        calls.append(os.getcwd())
        return OwnImages(np.load("images.npy"), LABELS)

    return function


def prepared_folders() -> list[str]:
    return sorted(entry.where for entry in catalog() if entry.name == "own")


def test_one_file_name_in_two_folders_is_two_sets_unless_both_hold_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    function = reading(calls)
    for folder, images in (("a", GRAY), ("b", 255 - GRAY), ("c", GRAY)):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "images.npy", images)
        monkeypatch.chdir(tmp_path / folder)
        train, _, test = loading(function)
        wanted = {image.tobytes() for image in images[..., None]}
        for split in (train, test):
            assert {image.tobytes() for image in split.take(slice(None))} <= wanted
    assert len(calls) == 3
    assert len(prepared_folders()) == 2


@pytest.mark.parametrize("change", ["file", "variable", "folder", "nothing", "gone", "code"])
def test_a_later_process_loads_again_only_what_may_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_steps_of_time: None, change: str
) -> None:
    calls: list[str] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WHICH", "0")
    (tmp_path / "more").mkdir()
    np.save("images.npy", GRAY)

    def function(options: dict[str, Any]) -> OwnImages:
        calls.append("")
        shift = int(os.environ["WHICH"]) + len(list(Path("more").iterdir()))
        return OwnImages(np.load("images.npy") + np.uint8(shift), LABELS)

    loading(function)
    as_a_new_process()
    loading(function)
    assert len(calls) == 1
    match change:
        case "file":
            np.save("images.npy", GRAY + np.uint8(1))
        case "variable":
            monkeypatch.setenv("WHICH", "1")
        case "folder":
            Path("more/one").touch()
        case "gone":
            Path("images.npy").unlink()
    as_a_new_process()
    images = loading(function, version="1" * 12 if change == "code" else "0" * 12)[0]
    assert len(calls) == (1 if change in ("nothing", "gone") else 2)
    moved = change in ("file", "variable", "folder")
    wanted = {image.tobytes() for image in (GRAY + np.uint8(1) if moved else GRAY)}
    assert {image.tobytes() for image in images.take(slice(None))} <= wanted


def test_what_was_read_without_python_is_loaded_by_each_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_steps_of_time: None
) -> None:
    h5py = pytest.importorskip("h5py")
    calls = []
    monkeypatch.chdir(tmp_path)
    images = RANDOM.integers(0, 256, (90, 80, 80), np.uint8)

    def store(images: Any) -> None:
        with h5py.File("images.h5", "w") as file:
            file["images"] = images

    def function(_: dict[str, Any]) -> OwnImages:
        calls.append("")
        with h5py.File("images.h5") as file:
            return OwnImages(file["images"][:], LABELS)

    store(images)
    loading(function)
    store(255 - images)
    as_a_new_process()
    train = loading(function)[0]
    assert len(calls) == 2
    wanted = {image.tobytes() for image in 255 - images}
    assert {image.tobytes() for image in train.take(slice(None))} <= wanted


def test_a_file_that_was_written_a_moment_ago_is_read_by_the_next_process_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", GRAY)
    loading(reading(calls))
    as_a_new_process()
    loading(reading(calls))
    assert len(calls) == 2


def by_an_earlier_version() -> Path:
    """Prepare `GRAY` as version 0.1.0 named and described it."""
    files = {
        "search/labels.npy": 200, "search/pictures.npy": 2648,
        "test/labels.npy": 146, "test/pictures.npy": 758,
    }  # fmt: skip
    loading(lambda _: OwnImages(GRAY, LABELS))
    folder = Path(prepared_folders()[0])
    former = folder.rename(folder.with_name("own-mine-b95273d84e"))
    about = {
        "title": "the pictures of 'mine'", "data": "own", "study": "mine", "options": {},
        "code": "0" * 12, "n_classes": 3, "test": 0.2, "split_seed": 0, "layout": 1,
        "n_images": 90, "files": files,
    }  # fmt: skip
    (former / "about.json").write_text(json.dumps(about))
    as_a_new_process()
    return former


def test_a_set_that_an_earlier_version_prepared_serves_the_same_pictures_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = by_an_earlier_version()
    loading(lambda _: OwnImages(GRAY, LABELS))
    assert prepared_folders() == [str(former)]
    assert identity_of(MINE)[0].startswith("the pictures of 'mine', 665e76e3647b, all ")
    monkeypatch.chdir(tmp_path)
    loading(lambda _: OwnImages(255 - GRAY, LABELS))
    assert len(prepared_folders()) == 2
    assert former.exists()


def test_one_other_picture_is_another_identity_of_a_new_study_and_none_of_an_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = RANDOM.integers(0, 256, (3000, 2, 2), np.uint8)
    labels = np.arange(3000) % 3
    told = []
    for _ in range(2):
        loading(lambda _: OwnImages(images, labels))
        told += identity_of(MINE)
        monkeypatch.chdir(tmp_path)
        images[1234] += 1
    assert told[0] != told[1]
    assert told[0].rpartition(",")[0] == told[1].rpartition(",")[0]  # an earlier version's


def test_a_loader_that_returns_others_each_time_is_refused_where_its_set_is_damaged() -> None:
    random = np.random.default_rng(1)

    def function(_: dict[str, Any]) -> OwnImages:
        return OwnImages(random.integers(0, 256, (90, 5, 7), np.uint8), LABELS)

    loading(function)
    (Path(prepared_folders()[0]) / "search/pictures.npy").unlink()
    with pytest.raises(DataError, match=r"other pictures than a moment ago. Let it draw"):
        loading(function)


def test_the_catalog_names_the_file_of_the_study() -> None:
    register(OwnCode("mine", "0" * 12, lambda _: OwnImages(GRAY, LABELS), file="/x/mine.py"))
    prepare_data(MINE, on_progress=quiet)
    assert [entry.variant for entry in catalog() if entry.name == "own"] == [
        "mine, from /x/mine.py"
    ]
