"""A supervisor in the background is found as long as it lives, and no longer."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dlnn_search.errors import DlnnSearchError, StorageError
from dlnn_search.launch.detached import Background, PidFile, run_in_background

HOLD = """
import sys, time
from pathlib import Path
from dlnn_search.launch.detached import PidFile
with PidFile(Path(sys.argv[1]), "mine").held(Path("some.log")):
    print("held", flush=True)
    time.sleep(600)
"""


def test_nobody_runs_at_first(tmp_path: Path) -> None:
    assert PidFile(tmp_path, "mine").running() is None


def test_one_that_was_killed_is_found_no_more(tmp_path: Path) -> None:
    file = PidFile(tmp_path, "mine")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            assert file.running() == Background(holder.pid, "some.log")
            assert PidFile(tmp_path, "other").running() is None
            with (
                pytest.raises(StorageError, match=f"Process {holder.pid} already searches"),
                file.held(Path("second.log")),
            ):
                raise AssertionError("two hold the same lock")
        finally:
            holder.send_signal(signal.SIGKILL)
    assert json.loads(next((tmp_path / "supervisors").glob("*.json")).read_text())["pid"]
    assert file.running() is None  # what it wrote of itself is still there, and is not believed
    with file.held(Path("mine.log")):
        pass


def test_a_start_that_fails_in_the_background_fails_in_the_foreground(tmp_path: Path) -> None:
    file = PidFile(tmp_path, "mine")
    with pytest.raises(DlnnSearchError, match="Unknown study 'no-such-study'") as told:
        run_in_background(["start", "no-such-study"], {}, file, tmp_path / "log")
    assert told.value.exit_code == 2
