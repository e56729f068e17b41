"""Splits: exact totals, strata kept, the same rows everywhere."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlnn_search.data.splits import choose, shuffled, split_rows, strata_of
from dlnn_search.errors import DataError

CLOCK_LABELS = np.stack(np.divmod(np.repeat(np.arange(720), 20), 60), axis=1).astype(
    np.uint8
)  # what the test split leaves of the course's 25 a time


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**70),
)
def test_a_choice_is_exact_in_total_and_within_one_row_of_proportion_in_each_stratum(
    counts: list[int], share: float, seed: int
) -> None:
    strata = np.repeat(np.arange(len(counts)), counts)
    n_chosen = round(share * len(strata))
    chosen = choose(strata, n_chosen, seed=seed, purpose="this test")
    assert chosen.sum() == n_chosen
    for stratum, count in enumerate(counts):
        if count:
            fair = count * n_chosen / len(strata)
            assert abs(chosen[strata == stratum].sum() - fair) < 1


@given(
    n=st.integers(30, 300),
    validation=st.floats(0.1, 0.5),
    seed=st.integers(0, 2**40),
)
def test_training_and_validation_are_disjoint_and_lose_no_row(
    n: int, validation: float, seed: int
) -> None:
    labels = (np.arange(n) % 10).astype(np.uint8)
    train, valid = split_rows(labels, validation=validation, n_training=None, seed=seed)
    assert len(valid) == round(validation * n)
    assert sorted([*train, *valid]) == list(range(n))


@pytest.mark.parametrize(("validation", "a_time"), [(0.10, 2), (0.05, 1)])
def test_validation_takes_as_many_clocks_of_each_time(validation: float, a_time: int) -> None:
    _, valid = split_rows(CLOCK_LABELS, validation=validation, n_training=None, seed=0)
    assert np.all(np.bincount(strata_of(CLOCK_LABELS[valid]), minlength=720) == a_time)


def test_a_smaller_training_set_leaves_validation_as_it_is() -> None:
    train, valid = split_rows(CLOCK_LABELS, validation=0.1, n_training=None, seed=3)
    few, same = split_rows(CLOCK_LABELS, validation=0.1, n_training=1_440, seed=3)
    assert np.array_equal(valid, same)
    assert set(few) < set(train)
    assert np.all(np.bincount(strata_of(CLOCK_LABELS[few])) == 2)


def test_rows_are_shuffled_and_another_seed_splits_otherwise() -> None:
    train, valid = split_rows(CLOCK_LABELS, validation=0.1, n_training=None, seed=0)
    other_train, other_valid = split_rows(CLOCK_LABELS, validation=0.1, n_training=None, seed=1)
    assert np.any(np.diff(train) < 0) and np.any(np.diff(valid) < 0)
    assert set(valid) != set(other_valid)
    assert not np.array_equal(train, other_train)


def test_a_split_is_the_same_on_every_machine_and_numpy_version() -> None:
    # Written down once. If this fails, every test split in the world has moved.
    strata = np.arange(30) % 3
    chosen = np.flatnonzero(choose(strata, 8, seed=7, purpose="test"))
    assert chosen.tolist() == [3, 5, 7, 13, 17, 18, 20, 27]
    assert shuffled(np.arange(8), seed=7, purpose="order").tolist() == [1, 5, 6, 4, 3, 2, 7, 0]


def test_too_many_training_pictures_are_refused_with_what_there_is() -> None:
    labels = np.zeros(100, np.uint8)
    with pytest.raises(DataError, match=r"at most 90 .*got 91"):
        split_rows(labels, validation=0.1, n_training=91, seed=0)


@pytest.mark.parametrize("validation", [0.001, 0.999])
def test_an_empty_split_is_refused(validation: float) -> None:
    with pytest.raises(DataError, match="expected some for each"):
        split_rows(np.zeros(100, np.uint8), validation=validation, n_training=None, seed=0)
