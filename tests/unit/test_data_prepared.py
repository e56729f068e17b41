"""Prepared sets: whole or not there, and mended where damaged."""

import errno
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dlnn_search.config import Clocks, CurriculumStage
from dlnn_search.data.loading import load
from dlnn_search.data.prepared import (
    OnProgress,
    Progress,
    ProgressDisplay,
    Recipe,
    cache_root,
    map_array,
    open_part,
    prepare,
    prepared_root,
    write_array,
)
from dlnn_search.data.recipes import curriculum_recipe, curriculum_seed, recipe_for
from dlnn_search.errors import DataError

Usage = namedtuple("Usage", "total used free")
PICTURES = np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4)
LABELS = np.arange(6, dtype=np.uint8)


def quiet(progress: Progress) -> None:
    """Show nothing."""


def write_six(into: Path, on_progress: OnProgress) -> None:
    for part, rows in (("search", slice(0, 4)), ("test", slice(4, 6))):
        images, labels = PICTURES[rows], LABELS[rows]
        write_array(into / part / "pictures.npy", images.shape, [images[:1], images[1:]])
        write_array(into / part / "labels.npy", labels.shape, [labels])


def a_recipe(
    write: Callable[[Path, OnProgress], None] = write_six, bytes_needed: int = 1_000
) -> Recipe:
    return Recipe("six-v1", "six pictures", bytes_needed, write)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("DLNN_SEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_cache_is_the_users_own_folder_unless_another_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert cache_root() == tmp_path / "cache"
    monkeypatch.delenv("DLNN_SEARCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root().name == "dlnn-search"


def test_a_prepared_set_is_opened_read_only_and_not_written_again() -> None:
    written = []

    def write(into: Path, on_progress: OnProgress) -> None:
        written.append(into)
        write_six(into, on_progress)

    for _ in range(2):
        images, labels = open_part(a_recipe(write), "search", quiet)
        assert isinstance(images, np.memmap) and not images.flags.writeable
        assert np.array_equal(images, PICTURES[:4]) and np.array_equal(labels, LABELS[:4])
    assert len(written) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "search/pictures.npy").unlink(),
        lambda folder: (folder / "search/pictures.npy").write_bytes(b"short"),
        lambda folder: np.save(folder / "search/pictures.npy", np.zeros((9, 9, 9), np.uint8)),
        lambda folder: np.save(folder / "search/labels.npy", np.zeros(3, np.uint8)),
        lambda folder: (folder / "search/pictures.npy").write_bytes(
            b"x" * (folder / "search/pictures.npy").stat().st_size
        ),
        lambda folder: (folder / "about.json").write_text("{"),
        lambda folder: (folder / "about.json").write_text('{"files": 3}'),
        lambda folder: (folder / "about.json").unlink(),
        lambda folder: shutil.rmtree(folder / "search"),
        lambda folder: (folder / "test/pictures.npy").write_bytes(b""),
    ],
    ids=[
        "pictures gone",
        "pictures cut off",
        "another shape",
        "too few labels",
        "no header",
        "about cut off",
        "about wrong",
        "about gone",
        "part gone",
        "test cut off",
    ],
)
def test_a_damaged_copy_is_prepared_again(damage: Callable[[Path], object]) -> None:
    folder = prepare(a_recipe(), quiet)
    damage(folder)
    said: list[str] = []
    images, labels = open_part(a_recipe(), "search", lambda shown: said.append(shown.what))
    assert np.array_equal(images, PICTURES[:4]) and np.array_equal(labels, LABELS[:4])
    assert any("damaged: preparing it again" in line for line in said)
    images, _ = open_part(a_recipe(), "test", quiet)
    assert np.array_equal(images, PICTURES[4:])


