"""The test split: out of a search's reach, and opened only after the ledger says so."""

import ast
import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import dlnn_search
from dlnn_search import data as data_package
from dlnn_search.config import Clocks, CurriculumStage, Data, Mnist, OwnData
from dlnn_search.data import (
    Split,
    TrainingData,
    image_shape,
    load,
    load_folds,
    load_test,
    prepare_data,
    resolve,
)
from dlnn_search.data.prepared import Progress
from dlnn_search.data.sources import DIGIT_SETS, DigitSet, import_clocks
from dlnn_search.data.splits import strata_of
from dlnn_search.errors import StorageError
from dlnn_search.study.finding import OwnCode, OwnImages, register

COURSE = Clocks(source="course", image_size=32)
RENDERED = Clocks(source="rendered", image_size=32, images_per_time=2)
MNIST = Mnist()
OWN = OwnData(study="mine", n_classes=3)

#: The only modules that may name `load_test`, besides the data package that defines it.
MAY_OPEN_THE_TEST = {"commands/evaluate.py"}

_opened: list[str] | None = None


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _opened is not None:
        _opened.append(str(arguments[0]))


sys.addaudithook(_watch)  # for good: Python takes no hook back


@contextmanager
def watching() -> Iterator[list[str]]:
    """Yield the list of files that are opened, as they are."""
    global _opened
    _opened = []
    try:
        yield _opened
    finally:
        _opened = None


def quiet(progress: Progress) -> None:
    """Show nothing."""


class Opening:
    """An opening that notes which pictures were open when it was recorded."""

    def __init__(self, opened: list[str]) -> None:
        self.opened = opened
        self.before: list[str] | None = None

    def record(self) -> None:
        self.before = [path for path in self.opened if path.endswith(".npy")]


class FailingOpening:
    def record(self) -> None:
        raise StorageError("The ledger cannot be written.")


