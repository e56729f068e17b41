"""MNIST's form: found in every spelling, believed only by its checksums."""

import gzip
import hashlib
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dlnn_search.config import FashionMnist, Mnist
from dlnn_search.data import load, sources
from dlnn_search.data.prepared import Progress, open_part
from dlnn_search.data.recipes import digits_recipe
from dlnn_search.data.sources import (
    DIGIT_SETS,
    IDX_STEMS,
    NPZ_KEYS,
    DigitSet,
    Payload,
    write_digits,
)
from dlnn_search.errors import DataError

Pixels = NDArray[np.uint8]

REAL_DATA = os.environ.get("DLNN_SEARCH_DATA")
needs_real_data = pytest.mark.skipif(
    not REAL_DATA, reason="DLNN_SEARCH_DATA names no folder with the real MNIST and Fashion-MNIST"
)


def quiet(progress: Progress) -> None:
    """Show nothing."""


def arrays(seed: int = 0) -> dict[Payload, Pixels]:
    rng = np.random.default_rng(seed)
    return {
        "train_images": rng.integers(0, 256, (60, 5, 5), np.uint8),
        "train_labels": (np.arange(60) % 10).astype(np.uint8),
        "test_images": rng.integers(0, 256, (20, 5, 5), np.uint8),
        "test_labels": (np.arange(20) % 10).astype(np.uint8),
    }


def idx(array: Pixels) -> bytes:
    magic = 2051 if array.ndim == 3 else 2049
    return struct.pack(f">{array.ndim + 1}I", magic, *array.shape) + array.tobytes()


def a_set(payloads: dict[Payload, Pixels], name: str = "mnist") -> DigitSet:
    md5 = {payload: hashlib.md5(idx(array)).hexdigest() for payload, array in payloads.items()}
    return DigitSet(name, name.title(), md5, n_train=60, n_test=20, size=5)


def write_npz(path: Path, payloads: dict[Payload, Pixels]) -> None:
    entries: dict[str, Any] = {NPZ_KEYS[payload]: array for payload, array in payloads.items()}
    np.savez_compressed(path, **entries)


def write_npz_of(path: Path, value: NDArray[Any]) -> None:
    entries: dict[str, Any] = dict.fromkeys(NPZ_KEYS.values(), value)
    np.savez(path, **entries)


