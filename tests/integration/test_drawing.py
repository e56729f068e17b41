"""A trial is asked for another config where one is trained already, or the space forbids it."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from dlnn_search import CoarseToFine
from dlnn_search.config import Config, Dense, Mlp, Mnist, Training
from dlnn_search.errors import DivergedError, ExitCode, StudyError
from dlnn_search.samplers.observations import DUPLICATE_ATTRIBUTE, INFEASIBLE_ATTRIBUTE
from dlnn_search.storage.budget import budget_use
from dlnn_search.storage.control import go_on, orders
from dlnn_search.storage.database import Database
from dlnn_search.study import (
    CmaEs,
    Halving,
    Qmc,
    RandomSearch,
    Sampler,
    Space,
    Study,
    Tpe,
)
from dlnn_search.training import fit as fit_module
from dlnn_search.training.checkpoint import Epoch
from dlnn_search.worker.interruption import Interruption
from dlnn_search.worker.verdict import REFUSES_ALL, USED_UP

from .test_worker import Begun, small_data  # noqa: F401

EPOCHS = 2


def mlp(units: int, *, rate: float = 0.01, batch_size: int = 32) -> Config:
    return Config(
        model=Mlp(blocks=(Dense(units=units),)),
        training=Training(batch_size=batch_size, learning_rate=rate, precision="float32"),
    )


def six(trial: optuna.Trial) -> Config:
    units = trial.suggest_categorical("units", [4, 8, 16])
    return mlp(units, rate=trial.suggest_categorical("rate", [0.01, 0.02]))


def conditional(trial: optuna.Trial) -> Config:
    """Four configs: one without a second choice, three with it."""
    if trial.suggest_categorical("kind", ["plain", "wide"]) == "plain":
        return mlp(4)
    return mlp(trial.suggest_categorical("units", [8, 16, 32]))


def banned(trial: optuna.Trial) -> Config:
    """A wide network is forbidden with large batches, as one usually says it."""
    units = trial.suggest_int("units", 4, 16)
    batch_size = trial.suggest_categorical("batch_size", [16, 32, 64])
    if batch_size > 16 and units > 5:
        raise optuna.TrialPruned("too large")
    return mlp(units, batch_size=batch_size)


def study_of(space: Space, sampler: Sampler | None = None, **more: Any) -> Study:
    return Study(
        space=space,
        data=Mnist(),
        minimize="loss",
        sampler=sampler or RandomSearch(),
        epochs=EPOCHS,
        name="some-study",
        **more,
    )


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs that were trained."""
    found: list[int] = []
    train = fit_module._Run.epoch

    def epoch(self: fit_module._Run, number: int) -> Epoch:
        found.append(number)
        return train(self, number)

    monkeypatch.setattr(fit_module._Run, "epoch", epoch)
    return found


def assert_used_up(begun: Begun, n_configs: int, n_workers: int = 1) -> None:
    """Each config was trained once, by a trial of its own; the rest of the budget is there."""
    rows = begun.rows()
    done = [row for row in rows if row.state == "done"]
    assert len(done) == len({row.fingerprint for row in done}) == n_configs
    assert [row.reused_from for row in done] == [None] * n_configs
    left = [row for row in rows if row.state != "done"]
    assert {(row.state, row.losses, row.outcome) for row in left} == {("open", 0, None)}
    assert sum(row.trial_number is not None for row in left) <= n_workers
    ends = [t for t in begun.optuna_study.trials if t.state.is_finished()]
    assert len(ends) == n_configs
    assert not any(DUPLICATE_ATTRIBUTE in trial.user_attrs for trial in ends)
    asked = orders(begun.database, begun.id)
    assert (asked.control, asked.reason) == ("stop", USED_UP)
    assert begun.kinds().count("stopped") == 1, "said once"


def assert_all_done(begun: Begun) -> None:
    rows = begun.rows()
    assert [(row.state, row.told) for row in rows] == [("done", 1)] * len(rows)
    assert len(begun.optuna_study.trials) == len(rows)


@pytest.mark.parametrize(
    "sampler", [CoarseToFine(), CoarseToFine(stages=(2, 2)), RandomSearch(), Tpe(), Qmc(), CmaEs()]
)
def test_a_space_of_six_configs_trains_six_whatever_the_sampler(
    sqlite_database: Database, trained: list[int], sampler: Sampler
) -> None:
    begun = Begun(sqlite_database, study_of(six, sampler), n_slots=20)
    assert begun.work() == ExitCode.DONE
    assert_used_up(begun, 6)
    assert len(trained) == 6 * EPOCHS
    use = budget_use(begun.database, begun.id)
    assert (use.settled, use.trials) == (6, 20)


def test_a_search_whose_space_was_used_up_ends_again_at_its_next_start(
    sqlite_database: Database,
) -> None:
    begun = Begun(sqlite_database, study_of(six), n_slots=20)
    assert begun.work() == ExitCode.DONE
    n_trials = len(begun.optuna_study.trials)
    go_on(begun.database, begun.id)
    assert begun.work("again") == ExitCode.DONE
    assert len(begun.optuna_study.trials) == n_trials
    assert orders(begun.database, begun.id).reason == USED_UP


@pytest.mark.parametrize("pruner", [None, Halving(first_rung=1)])
def test_a_conditional_space_is_used_up_with_its_last_config(
    sqlite_database: Database, pruner: Halving | None
) -> None:
    study = study_of(conditional, CoarseToFine(), pruner=pruner)
    begun = Begun(sqlite_database, study, n_slots=9)
    assert begun.work() == ExitCode.DONE
    assert_used_up(begun, 4)