def test_a_disk_without_room_is_told_before_anything_is_written(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 7, 7))
    with pytest.raises(DataError) as refused:
        prepare(a_recipe(bytes_needed=405_000_000), quiet)
    message = str(refused.value)
    assert str(prepared_root() / "six-v1") in message
    assert "405,000,000 bytes free, found 7" in message
    assert not list(prepared_root().iterdir())


def test_a_disk_that_fills_up_while_writing_leaves_nothing_behind() -> None:
    def write(into: Path, on_progress: OnProgress) -> None:
        write_six(into, on_progress)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DataError, match=r"too full to prepare six pictures.*1,000 bytes"):
        prepare(a_recipe(write), quiet)
    assert not list(prepared_root().iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, DataError])
def test_whatever_interrupts_a_preparation_leaves_nothing_behind(
    error: type[BaseException],
) -> None:
    def write(into: Path, on_progress: OnProgress) -> None:
        write_six(into, on_progress)
        raise error

    with pytest.raises(error):
        prepare(a_recipe(write), quiet)
    assert not list(prepared_root().iterdir())
    assert prepare(a_recipe(), quiet).is_dir()


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("DLNN_SEARCH_CACHE", str(tmp_path / "a file"))
    with pytest.raises(DataError, match=r"Cannot prepare six pictures in '.*a file.*DLNN_SEARCH"):
        prepare(a_recipe(), quiet)


def test_every_block_of_a_mapped_file_is_claimed_when_it_is_created(tmp_path: Path) -> None:
    # A hole in it would kill a process that writes to it on a full disk.
    map_array(tmp_path / "a.npy", (100, 100, 100))
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= 1_000_000


CLOCKS = Clocks(source="rendered")


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 64},
        {"images_per_time": 2},
        {"azimuth_spread": 1.0},
        {"difficulty": 0.5},
        {"render_seed": 1},
        {"test": 0.3},
        {"split_seed": 1},
    ],
)
def test_clocks_that_differ_in_what_is_drawn_or_kept_for_the_test_have_folders_of_their_own(
    change: dict[str, float],
) -> None:
    assert recipe_for(CLOCKS.model_copy(update=change)).name != recipe_for(CLOCKS).name


@pytest.mark.parametrize("change", [{"validation": 0.05}, {"n_training": 100}])
def test_validation_and_training_size_share_one_folder_so_the_test_pictures_stay_the_same(
    change: dict[str, float],
) -> None:
    assert recipe_for(CLOCKS.model_copy(update=change)).name == recipe_for(CLOCKS).name


def test_no_stage_of_a_curriculum_draws_with_the_datas_own_seed() -> None:
    stages = [
        CurriculumStage(azimuth_spread=spread, epochs=1, images_per_time=per_time)
        for spread in (0.0, 0.3, 1.2, 3.14)
        for per_time in (None, 1, 100)
    ]
    seeds = [curriculum_seed(seed, stage) for seed in range(50) for stage in stages]
    assert len(set(seeds)) == len(seeds)
    assert not set(seeds) & set(range(10_000))
    names = {curriculum_recipe(CLOCKS, stage).name for stage in stages}
    assert len(names) == len(stages)


def test_a_stage_of_a_curriculum_has_as_many_clocks_as_the_data_or_as_it_says() -> None:
    data = Clocks(source="rendered", image_size=32, images_per_time=2)
    as_the_data = CurriculumStage(azimuth_spread=0.3, epochs=1)
    more = CurriculumStage(azimuth_spread=0.3, epochs=1, images_per_time=3)
    stages = load(data, [as_the_data, more], on_progress=quiet).curriculum
    assert [len(stage) for stage in stages] == [1_440, 2_160]


def test_without_a_terminal_progress_is_a_few_plain_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ProgressDisplay() as display:
        display(Progress("Another process is preparing clocks: waiting for it."))
        for done in range(1_001):
            display(Progress("Drawing clocks", done, 1_000))
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0] == "Another process is preparing clocks: waiting for it."
    assert lines[1:] == [f"Drawing clocks: {percent} %" for percent in range(0, 101, 20)]