@pytest.fixture(scope="module", autouse=True)
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache with imported clocks, rendered ones, and a small MNIST whose pictures all differ."""
    tmp_path = tmp_path_factory.mktemp("sealed")
    rng = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DLNN_SEARCH_CACHE", str(tmp_path / "cache"))
        patch.setenv("DLNN_SEARCH_DATA", str(tmp_path))

        labels = np.stack(np.divmod(np.repeat(np.arange(720), 5), 60), axis=1)
        np.save(tmp_path / "images.npy", rng.integers(0, 256, (3_600, 32, 32), np.uint8))
        np.save(tmp_path / "labels.npy", labels)
        import_clocks(tmp_path / "images.npy", tmp_path / "labels.npy", on_progress=quiet)

        shapes = {"train": 600, "test": 100}
        arrays: dict[str, Any] = {}
        for part, n in shapes.items():
            arrays[f"x_{part}"] = rng.integers(0, 256, (n, 28, 28), np.uint8)
            arrays[f"y_{part}"] = (np.arange(n) % 10).astype(np.uint8)
        np.savez(tmp_path / "mnist.npz", **arrays)
        patch.setitem(DIGIT_SETS, "mnist", _described(arrays))
        own = rng.integers(0, 256, (300, 6, 8, 3), np.uint8)
        register(OwnCode("mine", "0" * 12, load=lambda _: OwnImages(own, np.arange(300) % 3)))
        for data in (COURSE, RENDERED, MNIST, OWN):
            prepare_data(data, on_progress=quiet)
        yield


def _described(arrays: dict[str, NDArray[np.uint8]]) -> DigitSet:
    def md5(array: NDArray[np.uint8]) -> str:
        header = np.array([2048 + array.ndim, *array.shape], ">u4").tobytes()
        return hashlib.md5(header + array.tobytes()).hexdigest()

    return DigitSet(
        "mnist",
        "MNIST",
        {
            "train_images": md5(arrays["x_train"]),
            "train_labels": md5(arrays["y_train"]),
            "test_images": md5(arrays["x_test"]),
            "test_labels": md5(arrays["y_test"]),
        },
        n_train=600,
        n_test=100,
    )


def contents(images: NDArray[np.uint8]) -> set[bytes]:
    return {image.tobytes() for image in images}


every_set = pytest.mark.parametrize(
    "data", [COURSE, RENDERED, MNIST, OWN], ids=["course", "rendered", "mnist", "own"]
)


@every_set
def test_what_a_search_loads_holds_no_test_picture_even_beyond_its_rows(data: Data) -> None:
    loaded = load(data, on_progress=quiet)
    tested = contents(load_test(data, Opening([]), on_progress=quiet).take(slice(None)))
    train = contents(loaded.train.take(slice(None)))
    valid = contents(loaded.validation.take(slice(None)))
    assert len(train) == len(loaded.train) and len(valid) == len(loaded.validation)
    assert train.isdisjoint(valid)
    # Not only the rows: the whole mapped array, and what it is a view of.
    mapped = contents(loaded.train.images) | contents(loaded.validation.images)
    assert mapped == train | valid
    assert mapped.isdisjoint(tested)


@every_set
def test_loading_for_a_search_opens_no_file_of_the_test_split(data: Data) -> None:
    with watching() as opened:
        load(data, on_progress=quiet)
    pictures = [path for path in opened if path.endswith(".npy")]
    assert pictures and not any("/test/" in path for path in pictures)


@every_set
def test_the_opening_is_recorded_before_any_picture_is_opened(data: Data) -> None:
    with watching() as opened:
        opening = Opening(opened)
        split = load_test(data, opening, on_progress=quiet)
    assert opening.before == []
    assert any(path.endswith("/test/pictures.npy") for path in opened)
    assert len(split) == len(split.images) > 0


@every_set
def test_an_opening_that_cannot_be_recorded_opens_nothing(data: Data) -> None:
    with watching() as opened, pytest.raises(StorageError):
        load_test(data, FailingOpening(), on_progress=quiet)
    assert not [path for path in opened if path.endswith((".npy", ".npz", ".json"))]


@every_set
def test_without_an_opening_nothing_is_opened(data: Data) -> None:
    for none in ((), (None,)):
        with watching() as opened, pytest.raises((TypeError, AttributeError)):
            load_test(data, *none)
        assert not [path for path in opened if path.endswith(".npy")]


@every_set
def test_no_other_public_function_of_the_data_package_gives_test_pictures(data: Data) -> None:
    tested = contents(load_test(data, Opening([]), on_progress=quiet).take(slice(None)))
    functions = {
        name for name in data_package.__all__ if not isinstance(getattr(data_package, name), type)
    }
    assert functions == {
        "image_shape",
        "load",
        "load_folds",
        "load_test",
        "prepare_data",
        "resolve",
    }
    assert set(data_package.__all__) - functions == {"Split", "TestOpening", "TrainingData"}
    assert type(resolve(data)) is type(data)
    with watching() as opened:
        assert all(isinstance(folder, Path) for folder in prepare_data(data, on_progress=quiet))
    assert not [path for path in opened if path.endswith(".npy")]
    loaded = load(data, on_progress=quiet)
    assert isinstance(loaded, TrainingData)
    assert image_shape(data) == loaded.train.image_shape
    (fold, _) = load_folds(data, 2, on_progress=quiet)
    for split in (loaded.train, loaded.validation, *loaded.curriculum, fold.train):
        assert contents(split.images).isdisjoint(tested)


def test_the_test_rows_follow_from_their_seed_and_share_alone() -> None:
    def tested(**changes: object) -> set[bytes]:
        data = COURSE.model_copy(update=changes)
        return contents(load_test(data, Opening([]), on_progress=quiet).images)

    first = tested()
    assert len(first) == 720
    assert tested(validation=0.4, n_training=50) == first
    assert tested(split_seed=1) != first


def test_test_clocks_are_one_of_five_of_each_time() -> None:
    split = load_test(COURSE, Opening([]), on_progress=quiet)
    assert np.all(np.bincount(strata_of(split.labels)) == 1)


def test_a_curriculum_repeats_no_picture_of_the_data() -> None:
    stages = (
        CurriculumStage(azimuth_spread=0.3, epochs=1),
        CurriculumStage(azimuth_spread=np.pi, epochs=1),
    )
    loaded = load(RENDERED, stages, on_progress=quiet)
    own = contents(loaded.train.images)
    own |= contents(load_test(RENDERED, Opening([]), on_progress=quiet).images)
    assert len(loaded.curriculum) == 2
    for split in loaded.curriculum:
        assert isinstance(split, Split)
        assert len(split) == 1_440 and split.image_shape == (32, 32)
        assert sorted(split.rows) == list(range(1_440)) and np.any(np.diff(split.rows) < 0)
        assert contents(split.images).isdisjoint(own)
        times = strata_of(split.labels)
        assert np.all(np.bincount(times) == 2)


def test_only_evaluation_names_the_way_to_the_test_split() -> None:
    package = Path(dlnn_search.__file__).parent
    naming = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if path.parent.name != "data" and _names_load_test(path)
    }
    assert naming <= MAY_OPEN_THE_TEST
    in_data = {path.name for path in (package / "data").glob("*.py") if _names_load_test(path)}
    assert in_data == {"__init__.py", "loading.py"}


def _names_load_test(path: Path) -> bool:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        named = (
            getattr(node, "id", None),
            getattr(node, "attr", None),
            getattr(node, "name", None),
            getattr(node, "value", None) if isinstance(node, ast.Constant) else None,
        )
        if "load_test" in named:
            return True
    return False
