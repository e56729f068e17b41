"""Disks that are full or cannot be written, before and during a search."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from .command_line import SLOW, Place, wait_for

EXIT_STORAGE = 5
#: Long enough that epochs end and cannot be stored.
FULL_SECONDS = 6.0


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system of its own, which a container or a user may not be allowed to have."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path, environment: dict[str, str]) -> Iterator[Place]:
    with mounted(tmp_path / "disk", "size=12m") as folder:
        yield Place(folder, environment)


def fill(place: Place, spare_bytes: int) -> Path:
    """Take all room but a rest."""
    file = place.folder / "something-large"
    room = os.statvfs(place.folder)
    # Unbuffered it takes what there is, should a worker have written meanwhile.
    with file.open("wb", buffering=0) as target, suppress(OSError):
        target.write(b"x" * max(0, room.f_bavail * room.f_frsize - spare_bytes))
    return file


def test_a_disk_that_fills_up_is_waited_for_and_loses_no_trial(small_disk: Place) -> None:
    place = small_disk
    study = place.write_study(**SLOW)
    with place.begin("start", study, "--workers", 2, "--trials", 3) as start:
        wait_for("an epoch", place.curves)
        before = place.rows("SELECT slot_id, epoch, seconds FROM dlnn_curves")
        large = fill(place, spare_bytes=0)
        time.sleep(FULL_SECONDS)
        large.unlink()
        code = start.wait()
    said = start.said()
    assert code == 0, said
    assert "Traceback" not in said
    place.assert_complete(n_trials=3, epochs=SLOW["epochs"])
    assert set(before) <= set(place.rows("SELECT slot_id, epoch, seconds FROM dlnn_curves"))


def test_a_disk_that_is_full_from_the_start_is_told(small_disk: Place) -> None:
    study = small_disk.write_study()
    large = fill(small_disk, spare_bytes=0)
    done = small_disk.run("start", study)
    assert done.code == EXIT_STORAGE, done.both
    assert "make room" in done.err.lower() and "Traceback" not in done.both
    large.unlink()
    small_disk.succeed("start", study, "--trials", 1)


def test_an_export_onto_a_full_disk_leaves_no_part_of_it(
    searched: Place, small_disk: Place
) -> None:
    fill(small_disk, spare_bytes=0)
    file = small_disk.folder / "best.json"
    done = searched.run("export", "tiny", "-o", file)
    assert done.code == EXIT_STORAGE, done.both
    assert "best.json" in done.err and "No space left" in done.err
    assert [path.name for path in small_disk.folder.iterdir()] == ["something-large"]


def test_a_folder_that_cannot_be_written_is_told(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    with mounted(tmp_path / "disk", "ro,size=1m") as folder:
        done = Place(folder, environment).run("start", "task3-clock")
    assert done.code == EXIT_STORAGE, done.both
    assert str(folder) in done.err and "Read-only file system" in done.err
    assert done.err.count("Error: ") == 1 and "Traceback" not in done.both


def test_a_file_in_the_way_of_the_database_is_told(place: Place) -> None:
    (place.folder / "storage").write_text("mine")
    done = place.run("start", "task3-clock")
    assert done.code == EXIT_STORAGE, done.both
    assert "storage" in done.err and "Traceback" not in done.both
    assert (place.folder / "storage").read_text() == "mine"
