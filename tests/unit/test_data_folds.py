"""Folds for cross-validation: every row validated on once, every stratum spread evenly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlnn_search.data.splits import fold_rows, strata_of
from dlnn_search.errors import DataError

CLOCKS = np.stack(np.divmod(np.repeat(np.arange(720), 20), 60), axis=1).astype(np.uint8)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 9), min_size=7, max_size=200), st.integers(2, 7), st.integers(0, 5))
def test_folds_part_all_rows_and_spread_each_class(
    classes: list[int], n_folds: int, seed: int
) -> None:
    labels = np.array(classes, np.uint8)
    folds = fold_rows(labels, n_folds=n_folds, n_training=None, seed=seed)
    assert len(folds) == n_folds
    everything = np.arange(len(labels))
    assert sorted(np.concatenate([rows for _, rows in folds])) == everything.tolist()
    for train, validation in folds:
        assert sorted(np.concatenate([train, validation])) == everything.tolist()
    counts = np.array([np.bincount(labels[rows], minlength=10) for _, rows in folds])
    assert np.ptp(counts, axis=0).max() <= 1
    assert np.ptp(counts.sum(axis=1)) <= 1


def test_each_fold_of_the_clocks_has_each_time_as_often() -> None:
    for train, validation in fold_rows(CLOCKS, n_folds=5, n_training=None, seed=0):
        assert set(np.bincount(strata_of(CLOCKS[validation]))) == {4}
        assert set(np.bincount(strata_of(CLOCKS[train]))) == {16}
        assert not np.all(np.diff(train) > 0)  # shuffled: a split in order of time learns nothing


def test_the_seed_decides_which_rows() -> None:
    first, again, other = (
        fold_rows(CLOCKS, n_folds=3, n_training=None, seed=seed)[0][1] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert set(first) != set(other)


def test_folds_are_the_same_on_every_machine_and_numpy_version() -> None:
    # Written down once. If this fails, results of folds can't be compared with older ones.
    labels = np.repeat(np.arange(3, dtype=np.uint8), 4)
    found = [sorted(rows) for _, rows in fold_rows(labels, n_folds=3, n_training=None, seed=0)]
    assert found == [[1, 2, 4, 11], [3, 5, 6, 10], [0, 7, 8, 9]]


def test_a_training_subset_is_taken_from_the_other_folds_alone() -> None:
    for train, validation in fold_rows(CLOCKS, n_folds=4, n_training=1440, seed=0):
        assert len(train) == 1440 and not set(train) & set(validation)
        assert set(np.bincount(strata_of(CLOCKS[train]))) == {2}
    with pytest.raises(DataError, match=r"at most 10,800 .*got 10,801"):
        fold_rows(CLOCKS, n_folds=4, n_training=10_801, seed=0)


def test_folds_need_rows() -> None:
    for n_folds in (1, 6):
        with pytest.raises(DataError, match=f"2 to 5 folds of 5 pictures, got {n_folds}"):
            fold_rows(np.zeros(5, np.uint8), n_folds=n_folds, n_training=None, seed=0)
