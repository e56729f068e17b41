"""`dlnn-search data`, as a user types it."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

from dlnn_search.cli.groups import data_app as app
from dlnn_search.config import Clocks, FashionMnist, Mnist
from dlnn_search.data import load
from dlnn_search.data.catalog import class_names
from dlnn_search.data.clocks.renderer import render_times
from dlnn_search.data.prepared import Progress
from dlnn_search.errors import DataError, DlnnSearchError, UsageError

SMALL = ("--size", "32", "--images-per-time", "1")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no folder with data."""
    monkeypatch.setenv("DLNN_SEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DLNN_SEARCH_DATA", raising=False)
    return tmp_path / "cache"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments: object) -> DlnnSearchError:
    error = run(*arguments).exception
    assert isinstance(error, DlnnSearchError), error
    return error


def course(folder: Path) -> tuple[Path, Path]:
    labels = np.stack(np.divmod(np.arange(720), 60), axis=1)
    np.save(folder / "images.npy", np.random.default_rng(0).integers(0, 256, (720, 40, 40), "u1"))
    np.save(folder / "labels.npy", labels)
    return folder / "images.npy", folder / "labels.npy"


def test_list_tells_what_there_is_before_and_after(cache: Path, tmp_path: Path) -> None:
    before = run("list").output
    assert "to download" in before and "to render" in before
    assert "dlnn-search data import clocks images.npy labels.npy" in before

    prepared = run("prepare", "clocks", *SMALL)
    assert prepared.exit_code == 0 and "Prepared 720 images" in prepared.output
    imported = run("import", "clocks", *course(tmp_path))
    assert imported.exit_code == 0 and "Imported 720 clocks of 40 px" in imported.output

    after = run("list").output
    assert "imported" in after and "prepared" in after and "to render" not in after
    assert str(cache / "prepared") in after and str(cache / "imported") in after
    assert "rendered, 32 px, 1 a time" in after


