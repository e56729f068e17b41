"""`start` in this process: what its options come to, with workers that are no processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner, Result

from dlnn_search import machine, secret
from dlnn_search.cli import app
from dlnn_search.commands import on_end as on_end_module
from dlnn_search.commands import start as module
from dlnn_search.launch import supervisor as supervisor_module
from dlnn_search.launch.detached import Background
from dlnn_search.optuna_version import trial_id_of
from dlnn_search.pruners import CONVERGED
from dlnn_search.results.status import StudyStatus, study_status
from dlnn_search.storage import schema
from dlnn_search.storage.budget import Budget, budget_use, extend_budget
from dlnn_search.storage.control import kept_trial_timeout, set_control
from dlnn_search.storage.database import Database, open_database
from dlnn_search.storage.slots import Slots
from dlnn_search.storage.studies import StoredStudy, all_studies, look_up
from dlnn_search.training import runtime

FILE = '''\
"""Tell bright pictures from dark ones."""

import numpy as np

from dlnn_search import Config, Mlp, OwnData, OwnImages, Study, Training


def space(trial):
    rate = trial.suggest_float("rate", 1e-4, 1e-2, log=True)
    return Config(model=Mlp(blocks=()), training=Training(learning_rate=rate))


def load(options):
    labels = np.arange(40, dtype=np.uint8) % 2
    images = np.repeat(labels, 64).reshape(40, 8, 8) * np.uint8(200)
    return OwnImages(images, labels)


study = Study(
    space=space, data=OwnData(n_classes=2), load=load, minimize="loss", epochs=2, trials=2
)
'''
STUDY = "shades"
TWO_GPUS = "0, GPU-aaaa, NVIDIA A100, 40960\\n1, GPU-bbbb, NVIDIA A100, 40960\\n"


class Worker:
    """What the supervisor takes for a worker process: it does one thing, and ends."""

    made: list[Worker] = []  # noqa: RUF012 - emptied by the fixture
    does: Callable[[], int | None] = staticmethod(lambda: 0)

    def __init__(self, arguments: Sequence[str], environment: dict[str, str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("Error: The study said no.\n", encoding="utf-8")
        self.arguments, self.environment = list(arguments), environment
        self.made.append(self)
        self.code = type(self).does()

    def exit_code(self) -> int | None:
        return self.code

    def send(self, number: signal.Signals) -> None:
        self.code = 130

    def wait(self, seconds: float) -> bool:
        return self.code is not None


class Folder:
    """A user's folder with the study."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / f"{STUDY}.py").write_text(FILE, encoding="utf-8")

    def run(self, *arguments: object) -> Result:
        return CliRunner().invoke(app, [str(part) for part in arguments])

    def start(self, *options: object) -> Result:
        return self.run("start", f"{STUDY}.py", *options)

    def prepare(self, *options: object) -> str:
        """Start no worker; return what was printed."""
        done = self.start("--workers", 0, *options)
        assert done.exit_code == 0, done.output
        return done.output

    @property
    def url(self) -> str:
        return f"sqlite:///{self.path}/storage/data/dlnn.db"

    def look(self, read: Callable[[Database, StoredStudy], Any]) -> Any:
        with open_database(self.url, create=False) as database:
            return read(database, look_up(database, STUDY))

    def column(self, name: str) -> Any:
        return self.look(
            lambda database, stored: _scalar(database, sa.select(schema.studies.c[name]))
        )

    def status(self) -> StudyStatus:
        found: StudyStatus = self.look(study_status)
        return found


def _scalar(database: Database, query: Any) -> Any:
    with database.transaction() as connection:
        return connection.scalar(query)