def test_four_workers_train_each_config_once_and_end(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Interruption, "listening", _deaf)
    monkeypatch.setattr(Interruption, "training", _deaf)
    begun = Begun(database, study_of(six, CoarseToFine()), n_slots=20)
    codes: list[int] = []
    workers = [
        threading.Thread(target=lambda n=n: codes.append(begun.work(f"worker-{n}")))
        for n in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert codes == [ExitCode.DONE] * 4
    assert_used_up(begun, 6, n_workers=4)


def _deaf(_: object) -> nullcontext[None]:
    """Signals are the main thread's."""
    return nullcontext()


def test_a_config_whose_trial_failed_by_a_bug_is_trained_again_and_one_that_diverged_is_not(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of the second trial: by a bug of its first a search ends.
    errors: list[Exception | None] = [None] * EPOCHS
    errors += [RuntimeError("a bug"), DivergedError("The loss became NaN.")]
    train = fit_module._Run.epoch

    def epoch(self: fit_module._Run, number: int) -> Epoch:
        error = errors.pop(0) if errors else None
        if error is not None:
            raise error
        return train(self, number)

    monkeypatch.setattr(fit_module._Run, "epoch", epoch)
    begun = Begun(sqlite_database, study_of(six), n_slots=20)
    assert begun.work() == ExitCode.DONE
    rows = [row for row in begun.rows() if row.state == "done"]
    failures = [row.failure for row in rows]
    assert sorted(map(str, failures)) == ["None"] * 5 + ["bug", "diverged"]
    by_bug = next(row for row in rows if row.failure == "bug")
    again = [row for row in rows if row.fingerprint == by_bug.fingerprint]
    assert [row.failure for row in again] == ["bug", None]
    assert orders(begun.database, begun.id).reason == USED_UP


def test_given_parameters_take_the_result_and_are_no_observation(
    sqlite_database: Database, trained: list[int]
) -> None:
    begun = Begun(sqlite_database, study_of(six), n_slots=3)
    for _ in range(2):
        begun.optuna_study.enqueue_trial({"units": 8, "rate": 0.02})
    assert begun.work() == ExitCode.DONE
    assert_all_done(begun)
    first, again, other = begun.optuna_study.trials
    assert (again.value, again.params) == (first.value, first.params)
    row = begun.rows()[1]
    assert row.note == "It has the result of trial 0, which trained the same config."
    assert begun.kinds() == ["reused"]
    assert again.intermediate_values == first.intermediate_values
    assert again.user_attrs[DUPLICATE_ATTRIBUTE] == first.number
    assert DUPLICATE_ATTRIBUTE not in first.user_attrs
    assert other.params != first.params
    assert len(trained) == 2 * EPOCHS


@pytest.mark.parametrize("sampler", [CoarseToFine(stages=(3, 4)), RandomSearch(), Tpe(4)])
def test_what_a_space_refuses_costs_no_slot_and_no_trial(
    sqlite_database: Database, sampler: Sampler
) -> None:
    begun = Begun(sqlite_database, study_of(banned, sampler), n_slots=10)
    assert begun.work() == ExitCode.DONE
    assert_all_done(begun)
    assert [row.outcome for row in begun.rows()] == ["complete"] * 10
    trials = begun.optuna_study.trials
    assert all(t.params["batch_size"] == 16 or t.params["units"] <= 5 for t in trials)
    refused = [p for t in trials for p in t.system_attrs.get(INFEASIBLE_ATTRIBUTE, [])]
    assert refused, "else this shows nothing"
    assert all(p["batch_size"] > 16 and p["units"] > 5 for p in refused)
    assert not begun.kinds(), "nothing out of the ordinary"


def test_a_space_that_refuses_everything_ends_the_search_with_a_sentence(
    sqlite_database: Database,
) -> None:
    n_allowed = [1]

    def refusing(trial: optuna.Trial) -> Config:
        trial.suggest_int("units", 4, 4000)
        n_allowed[0] -= 1
        if n_allowed[0] < 0:
            raise optuna.TrialPruned
        return mlp(16)

    begun = Begun(sqlite_database, study_of(refusing), n_slots=5)
    assert begun.work() == ExitCode.DONE
    assert [row.state for row in begun.rows()] == ["done"] + ["open"] * 4
    asked = orders(begun.database, begun.id)
    assert (asked.control, asked.reason) == ("stop", REFUSES_ALL)
    assert TrialState.FAIL not in {trial.state for trial in begun.optuna_study.trials}
    (stored,) = (
        t.system_attrs[INFEASIBLE_ATTRIBUTE]
        for t in begun.optuna_study.trials
        if INFEASIBLE_ATTRIBUTE in t.system_attrs
    )
    assert len(stored) <= 8, "a hundred of them would swell the database"


def test_given_parameters_that_the_space_refuses_fail_with_its_words(
    sqlite_database: Database,
) -> None:
    begun = Begun(sqlite_database, study_of(banned), n_slots=2)
    begun.optuna_study.enqueue_trial({"units": 16, "batch_size": 64})
    assert begun.work() == ExitCode.DONE
    first, second = begun.rows()
    assert (first.outcome, first.failure) == ("failed", "infeasible")
    assert first.reason == "The space refuses the given parameters. too large"
    assert second.outcome == "complete"
    assert orders(begun.database, begun.id).control == "run"


def test_a_choice_that_depends_on_another_under_one_name_is_told_the_way_out(
    sqlite_database: Database,
) -> None:
    def depending(trial: optuna.Trial) -> Config:
        units = trial.suggest_categorical("units", [4, 8])
        return mlp(units, rate=trial.suggest_categorical("rate", [0.01 * units, 0.001]))

    begun = Begun(sqlite_database, study_of(depending), n_slots=30)
    with pytest.raises(StudyError, match=r"dynamic value space.*use two names, such as"):
        begun.work()
