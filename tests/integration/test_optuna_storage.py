"""Optuna's storage with our transactions around it: Optuna's own contract, and what we add."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import FloatDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import TrialState

from dlnn_search.storage import schema
from dlnn_search.storage.database import Database, UndoneError
from dlnn_search.storage.optuna import TrialStorage, trial_storage
from dlnn_search.storage.studies import register

from .slot_life import DEFINITION, TESTED_ALONE

pytestmark = pytest.mark.usefixtures("optuna_way")

UNIT = FloatDistribution(0.0, 1.0)


class TestContract(StorageTestCase):
    """Optuna's own suite."""

    # A process opens its own storage: ours has a pool of connections, which nobody can pickle.
    test_pickle_storage: Any = None

    @pytest.fixture
    def storage(self, database: Database) -> BaseStorage:
        return trial_storage(database.optuna)


@pytest.fixture
def storage(database: Database) -> TrialStorage:
    return trial_storage(database.optuna)


@pytest.fixture
def study(storage: TrialStorage) -> optuna.Study:
    return optuna.create_study(storage=storage, study_name="some-study")


def read(database: Database, study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """What another process would read."""
    return optuna.load_study(study_name=study.study_name, storage=database.optuna).trials


def test_parameters_and_reports_written_together_are_what_one_by_one_leaves(
    database: Database, storage: TrialStorage, study: optuna.Study
) -> None:
    singly, together = study.ask(), study.ask()
    reports = {1: 0.5, 2: math.nan, 3: math.inf, 4: -math.inf, 7: 1e-300}
    params = {"a": 0.25, "b": 0.1 + 0.2}
    for name, value in params.items():
        database.optuna.set_trial_param(singly._trial_id, name, value, UNIT)
    for step, value in reports.items():
        storage.set_trial_intermediate_value(singly._trial_id, step, value)
    for _ in range(2):  # the answer to the first may have been lost
        storage.set_trial_params(
            together._trial_id, {name: (value, UNIT) for name, value in params.items()}
        )
        storage.set_trial_intermediate_values(together._trial_id, {1: 9.0})
        storage.set_trial_intermediate_values(together._trial_id, reports)
    one, other = read(database, study)
    for frozen in (one, other):
        assert list(frozen.params.items()) == list(params.items())
        assert frozen.distributions == dict.fromkeys(params, UNIT)
        assert repr(frozen.intermediate_values) == repr(reports)


def test_values_of_a_finished_or_missing_trial_are_refused(
    database: Database, storage: TrialStorage, study: optuna.Study
) -> None:
    trial_id = study.ask()._trial_id
    storage.set_trial_state_values(trial_id, TrialState.FAIL)
    for which, error in ((trial_id, UpdateFinishedTrialError), (trial_id + 1, KeyError)):
        with pytest.raises(error):
            storage.set_trial_intermediate_values(which, {1: 0.5})
        with pytest.raises(error):
            storage.set_trial_params(which, {"a": (0.5, UNIT)})
    (trial,) = read(database, study)
    assert not trial.params and not trial.intermediate_values


def test_what_a_space_suggests_is_written_when_asked(
    database: Database, storage: TrialStorage, study: optuna.Study
) -> None:
    study.ask({"a": UNIT, "b": UNIT})  # the first of its names: Optuna compares them
    trial = study.ask()
    elsewhere = optuna.load_study(study_name=study.study_name, storage=database.optuna)
    elsewhere.ask({"c": UNIT})  # by a worker that this one has not heard of
    with storage.gathering(trial._trial_id):
        values = {name: trial.suggest_float(name, 0, 1) for name in "ab"}
        with pytest.raises(ValueError, match="distribution"):
            trial.suggest_categorical("c", [1, 2])
    assert trial.params == values
    assert not read(database, study)[1].params
    for _ in range(2):
        storage.write_gathered(trial._trial_id)
    assert read(database, study)[1].params == trial.params
    other = study.ask()
    storage.write_gathered(other._trial_id)
    assert other.suggest_float("a", 0, 1) == read(database, study)[-1].params["a"]


def test_a_trial_whose_space_refused_a_draw_is_asked_as_if_it_never_was(
    database: Database, storage: TrialStorage, study: optuna.Study
) -> None:
    trial = study.ask()
    with pytest.raises(optuna.TrialPruned), storage.gathering(trial._trial_id):
        trial.suggest_float("a", 0, 1)
        trial.suggest_float("b", 0, 1)
        raise optuna.TrialPruned
    assert not read(database, study)[0].params
    storage.drop_gathered(trial._trial_id)
    again = optuna.Trial(study, trial._trial_id)
    with storage.gathering(trial._trial_id):
        value = again.suggest_float("a", 0, 1)
    storage.write_gathered(trial._trial_id)
    assert read(database, study)[0].params == {"a": value}
    with pytest.raises(ValueError, match="distribution"), storage.gathering(trial._trial_id):
        again.suggest_categorical("b", [1, 2])  # what was dropped is known all the same


def test_a_space_that_fails_leaves_what_it_suggested(
    database: Database, storage: TrialStorage, study: optuna.Study
) -> None:
    study.ask({"a": UNIT})
    trial = study.ask()
    with pytest.raises(ZeroDivisionError), storage.gathering(trial._trial_id):
        trial.suggest_float("a", 0, 1)
        raise ZeroDivisionError
    assert read(database, study)[1].params == trial.params
    with pytest.raises(ValueError, match="distribution"), storage.gathering(trial._trial_id):
        study.ask().suggest_categorical("a", ["x"])


@pytest.fixture
def study_id(database: Database) -> int:
    return register(database, "some-study", DEFINITION).id


def name_of(database: Database, study_id: int) -> str:
    with database.transaction() as connection:
        of = sa.select(schema.studies.c.name).where(schema.studies.c.id == study_id)
        return str(connection.scalar(of))


def rename(database: Database, study_id: int, name: str) -> None:
    with database.transaction() as connection:
        connection.execute(
            schema.studies.update().where(schema.studies.c.id == study_id).values(name=name)
        )


@TESTED_ALONE
def test_what_is_done_together_is_done_as_a_whole_or_not_at_all(
    database: Database, storage: TrialStorage, study: optuna.Study, study_id: int
) -> None:
    def change(number: int) -> None:
        rename(database, study_id, f"name {number}")
        trial_id = storage.create_new_trial(study._study_id)
        storage.set_trial_user_attr(trial_id, "number", number)

    with pytest.raises(UndoneError) as caught, database.together():
        change(1)
        storage.set_trial_state_values(10**6, TrialState.FAIL)
    assert isinstance(caught.value.__cause__, KeyError)
    storage.forget_made()
    with pytest.raises(UndoneError), database.together():
        change(2)
        with pytest.raises(KeyError):  # caught: what was written is undone all the same
            storage.set_trial_state_values(10**6, TrialState.FAIL)
    storage.forget_made()
    with pytest.raises(ZeroDivisionError), database.together():
        change(3)
        raise ZeroDivisionError
    storage.forget_made()
    assert read(database, study) == study.trials == []
    assert name_of(database, study_id) == "some-study"
    with database.together():
        change(4)
        assert name_of(database, study_id) == "name 4", "it reads what it wrote"
        assert len(study.trials) == 1
    assert [trial.user_attrs for trial in read(database, study)] == [{"number": 4}]
    assert name_of(database, study_id) == "name 4"
    rename(database, study_id, "alone again")
    storage.set_trial_state_values(study.trials[0]._trial_id, TrialState.FAIL)
    assert read(database, study)[0].state == TrialState.FAIL


def test_where_a_part_undoes_the_whole_the_parts_are_done_one_after_the_other(
    database: Database, storage: TrialStorage, study: optuna.Study, study_id: int
) -> None:
    trial_id = study.ask()._trial_id
    storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def tell() -> None:
        with contextlib.suppress(UpdateFinishedTrialError):
            storage.set_trial_intermediate_values(trial_id, {1: 0.5})

    calls: list[Any] = [lambda: rename(database, study_id, "a"), tell]
    database.at_once(*calls, lambda: study.set_user_attr("done", True))
    assert name_of(database, study_id) == "a"
    assert study.user_attrs == {"done": True}


@TESTED_ALONE
def test_a_trial_that_was_made_is_forgotten_with_its_transaction(
    database: Database, storage: TrialStorage, study: optuna.Study
) -> None:
    with pytest.raises(ZeroDivisionError), database.together():
        storage.create_new_trial(study._study_id)
        raise ZeroDivisionError
    storage.forget_made()
    assert study.trials == []
    trial_id = storage.create_new_trial(study._study_id)
    trial = storage.begun(study, trial_id)
    storage.set_trial_user_attr(trial_id, "by", "another")
    assert (trial.number, study.trials[0].number) == (0, 0)
    assert storage.get_trial(trial_id).user_attrs == {"by": "another"}


def test_a_together_inside_of_another_is_an_error(
    database: Database, study: optuna.Study, study_id: int
) -> None:
    def nest() -> None:
        with database.together():
            rename(database, study_id, "outer")
            database.at_once(lambda: rename(database, study_id, "inner"))

    with pytest.raises(RuntimeError, match="inside of another one"):
        nest()
    assert name_of(database, study_id) == ("some-study" if database.joins else "outer")
    with database.together():
        rename(database, study_id, "after it")
    assert name_of(database, study_id) == "after it"
