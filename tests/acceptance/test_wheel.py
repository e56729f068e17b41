"""What `pip install` brings, and nothing that the checkout adds."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from .command_line import Place

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment with the wheel, beside what this one has installed."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    site = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index",
         "--no-compile", "--disable-pip-version-check", wheel],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # TensorFlow is not downloaded again. An own site-packages comes first; a .pth line is only
    # appended to it, and the .pth files inside that folder (an editable install's) are not read.
    Path(site, "running.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_the_wheel_adds_one_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"dlnn_search"}
    assert len(top) == 2


def test_the_wheel_holds_the_studies_and_no_run_time_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for path in (ROOT / "studies").glob("*.py"):
        assert f"dlnn_search/_studies/{path.name}" in names
    for path in (ROOT / "studies" / "best").glob("*.json"):
        assert f"dlnn_search/_studies/best/{path.name}" in names
    for path in (ROOT / "docs").glob("*.md"):
        assert f"dlnn_search/_docs/{path.name}" in names
    for path in (ROOT / "dlnn_search").rglob("*.py"):
        assert f"dlnn_search/{path.relative_to(ROOT / 'dlnn_search').as_posix()}" in names
    for name in names:
        assert not name.endswith((".db", ".db-wal", ".pyc", ".npz", ".npy", ".keras", ".log")), name
        assert "__pycache__" not in name and "/test" not in name and "/data/data" not in name


def test_the_wheel_works_in_an_empty_folder(
    installed: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    plain = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    place = Place(tmp_path, plain, python=str(installed))
    done = subprocess.run(
        [installed, "-c", "import dlnn_search; print(dlnn_search.__file__)"],
        cwd=tmp_path,
        env=plain,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(installed.parents[1])
    listed = place.succeed("studies")
    for path in (ROOT / "studies").glob("*.py"):
        assert path.stem.replace("_", "-") in listed
    command = subprocess.run(
        [installed.with_name("dlnn-search"), "--help"],
        cwd=tmp_path,
        env=plain,
        capture_output=True,
        text=True,
    )
    assert command.returncode == 0, command.stderr
    assert "Usage: dlnn-search" in command.stdout and "start" in command.stdout
    assert not list(tmp_path.iterdir())
