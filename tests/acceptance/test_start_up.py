"""Commands import only what they need; modules are counted here, not seconds."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from .command_line import Place

HEAVY = {"tensorflow", "keras", "optuna", "sqlalchemy", "numpy", "pydantic", "plotly", "rich"}


def imported(place: Place, *arguments: object) -> set[str]:
    """Return the packages that a run of Python with these arguments imports."""
    done = subprocess.run(
        [place.python, "-X", "importtime", *map(str, arguments)],
        cwd=place.folder,
        env=place.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    modules = [
        line.rpartition("|")[2].strip()
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    ]
    assert "dlnn_search" in modules
    return {module.partition(".")[0] for module in modules}


@pytest.mark.parametrize(
    "arguments",
    [["-c", "import dlnn_search"], ["-m", "dlnn_search", "--help"],
     ["-m", "dlnn_search", "--version"]],
    ids=" ".join,
)  # fmt: skip
def test_help_imports_nothing_heavy(place: Place, arguments: Sequence[str]) -> None:
    assert not imported(place, *arguments) & (HEAVY - {"rich"})


@pytest.mark.parametrize("command", ["studies", "trials", "best", "export", "ledger"])
def test_commands_that_train_nothing_import_no_tensorflow(
    searched: Place, tmp_path: Path, command: str
) -> None:
    arguments = [] if command in ("studies", "ledger") else ["tiny"]
    if command == "export":
        arguments += ["-o", str(tmp_path / "best.json")]
    found = imported(searched, "-m", "dlnn_search", command, *arguments)
    assert not found & {"tensorflow", "keras"}


def test_what_a_study_file_needs_imports_no_tensorflow(place: Place) -> None:
    names = "Study, Clocks, ClockNet, Config, Training, read_config"
    found = imported(place, "-c", f"from dlnn_search import {names}")
    assert not found & {"tensorflow", "keras"}
