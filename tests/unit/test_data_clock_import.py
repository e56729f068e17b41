"""The course's clocks: what is not in its form is refused, what is becomes a copy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dlnn_search.config import Clocks
from dlnn_search.data import load, resolve
from dlnn_search.data.prepared import Progress
from dlnn_search.data.sources import import_clocks, imported
from dlnn_search.data.splits import strata_of
from dlnn_search.errors import DataError

LABELS = np.stack(np.divmod(np.repeat(np.arange(720), 2), 60), axis=1)


def quiet(progress: Progress) -> None:
    """Show nothing."""


def pictures(edge: int = 40, n: int = 1_440) -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, 256, (n, edge, edge), np.uint8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the course's files, beside an empty cache."""
    monkeypatch.setenv("DLNN_SEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path


def give(folder: Path, images: NDArray[Any], labels: NDArray[Any]) -> tuple[Path, Path]:
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    return folder / "images.npy", folder / "labels.npy"


@pytest.mark.parametrize(
    ("images", "labels", "expected"),
    [
        (pictures().astype(np.float32), LABELS, "dtype uint8"),
        (pictures()[..., None], LABELS, r"shape \(n, h, h\)"),
        (pictures()[:, :39], LABELS, r"shape \(n, h, h\)"),
        (pictures(31), LABELS, "32 to 300 pixels"),
        (np.zeros((720, 301, 301), np.uint8), LABELS[::2], "32 to 300 pixels"),
        (pictures(n=1_000), LABELS[:1_000], "multiple of 720"),
        (pictures(n=0), LABELS[:0], "multiple of 720"),
        (pictures(), LABELS[:720], "a label for each picture"),
        (pictures(), LABELS.astype(float), "integer dtype"),
        (pictures(), LABELS[:, 0], r"shape \(n, 2\)"),
        (pictures(), LABELS[:, ::-1], "hours from 0 to 11"),
        (pictures(), LABELS + np.array([1, 0]), "hours from 0 to 11"),
        (pictures(), LABELS + np.array([0, 1]), "minutes from 0 to 59"),
        (pictures(), LABELS - np.array([0, 1]), "minutes from 0 to 59"),
    ],
)
def test_each_broken_expectation_is_told_with_what_came_and_the_form_to_give(
    folder: Path, images: NDArray[Any], labels: NDArray[Any], expected: str
) -> None:
    paths = give(folder, images, labels)
    with pytest.raises(DataError, match=rf"Expected .*{expected}.*got .*Give the"):
        import_clocks(*paths, on_progress=quiet)
    assert imported() is None


@pytest.mark.parametrize("content", [b"", b"not numpy", b"\x93NUMPY\x01\x00v\x00{'descr"])
def test_a_file_that_is_no_npy_is_refused_with_its_path(folder: Path, content: bytes) -> None:
    images, labels = give(folder, pictures(), LABELS)
    labels.write_bytes(content)
    with pytest.raises(DataError, match=r"Cannot read the labels '.*labels.npy'"):
        import_clocks(images, labels, on_progress=quiet)


def test_pickled_objects_are_refused_unread(folder: Path) -> None:
    images, labels = give(folder, pictures(), LABELS)
    np.save(labels, np.array([{"hour": 1}], object), allow_pickle=True)
    with pytest.raises(DataError, match="Cannot read the labels"):
        import_clocks(images, labels, on_progress=quiet)


def test_an_archive_of_arrays_is_refused(folder: Path) -> None:
    _, labels = give(folder, pictures(), LABELS)
    np.savez(folder / "both.npz", images=pictures())
    with pytest.raises(DataError, match="got an archive"):
        import_clocks(folder / "both.npz", labels, on_progress=quiet)


def test_the_import_is_a_copy_that_outlives_the_files(folder: Path) -> None:
    images, labels = give(folder, pictures(), LABELS)
    import_clocks(images, labels, on_progress=quiet)
    images.unlink()
    labels.unlink()
    loaded = load(Clocks(source="course", image_size=40), on_progress=quiet)
    kept = {picture.tobytes() for picture in loaded.train.images}
    assert len(kept) == 1_440 - 288
    assert kept < {picture.tobytes() for picture in pictures()}


def test_auto_becomes_course_where_imported_and_rendered_elsewhere(folder: Path) -> None:
    assert resolve(Clocks()) == Clocks(source="rendered")
    import_clocks(*give(folder, pictures(), LABELS), on_progress=quiet)
    assert resolve(Clocks()) == Clocks(source="course")
    assert resolve(Clocks(source="rendered")) == Clocks(source="rendered")


def test_course_without_an_import_names_the_command(folder: Path) -> None:
    with pytest.raises(DataError, match="dlnn-search data import clocks"):
        load(Clocks(source="course"), on_progress=quiet)


def test_eighteen_thousand_clocks_are_split_exactly_and_evenly(folder: Path) -> None:
    n = 18_000
    labels = np.stack(np.divmod(np.repeat(np.arange(720), 25), 60), axis=1)
    import_clocks(*give(folder, pictures(32, n), labels), on_progress=quiet)
    data = Clocks(source="course", image_size=32)
    loaded = load(data, on_progress=quiet)
    assert (len(loaded.train), len(loaded.validation)) == (12_960, 1_440)
    for split, a_time in ((loaded.train, 18), (loaded.validation, 2)):
        times = strata_of(split.labels)
        assert np.all(np.bincount(times, minlength=720) == a_time)
    seen = load(data.model_copy(update={"validation": 0.05}), on_progress=quiet)
    assert len(seen.validation) == 720
    few = load(data.model_copy(update={"n_training": 100}), on_progress=quiet)
    assert len(few.train) == 100


def test_pictures_of_another_size_are_scaled_once_and_keep_their_content(folder: Path) -> None:
    # Left half dark, right half light: so must every picture be at another size.
    images = np.zeros((720, 60, 60), np.uint8)
    images[:, :, 30:] = 200
    import_clocks(*give(folder, images, LABELS[::2]), on_progress=quiet)
    loaded = load(Clocks(source="course", image_size=36), on_progress=quiet)
    assert loaded.train.image_shape == (36, 36)
    scaled = loaded.train.take(slice(0, 5))
    assert np.all(scaled[:, :, :14] < 12) and np.all(abs(scaled[:, :, 22:] - 200.0) < 12)


def test_another_set_replaces_the_first_only_when_told(folder: Path) -> None:
    first = import_clocks(*give(folder, pictures(), LABELS), on_progress=quiet)
    assert import_clocks(*give(folder, pictures(), LABELS), on_progress=quiet) == first
    load(Clocks(source="course", image_size=40), on_progress=quiet)
    others = give(folder, 255 - pictures(), LABELS)
    with pytest.raises(DataError, match="--replace"):
        import_clocks(*others, on_progress=quiet)
    assert imported() == first
    import_clocks(*others, replace=True, on_progress=quiet)
    loaded = load(Clocks(source="course", image_size=40), on_progress=quiet)
    kept = {picture.tobytes() for picture in loaded.train.images}
    assert kept < {picture.tobytes() for picture in 255 - pictures()}
    assert len(list((folder / "cache" / "prepared").iterdir())) == 1
