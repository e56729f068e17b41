"""What a new user meets first: a study of one's own, the search's last words, the dashboard."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dlnn_search.files import shipped
from dlnn_search.report.tables import print_end
from dlnn_search.results.status import study_status
from dlnn_search.storage.database import Database, open_database
from dlnn_search.storage.database.known import known_databases
from dlnn_search.storage.duplicates import find_duplicate
from dlnn_search.storage.slots import Slots
from dlnn_search.storage.studies import find
from dlnn_search.study.finding import built_in_studies, load_study
from dlnn_search.worker.first_trials import example_config
from dlnn_search.worker.optuna_study import begin_trial, open_optuna_study

from .slot_life import claimed
from .whole_study import fill

Run = Callable[..., Any]

#: A study of own pictures, which needs no download.
SHAPES = (
    (shipped("studies") / "README.md").read_text("utf-8").split("```python\n")[2].split("```")[0]
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty folder in which a user works."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("DLNN_SEARCH_STORAGE", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.mark.parametrize("name", built_in_studies())
def test_a_copy_of_a_built_in_study_is_a_study_of_one_s_own(run: Run, name: str) -> None:
    said = run("new", "my_study.py", "--from", name)
    assert said.code == 0 and not said.err
    assert Path("my_study.py").read_text() == built_in_studies()[name].read_text()
    mine, theirs = load_study("my_study.py"), load_study(name)
    assert mine.name == "my-study" and mine.summary == theirs.summary
    assert mine.definition()["settings"] == theirs.definition()["settings"]
    assert example_config(mine) == example_config(theirs)


def test_without_a_study_to_copy_a_short_one_is_written_that_works(run: Run) -> None:
    said = run("new", "my_first.py")
    assert said.out.splitlines() == [
        "Wrote my_first.py. Edit it, then run:",
        "  dlnn-search validate my_first.py",
        "  dlnn-search start my_first.py --workers 2",
    ]
    study = load_study("my_first.py")
    assert study.name == "my-first" and study.summary and study.trials == 20
    assert example_config(study).training.epochs == study.epochs
    code = [line for line in Path("my_first.py").read_text().splitlines() if line]
    assert len(code) <= 10


@pytest.mark.slow
@pytest.mark.skipif(
    "DLNN_SEARCH_DATA" not in os.environ, reason="needs MNIST: set DLNN_SEARCH_DATA"
)
def test_the_short_study_passes_its_own_validation(run: Run) -> None:
    run("new", "my_first.py")
    assert run("validate", "my_first.py").code == 0


def test_new_replaces_nothing_and_says_what_is_wrong_with_a_name(run: Run, folder: Path) -> None:
    (folder / "mine.py").write_text("x = 1\n")
    for arguments, words in (
        (["mine.py"], "'mine.py' is there already"),
        (["mine.txt"], "Expected a file that ends in .py"),
        (["my study.py"], "Expected a name of at most 100 small letters"),
        (["mine_confirm.py"], "does not end as a linked study's"),
        (["task3_clock.py"], "is that of a built-in study"),
        (["other.py", "--from", "task3-clok"], "Did you mean 'task3-clock'?"),
        (["other.py", "--from", "mine.py"], "Expected a built-in study, got --from 'mine.py'"),
    ):
        said = run("new", *arguments)
        assert said.code == 2 and words in said.err and said.err.count("\n") == 1
    assert [path.name for path in folder.iterdir()] == ["mine.py"]
    assert (folder / "mine.py").read_text() == "x = 1\n"


def test_the_end_of_a_search_names_confirm_before_export_and_the_test(
    sqlite_database: Database,
) -> None:
    fill(sqlite_database)
    status = study_status(sqlite_database, find(sqlite_database, "some-study"))
    said = io.StringIO()
    print_end(Console(file=said, width=80), status, "dlnn-search start x", " --storage URL")
    named = [line.split()[1] for line in said.getvalue().splitlines() if "  dlnn-search" in line]
    assert named == ["start", "confirm", "export", "evaluate", "trials", "dashboard"]


def test_a_start_makes_its_database_known(run: Run, folder: Path) -> None:
    (folder / "shapes.py").write_text(SHAPES, encoding="utf-8")
    assert run("start", "shapes.py", "--workers", 0, "--trials", 1).code == 0
    assert known_databases() == [f"sqlite:///{folder / 'storage' / 'data' / 'dlnn.db'}"]
    assert run("studies", "--all").out.splitlines()[-1] == f"  {folder / 'shapes.py'}"


def test_a_config_is_trained_again_or_not_as_the_last_start_asked(run: Run, folder: Path) -> None:
    (folder / "shapes.py").write_text(SHAPES, encoding="utf-8")
    url = f"sqlite:///{folder / 'dlnn.db'}"

    def start(*options: str) -> None:
        options = ("--workers", "0", "--trials", "9", "--storage", url, *options)
        assert run("start", "shapes.py", *options).code == 0

    def is_trained_again() -> bool:
        slot = claimed(slots)
        trial = begin_trial(trials, study, slot)
        slots.begin(slot, trial._trial_id, trial.number)
        duplicate = find_duplicate(database, stored.id, slot, "same")
        slots.settle(slot, "complete", value=0.5, best_epoch=1)
        return duplicate is None

    start()
    with open_database(url, create=False) as database:
        stored = find(database, "shapes")
        slots = Slots(database, stored.id)
        study = load_study("shapes.py")
        trials = open_optuna_study(study, database)
        assert is_trained_again()  # for the first time
        assert not is_trained_again()
        start("--retrain")
        assert is_trained_again()
        start()  # as before
        assert is_trained_again()
        start("--reuse")
        assert not is_trained_again()


#: What BROWSER names: it keeps the address and the page.
FETCH = """
import sys, urllib.error, urllib.request
try:
    asked = urllib.request.Request(sys.argv[1], headers={"Accept": "text/html"})
    answer = urllib.request.urlopen(asked, timeout=60)