def test_list_finds_a_set_that_is_yet_to_be_prepared(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mnist.npz").write_bytes(b"0" * 2_000_000)
    monkeypatch.setenv("DLNN_SEARCH_DATA", str(tmp_path))
    (line,) = (line for line in run("list").output.splitlines() if line.startswith("mnist"))
    assert "available" in line and "2.0 MB" in line and str(tmp_path / "mnist.npz") in line


def test_a_misspelt_name_is_answered_with_the_nearest(cache: Path) -> None:
    for command in (("prepare", "fashion-mnits"), ("preview", "fashion-mnits", "-o", "a.png")):
        error = refused(*command)
        assert isinstance(error, UsageError) and "Did you mean 'fashion-mnist'?" in str(error)


def test_clock_options_are_refused_for_digits(cache: Path) -> None:
    error = refused("prepare", "mnist", "--size", "64", "--difficulty", "0.5")
    assert isinstance(error, UsageError)
    assert "--difficulty, --size" in str(error)


def test_rendering_options_are_refused_for_the_courses_clocks(cache: Path, tmp_path: Path) -> None:
    run("import", "clocks", *course(tmp_path))
    error = refused("prepare", "clocks", "--difficulty", "0.5")
    assert isinstance(error, UsageError) and "--source rendered" in str(error)
    assert run("prepare", "clocks", "--size", "32").exit_code == 0


def test_options_out_of_range_are_told_with_what_came(cache: Path) -> None:
    error = refused("prepare", "clocks", "--size", "20")
    assert isinstance(error, UsageError) and "(got 20)" in str(error)


def test_digits_are_not_imported_but_found(cache: Path, tmp_path: Path) -> None:
    error = refused("import", "mnist", *course(tmp_path))
    assert isinstance(error, UsageError) and "DLNN_SEARCH_DATA" in str(error)


def test_the_courses_clocks_without_an_import_are_a_data_error(cache: Path) -> None:
    error = refused("prepare", "clocks", "--source", "course")
    assert isinstance(error, DataError) and error.exit_code == 4


def test_a_preview_is_a_png_of_training_pictures_that_follows_its_seed(
    cache: Path, tmp_path: Path
) -> None:
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for path, seed in zip(paths, (0, 0, 1), strict=True):
        drawn = run("preview", "clocks", "-o", path, "--seed", seed, *SMALL)
        assert drawn.exit_code == 0 and "Drew 40 training pictures" in drawn.output
    first, same, other = (path.read_bytes() for path in paths)
    assert first == same != other
    with Image.open(paths[0]) as grid:
        assert grid.format == "PNG"


def test_a_single_clock_is_drawn_at_once_for_predict_and_its_time_is_told(
    cache: Path, tmp_path: Path
) -> None:
    def drawn(name: str, *options: object) -> tuple[NDArray[np.uint8], str]:
        done = run("preview", "clocks", "--one", "-o", tmp_path / name, *options)
        assert done.exit_code == 0, done.output
        with Image.open(tmp_path / name) as picture:
            assert picture.format == "PNG" and picture.mode == "L"
            return np.asarray(picture), done.output.rpartition(": ")[2].strip()

    upright = ("--size", "64", "--azimuth-spread", "0", "--difficulty", "0")
    first, time_told = drawn("a.png", *upright)
    assert not cache.exists(), "a whole data set was prepared for one picture"
    assert first.shape == (64, 64) and drawn("b.png", *upright)[1] == time_told
    hour, minute = map(int, time_told.split(":"))
    same = render_times([hour], [minute], image_size=64, azimuth_spread=0, difficulty=0)[0]
    other = render_times([(hour + 6) % 12], [minute], image_size=64, azimuth_spread=0, difficulty=0)
    apart = [np.abs(first.astype(int) - each).mean() for each in (same, other[0])]
    assert apart[0] < apart[1], "another time than is told"
    assert len({drawn("c.png", "--seed", seed)[1] for seed in range(6)}) > 3


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_a_single_digit_or_garment_is_one_of_the_validation_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("DLNN_SEARCH_CACHE", str(tmp_path / "cache"))
    done = run("preview", name, "--one", "-o", tmp_path / "one.png", "--seed", 3)
    assert done.exit_code == 0, done.output
    data = Mnist() if name == "mnist" else FashionMnist()
    validation = load(data).validation
    with Image.open(tmp_path / "one.png") as picture:
        pixels = np.asarray(picture)
    found = np.flatnonzero((validation.take(slice(None)) == pixels).all(axis=(1, 2)))
    assert class_names(data)[int(validation.labels[found[0]])] in done.output


@pytest.mark.parametrize("output", ["grid.jpg", "nowhere/grid.png"])
def test_a_preview_that_cannot_be_written_says_so_before_any_work(
    cache: Path, tmp_path: Path, output: str
) -> None:
    error = refused("preview", "clocks", "-o", tmp_path / output, *SMALL)
    assert isinstance(error, UsageError) and Path(output).name in str(error)
    assert not cache.exists()


def test_importing_the_package_is_cheap_and_brings_no_tensorflow() -> None:
    script = (
        "import time, sys; began = time.process_time(); import dlnn_search.data; "
        "import dlnn_search.cli.groups; print(time.process_time() - began); "
        "heavy = {'tensorflow', 'keras', 'numpy', 'PIL', 'rich', 'pydantic'} & set(sys.modules); "
        "assert not heavy, heavy; from dlnn_search.data import load; "
        "assert not {'tensorflow', 'keras', 'PIL', 'rich'} & set(sys.modules)"
    )
    runs = [subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
            for _ in range(3)]  # fmt: skip
    assert all(done.returncode == 0 for done in runs), runs[0].stderr
    assert min(float(done.stdout) for done in runs) < 0.25


def test_a_prepared_set_opens_within_fifty_milliseconds(cache: Path) -> None:
    def quiet(progress: Progress) -> None:
        """Show nothing."""

    data = Clocks(source="rendered", image_size=32, images_per_time=1)
    load(data, on_progress=quiet)
    seconds = []
    for _ in range(5):
        began = time.process_time()
        load(data, on_progress=quiet)
        seconds.append(time.process_time() - began)
    assert min(seconds) < 0.05


def test_a_failed_download_ends_with_what_to_do(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A proxy that nobody listens at: offline, whatever the machine.
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    error = refused("prepare", "mnist")
    assert isinstance(error, DataError)
    assert "Cannot get MNIST" in str(error) and "$DLNN_SEARCH_DATA" in str(error)
    assert "download failed" in str(error)
    assert not list((cache / "prepared").iterdir())
