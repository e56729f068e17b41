"""Optuna is told few of a trial's epochs, and those are always its curve's."""

from __future__ import annotations

import itertools
import math

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlnn_search.pruners import HalvingPruner, rungs_of
from dlnn_search.storage.optuna import rdb_storage, trial_storage
from dlnn_search.worker.reports import MAX_REPORTS, Reports, epochs_to_report


@given(epochs=st.integers(1, 3000), first=st.integers(1, 200), factor=st.integers(2, 5))
def test_few_epochs_are_reported_among_them_first_last_and_rungs(
    epochs: int, first: int, factor: int
) -> None:
    rungs = rungs_of(HalvingPruner(first, factor), epochs)
    assert all(rung < epochs for rung in rungs)
    due = epochs_to_report(epochs, rungs)
    assert {1, epochs, *rungs} <= due <= set(range(1, epochs + 1))
    assert len(due) <= MAX_REPORTS - 1


def test_they_are_spread_evenly() -> None:
    due = sorted(epochs_to_report(100, []))
    assert due[0] == 1 and due[-1] == 100 and len(due) >= 15
    gaps = {later - earlier for earlier, later in itertools.pairwise(due[1:-1])}
    assert len(gaps) == 1
    assert epochs_to_report(5, []) == {1, 2, 3, 4, 5}, "a short curve is told whole"


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(storage=trial_storage(rdb_storage("sqlite://")))


def reports_of(study: optuna.Study, epochs: int = 100, metric: str = "loss") -> Reports:
    return Reports(study, study.ask()._trial_id, metric=metric, epochs=epochs, rungs=[])


def test_the_last_and_the_best_epoch_are_added_at_the_end(study: optuna.Study) -> None:
    reports = reports_of(study)
    values = {epoch: 1 / epoch for epoch in range(1, 48)} | {31: 0.001}
    reports.begin({}, is_new=True)
    reports.tell(values)
    assert 31 not in study.trials[0].intermediate_values
    reports.end(values)
    told = study.trials[0].intermediate_values
    assert told[31] == 0.001 and told[47] == 1 / 47
    assert len(told) <= MAX_REPORTS


def test_the_best_is_the_largest_where_that_is_wanted(study: optuna.Study) -> None:
    reports = reports_of(study, metric="accuracy")
    values = dict.fromkeys(range(1, 48), 0.5) | {31: 0.9}
    reports.end(values)
    assert study.trials[0].intermediate_values[31] == 0.9


def test_what_is_no_part_of_the_curve_any_more_becomes_no_number(study: optuna.Study) -> None:
    trial = study.ask()
    for epoch in (1, 6, 12):
        trial.report(0.9, epoch)
    reports = Reports(study, trial._trial_id, metric="loss", epochs=100, rungs=[])
    reports.begin({1: 0.8, 2: 0.7}, is_new=False)
    told = study.trials[0].intermediate_values
    assert told[1] == 0.8
    assert math.isnan(told[6]) and math.isnan(told[12])
    reports.tell({6: 0.5})
    assert study.trials[0].intermediate_values[6] == 0.5


def test_what_a_former_holder_writes_meanwhile_is_mended_at_the_end(study: optuna.Study) -> None:
    trial = study.ask()
    reports = Reports(study, trial._trial_id, metric="loss", epochs=10, rungs=[])
    reports.begin({}, is_new=False)
    values = {1: 0.5, 2: 0.4}
    reports.tell(values)
    study._storage.set_trial_intermediate_value(trial._trial_id, 2, 0.9)
    study._storage.set_trial_intermediate_value(trial._trial_id, 3, 0.9)
    reports.end(values)
    told = study.trials[0].intermediate_values
    assert (told[1], told[2]) == (0.5, 0.4) and math.isnan(told[3])


def test_what_was_undone_is_told_again(study: optuna.Study) -> None:
    reports = reports_of(study, epochs=3)
    with pytest.raises(ZeroDivisionError), reports.as_a_whole():
        reports.tell({1: 0.5})
        study._storage.set_trial_intermediate_value(study.trials[0]._trial_id, 1, 9.0)
        raise ZeroDivisionError  # of a transaction, which takes both values back
    reports.tell({1: 0.5, 2: 0.25})
    assert study.trials[0].intermediate_values == {1: 0.5, 2: 0.25}
