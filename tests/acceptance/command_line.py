"""A folder in which a user runs `dlnn-search`, and what the tests look at there."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Generous: the machine may be busy with other things.
TIMEOUT_SECONDS = 300.0

STUDY = '''\
"""Tell the time from tiny clocks."""

import optuna

from dlnn_search import ClockNet, Clocks, Config, Conv, Pool, Quick, RandomSearch, Study, Training


def space(trial: optuna.Trial) -> Config:
    blocks = [Conv(filters=trial.suggest_int("filters", 2, 6)), Pool()]
    rate = trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
    return Config(
        model=ClockNet(blocks=tuple(blocks)),
        training=Training(learning_rate=rate, batch_size=BATCH_SIZE),
    )


study = Study(
    space=space,
    data=Clocks(
        source="rendered",
        image_size=32,
        images_per_time=PER_TIME,
        difficulty=0,
        azimuth_spread=0.2,
    ),
    minimize="common_sense_error",
    epochs=EPOCHS,
    sampler=RandomSearch(),
    trials=4,
    quick=Quick(trials=1, epochs=1),
)
'''
N_TEST_IMAGES = 288  # a fifth of two pictures for each of 720 times


def study_text(*, epochs: int = 2, batch_size: int = 64, images_per_time: int = 2) -> str:
    """Return a study file: a trial takes a second, or longer with more and smaller batches."""
    text = STUDY.replace("EPOCHS", str(epochs)).replace("BATCH_SIZE", str(batch_size))
    return text.replace("PER_TIME", str(images_per_time))


#: Most of a second an epoch on an idle machine: long enough to be met in the middle.
SLOW = {"epochs": 8, "batch_size": 1, "images_per_time": 8}


@dataclass(frozen=True)
class Done:
    """A command that came to its end."""

    code: int
    out: str
    err: str

    @property
    def both(self) -> str:
        return self.out + self.err


@dataclass(frozen=True)
class Place:
    """A folder, and the environment that commands run with in it."""

    folder: Path
    environment: dict[str, str]
    python: str = sys.executable

    def command(self, *arguments: object) -> list[str]:
        return [self.python, "-m", "dlnn_search", *map(str, arguments)]

    def run(self, *arguments: object, **environment: str) -> Done:
        """Run a command to its end, without a terminal."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def succeed(self, *arguments: object) -> str:
        """Run a command that must end well; return what it printed."""
        done = self.run(*arguments)
        assert done.code == 0, done.both
        return done.out

    @contextmanager
    def begin(self, *arguments: object) -> Iterator[Running]:
        """Start a command in the background; it is ended when the block is left."""
        output = self.folder / f"output-{time.monotonic_ns()}.txt"
        with (
            output.open("wb") as file,
            subprocess.Popen(
                self.command(*arguments),
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            ) as process,
        ):
            try:
                yield Running(process, output)
            finally:
                process.kill()

    def write_study(self, **size: int) -> str:
        """Write the study `tiny` into the folder (sizes: `study_text`); return its file's name."""
        (self.folder / "tiny.py").write_text(study_text(**size), encoding="utf-8")
        return "tiny.py"

    @property
    def data(self) -> Path:
        return self.folder / "storage" / "data"

    @property
    def database(self) -> Path:
        return self.data / "dlnn.db"

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Return what a query of the database says; nothing before there is one."""
        if not self.database.exists():
            return []
        with closing(sqlite3.connect(self.database, timeout=60)) as connection:
            try:
                return connection.execute(query, values).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):
                    return []
                raise

    def execute(self, statement: str) -> None:
        with closing(sqlite3.connect(self.database, timeout=60)) as connection, connection:
            connection.execute(statement)

    def curves(self) -> dict[int, list[int]]:
        """Return each slot's epochs."""
        found: dict[int, list[int]] = {}
        for slot, epoch in self.rows(
            "SELECT s.number, c.epoch FROM dlnn_curves c JOIN dlnn_slots s ON s.id = c.slot_id "
            "ORDER BY s.number, c.epoch"
        ):
            found.setdefault(slot, []).append(epoch)
        return found

    def trial_states(self) -> list[str]:
        """Return the state of each of Optuna's trials."""
        return [state for (state,) in self.rows("SELECT state FROM trials ORDER BY trial_id")]

    def slot_states(self) -> list[str]:
        return [state for (state,) in self.rows("SELECT state FROM dlnn_slots ORDER BY number")]

    def checkpoints(self) -> list[Path]:
        return sorted(self.data.glob("checkpoints/*/*/last*.npz"))

    def copy_to(self, folder: Path) -> Place:
        """Return a copy of the folder and its database, to change at will."""
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns("dlnn.db*"))
        copy = Place(folder, self.environment)
        copy.data.mkdir(parents=True, exist_ok=True)
        with (
            closing(sqlite3.connect(self.database)) as source,
            closing(sqlite3.connect(copy.database)) as target,
        ):
            source.backup(target)
        return copy

    def assert_complete(self, n_trials: int, epochs: int) -> None:
        """Check a finished search: exactly N, whatever happened on the way."""
        assert self.slot_states() == ["done"] * n_trials
        states = self.trial_states()
        assert len(states) == n_trials, states
        assert set(states) <= {"COMPLETE", "PRUNED"}, states
        expected = list(range(1, epochs + 1))
        assert self.curves() == dict.fromkeys(range(n_trials), expected)
        told = self.rows("SELECT told FROM dlnn_slots")
        assert told == [(1,)] * n_trials


@dataclass(frozen=True)
class Running:
    """A command in the background."""

    process: subprocess.Popen[bytes]
    output: Path

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def wait(self) -> int:
        return self.process.wait(timeout=TIMEOUT_SECONDS)

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)


def wait_for(what: str, found: Callable[[], object]) -> Any:
    """Return what is found once it is something.

    Raises:
        TimeoutError: If nothing is, for long.
    """
    ends = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < ends:
        value = found()
        if value:
            return value
        time.sleep(0.05)
    raise TimeoutError(f"Waited {TIMEOUT_SECONDS:g} s for {what}.")


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie has ended, whatever its parent knows of it.
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