except urllib.error.HTTPError as page_to_log_in:
    answer = page_to_log_in
open("page.part", "w").write(sys.argv[1] + "\\n" + answer.read().decode())
__import__("os").replace("page.part", "page")
"""


def serve(
    *arguments: object, until: Callable[[], bool], **environment: str
) -> tuple[int, str, str]:
    """Serve the dashboard until something is true, then press Ctrl-C."""
    command = [sys.executable, "-m", "dlnn_search", "dashboard", *map(str, arguments)]
    inherited = {name: os.environ[name] for name in os.environ if "DISPLAY" not in name}
    with (
        Path("out").open("w") as out,
        Path("err").open("w") as err,
        subprocess.Popen(command, env={**inherited, **environment}, stdout=out, stderr=err) as run,
    ):
        deadline = time.monotonic() + 120
        while not until() and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
    return run.returncode, Path("out").read_text(), Path("err").read_text()


def test_the_dashboard_opens_in_the_browser_when_it_answers(sqlite_database: Database) -> None:
    Path("fetch.py").write_text(FETCH)
    arguments = ("--open", "--port", 0, "--host", "0.0.0.0", "--storage", sqlite_database.url)
    code, out, err = serve(
        *arguments,
        until=Path("page").exists,
        BROWSER=f"{sys.executable} fetch.py %s",
        DLNN_SEARCH_DASHBOARD_PASSWORD="a-long-password",
    )
    assert code == 0 and not err, err
    address, page = Path("page").read_text().split("\n", 1)
    assert address.startswith("http://127.0.0.1:") and 'type="password"' in page
    assert f"The dashboard is at {address.replace('127.0.0.1', '0.0.0.0')} " in out


def test_where_no_browser_is_found_the_address_to_open_is_told(sqlite_database: Database) -> None:
    arguments = ("--open", "--port", 0, "--storage", sqlite_database.url)
    told = "No browser was found here. Open http://127.0.0.1:"
    code, out, err = serve(
        *arguments,
        until=lambda: told in (Path("err").read_text() if Path("err").exists() else ""),
        PATH="",
    )
    assert code == 0 and told in err, err
    assert "The dashboard is at http://127.0.0.1:" in out