@pytest.fixture
def folder(
    tmp_path: Path, sqlite_template: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Folder]:
    (tmp_path / "storage" / "data").mkdir(parents=True)
    shutil.copy(sqlite_template, tmp_path / "storage" / "data" / "dlnn.db")
    monkeypatch.chdir(tmp_path)
    for name in ("DLNN_SEARCH_STORAGE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(secret, "_known", set())  # what other tests told it
    monkeypatch.setattr(supervisor_module, "Started", Worker)
    monkeypatch.setattr(supervisor_module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(Worker, "does", staticmethod(lambda: 0))
    Worker.made = []
    yield Folder(tmp_path)
    Worker.made = []


# Limits of the budget.


def test_wall_time_limits_the_study_and_none_takes_the_limit_away(folder: Folder) -> None:
    folder.prepare("--wall-time", "8h")
    assert folder.column("wall_seconds") == 8 * 3_600
    assert "wall time 0 s of 8 h" in folder.run("status", STUDY).output
    folder.prepare("--wall-time", "none")
    assert folder.column("wall_seconds") is None


def test_worker_hours_limit_the_study_and_are_hours(folder: Folder) -> None:
    folder.prepare("--worker-hours", "1.5")
    assert folder.column("worker_seconds") == 1.5 * 3_600
    folder.prepare("--worker-hours", "none")
    assert folder.column("worker_seconds") is None


def test_a_deadline_is_a_moment_of_this_machines_clock(folder: Folder) -> None:
    folder.prepare("--deadline", "2199-12-01T08:00")
    shown = time.strftime("%Y-%m-%dT%H:%M", time.localtime(folder.column("deadline_at")))
    assert shown == "2199-12-01T08:00"
    folder.prepare("--deadline", "none")
    assert folder.column("deadline_at") is None


@pytest.mark.parametrize(
    "limit",
    [("--wall-time", "0.001s"), ("--worker-hours", "0.0000001")],
)
def test_a_study_whose_time_is_used_up_starts_no_worker_and_says_why(
    folder: Folder, limit: tuple[str, str]
) -> None:
    folder.prepare(*limit)

    def use_it(database: Database, stored: StoredStudy) -> None:
        slot = Slots(database, stored.id).claim("w")
        time.sleep(0.01)
        assert slot is not None
        Slots(database, stored.id).release(slot)

    folder.look(use_it)
    done = folder.start("--workers", 1)
    assert done.exit_code == 0 and not Worker.made
    assert "The budget is exhausted by" in done.output


# What holds for all workers.


def test_retrain_holds_for_all_workers_until_reuse_is_asked_for(folder: Folder) -> None:
    folder.prepare()
    assert folder.column("reuse") == 1
    folder.prepare("--retrain")
    assert folder.column("reuse") == 0
    folder.prepare()
    assert folder.column("reuse") == 0
    folder.prepare("--reuse")
    assert folder.column("reuse") == 1


def test_a_trials_limit_of_time_is_kept_shown_and_removed(folder: Folder) -> None:
    assert "--trial-timeout" not in folder.prepare()
    said = folder.prepare("--trial-timeout", "90m")
    assert "Each trial trains for at most 1 h 30 min (--trial-timeout)." in said
    assert "Each trial trains for at most 1 h 30 min" in folder.prepare()
    assert folder.status().trial_timeout_seconds == 5_400
    assert "each trial at most 1 h 30 min" in " ".join(folder.run("status", STUDY).output.split())
    told = json.loads(folder.run("status", STUDY, "--json").output)
    assert told["trial_timeout_seconds"] == 5_400
    assert "The limit of time for each trial is removed." in folder.prepare(
        "--trial-timeout", "none"
    )
    assert folder.status().trial_timeout_seconds is None
    done = folder.start("--workers", 0, "--trial-timeout", "0.5s")
    assert done.exit_code == 2 and "at least 1 s" in done.output


def test_a_studys_own_limit_of_a_trials_time_counts_until_a_start_changes_it(
    folder: Folder,
) -> None:
    file = folder.path / f"{STUDY}.py"
    file.write_text(FILE.replace("trials=2", "trials=2, trial_timeout_seconds=60"))
    folder.prepare()
    assert folder.status().trial_timeout_seconds == 60
    folder.prepare("--trial-timeout", "none")
    folder.prepare()
    assert folder.look(lambda *where: kept_trial_timeout(where[0], where[1].id)) == (True, None)
    # The limit is no part of what makes trials comparable.
    file.write_text(FILE)
    folder.prepare()


# GPUs.


@pytest.fixture
def two_gpus(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder.path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nprintf '{TWO_GPUS}'\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(machine, "tensorflow_sees_gpus", lambda: True)


@pytest.mark.parametrize(
    ("options", "seen"),
    [((), ["0", "1"]), (("--gpus", "1"), ["1"]), (("--gpus", "1,0"), ["1", "0"])],
)
def test_workers_train_on_the_gpus_that_were_chosen(
    folder: Folder, two_gpus: None, options: tuple[str, ...], seen: list[str]
) -> None:
    done = folder.start(*options)
    assert done.exit_code == 0, done.output
    assert [worker.environment["CUDA_VISIBLE_DEVICES"] for worker in Worker.made] == seen
    assert [option_of(worker, "--gpu") for worker in Worker.made] == seen


def test_no_gpu_is_used_with_gpus_none(folder: Folder, two_gpus: None) -> None:
    folder.start("--gpus", "none")
    (worker,) = Worker.made
    assert worker.environment["CUDA_VISIBLE_DEVICES"] == "-1"
    assert "--gpu" not in worker.arguments


def test_workers_that_share_a_gpu_are_told_their_part_of_its_memory(
    folder: Folder, two_gpus: None
) -> None:
    folder.start("--gpus", "0", "--workers-per-gpu", 2)
    assert len(Worker.made) == 2
    parts = [int(option_of(worker, "--gpu-memory")) for worker in Worker.made]
    assert sum(parts) + 2 * machine.CONTEXT_MIB <= 40_960 < 3 * parts[0]


def option_of(worker: Worker, name: str) -> str:
    return worker.arguments[worker.arguments.index(name) + 1]


@pytest.mark.parametrize(("options", "limit"), [((), None), (("--gpu-memory", 512), 512)])
def test_a_worker_takes_no_more_of_its_gpus_memory_than_it_may(
    folder: Folder,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[object, ...],
    limit: int | None,
) -> None:
    limits: dict[str, int] = {}

    def set_configuration(device: str, parts: list[int]) -> None:
        (limits[device],) = parts

    folder.prepare()
    folder.look(settle_all)
    tensorflow = ModuleType("tensorflow")
    tensorflow.config = SimpleNamespace(  # type: ignore[attr-defined]
        list_physical_devices=lambda kind: [kind],
        LogicalDeviceConfiguration=lambda memory_limit: memory_limit,
        set_logical_device_configuration=set_configuration,
    )
    monkeypatch.setitem(sys.modules, "tensorflow", tensorflow)
    monkeypatch.setattr(runtime, "import_tensorflow", lambda: None)
    monkeypatch.setattr(os, "environ", os.environ.copy())  # a worker sets up its own process
    done = folder.run("worker", f"{STUDY}.py", "--gpu", 0, *options)
    assert done.exit_code == 0, done.output
    assert limits == ({} if limit is None else {"GPU": limit})


def settle_all(database: Database, stored: StoredStudy) -> None:
    slots = Slots(database, stored.id)
    trials = optuna.load_study(study_name=stored.name, storage=database.optuna)
    while (slot := slots.claim("w")) is not None:
        trial, value = trials.ask(), 0.25 + slot.number
        slots.begin(slot, trial_id_of(trials, trial), trial.number)
        slots.settle(slot, "complete", value=value, best_epoch=1)
        trials.tell(trial, value)
        slots.mark_told(slot.id)


# The command that runs when the search ends.

#: Keeps what it is told: its environment, and its standard input.
KEEPS = "env -0 > env.txt; cat > status.json; echo once >> runs.txt"


def told(folder: Folder) -> dict[str, str]:
    """What the command was told, without the prefix; it must have run once."""
    assert (folder.path / "runs.txt").read_text() == "once\n"
    pairs = (folder.path / "env.txt").read_text().split("\0")
    return {
        name.removeprefix("DLNN_SEARCH_"): value
        for name, _, value in (pair.partition("=") for pair in pairs)
        if name.startswith("DLNN_SEARCH_")
    }


def does(monkeypatch: pytest.MonkeyPatch, act: Callable[[], int | None]) -> None:
    monkeypatch.setattr(Worker, "does", staticmethod(act))


def test_a_command_is_told_of_a_search_that_used_up_its_trials(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    does(monkeypatch, lambda: folder.look(settle_all) or 0)
    done = folder.start("--workers", 1, "--on-end", KEEPS)
    assert done.exit_code == 0, done.output
    known = told(folder)
    assert known["STUDY"] == STUDY
    assert (known["END"], known["EXIT_CODE"]) == ("complete", "0")
    assert known["REASON"] == "All 2 trials are done."
    assert (known["METRIC"], known["BEST"], known["TRIALS"]) == ("loss", "0.25", "2")
    assert known["STORAGE"] == folder.url
    status = json.loads((folder.path / "status.json").read_text())
    assert (status["study"], status["state"]) == (STUDY, "done")
    assert status["best"]["value"] == 0.25
    # What runs in it finds the database by itself, from any folder.
    assert status.keys() == json.loads(folder.run("status", STUDY, "--json").output).keys()


def asked_to_stop(folder: Folder, reason: str) -> int:
    folder.look(lambda database, stored: set_control(database, stored.id, "stop", reason))
    return 0


def out_of_time(folder: Folder) -> int:
    def use_it(database: Database, stored: StoredStudy) -> None:
        extend_budget(database, stored.id, Budget(deadline_at=time.time() - 1))
        assert budget_use(database, stored.id).exhausted_by == "deadline"

    folder.look(use_it)
    return 0


def interrupted() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def all_failed(database: Database, stored: StoredStudy) -> None:
    slots = Slots(database, stored.id)
    while (slot := slots.claim("w")) is not None:
        slots.settle(slot, "failed", failure="diverged")


@pytest.mark.parametrize(
    ("act", "options", "end", "reason", "code"),
    [
        (
            lambda folder: asked_to_stop(folder, "'dlnn-search stop' on here."),
            (),
            "stopped",
            "0 of 2 trials are done. Stopped by: 'dlnn-search stop' on here.",
            0,
        ),
        (
            lambda folder: asked_to_stop(folder, f"{CONVERGED}No gain is expected."),
            (),
            "converged",
            f"{CONVERGED}No gain is expected. 0 of 2 trials are done.",
            0,
        ),
        (out_of_time, (), "exhausted", "The budget is exhausted by its deadline, ", 0),
        (lambda folder: None, ("--timeout", "0.1s"), "timeout", "The --timeout of this", 130),
        (lambda folder: interrupted(), (), "interrupted", "A signal (Ctrl-C or SIGTERM)", 130),
        (lambda folder: folder.look(all_failed) or 0, (), "failed", "Every trial failed.", 3),
        (lambda folder: 3, (), "failed", "The study said no.", 3),
        (lambda folder: 1 / 0, (), "failed", "ZeroDivisionError: division by zero", 70),
    ],
)
def test_a_command_is_told_how_a_search_ended(
    folder: Folder,
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[[Folder], int | None],
    options: tuple[str, ...],
    end: str,
    reason: str,
    code: int,
) -> None:
    does(monkeypatch, lambda: act(folder))
    done = folder.start("--workers", 1, *options, "--on-end", KEEPS)
    assert done.exit_code == code, done.output
    known = told(folder)
    assert (known["END"], known["EXIT_CODE"]) == (end, str(code))
    assert known["REASON"].startswith(reason)


def test_a_command_is_told_of_what_fails_before_a_worker_starts(folder: Folder) -> None:
    file = folder.path / f"{STUDY}.py"
    file.write_text(FILE.replace("return OwnImages(images, labels)", "raise OSError('No disk')"))
    done = folder.start("--workers", 1, "--on-end", KEEPS)
    assert done.exit_code and not Worker.made
    known = told(folder)
    assert (known["END"], known["EXIT_CODE"]) == ("failed", str(done.exit_code))
    assert "No disk" in known["REASON"] and "\n" not in known["REASON"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("exit 7", "failed with exit code 7."),
        ("no-such-program-anywhere", "failed with exit code 127."),
        ("trap '' TERM; sleep 30 & sleep 30", "was ended after 0 s."),
    ],
)
def test_a_command_that_fails_is_told_in_one_line_and_changes_nothing(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, command: str, words: str
) -> None:
    monkeypatch.setattr(on_end_module, "ON_END_SECONDS", 0.3)
    does(monkeypatch, lambda: folder.look(all_failed) or 0)
    began = time.monotonic()
    done = folder.start("--workers", 1, "--on-end", command)
    assert time.monotonic() - began < 25
    assert done.exit_code == 3
    assert f"The command of --on-end {words} The search is not affected." in done.output


def test_a_command_runs_where_the_database_is_gone_and_never_hears_a_password(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.prepare()
    url = "postgresql+psycopg://somebody:hushhush@127.0.0.1:1/nothing"
    done = folder.start("--workers", 1, "--storage", url, "--on-end", KEEPS)
    assert done.exit_code == 5
    known = told(folder)
    assert (known["END"], known["BEST"], known["TRIALS"]) == ("failed", "", "")
    assert known["STORAGE"] == "postgresql+psycopg://somebody@127.0.0.1:1/nothing"
    assert json.loads((folder.path / "status.json").read_text()) is None
    assert "hushhush" not in (folder.path / "env.txt").read_text() + done.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--on-end", "  "), "Expected a shell command after --on-end"),
        (("--on-end", "true", "--workers", 0), "does not wait for the end"),
    ],
)
def test_a_command_that_can_never_run_is_refused(
    folder: Folder, options: tuple[object, ...], words: str
) -> None:
    done = folder.start(*options)
    assert done.exit_code == 2 and words in done.output
    with open_database(folder.url, create=False) as database:
        assert not all_studies(database)


def test_a_search_in_the_background_gets_the_command_where_no_list_of_processes_shows_it(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not run here: the process in the background runs it, and takes it off its environment."""
    begun: list[tuple[list[str], dict[str, str]]] = []

    def run_in_background(
        arguments: Sequence[str], environment: dict[str, str], *_: object
    ) -> Background:
        begun.append((list(arguments), environment))
        return Background(123, "its log")

    monkeypatch.setattr(module, "run_in_background", run_in_background)
    secret = f"{KEEPS} # https://hooks.example/T0K3N"
    assert folder.start("--workers", 1, "--detach", "--on-end", secret).exit_code == 0
    assert not (folder.path / "runs.txt").exists()
    ((arguments, environment),) = begun
    assert "T0K3N" not in " ".join(arguments)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    does(monkeypatch, lambda: folder.look(settle_all) or 0)
    done = folder.run(*arguments)
    assert done.exit_code == 0, done.output
    assert told(folder)["END"] == "complete"
    assert "ON_END" not in told(folder)
