"""Errors and exit codes, as users read of them."""

from __future__ import annotations

import fcntl
import os
import pickle
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dlnn_search.cli import app
from dlnn_search.errors import (
    DlnnSearchError,
    ExitCode,
    StudyError,
    as_text,
    error_from_words,
    error_words,
    one_line,
)
from dlnn_search.launch.detached import last_words
from dlnn_search.storage.control import in_short
from dlnn_search.study.named_configs import NAMED

NASTY = "ta\x1b[31msk\x1b]0;title\x07\r\n\tthree\x1b[2J\x9b1m\u202e\x00"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (NASTY, "task three1m"),
        ("a\nb\r\n  c\u2028d", "a b c d"),
        ("\x1b[1;38;5;200mred\x1b[0m", "red"),
        ("\x1b]8;;https://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b", ""),
        ("grün ± 日本 ✓  two  blanks", "grün ± 日本 ✓  two  blanks"),
    ],
)
def test_a_text_becomes_one_line_that_a_terminal_only_shows(text: str, line: str) -> None:
    assert one_line(text) == line


def test_the_lines_of_details_stay_and_lose_their_terminal_codes() -> None:
    assert as_text("- \x1b[31mold\x1b[0m\r\n+ new\x07") == "- old\n+ new"


def test_an_error_is_a_line_and_its_details_are_indented_below() -> None:
    error = StudyError("It was\nedited.", details="- \x1b[31mold\n+ new")
    assert error_words(error) == "Error: It was edited.\n  - old\n  + new"
    assert str(error) == "It was\nedited.\n- \x1b[31mold\n+ new"
    again = error_from_words(error_words(error), StudyError)
    assert (again.sentence, again.details) == ("It was edited.", "- old\n+ new")
    sent = pickle.loads(pickle.dumps(error))
    assert (str(sent), sent.exit_code) == (str(error), ExitCode.STUDY)


@pytest.mark.parametrize(
    "arguments", [["start", NASTY], ["start", "no\nsuch.py"], ["data", "prepare", NASTY]]
)
def test_an_error_that_is_piped_is_one_line_without_codes_whatever_was_typed(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == ExitCode.USAGE
    assert re.fullmatch(r"Error: [^\x00-\x1f\x7f-\x9f]+\n", done.stderr), done.stderr


@pytest.mark.parametrize("width", [60, 100])
def test_an_error_on_a_terminal_is_wrapped_at_words_at_its_width(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    piped = CliRunner().invoke(app, ["trials", "task3-clock"]).stderr.rstrip("\n")
    assert len(piped) > 2 * 60 and "\n" not in piped
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    with (
        os.fdopen(master, "rb", buffering=0) as screen,
        os.fdopen(slave, "w") as terminal,
        monkeypatch.context() as patch,
    ):
        patch.setattr(sys, "stderr", terminal)
        code = app(["trials", "task3-clock"], standalone_mode=False)
        terminal.flush()
        lines = screen.read(100_000).decode().splitlines()
    assert code == ExitCode.STORAGE
    assert len(lines) > 1 and all(len(line) <= width for line in lines if " " in line.strip())
    assert " ".join(line.strip() for line in lines) == piped


def test_a_bug_of_ours_is_one_line_that_says_how_to_report_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_: object) -> str:
        raise KeyError("line\none")

    monkeypatch.setattr("dlnn_search.cli.results.database_url_of", broken)
    monkeypatch.setattr("dlnn_search.cli.options.database_url_of", broken)
    done = CliRunner().invoke(app, ["ledger"])
    assert done.exit_code == ExitCode.BUG
    assert re.fullmatch(
        r"Error: this is a bug of dlnn-search: KeyError: .*--debug.*\n", done.stderr
    )


TRACEBACK = """Traceback (most recent call last):
  File "/home/me/mine.py", line 3, in build
    layer(units)
    ~~~~~^^^^^^^
  File "/lib/keras/layers.py", line 9, in layer
    raise ValueError(
ValueError: Expected 3 units,
got 4.
Graph: /layer
"""


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (f"ValueError: 3 (mine.py, line 3)\n{TRACEBACK}", "ValueError: 3 (mine.py, line 3)"),
        (TRACEBACK, "ValueError: Expected 3 units, got 4. Graph: /layer"),
        ("'dlnn-search stop' on host.", "'dlnn-search stop' on host."),
    ],
    ids=["as it is kept", "as an earlier version kept it", "no bug"],
)
def test_why_a_study_was_stopped_is_the_error_and_not_its_last_line(kept: str, said: str) -> None:
    assert in_short(kept) == said


