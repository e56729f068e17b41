"""A whole worker, with trials that take a second: what ends it, and what it leaves behind."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from dlnn_search.config import Config, Dense, Mlp, Mnist, Training
from dlnn_search.errors import DataError, ExitCode, StudyError
from dlnn_search.results.advice import Facts, advice
from dlnn_search.results.status import study_status
from dlnn_search.storage import schema
from dlnn_search.storage.budget import Budget, budget_use, extend_budget
from dlnn_search.storage.control import go_on, is_first, keep_trial_timeout, orders, set_control
from dlnn_search.storage.database import Database, open_database
from dlnn_search.storage.schema import now
from dlnn_search.storage.slots import Slots
from dlnn_search.storage.studies import look_up, register
from dlnn_search.storage.trials import Point, curve_of_slot, replace_curve
from dlnn_search.storage.workers import last_events
from dlnn_search.study import RandomSearch, Study
from dlnn_search.training import fit as fit_module
from dlnn_search.training.checkpoint import Epoch, Pace
from dlnn_search.worker import config_trial as module
from dlnn_search.worker import worker as worker_module
from dlnn_search.worker.interruption import GRACE_SECONDS
from dlnn_search.worker.optuna_study import open_optuna_study
from dlnn_search.worker.worker import run_worker

from .slot_life import claimed, give_trials, set_study
from .trials_of_a_study import DATA, study_of

EPOCHS = 6


class Begun:
    """A study in an SQLite database, before its first worker."""

    def __init__(self, database: Database, study: Study, n_slots: int) -> None:
        self.database = database
        self.study = study
        self.id = register(database, study.name, study.definition()).id
        self.slots = Slots(database, self.id)
        give_trials(self.slots, n_slots)
        self.optuna_study = open_optuna_study(study, database)

    def work(self, name: str = "worker") -> int:
        return run_worker(self.study, self.database, name=name)

    def rows(self) -> list[Any]:
        query = sa.select(schema.slots).order_by(schema.slots.c.number)
        with self.database.transaction() as connection:
            return list(connection.execute(query.where(schema.slots.c.study_id == self.id)))

    def worker_row(self, name: str = "worker") -> Any:
        with self.database.transaction() as connection:
            return connection.execute(
                sa.select(schema.workers).where(schema.workers.c.id == name)
            ).one()

    def kinds(self) -> list[str]:
        return [event.kind for event in last_events(self.database, self.id, 99)]

    def epochs(self, number: int = 0) -> list[int]:
        return [point.epoch for point in curve_of_slot(self.database, self.rows()[number].id)]

    def assert_all_done(self) -> None:
        """Exactly N, all told, no curve with a gap."""
        rows = self.rows()
        assert [(row.state, row.told) for row in rows] == [("done", 1)] * len(rows)
        states = {trial.state for trial in self.optuna_study.trials}
        assert states <= {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
        assert len(self.optuna_study.trials) == len(rows)
        for row in rows:
            if row.outcome == "complete":
                assert self.epochs(row.number) == list(range(1, EPOCHS + 1))

    def assert_nothing_runs(self) -> None:
        assert "held" not in {row.state for row in self.rows()}
        assert TrialState.RUNNING not in {trial.state for trial in self.optuna_study.trials}
        assert self.worker_row().state == "stopped"


@pytest.fixture(autouse=True)
def small_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_load", lambda *_: DATA)
    monkeypatch.setattr(worker_module, "WAIT_SECONDS", 0.2)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """A worker that was asked to end keeps its own, to its process's end: here that is pytest's."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture
def begun(sqlite_database: Database) -> Begun:
    return Begun(sqlite_database, study_of(epochs=EPOCHS), n_slots=3)


def at_epochs(
    monkeypatch: pytest.MonkeyPatch, actions: dict[int, Callable[[], object]], *, slow: int = 0
) -> list[int]:
    """Do something before an epoch, once; let the epoch `slow` last a minute, with progress."""
    trained: list[int] = []
    train = fit_module._Run.epoch

    def epoch(self: fit_module._Run, number: int) -> Epoch:
        actions.pop(number, lambda: None)()
        for part in range(600 if number == slow else 0):
            self._on_progress(number, part / 600)
            time.sleep(0.1)
        trained.append(number)
        return train(self, number)

    monkeypatch.setattr(fit_module._Run, "epoch", epoch)
    monkeypatch.setattr(Pace, "is_due", lambda _: True)
    # Orders are read with each renewal: here it is one an epoch at least.
    monkeypatch.setattr("dlnn_search.worker.held_trial.RENEW_SECONDS", 0.0)
    return trained


