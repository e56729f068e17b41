"""What a message advises to run exists, works, and does not advise the same again."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import typer
from typer.testing import CliRunner

import dlnn_search
from dlnn_search.cli import app
from dlnn_search.cli.options import make_console
from dlnn_search.commands.confirm import find_study
from dlnn_search.commands.trying import draws_of
from dlnn_search.config import read_config
from dlnn_search.errors import UsageError
from dlnn_search.pruners import CONVERGED
from dlnn_search.report.tables import print_end
from dlnn_search.results.status import study_status
from dlnn_search.storage.control import set_control
from dlnn_search.storage.database import Database, open_database
from dlnn_search.storage.ledger import LedgerEntry
from dlnn_search.storage.slots import Outcome, Slots
from dlnn_search.storage.studies import find
from dlnn_search.study.finding import load_study
from dlnn_search.worker.joining import join_study
from dlnn_search.worker.optuna_study import begin_trial, open_optuna_study
from dlnn_search.worker.reports import tell
from dlnn_search.worker.verdict import Verdict

from .slot_life import note_config, set_study

PACKAGE = Path(dlnn_search.__file__).parent
TREE = typer.main.get_command(app)
URL = "sqlite:///storage/data/dlnn.db"
FILE = '''\
"""Tell bright pictures from dark ones."""

import numpy as np

from dlnn_search import Config, Dense, Mlp, OwnData, OwnImages, Study, Training


def load(options):
    labels = np.arange(60) % 2
    pixels = np.random.default_rng(0).integers(0, 120, (60, 6, 6))
    return OwnImages((pixels + 120 * labels[:, None, None]).astype("uint8"), labels)


def space(trial):
    units = trial.suggest_int("units", 2, 64)
    return Config(model=Mlp(blocks=(Dense(units=units),)), training=Training())


study = Study(
    space=space, data=OwnData(n_classes=2), load=load, maximize="accuracy", epochs=2, trials=4
)
'''

# -- Every text of the package that names a command or an option


def texts() -> Iterator[tuple[str, str]]:
    """Yield each text that a user may read, with its place; what is filled in reads `1`."""

    def of(node: ast.AST) -> str:
        if isinstance(node, ast.Constant):
            return str(node.value)
        if isinstance(node, ast.JoinedStr):
            return "".join(map(of, node.values))
        return "\0"

    for path in sorted(PACKAGE.rglob("*.py")):
        if "_docs" in path.parts:  # a wheel has the documents, too
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        no_text = {
            id(part)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr | ast.JoinedStr)
            for part in ast.walk(node)
            if part is not node and (isinstance(node, ast.JoinedStr) or part is node.value)
        }
        for node in ast.walk(tree):
            is_text = isinstance(node, ast.JoinedStr) or isinstance(getattr(node, "value", 0), str)
            if is_text and id(node) not in no_text and isinstance(node, ast.expr):
                text = re.sub(r"(?<=\w)\0+", "", of(node)).replace("\0", "1")
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", text


def commands_in(text: str) -> list[str]:
    """Return what a message says to run: `dlnn-search …` up to the quote, line or sentence end."""
    found = re.findall(r"dlnn-search ((?:[^'\n.,;()]|\.(?=\w)|(?<=-)-)+)", text)
    return [re.split(r"  | \[|:(?= )", command)[0].strip() for command in found]


def resolved(words: list[str]) -> tuple[Any, list[str]]:
    """Return the command that words name, and what follows its name."""
    command: Any = TREE
    rest = list(words)
    while hasattr(command, "commands"):
        assert rest and rest[0] in command.commands, f"there is no command '{' '.join(words)}'"
        command = command.commands[rest.pop(0)]
    return command, rest


def check_command(text: str) -> None:
    """Check that a command exists and takes the options that are named with it."""
    command, rest = resolved(shlex.split(text))
    known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
    for word in rest:
        if word.startswith("-"):
            assert word.partition("=")[0] in known, f"'{text}' has no option '{word}'"


#: Words that follow the program's name where it is no command: prose, and what is filled in whole.
NO_COMMAND = ("needs", "that", "did", "backup", "COMMAND")


def test_every_command_that_a_text_names_exists_with_its_options() -> None:
    n = 0
    for place, text in texts():
        for command in commands_in(text):
            first = command.split()[0]
            if first not in NO_COMMAND and set(first) != {"1"}:
                n += 1
                try:
                    check_command(command)
                except AssertionError as error:
                    pytest.fail(f"{place}: {error}")
    assert n > 50


#: Options of other programs: pip, nvidia-smi, DeepSpeed and the like are not ours to check.
OTHERS = {"--version-id", "--query-gpu", "--format", "--no-deps"}


def test_every_option_that_a_text_names_is_one_of_a_command() -> None:
    known = {"--help", *OTHERS}

    def collect(command: Any) -> None:
        known.update(name for each in command.params for name in (*each.opts, *each.secondary_opts))
        for inner in getattr(command, "commands", {}).values():
            collect(inner)

    collect(TREE)
    n = 0
    for place, text in texts():
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text):
            n += 1
            assert option in known, f"{place} names {option}, which no command has: {text!r}"
    assert n > 100


# -- The main situations, each with its message, whose command is then run


@dataclass
class Folder:
    """A folder in which a user searches with `mine.py`."""

    path: Path

    def run(self, *words: object, ok: bool | None = None) -> str:
        """Run a command; return all that it printed."""
        done = CliRunner().invoke(app, [str(word) for word in words])
        if ok is not None:
            assert (done.exit_code == 0) == ok, done.output
        assert "this is a bug" not in done.output, done.output
        return done.output

    def database(self) -> Database:
        return open_database(URL, create=False)

    def end(self, *outcomes: Outcome, file: str = "mine.py") -> None:
        """Bring trials of the study to an end, as workers do."""
        study = load_study(file)
        with self.database() as database:
            stored = find(database, study.name)
            trials = open_optuna_study(study, database)
            slots = Slots(database, stored.id)
            for number, outcome in enumerate(outcomes):
                slot = slots.claim("w")
                assert slot is not None
                trial = begin_trial(trials, study, slot)
                slots.begin(slot, trial._trial_id, trial.number)
                note_config(database, slot, study.config(trial).model_dump(mode="json"))
                value = None if outcome == "failed" else 0.5 + number / 10
                failure = "diverged" if outcome == "failed" else None
                slots.settle(slot, outcome, value=value, best_epoch=1, failure=failure)
                tell(trials, trial._trial_id, Verdict(outcome, value=value))
                slots.mark_told(slot.id)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose study was started, with a budget of 4 trials and no worker."""
    path = tmp_path_factory.mktemp("begun")
    (path / "mine.py").write_text(FILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setenv("DLNN_SEARCH_CACHE", str(path / "cache"))
        done = CliRunner().invoke(app, ["start", "mine.py", "--workers", "0"])
        assert done.exit_code == 0, done.output
    return path


@pytest.fixture
def folder(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A copy of it, as the folder that one is in."""
    path = tmp_path / "work"
    shutil.copytree(begun, path)
    monkeypatch.chdir(path)
    monkeypatch.setenv("DLNN_SEARCH_CACHE", str(path / "cache"))
    monkeypatch.setenv("COLUMNS", "400")
    Folder(path).run("start", "mine.py", "--workers", 0, ok=True)  # its file is here now
    return Folder(path)


#: What would train for minutes is run with no worker here.
WITHOUT_WORKERS = ("start", "confirm", "retune")


def follow(folder: Folder, message: str, *, only: str = "", **filled: str) -> str:
    """Run each command that a message advises; return what they printed.

    None may fail, nor advise the command that was just run: that would lead in a circle.

    Args:
        folder: Where.
        message: What was printed.
        only: Run those alone that begin so.
        filled: What stands in the message in capitals, such as STUDY.
    """
    commands = [command for command in commands_in(message) if command.startswith(only)]
    assert commands, f"advises nothing: {message}"
    printed = ""
    for command in dict.fromkeys(commands):
        words = [filled.get(word, word) for word in shlex.split(command)]
        check_command(shlex.join(words))
        name = words[0]
        if name in ("worker", "evaluate", "dashboard"):  # these train, or never end
            resolved(words)[0].make_context(name, resolved(words)[1]).close()
            continue
        if name == "validate":  # what it builds takes TensorFlow
            assert draws_of(find_study(words[1], URL, quick=False, study_file=None))
            continue
        if name in WITHOUT_WORKERS:
            words += ["--workers", "0"]
        if name in ("confirm", "retune"):
            words += ["--study", "mine.py"]
        if name in ("delete", "rename"):
            words += ["--yes"]
        if "--watch" in words or "--follow" in words:
            words = [word for word in words if word not in ("--watch", "--follow")]
        said = folder.run(*words, ok=True)
        again = [each for each in commands_in(said) if each.split()[:2] == command.split()[:2]]
        assert command not in again, f"'{command}' advises itself: {said}"
        printed += said
    return printed


@pytest.mark.parametrize("command", ["trials mine", "status", "best mine", "export mine -o a.json"])
def test_without_a_database_one_is_told_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DLNN_SEARCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mine.py").write_text(FILE)
    empty = Folder(tmp_path)
    follow(empty, empty.run(*command.split(), ok=False), STUDY="mine.py")
    assert "There is no database" not in empty.run(*command.split())


def test_a_worker_of_a_study_that_was_not_started_leads_to_its_start(folder: Folder) -> None:
    (folder.path / "other.py").write_text(FILE)
    study = load_study("other.py")
    with folder.database() as database, pytest.raises(UsageError) as told:
        join_study(study, database)
    assert "other is ready: 0 of 4 trials" in follow(folder, str(told.value), only="start")


def test_an_unknown_name_leads_to_the_lists_and_not_to_a_start_of_nothing(folder: Folder) -> None:
    said = folder.run("trials", "nothing-like-it", ok=False)
    assert "task3-clock" in follow(folder, said)


ASKING = ["best mine", "export mine -o a.json", "confirm mine", "importance mine"]


@pytest.mark.parametrize("command", ASKING)
def test_where_nothing_is_complete_the_search_goes_on(folder: Folder, command: str) -> None:
    said = folder.run(*command.split(), ok=False)
    assert "mine is ready: 0 of 4 trials are done" in follow(folder, said)


@pytest.mark.parametrize("command", ASKING)
def test_where_all_failed_the_study_is_to_be_fixed_and_started_anew(
    folder: Folder, command: str
) -> None:
    folder.end("failed", "failed", "failed", "failed")
    said = folder.run(*command.split(), ok=False)
    assert follow(folder, said, only="validate") == ""
    edited = FILE.replace("2, 64", "2, 32")
    (folder.path / "mine.py").write_text(edited)
    assert "0 of 4 trials are done" in follow(folder, said, only="start")


def test_what_used_up_its_trials_gets_more_of_them(folder: Folder) -> None:
    folder.end("complete", "complete", "pruned", "failed")
    said = folder.run("importance", "mine", ok=False)
    assert "4 of 8 trials are done" in follow(folder, said, only="start")
    assert "--trials" not in folder.run("importance", "mine", ok=False)


@pytest.mark.parametrize(
    ("limit", "option"),
    [
        ({"wall_seconds": 5.0, "wall_used_seconds": 9.0}, "--wall-time"),
        ({"wall_seconds": 7200.0, "wall_used_seconds": 7200.0}, "--wall-time"),
        ({"worker_seconds": 1e-6}, "--worker-hours"),
        ({"deadline_at": time.time() - 60}, "--deadline"),
    ],
)
def test_what_used_up_its_time_gets_more_time(
    folder: Folder, limit: dict[str, float], option: str
) -> None:
    folder.end("complete")
    with folder.database() as database:
        set_study(database, find(database, "mine").id, **limit)
    said = folder.run("resume", "mine", ok=True)
    assert option in said and "exhausted" in said
    follow(folder, said)
    assert "exhausted" not in folder.run("resume", "mine", ok=True)


def test_the_end_of_a_search_names_commands_that_work(folder: Folder) -> None:
    folder.end("complete", "complete", "pruned", "failed")
    said = folder.run("start", "mine.py", ok=True)
    follow(folder, said, only="trials")
    follow(folder, said, only="export")
    follow(folder, said, only="evaluate")
    follow(folder, said, only="dashboard")
    assert "4 of 8 trials" in follow(folder, said, only="start")


def test_a_converged_search_goes_on_if_one_wants(folder: Folder) -> None:
    folder.end("complete", "complete")
    with folder.database() as database:
        stored = find(database, "mine")
        set_control(database, stored.id, "stop", f"{CONVERGED} after 2 trials.")
        console = make_console()
        with console.capture() as captured:
            print_end(console, study_status(database, stored), "dlnn-search start mine", "")
    said = captured.get()
    assert "--no-stop-when-converged" in said
    assert "2 of 4 trials are done" in follow(folder, said, only="start")


@pytest.mark.parametrize("command", ["pause", "stop"])
def test_what_was_stopped_goes_on(folder: Folder, command: str) -> None:
    folder.end("complete")
    follow(folder, folder.run(command, "mine", ok=True), only="resume" * (command == "pause"))
    now = folder.run("status", "mine", ok=True)
    assert "Paused" not in now and "Stopped" not in now
    follow(folder, now, only="start")


def test_a_study_that_a_bug_stopped_is_fixed_and_started_anew(folder: Folder) -> None:
    folder.end("complete", "failed")
    reason = "KeyError: 'units' (mine.py, line 3)\nTraceback (most recent call last):\n  ..."
    with folder.database() as database:
        set_control(database, find(database, "mine").id, "stop", reason)
    said = folder.run("status", "mine", ok=True)
    assert "A bug of the study stopped it." in said
    follow(folder, said)
    assert "A bug" not in folder.run("status", "mine")


def test_an_edited_study_begins_anew_where_one_says_so(folder: Folder) -> None:
    folder.end("complete")
    (folder.path / "mine.py").write_text(FILE.replace("2, 64", "2, 32"))
    said = folder.run("start", "mine.py", "--workers", 0, ok=False)
    assert "start with --fresh" in said
    fresh = folder.run("start", "mine.py", "--workers", 0, "--fresh", ok=True)
    assert "complete" in follow(folder, fresh, only="trials")
    assert "edited" not in folder.run("start", "mine.py", "--workers", 0, ok=True)


def test_a_study_whose_file_went_away_is_started_with_its_file(folder: Folder) -> None:
    (folder.path / "mine.py").rename(folder.path / "moved.py")
    said = folder.run("start", "mine", "--workers", 0, ok=False)
    assert "--study FILE.py" in said
    folder.run("start", "mine", "--workers", 0, "--study", "moved.py", ok=True)
    assert draws_of(find_study("mine", URL, quick=False, study_file="moved.py"))


def test_a_renamed_study_is_found_by_the_name_that_is_told(folder: Folder) -> None:
    assert "0 of 4 trials" in follow(folder, folder.run("rename", "mine", "better", "--yes"))
    for command in (["trials", "mine"], ["start", "mine.py", "--workers", 0]):
        assert "was renamed to 'better'. Use that name." in folder.run(*command, ok=False)
    folder.run("trials", "better", ok=True)


def behind_our_back(change: Callable[[Database], object], folder: Folder) -> None:
    folder.end("complete")
    with folder.database() as database:
        change(database)


def test_a_study_that_another_program_deleted_is_deleted_wholly(folder: Folder) -> None:
    behind_our_back(lambda db: optuna.delete_study(study_name="mine", storage=db.optuna), folder)
    for command in (["status", "mine"], ["trials", "mine"], ["start", "mine.py"]):
        said = folder.run(*command)
        assert "'dlnn-search delete mine'" in " ".join(said.split())
    assert "Deleted: mine" in follow(folder, " ".join(said.split()), only="delete")
    assert "has no study 'mine'" in folder.run("status", "mine", ok=False)


def renamed_in_optuna_alone(database: Database) -> None:
    optuna.copy_study(
        from_study_name="mine",
        from_storage=database.optuna,
        to_storage=database.optuna,
        to_study_name="copy",
    )
    optuna.delete_study(study_name="mine", storage=database.optuna)


def test_a_study_that_another_program_renamed_is_renamed_wholly(folder: Folder) -> None:
    behind_our_back(renamed_in_optuna_alone, folder)
    said = " ".join(folder.run("status", "mine").split())
    assert "Renamed: copy" in follow(folder, said, only="rename")
    folder.run("trials", "copy", ok=True)


def test_an_export_leads_to_confirm_and_that_to_the_rest_of_it(folder: Folder) -> None:
    folder.end("complete", "complete")
    said = folder.run("export", "mine", "-o", "best.json", ok=True)
    assert "Not confirmed:" in said
    follow(folder, said, only="evaluate", FILE="mine.py")
    ready = follow(folder, said, only="confirm")
    assert "trials were added to mine-confirm" in ready
    follow(folder, ready, only="worker")
    later = folder.run("export", "mine", "-o", "best.json", ok=True)
    assert "Not confirmed yet: " in later
    follow(folder, later, only="confirm")


def test_a_config_that_was_tested_is_in_the_ledger_and_may_be_tested_again_on_record(
    folder: Folder,
) -> None:
    folder.end("complete")
    folder.run("export", "mine", "-o", "best.json", ok=True)
    config = read_config(folder.path / "best.json")
    with folder.database() as database:
        entry = LedgerEntry(database, config)
        entry.record()
        entry.complete({"accuracy": 0.5})
    said = folder.run("evaluate", "best.json", "--study", "mine.py", ok=False)
    assert "was tested once before" in said or "was tested 1 time before" in said
    assert "mine trial 0" in follow(folder, said)
    check_command("evaluate best.json --again")
    assert "--again" in said


def test_missing_clocks_are_imported_as_one_is_told(folder: Folder) -> None:
    said = folder.run("data", "prepare", "clocks", "--source", "course", "--size", 32, ok=False)
    labels = np.stack(np.divmod(np.arange(720), 60), axis=1)
    np.save("images.npy", np.zeros((720, 40, 40), np.uint8))
    np.save("labels.npy", labels)
    assert "Imported 720 clocks" in follow(folder, said)
    folder.run("data", "prepare", "clocks", "--source", "course", "--size", 32, ok=True)


def test_the_database_that_was_named_stands_in_the_commands_of_a_message(folder: Folder) -> None:
    (folder.path / "storage" / "data" / "dlnn.db").rename(folder.path / "other.db")
    url = "sqlite:///other.db"
    said = folder.run("best", "mine", "--storage", url, ok=False)
    assert f"'dlnn-search start mine --storage {url}'" in said
    follow(folder, said.replace("///", "///"))
    unknown = folder.run("trials", "nothing-like-it", f"--storage={url}", ok=False)
    assert f"'dlnn-search studies --storage {url}'" in unknown