@pytest.mark.parametrize(
    ("log", "sentence", "details"),
    [
        (
            "2026 INFO begun\nError: The study was edited.\n  - a\n  + b\nterminate called\n",
            "The study was edited.",
            "- a\n+ b",
        ),
        ("Error: First.\nagain\nError: Second.\n", "Second.", ""),
        ("one\n\ntwo\n", "one two", ""),
        ("", "(no output)", ""),
    ],
)
def test_what_a_dead_worker_said_is_its_error_and_not_the_logs_last_line(
    tmp_path: Path, log: str, sentence: str, details: str
) -> None:
    path = tmp_path / "worker.log"
    path.write_text(log)
    told = last_words(path)
    assert (told.sentence, told.details) == (sentence, details)
    assert last_words(tmp_path / "none.log").sentence == "(no log)"


NOISE = """
import sys, warnings
sys.path.insert(0, {folder!r})
from dlnn_search.cli import _quiet_libraries
_quiet_libraries()
import optuna
import mine
study = optuna.create_study(sampler=optuna.samplers.TPESampler(multivariate=True))
study.optimize(lambda trial: 1 / 0, n_trials=1, catch=ZeroDivisionError)
study.ask().suggest_categorical("layers", [(1, 2), (3,)])
warnings.warn("of ours", stacklevel=1)
"""


def test_what_libraries_warn_of_is_kept_from_the_terminal_but_not_the_users_own_warnings(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.py").write_text(
        "import optuna, warnings\n"
        "warnings.warn('Pictures\\x1b[31m are\\nmissing')\n"
        "optuna.samplers.TPESampler(multivariate=True)\n"
    )
    code = NOISE.format(folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    where = tmp_path / "mine.py"
    assert done.stderr == f"Warning: Pictures are missing ({where}, line 2)\n"
    assert done.stdout == ""


def test_every_error_has_a_sentence_as_its_first_argument() -> None:
    error = DlnnSearchError("One.")
    assert (error.sentence, error.details, str(error)) == ("One.", "", "One.")


AT_ONCE = """
import sys

from typer.testing import CliRunner

from dlnn_search.cli import app

for line in sys.stdin.read().splitlines():
    done = CliRunner().invoke(app, line.split())
    heavy = sorted({"tensorflow", "keras"} & set(sys.modules))
    print(done.exit_code, heavy, line, "|", done.stderr.strip())
"""
REFUSES = '''\
"""A study that refuses all."""

import optuna

from dlnn_search import Mnist, Study


def space(trial):
    raise optuna.TrialPruned


study = Study(space=space, data=Mnist(), minimize="loss", epochs=1)
'''
REFUSED = """\
predict none.keras a.png
predict a.keras a.png
predict digits.keras a.png
predict digits.keras a.keras
predict digits.keras a.keras --draw folder
evaluate nowhere.json
evaluate mnist_mlp --seeds 0
evaluate mnist_mlp -o digits.json
crossvalidate mnist_mlp --folds 1
crossvalidate mnist_mlp -o nowhere/folds.json
lr-range nothing
lr-range mnist_mlp --low 2 --high 1
lr-range mnist_mlp --batches 1
lr-range mnist_mlp -o rates.txt
lr-range mnist_mlp -o nowhere/rates.html
validate nowhere.py
validate refuses.py
export mine -o best.json
export mine --model best.txt
export mine --model best.keras
confirm mine --workers -1
confirm mine
retune mine --workers -1
data preview mnits -o a.png
"""


def test_what_cannot_be_done_is_told_before_tensorflow_is_imported(tmp_path: Path) -> None:
    (tmp_path / "a.keras").touch()
    (tmp_path / "digits.keras").touch()
    (tmp_path / "digits.json").write_text(NAMED["mnist_mlp"]().to_json())
    (tmp_path / "refuses.py").write_text(REFUSES)
    done = subprocess.run(
        [sys.executable, "-c", AT_ONCE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        input=REFUSED,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(REFUSED.splitlines()), done.stdout
    for line in lines:
        assert re.fullmatch(r"[2345] \[\] .* \| Error: .+", line), line
