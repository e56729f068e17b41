"""Help pages as a user reads them: whole, in plain text, at any width."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import typer

from dlnn_search.cli import app
from dlnn_search.cli.options import HelpGroup

PANELS = ["Search", "Steer", "Results", "Data", "Storage"]
HEAVY = {"optuna", "sqlalchemy", "tensorflow", "keras", "numpy", "plotly"}


ROOT: Any = typer.main.get_command(app)


def commands(
    command: Any = None, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Return every command and group with the words that call it."""
    command = command or ROOT
    yield path, command
    if isinstance(command, HelpGroup):
        for name, inner in command.commands.items():
            yield from commands(inner, (*path, name))


ALL = dict(commands())
LEAVES = {path: each for path, each in ALL.items() if not isinstance(each, HelpGroup)}


def help_of(path: tuple[str, ...], columns: int) -> str:
    # Not by typer's CliRunner, which has its own width.
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
        patch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as ended:
            ROOT.main([*path, "--help"], prog_name="dlnn-search")
    assert ended.value.code == 0
    return said.getvalue()


def in_one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_a_help_page_is_whole_and_plain_at_any_width(path: tuple[str, ...], columns: int) -> None:
    said = help_of(path, columns)
    words = in_one_line(said)
    assert "\x1b" not in said and "..." not in words.replace("[ARGS]...", "").replace(
        "STUDY...", ""
    ).replace("PICTURE...", "")
    docs = re.compile(r"Documentation: \S+")  # a path is not broken
    assert all(len(line) <= columns for line in said.splitlines() if not docs.search(line))
    assert in_one_line(ALL[path].help) in words
    for parameter in ALL[path].params:
        if not getattr(parameter, "hidden", False):
            assert in_one_line(parameter.help) in words


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_what_an_option_takes_is_said_in_words_not_in_python_s_types(path: tuple[str, ...]) -> None:
    said = help_of(path, 80)
    assert not re.search(r"<\w+", said)
    assert not re.search(r"\b(INTEGER|FLOAT|TEXT|PATH|BOOLEAN|None|int|str|float)\b", said)
    for parameter in ALL[path].params:
        assert getattr(parameter, "hidden", False) or parameter.help
        takes_value = parameter.param_type_name == "option" and not parameter.is_flag
        assert not takes_value or parameter.hidden or parameter.metavar


def test_the_commands_stand_in_five_panels_each_in_one_line_at_80_columns() -> None:
    sections = re.findall(r"^(\w+):\n((?:  .*\n)+)", help_of((), 80), re.MULTILINE)
    assert [title for title, _ in sections] == [*PANELS, "Options"]
    listed = dict(
        re.split(r"\s{2,}", line.strip(), maxsplit=1)
        for title, lines in sections
        if title in PANELS
        for line in lines.splitlines()
    )
    assert listed == {" ".join(path): each.help.split("\n")[0] for path, each in LEAVES.items()}


def test_a_default_is_told_in_a_sentence() -> None:
    said = in_one_line(help_of(("confirm",), 80))
    assert "Number of fresh seeds. Defaults to 5." in said
    assert "workers elsewhere do the work. Defaults to 1." in said
    assert "[default" not in said and "[required]" not in said
    assert "Usage: dlnn-search predict [OPTIONS] MODEL PICTURE..." in help_of(("predict",), 80)
    assert "Usage: dlnn-search status [OPTIONS] [STUDY]" in help_of(("status",), 80)


def test_the_documents_that_the_help_names_are_there() -> None:
    (folder,) = re.findall(r"Documentation: (\S+)", help_of((), 80))
    assert (Path(folder) / "service.md").is_file()


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


COMPLETED = f"""
import atexit, sys
from dlnn_search.cli import app
atexit.register(lambda: print("heavy:", sorted({HEAVY} & set(sys.modules))))
app(prog_name="dlnn-search")
"""


def test_a_shell_completes_names_of_studies_and_loads_nothing_heavy_for_it() -> None:
    said = run_python(
        COMPLETED,
        _DLNN_SEARCH_COMPLETE="complete_bash",
        COMP_WORDS="dlnn-search start task3",
        COMP_CWORD="2",
    )
    assert said.split("heavy:")[0].split() == ["task3-clock", "task3-clock-small"]
    assert said.split("heavy:")[1].strip() == "[]"


def test_help_loads_nothing_heavy() -> None:
    said = run_python(COMPLETED.replace("app(", "sys.argv[1:] = ['start', '--help']; app("))
    assert "Usage: dlnn-search start" in said and said.rstrip().endswith("heavy: []")