@contextmanager
def after(seconds: float, action: Callable[[], object]) -> Iterator[None]:
    timer = threading.Timer(seconds, action)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_a_worker_trains_all_slots_and_ends(begun: Begun) -> None:
    assert begun.work() == ExitCode.DONE
    begun.assert_all_done()
    begun.assert_nothing_runs()
    use = budget_use(begun.database, begun.id)
    assert 0 < use.worker_used_seconds <= use.wall_used_seconds + 0.1
    assert use.exhausted == "exhausted by trials: all 3 are done"


def test_stop_lets_the_running_trial_end_and_begins_none(
    begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_epochs(monkeypatch, {3: lambda: set_control(begun.database, begun.id, "stop", "Enough.")})
    assert begun.work() == ExitCode.DONE
    assert [row.state for row in begun.rows()] == ["done", "open", "open"]
    assert begun.epochs() == list(range(1, EPOCHS + 1))
    begun.assert_nothing_runs()
    assert begun.worker_row().message == "The study 'some-study' is asked to stop: Enough."
    assert begun.work("later") == ExitCode.DONE, "until somebody sets it going"
    assert len(begun.optuna_study.trials) == 1
    go_on(begun.database, begun.id)
    assert begun.work("last") == ExitCode.DONE
    begun.assert_all_done()


def test_stop_now_gives_a_long_epoch_up_and_keeps_those_before(
    begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    with monkeypatch.context() as patch:
        trained = at_epochs(
            patch, {3: lambda: set_control(begun.database, begun.id, "stop_now")}, slow=3
        )
        assert begun.work() == ExitCode.DONE
    assert time.monotonic() - began < GRACE_SECONDS + 20
    assert trained == [1, 2] == begun.epochs()
    begun.assert_nothing_runs()
    (trial,) = begun.optuna_study.trials
    assert trial.state == TrialState.WAITING
    assert begun.rows()[0].losses == 0
    go_on(begun.database, begun.id)
    assert begun.work("next") == ExitCode.DONE
    begun.assert_all_done()


def test_pause_keeps_the_epoch_and_waits_until_resume(
    begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str | None, str]] = []

    def look_and_resume() -> None:
        while begun.worker_row().state != "paused":
            time.sleep(0.05)
        row = begun.worker_row()
        seen.append((row.state, row.message, begun.rows()[0].state))
        seen.append((begun.optuna_study.trials[0].state.name, None, ""))
        go_on(begun.database, begun.id)

    trained = at_epochs(
        monkeypatch, {2: lambda: set_control(begun.database, begun.id, "pause", "Lunch.")}
    )
    with after(0.1, look_and_resume):
        assert begun.work() == ExitCode.DONE
    assert seen == [("paused", "Lunch.", "open"), ("WAITING", None, "")]
    assert trained[:EPOCHS] == list(range(1, EPOCHS + 1)), "the second epoch was kept"
    begun.assert_all_done()
    assert begun.kinds() == ["paused", "resumed"]


def test_a_terminated_worker_gives_a_long_epoch_up_within_seconds(
    begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[float] = []

    def terminate() -> None:
        sent.append(time.monotonic())
        send(signal.SIGTERM)

    trained = at_epochs(monkeypatch, {3: terminate}, slow=3)
    assert begun.work() == ExitCode.INTERRUPTED
    assert GRACE_SECONDS - 0.1 < time.monotonic() - sent[0] < GRACE_SECONDS + 20
    assert trained == [1, 2] == begun.epochs()
    begun.assert_nothing_runs()
    assert begun.rows()[0].losses == 0
    assert begun.rows()[0].checkpoint_epoch == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_a_short_epoch_end_and_keeps_it(
    begun: Begun, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    trained = at_epochs(monkeypatch, {3: lambda: send(number)})
    assert begun.work() == ExitCode.INTERRUPTED
    assert trained == [1, 2, 3] == begun.epochs()
    begun.assert_nothing_runs()
    assert begun.work("next") == ExitCode.DONE
    begun.assert_all_done()


def test_a_second_signal_gives_the_epoch_up_at_once(
    begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = at_epochs(monkeypatch, {2: lambda: send(signal.SIGINT)}, slow=2)

    def press_again() -> None:
        wait_until(lambda: trained == [1])
        time.sleep(1)
        send(signal.SIGINT)

    began = time.monotonic()
    with after(0.0, press_again):
        assert begun.work() == ExitCode.INTERRUPTED
    assert time.monotonic() - began < 30
    assert trained == [1] == begun.epochs()
    begun.assert_nothing_runs()


def wait_until(holds: Callable[[], bool]) -> None:
    while not holds():
        time.sleep(0.02)


def test_a_budget_of_time_that_is_used_up_keeps_the_epoch_and_ends_the_worker(
    begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    extend_budget(begun.database, begun.id, Budget(wall_seconds=3600))
    trained = at_epochs(
        monkeypatch,
        {4: lambda: set_study(begun.database, begun.id, active_since=now() - 3601)},
    )
    assert begun.work() == ExitCode.DONE
    assert trained == [1, 2, 3, 4] == begun.epochs()
    begun.assert_nothing_runs()
    assert str(begun.worker_row().message).startswith(
        "The budget of 'some-study' is exhausted by wall time: 1 h of 1 h; 0 of 3 trials are done"
    )
    extend_budget(begun.database, begun.id, Budget(wall_seconds=36_000))
    assert begun.work("next") == ExitCode.DONE
    assert trained[:EPOCHS] == list(range(1, EPOCHS + 1))
    begun.assert_all_done()


@pytest.fixture
def alone(sqlite_database: Database) -> Begun:
    return Begun(sqlite_database, study_of(epochs=EPOCHS), n_slots=1)


def test_a_trial_that_trains_too_long_is_pruned_within_its_epoch_with_its_best_one(
    alone: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit comes while it trains, as of a start on another machine."""
    at_epochs(monkeypatch, {4: lambda: keep_trial_timeout(alone.database, alone.id, 1.0)}, slow=4)
    assert alone.work() == ExitCode.DONE
    (row,) = alone.rows()
    losses = {point.epoch: point.metrics["loss"] for point in curve_of_slot(alone.database, row.id)}
    assert list(losses) == [1, 2, 3]  # none is lost, none is half
    assert (row.outcome, row.failure, row.value) == ("pruned", None, min(losses.values()))
    assert row.value == losses[row.best_epoch]
    assert row.reason == "Stopped after 1 s by --trial-timeout; 3 epochs were finished."
    (trial,) = alone.optuna_study.trials
    assert (trial.state, trial.value) == (TrialState.PRUNED, losses[3])
    alone.assert_all_done()


def test_a_trial_without_an_epoch_in_time_fails_and_says_what_to_do(
    alone: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_trial_timeout(alone.database, alone.id, 1.0)
    at_epochs(monkeypatch, {}, slow=1)
    assert alone.work() == ExitCode.DONE
    (row,) = alone.rows()
    assert (row.outcome, row.failure, row.value) == ("failed", "timeout", None)
    assert "did not end within 1 s" in row.reason and "--trial-timeout" in row.reason
    assert alone.optuna_study.trials[0].user_attrs["failure"] == "timeout"
    status = study_status(alone.database, look_up(alone.database, alone.study.name))
    assert status.trial_timeout_seconds == 1.0
    sentences = advice(Facts(status))
    assert any("raise --trial-timeout" in sentence for sentence in sentences)


def test_the_time_of_earlier_holders_counts_towards_a_trials_limit(
    alone: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = fit_module._Run.epoch

    def half_an_hour(run: fit_module._Run, number: int) -> Epoch:
        return dataclasses.replace(train(run, number), seconds=1_800.0)

    monkeypatch.setattr(fit_module._Run, "epoch", half_an_hour)
    keep_trial_timeout(alone.database, alone.id, 3_601.0)
    trained = at_epochs(monkeypatch, {2: lambda: os.kill(os.getpid(), signal.SIGINT)}, slow=3)
    assert alone.work() == ExitCode.INTERRUPTED
    assert (trained, alone.rows()[0].state) == ([1, 2], "open")
    assert alone.work("next") == ExitCode.DONE  # an hour, and a second of the third epoch
    assert (alone.rows()[0].outcome, alone.epochs()) == ("pruned", [1, 2])


def test_a_worker_that_lost_its_slot_drops_its_work_with_one_word(
    begun: Begun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lose_it() -> None:
        """As if frozen: another worker has the slot, and finished it, when this one wakes."""
        (row,) = [row for row in begun.rows() if row.state == "held"]
        with begun.database.transaction() as connection:
            connection.execute(
                schema.slots.update()
                .where(schema.slots.c.id == row.id)
                .values(lease_ends_at=now() - 1)
            )
        slot = claimed(begun.slots, "successor")
        assert slot.id == row.id
        begun.slots.settle(slot, "complete", value=0.125, best_epoch=1)
        begun.optuna_study.tell(row.trial_number, 0.125)
        begun.slots.mark_told(slot.id)

    at_epochs(monkeypatch, {4: lose_it})
    assert begun.work() == ExitCode.DONE
    first = begun.rows()[0]
    assert (first.value, first.losses, first.outcome) == (0.125, 1, "complete")
    trial = begun.optuna_study.trials[0]
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.125)
    assert set(trial.intermediate_values) <= {1, 2, 3}
    assert begun.epochs() == [1, 2, 3]
    words = [record.message for record in caplog.records if "dropped" in record.message]
    assert words == ["Slot 0 was claimed by another worker. This worker's result is dropped."]
    assert begun.kinds() == ["lost", "fenced"]
    assert [row.outcome for row in begun.rows()] == ["complete"] * 3


def test_a_third_loss_is_the_last(begun: Begun) -> None:
    for n in range(3):
        slot = claimed(begun.slots, f"dead-{n}")
        assert slot.number == 0
        begun.slots.release_of_dead(f"dead-{n}")
    assert begun.work() == ExitCode.DONE
    first = begun.rows()[0]
    assert (first.outcome, first.failure) == ("failed", "lost")
    assert first.reason == "Lost 3 times: its workers were killed or hung."
    trial = begun.optuna_study.trials[0]
    assert trial.state == TrialState.FAIL
    assert (trial.user_attrs["failure"], trial.user_attrs["reason"]) == ("lost", first.reason)
    assert begun.kinds() == ["lost", "lost", "lost", "gave_up"]
    begun.assert_all_done()


def broken_space(trial: optuna.Trial) -> Config:
    trial.suggest_float("rate", 0.1, 0.2)
    raise KeyError("units")


def broken_after_the_first(trial: optuna.Trial) -> Config:
    return broken_space(trial) if trial.number else three_choices(trial)


def test_a_bug_in_the_first_trial_ends_the_search_at_once_and_costs_nothing(
    sqlite_database: Database,
) -> None:
    study = Study(
        space=broken_space, data=Mnist(), minimize="loss", sampler=RandomSearch(), name="broken"
    )
    begun = Begun(sqlite_database, study, n_slots=3)
    line = broken_space.__code__.co_firstlineno + 2
    with pytest.raises(StudyError) as told:
        begun.work()
    said = str(told.value)
    assert "The first trial of 'broken' failed, which cost no part of the budget" in said
    assert "KeyError: 'units'" in said and f"({__file__}, line {line})" in said
    assert [(row.state, row.losses) for row in begun.rows()] == [("open", 0)] * 3
    assert [trial.state for trial in begun.optuna_study.trials] == [TrialState.WAITING]
    assert orders(begun.database, begun.id).control == "stop"
    assert begun.kinds() == ["bug", "stopped"]
    begun.assert_nothing_runs()
    assert begun.work("later") == ExitCode.DONE, "until somebody sets it going"
    mended = dataclasses.replace(study, space=three_choices, epochs=EPOCHS)
    said_so: list[str] = []
    again = register(begun.database, "broken", mended.definition(), fresh=False, say=said_so.append)
    assert again.id != begun.id
    assert said_so == [
        "'broken' starts again. Its trials so far are kept: dlnn-search trials broken-old-1"
    ]
    mended_study = Begun(begun.database, mended, n_slots=3)
    assert mended_study.work("mended") == ExitCode.DONE
    mended_study.assert_all_done()


def test_trials_are_first_ones_until_one_has_ended_or_another_has_trained(begun: Begun) -> None:
    one, two = claimed(begun.slots, "a"), claimed(begun.slots, "b")
    assert is_first(begun.database, begun.id, one.id)
    begun.slots.release(one, failure="bug")
    assert is_first(begun.database, begun.id, two.id), "it began at the same time"
    point = Point(1, {"loss": 1.0}, 1.0, 1.0)
    assert replace_curve(
        begun.database, two.id, two.fence, [point], place="p", worker="b", words=None
    )
    assert is_first(begun.database, begun.id, two.id), "its own epochs prove nothing of its end"
    assert not is_first(begun.database, begun.id, one.id)
    begun.slots.settle(two, "failed", failure="diverged")
    assert not is_first(begun.database, begun.id, two.id)


def test_bugs_in_a_row_stop_the_study_until_it_is_started_again(
    sqlite_database: Database,
) -> None:
    study = Study(
        space=broken_after_the_first,
        data=Mnist(),
        minimize="loss",
        sampler=RandomSearch(),
        epochs=1,
        name="broken",
    )
    begun = Begun(sqlite_database, study, n_slots=9)
    with pytest.raises(StudyError, match=r"3 trials in a row failed.*KeyError: 'units'"):
        begun.work()
    asked = orders(begun.database, begun.id)
    assert asked.control == "stop"
    assert asked.reason is not None and asked.reason.count("Traceback") >= 1
    assert "KeyError: 'units'" in asked.reason
    assert [row.failure for row in begun.rows()] == [None] + ["bug"] * 3 + [None] * 5
    begun.assert_nothing_runs()
    assert begun.work("later") == ExitCode.DONE
    assert len(begun.optuna_study.trials) == 4
    go_on(begun.database, begun.id)
    with pytest.raises(StudyError):
        begun.work("again")
    assert len(begun.optuna_study.trials) == 7


def three_choices(trial: optuna.Trial) -> Config:
    units = trial.suggest_categorical("units", [4, 8, 16])
    return Config(
        model=Mlp(blocks=(Dense(units=units),)),
        training=Training(batch_size=32, learning_rate=0.01, precision="float32"),
    )


def test_a_study_may_have_each_trial_trained_whatever_was_trained(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(
        space=three_choices,
        data=Mnist(),
        minimize="loss",
        sampler=RandomSearch(),
        epochs=EPOCHS,
        reuse=False,
        name="choices",
    )
    trained = at_epochs(monkeypatch, {})
    begun = Begun(sqlite_database, study, n_slots=6)
    assert begun.work() == ExitCode.DONE
    begun.assert_all_done()
    assert len({row.fingerprint for row in begun.rows()}) <= 3
    assert len(trained) == EPOCHS * 6


def test_missing_data_pause_the_worker_and_cost_the_trial_nothing(
    begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = [3]
    seen: list[tuple[str, str | None]] = []

    def load(*_: object) -> object:
        if failing[0] < 3:
            row = begun.worker_row()
            seen.append((row.state, row.message))
        if failing[0] == 3 or failing[0] <= 0:
            failing[0] -= 1
            return DATA
        failing[0] -= 1
        raise DataError("The pictures are gone: mount the disk.")

    monkeypatch.setattr(module, "_load", load)
    monkeypatch.setattr(worker_module, "pause_seconds", lambda n: 0.05)
    assert begun.work() == ExitCode.DONE
    begun.assert_all_done()
    assert [(row.losses, row.memory_failures) for row in begun.rows()] == [(0, 0)] * 3
    assert [row.outcome for row in begun.rows()] == ["complete"] * 3
    assert ("troubled", "The pictures are gone: mount the disk.") in seen
    assert begun.kinds() == ["trouble", "recovered"]


def numpy_choices(trial: Any) -> Config:
    trial.set_user_attr("share", np.float32(0.5))
    units = trial.suggest_categorical("units", np.array([4, 8, 16]))
    trial.suggest_categorical("wide", [np.bool_(False), True])
    if trial.number > 4:
        units += trial.suggest_categorical("more", [(1, 2), (3, 4)])[0]
    return Config(
        model=Mlp(blocks=(Dense(units=units),)),
        training=Training(batch_size=32, learning_rate=0.01, precision="float32"),
    )


def test_choices_of_numpy_serve_a_later_worker_and_a_tuple_in_a_new_branch_is_named(
    sqlite_database: Database,
) -> None:
    study = Study(
        space=numpy_choices,
        data=Mnist(),
        minimize="loss",
        sampler=RandomSearch(),
        epochs=1,
        reuse=False,  # there are three configs
        name="choices",
    )
    begun = Begun(sqlite_database, study, n_slots=3)
    assert begun.work() == ExitCode.DONE
    give_trials(begun.slots, 12)
    later = open_database(
        sqlite_database.url, create=False
    )  # as another process: Optuna's memory begins anew
    try:
        with pytest.raises(StudyError, match="lets 'more' choose"):
            run_worker(study, later, name="later")
    finally:
        later.close()
    failed = [row for row in begun.rows() if row.outcome == "failed"]
    assert failed and all(row.trial_number > 4 for row in failed)
    assert all(row.outcome == "complete" for row in begun.rows()[:5])
    for trial in begun.optuna_study.trials:
        assert trial.user_attrs["share"] == 0.5