def write_idx(
    folder: Path, payloads: dict[Payload, Pixels], *, gz: bool = False, spelling: int = 0
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for payload, array in payloads.items():
        stem = IDX_STEMS[payload][spelling]
        if gz:
            (folder / f"{stem}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / stem).write_bytes(idx(array))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that `$DLNN_SEARCH_DATA` names, beside an empty cache."""
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("DLNN_SEARCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("DLNN_SEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "data"


@pytest.mark.parametrize(
    "write",
    [
        lambda folder, payloads: write_npz(folder / "fashion_mnist.npz", payloads),
        lambda folder, payloads: write_npz(folder / "fashion-mnist.npz", payloads),
        lambda folder, payloads: write_idx(folder, payloads),
        lambda folder, payloads: write_idx(folder, payloads, spelling=1),
        lambda folder, payloads: write_idx(folder, payloads, gz=True),
        lambda folder, payloads: write_idx(folder / "fashion-mnist", payloads),
        lambda folder, payloads: write_idx(folder / "fashion_mnist", payloads, gz=True, spelling=1),
    ],
    ids=["npz_", "npz-", "idx", "idx with a dot", "gz", "subfolder-", "subfolder_ of dotted gz"],
)
def test_a_set_is_read_from_every_form_with_its_test_part_in_files_of_its_own(
    folder: Path, write: Callable[[Path, dict[Payload, Pixels]], None]
) -> None:
    payloads = arrays()
    write(folder, payloads)
    recipe = digits_recipe(a_set(payloads, "fashion-mnist"))
    images, labels = open_part(recipe, "search", quiet)
    assert np.array_equal(images, payloads["train_images"])
    assert np.array_equal(labels, payloads["train_labels"])
    images, labels = open_part(recipe, "test", quiet)
    assert np.array_equal(images, payloads["test_images"])
    assert np.array_equal(labels, payloads["test_labels"])


def test_the_systems_package_is_read_where_the_folder_has_nothing(
    folder: Path, tmp_path: Path
) -> None:
    payloads = arrays()
    write_idx(tmp_path / "system", payloads, gz=True)
    digits = replace(a_set(payloads), system_folder=tmp_path / "system")
    images, _ = open_part(digits_recipe(digits), "search", quiet)
    assert np.array_equal(images, payloads["train_images"])


def test_the_prepared_copy_comes_before_every_file(folder: Path) -> None:
    payloads = arrays()
    write_npz(folder / "mnist.npz", payloads)
    recipe = digits_recipe(a_set(payloads))
    open_part(recipe, "search", quiet)
    (folder / "mnist.npz").write_bytes(b"now something else")
    images, _ = open_part(recipe, "search", quiet)
    assert np.array_equal(images, payloads["train_images"])


@pytest.mark.parametrize("form", ["npz", "idx"])
def test_a_wrong_file_is_refused_with_its_path_and_both_sums(
    folder: Path, tmp_path: Path, form: str
) -> None:
    expected, came = arrays(0), arrays(1)
    digits = a_set(expected)
    if form == "npz":
        write_npz(folder / "mnist.npz", came)
        path = folder / "mnist.npz"
    else:
        write_idx(folder, came)
        path = folder / "train-images-idx3-ubyte"
    # A right copy further down the list must not hide the wrong one.
    write_idx(tmp_path / "system", expected)
    digits = replace(digits, system_folder=tmp_path / "system")
    with pytest.raises(DataError) as refused:
        open_part(digits_recipe(digits), "search", quiet)
    message = str(refused.value)
    assert str(path) in message
    assert digits.md5["train_images"] in message
    assert hashlib.md5(idx(came["train_images"])).hexdigest() in message
    assert not list((tmp_path / "cache" / "prepared").iterdir())


def test_wrong_labels_are_refused_though_the_pictures_are_right(folder: Path) -> None:
    payloads = arrays()
    digits = a_set(payloads)
    payloads["test_labels"] = payloads["test_labels"][::-1].copy()
    write_npz(folder / "mnist.npz", payloads)
    with pytest.raises(DataError, match=r"'y_test' of .* is not Mnist's test labels"):
        open_part(digits_recipe(digits), "search", quiet)


def test_the_other_sets_files_are_refused_with_the_way_to_keep_both(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = arrays(1)
    monkeypatch.setitem(DIGIT_SETS, "fashion-mnist", a_set(other, "fashion-mnist"))
    write_idx(folder, other)
    with pytest.raises(DataError, match="This is Fashion-Mnist: keep the two"):
        open_part(digits_recipe(a_set(arrays(0))), "search", quiet)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"not a zip"),
        lambda path: path.write_bytes(path.read_bytes()[:1500]),
        lambda path: np.savez(path, x_train=arrays()["train_images"]),
        lambda path: write_npz_of(path, np.full(9, 0.5)),
        lambda path: write_npz_of(path, np.array([{}], object)),
    ],
    ids=["no zip", "cut off", "keys missing", "fractions", "pickled objects"],
)
def test_a_damaged_npz_is_refused_with_its_path(
    folder: Path, damage: Callable[[Path], object]
) -> None:
    payloads = arrays()
    path = folder / "mnist.npz"
    write_npz(path, payloads)
    damage(path)
    with pytest.raises(DataError, match=r"Cannot read Mnist from '.*mnist.npz'"):
        open_part(digits_recipe(a_set(payloads)), "search", quiet)


@pytest.mark.parametrize("form", ["npz", "gz"])
def test_a_file_that_unpacks_to_far_too_much_is_refused_unread(
    folder: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    payloads = arrays()
    if form == "npz":
        write_npz(folder / "mnist.npz", payloads)
    else:
        write_idx(folder, payloads, gz=True)
    monkeypatch.setattr(sources, "MAX_PAYLOAD_BYTES", 100)
    with pytest.raises(DataError, match=r"more than 100"):
        open_part(digits_recipe(a_set(payloads)), "search", quiet)


def test_missing_idx_files_are_named(folder: Path) -> None:
    payloads = arrays()
    write_idx(folder, payloads)
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"found 3: t10k-labels-idx1-ubyte missing"):
        open_part(digits_recipe(a_set(payloads)), "search", quiet)


def test_a_folder_that_is_not_there_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLNN_SEARCH_DATA", str(folder / "nowhere"))
    with pytest.raises(DataError, match=r"DLNN_SEARCH_DATA names '.*nowhere'"):
        open_part(digits_recipe(a_set(arrays())), "search", quiet)


def test_what_is_found_nowhere_is_downloaded_and_checked_like_a_file(
    folder: Path, tmp_path: Path
) -> None:
    payloads = arrays()

    def download(digits: DigitSet, into: Path) -> Path:
        write_npz(into / "download.npz", payloads)
        return into / "download.npz"

    said: list[str] = []
    into = tmp_path / "into"
    into.mkdir()
    write_digits(a_set(payloads), into, lambda shown: said.append(shown.what), download)
    assert "downloading it with Keras" in said[0]
    assert not (into / "download.npz").exists()
    with pytest.raises(DataError, match="MD5"):
        write_digits(a_set(arrays(1)), into, quiet, download)


def test_a_machine_without_data_and_network_is_told_where_we_looked_and_what_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(keras_name: str, path: Path) -> None:
        raise DataError("Keras's download failed (is this machine online?): no route.")

    monkeypatch.setattr("dlnn_search.data.sources.download_with_keras", offline)
    with pytest.raises(DataError) as refused:
        open_part(digits_recipe(a_set(arrays())), "search", quiet)
    message = str(refused.value)
    assert "Cannot get Mnist" in message
    assert f"'{folder}' ($DLNN_SEARCH_DATA)" in message
    assert "no route" in message
    assert "dlnn-search data prepare mnist" in message


@needs_real_data
@pytest.mark.parametrize("data", [Mnist(), FashionMnist()], ids=lambda data: data.name)
def test_the_real_sets_are_split_as_in_the_report(
    data: Mnist | FashionMnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLNN_SEARCH_CACHE", str(tmp_path))
    loaded = load(data, on_progress=quiet)
    assert (len(loaded.train), len(loaded.validation)) == (51_000, 9_000)
    assert loaded.train.image_shape == (28, 28)
    shares = np.bincount(loaded.train.labels) / 51_000
    assert np.allclose(shares, np.bincount(loaded.validation.labels) / 9_000, atol=2e-4)
    assert loaded.train.images is loaded.validation.images
    assert not loaded.train.images.flags.writeable
