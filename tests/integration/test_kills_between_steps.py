"""Wherever a kill cuts a worker off, the next one brings the study to its end: exactly N."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState
from optuna_dashboard import get_note

from dlnn_search.errors import ExitCode
from dlnn_search.storage import schema
from dlnn_search.storage.database import Database, open_database
from dlnn_search.storage.slots import Slots
from dlnn_search.storage.studies import register
from dlnn_search.storage.trials import curve_of_slot
from dlnn_search.training import fit as fit_module
from dlnn_search.training.checkpoint import Epoch
from dlnn_search.training.fit import Fitted
from dlnn_search.worker import config_trial as objective_module
from dlnn_search.worker import held_trial as outbox_module
from dlnn_search.worker import worker as worker_module
from dlnn_search.worker.optuna_study import open_optuna_study
from dlnn_search.worker.worker import run_worker

from .slot_life import give_trials
from .trials_of_a_study import DATA, study_of

EPOCHS, N_SLOTS = 2, 2
STUDY = study_of(epochs=EPOCHS)
WRITES = ("INSERT", "UPDATE", "DELETE")

pytestmark = pytest.mark.usefixtures("optuna_way")


class Killed(BaseException):
    """In the place of SIGKILL: nothing is written any more."""


@contextmanager
def killed_before_write(number: int) -> Iterator[None]:
    """Let only so many transactions of this process write; none after the last one."""
    left = number

    def statement(connection: Any, _: Any, text: str, *__: Any) -> None:
        connection.info["writes"] = connection.info.get("writes") or text.startswith(WRITES)

    def end(connection: Any) -> None:
        nonlocal left
        if connection.info.pop("writes", False):
            left -= 1
            if left < 0:
                connection.connection.rollback()  # as the database does for who vanishes
                raise Killed

    events: dict[str, Callable[..., None]] = {"before_cursor_execute": statement, "commit": end}
    for name, heard in events.items():
        sa.event.listen(sa.Engine, name, heard)
    try:
        yield
    finally:
        for name, heard in events.items():
            sa.event.remove(sa.Engine, name, heard)


def no_training(_: Any, __: Any, **calls: Callable[..., Any]) -> Fitted:
    """In the place of `fit`: epochs without a network, and without a checkpoint."""
    calls["on_begin"](())
    curve = []
    for number in range(1, EPOCHS + 1):
        metrics = {"train_loss": 1.0, "loss": 1 / number, "accuracy": 0.5}
        curve.append(Epoch(number, metrics, seconds=0.1, images_per_second=1e3))
        calls["on_progress"](number, 0.5)
        calls["on_epoch"](curve[-1])
        calls["on_kept"](number)
    return Fitted(tuple(curve), curve[-1], finished=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective_module, "_load", lambda *_: DATA)
    monkeypatch.setattr(fit_module, "fit", no_training)
    monkeypatch.setattr(outbox_module, "RENEW_SECONDS", 0.0)
    monkeypatch.setattr(worker_module, "WAIT_SECONDS", 0.1)


def assert_whole(database: Database, study_id: int) -> None:
    with database.transaction() as connection:
        slots = connection.execute(
            sa.select(schema.slots).where(schema.slots.c.study_id == study_id)
        ).all()
    assert [(slot.state, slot.outcome, slot.told) for slot in slots] == [
        ("done", "complete", 1)
    ] * N_SLOTS
    optuna_study = open_optuna_study(STUDY, database)
    trials = {trial.number: trial for trial in optuna_study.trials}
    kept = [trials[slot.trial_number] for slot in slots]
    assert [trial.state for trial in kept] == [TrialState.COMPLETE] * N_SLOTS
    assert len(trials) == N_SLOTS, "none was left beside them"
    for slot, trial in zip(slots, kept, strict=True):
        assert trial.value == slot.value == 1 / EPOCHS
        assert trial.params == {"rate": slot.config["training"]["learning_rate"]}
        curve = {p.epoch: p.metrics["loss"] for p in curve_of_slot(database, slot.id)}
        assert trial.intermediate_values == curve == {1: 1.0, 2: 0.5}
        assert "**Complete**: loss 0.5" in get_note(optuna.Trial(optuna_study, slot.trial_id))


def test_a_worker_may_be_killed_before_any_of_its_writes(
    sqlite_template: Path, tmp_path: Path
) -> None:
    for number in itertools.count():
        path = shutil.copy(sqlite_template, tmp_path / f"{number}.db")
        database = open_database(f"sqlite:///{path}", create=False)
        try:
            study_id = register(database, STUDY.name, STUDY.definition()).id
            slots = Slots(database, study_id)
            give_trials(slots, N_SLOTS)
            was_killed = True
            with contextlib.suppress(Killed), killed_before_write(number):
                assert run_worker(STUDY, database, name="first") == ExitCode.DONE
                was_killed = False
            if was_killed:
                slots.release_of_dead("first")
                assert run_worker(STUDY, database, name="second") == ExitCode.DONE
            assert_whole(database, study_id)
        finally:
            database.close()
        if not was_killed:
            break
    assert number > 10
