"""What a supervisor does when its workers' processes end, with processes that only end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dlnn_search.errors import DlnnSearchError, ExitCode, OutageError, StudyError
from dlnn_search.launch import supervisor as module
from dlnn_search.launch.supervisor import Supervisor
from dlnn_search.machine import Seat
from dlnn_search.storage.database import Database
from dlnn_search.storage.schema import slots
from dlnn_search.storage.slots import Slots
from dlnn_search.storage.studies import register
from dlnn_search.storage.workers import WorkerRow, last_events

from .slot_life import give_trials

DEFINITION = {"settings": {"metric": "loss", "direction": "minimize"}, "code": ""}


class Fake:
    """A process that ends with the next exit code; None runs until it is told to end."""

    codes: Sequence[int | None] = ()
    made: list[Fake] = []  # noqa: RUF012 - emptied by the fixture

    def __init__(self, arguments: Sequence[str], environment: dict[str, str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("it began\nError: The disk said no.\n", encoding="utf-8")
        self.arguments, self.environment = list(arguments), environment
        self._code = self.codes[min(len(self.made), len(self.codes) - 1)]
        self.heard: list[signal.Signals] = []
        self.made.append(self)

    def exit_code(self) -> int | None:
        return self._code

    def send(self, number: signal.Signals) -> None:
        self.heard.append(number)
        self._code = 130

    def wait(self, seconds: float) -> bool:
        return self._code is not None


class Case:
    def __init__(self, database: Database, folder: Path) -> None:
        self.said: list[str] = []
        self.away: list[float] = []
        self.database = database
        self.study_id = register(database, "mine", DEFINITION).id
        give_trials(Slots(database, self.study_id), 5)
        self.folder = folder

    def run(
        self,
        codes: Sequence[int | None],
        n_seats: int = 1,
        tick: Callable[[], None] = lambda: None,
    ) -> bool:
        Fake.codes = codes
        return Supervisor(
            command=["worker", "mine"],
            environment={"DLNN_SEARCH_STORAGE": self.database.url},
            seats=[Seat(threads=1)] * n_seats,
            database=self.database,
            study_id=self.study_id,
            logs=self.folder,
            say=self.said.append,
            away=self.away.append,
        ).run(tick, None)

    def kinds(self) -> list[str]:
        return [event.kind for event in last_events(self.database, self.study_id, 50)]


@pytest.fixture
def case(
    sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Case]:
    monkeypatch.setattr(module, "Started", Fake)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(module, "FIRST_BACK_OFF_SECONDS", 0.001)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)
    # A supervisor that heard SIGTERM ends its process after a while: here, that is the tests'.
    monkeypatch.setattr(Supervisor, "_leave", lambda supervisor: None)
    Fake.made = []
    yield Case(sqlite_database, tmp_path / "logs")
    Fake.made = []


def test_a_worker_that_crashes_is_started_again_with_growing_pauses(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_BACK_OFF_SECONDS", 0.04)
    began = time.monotonic()
    assert case.run([-9, 1, 0])
    assert time.monotonic() - began >= 0.04 + 0.08
    assert len(Fake.made) == 3
    assert "died by signal 9 (SIGKILL)" in case.said[0] and "exit code 1" in case.said[1]
    assert case.kinds() == ["restarted", "restarted"]


def test_a_crash_loop_is_given_up_with_the_logs_last_words(case: Case) -> None:
    with pytest.raises(DlnnSearchError, match="died 5 times in a row, the last time by") as told:
        case.run([1])
    assert "The disk said no." in str(told.value) and "Its log: " in str(told.value)
    assert len(Fake.made) == 5
    assert case.kinds()[-1] == "gave_up"


@pytest.mark.parametrize(
    ("trains", "finishes", "n_deaths"),
    [(True, True, 30), (True, False, 5), (False, True, 20), (False, False, 5)],
)
def test_workers_that_are_killed_while_trials_are_finished_are_no_crash_loop(
    case: Case, monkeypatch: pytest.MonkeyPatch, trains: bool, finishes: bool, n_deaths: int
) -> None:
    def born(*arguments: Any) -> Fake:
        fake = Fake(*arguments)
        name = fake.arguments[fake.arguments.index("--name") + 1]
        if trains:
            WorkerRow(case.database, case.study_id, name).show(images_per_second=100.0)
        if finishes:
            with case.database.transaction() as connection:
                connection.execute(
                    slots.update()
                    .where(slots.c.number == len(Fake.made))
                    .values(outcome="complete")
                )
        return fake

    give_trials(Slots(case.database, case.study_id), 40)
    monkeypatch.setattr(module, "Started", born)
    monkeypatch.setattr(module, "LONGEST_BACK_OFF_SECONDS", 0.01)
    codes = [-9] * 30 + [0]
    if trains and finishes:
        assert case.run(codes)
        assert len(Fake.made) == len(codes)
        return
    with pytest.raises(DlnnSearchError, match=f"died {n_deaths} times in a row"):
        case.run(codes)


def test_the_others_go_on_where_one_place_is_given_up(case: Case) -> None:
    done = False

    def end_the_first() -> None:
        nonlocal done
        if not done and any("is not started again" in words for words in case.said):
            done = True
            Fake.made[0]._code = 0

    assert case.run([None, 1], n_seats=2, tick=end_the_first)
    assert any(
        "1 other worker continues" in words or "is not started again" in words
        for words in case.said
    )
    assert len(Fake.made) == 1 + 5


def test_a_worker_that_had_grown_is_replaced_without_a_pause(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_BACK_OFF_SECONDS", 60.0)
    assert case.run([75] * 8 + [0])
    assert len(Fake.made) == 9
    assert case.kinds() == []  # no crash


def test_nothing_is_started_again_for_an_error_that_would_only_come_again(case: Case) -> None:
    with pytest.raises(StudyError, match="The disk said no"):
        case.run([StudyError.exit_code])
    assert len(Fake.made) == 1


def test_a_worker_is_told_its_threads_its_log_and_who_looks_after_it(case: Case) -> None:
    case.run([0])
    arguments = Fake.made[0].arguments
    assert arguments[:4] == ["worker", "mine", "--threads", "1"]
    assert arguments[arguments.index("--supervisor") + 1].startswith(f"{os.getpid()} ")
    assert not any("sqlite" in argument for argument in arguments)  # others see them
    assert Fake.made[0].environment["TF_NUM_INTRAOP_THREADS"] == "1"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_nothing_is_started_any_more(
    case: Case, number: signal.Signals
) -> None:
    sent = False

    def once() -> None:
        nonlocal sent
        if not sent:
            sent = True
            os.kill(os.getpid(), number)

    assert not case.run([None], n_seats=2, tick=once)
    assert [process.heard[0] for process in Fake.made] == [signal.SIGTERM] * 2


def test_a_worker_that_ignores_sigterm_is_told_again_and_then_killed(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EPOCH_SECONDS", 0.05)
    monkeypatch.setattr(module, "KILL_SECONDS", 0.1)
    sent = False

    def stubborn(process: Fake, signal_number: signal.Signals) -> None:
        process.heard.append(signal_number)
        if signal_number == signal.SIGKILL:
            process._code = -9

    monkeypatch.setattr(Fake, "send", stubborn)

    def once() -> None:
        nonlocal sent
        if not sent:
            sent = True
            os.kill(os.getpid(), signal.SIGTERM)

    assert not case.run([None], tick=once)
    heard = Fake.made[0].heard
    assert heard[:2] == [signal.SIGTERM, signal.SIGINT] and signal.SIGKILL in heard


LEAVES = """
import os, signal, time
from dlnn_search.launch import supervisor as module

module.LAST_SECONDS = 0.2
supervisor = module.Supervisor.__new__(module.Supervisor)
supervisor.__dict__.update(
    _places=[], _now_at=None, _kill_at=None, _n_stop_signals=0, say=lambda words: None
)
signal.signal(signal.SIGTERM, supervisor._hear)
os.kill(os.getpid(), signal.SIGTERM)
while True:  # whatever hangs
    time.sleep(60)
"""


def test_after_sigterm_a_supervisor_is_gone_whatever_hangs() -> None:
    gone = subprocess.run([sys.executable, "-c", LEAVES], timeout=60, check=False)
    assert gone.returncode == ExitCode.INTERRUPTED


def test_a_database_that_is_away_is_shown_and_outlived(case: Case) -> None:
    ends = time.monotonic() + 0.2

    def away_for_a_while() -> None:
        if time.monotonic() < ends:
            raise OutageError("The server is restarting.")
        if Fake.made:
            Fake.made[0]._code = 0

    assert case.run([None], tick=away_for_a_while)
    assert case.away and case.away == sorted(case.away)
    assert case.said == ["The database is back after 0 s."]
