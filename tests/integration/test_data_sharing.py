"""One preparation for a machine: many processes at once, and processes that are killed."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

# Prepares a small set, as slowly as it is told, and writes down that it did.
WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from dlnn_search.data.prepared import Recipe, open_part, write_array
from dlnn_search.data.prepared import ProgressDisplay

log, seconds, name = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]

def write(into, on_progress):
    with log.open("a") as file:
        file.write("prepared\\n")
    for part in ("search", "test"):
        write_array(into / part / "pictures.npy", (3, 4, 4), [np.ones((3, 4, 4), np.uint8)])
        time.sleep(seconds)
        write_array(into / part / "labels.npy", (3,), [np.arange(3, dtype=np.uint8)])

images, labels = open_part(Recipe(name, "a slow set", 1_000, write), "search", ProgressDisplay())
assert images.sum() == 48 and labels.tolist() == [0, 1, 2]
print("opened")
"""

CLOCKS = """
from dlnn_search.config import Clocks
from dlnn_search.data import load
data = Clocks(source="rendered", image_size=32, images_per_time=2)
loaded = load(data)
print(len(loaded.train), len(loaded.validation))
"""

LIMIT_SECONDS = 60


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("DLNN_SEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DLNN_SEARCH_DATA", raising=False)
    return tmp_path / "cache"


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def test_of_ten_processes_at_once_one_prepares_and_the_others_wait_and_say_so(
    cache: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    processes = [start(WRITER, log, 1, "ten") for _ in range(10)]
    ends = [process.communicate(timeout=LIMIT_SECONDS) for process in processes]
    assert [process.returncode for process in processes] == [0] * 10, ends
    assert all(out == "opened\n" for out, _ in ends)
    assert log.read_text() == "prepared\n"
    assert any("Another process is preparing a slow set: waiting for it." in err for _, err in ends)


def test_a_killed_preparation_leaves_no_set_and_the_next_one_succeeds(
    cache: Path, tmp_path: Path
) -> None:
    log, prepared = tmp_path / "log", cache / "prepared"
    killed = start(WRITER, log, 60, "killed")
    wait_until(lambda: (prepared / "killed.partial/search/pictures.npy").exists())
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=LIMIT_SECONDS)
    assert not (prepared / "killed").exists()

    out, err = start(WRITER, log, 0, "killed").communicate(timeout=LIMIT_SECONDS)
    assert out == "opened\n", err
    assert [path.name for path in prepared.iterdir()] == ["killed"]


def test_what_a_killed_preparation_leaves_is_swept_by_the_next_of_any_set(
    cache: Path, tmp_path: Path
) -> None:
    log, prepared = tmp_path / "log", cache / "prepared"
    killed, alive = start(WRITER, log, 60, "killed"), start(WRITER, log, 2, "alive")
    for name in ("killed", "alive"):
        partial = prepared / f"{name}.partial"
        wait_until((partial / "search/pictures.npy").exists)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=LIMIT_SECONDS)

    out, err = start(WRITER, log, 0, "next").communicate(timeout=LIMIT_SECONDS)
    assert out == "opened\n", err
    assert not (prepared / "killed.partial").exists()
    out, err = alive.communicate(timeout=LIMIT_SECONDS)
    assert out == "opened\n", err  # one that is at work is left alone


def test_a_killed_rendering_frees_its_lock_and_the_next_one_is_whole(cache: Path) -> None:
    prepared = cache / "prepared"
    killed = start(CLOCKS)
    wait_until(lambda: any(prepared.glob("*.partial/everything.npy")))
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=LIMIT_SECONDS)
    assert [path.suffix for path in prepared.iterdir()] == [".partial"]

    out, err = start(CLOCKS).communicate(timeout=LIMIT_SECONDS)
    assert out == "1037 115\n", err
    (folder,) = prepared.iterdir()
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
    assert files == [
        "about.json",
        "search/labels.npy",
        "search/pictures.npy",
        "test/labels.npy",
        "test/pictures.npy",
    ]
    pictures = np.load(folder / "search/pictures.npy", mmap_mode="r")
    assert all(picture.std() > 0 for picture in pictures)  # none was left blank
