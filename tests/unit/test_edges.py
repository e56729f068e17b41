"""A best value at an end of its range is found, with the range that leaves room."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from dlnn_search.search.edges import find_edges

LOG = FloatDistribution(1e-5, 1e-2, log=True)


def trial(value: float, distribution: BaseDistribution, x: Any) -> FrozenTrial:
    return create_trial(value=value, params={"x": x}, distributions={"x": distribution})


def test_a_rate_at_its_upper_end_is_widened_by_half_of_its_decades() -> None:
    (edge,) = find_edges([trial(1, LOG, 9.9e-3), trial(2, LOG, 1e-4)], maximize=False)
    assert (edge.parameter, edge.side, edge.wider) == ("x", "upper", (1e-5, 0.32))
    assert not edge.natural
    assert edge.words() == (
        "x: the best value, 0.0099, lies at the upper end of its range, 1e-05 to 0.01. "
        "Something better may lie beyond: widen it to 1e-05 to 0.32."
    )


@pytest.mark.parametrize(
    ("distribution", "x", "side", "wider"),
    [
        (FloatDistribution(-4, 4), -3.95, "lower", (-8, 4)),
        (IntDistribution(2, 6), 6, "upper", (2, 8)),
        (IntDistribution(16, 128, step=16), 128, "upper", (16, 192)),
        (IntDistribution(16, 1024, log=True), 16, "lower", (2, 1024)),
    ],
)
def test_ends_of_every_kind_of_number_are_found(
    distribution: BaseDistribution, x: float, side: str, wider: tuple[float, float]
) -> None:
    (edge,) = find_edges([trial(1, distribution, x)], maximize=False)
    assert (edge.side, edge.wider) == (side, wider)


@pytest.mark.parametrize(
    ("distribution", "x"),
    [(LOG, 3e-4), (IntDistribution(1, 4), 2), (CategoricalDistribution(["a", "b"]), "a")],
)
def test_what_is_inside_or_has_no_ends_is_no_edge(distribution: BaseDistribution, x: Any) -> None:
    assert find_edges([trial(1, distribution, x)], maximize=False) == []


def test_the_direction_says_which_trial_is_the_best() -> None:
    trials = [trial(1, LOG, 9.9e-3), trial(2, LOG, 3e-4)]
    assert find_edges(trials, maximize=False) and not find_edges(trials, maximize=True)


def test_a_lucky_trial_among_many_is_no_edge_unless_others_of_the_elite_are_near() -> None:
    scattered = [trial(1, LOG, 9.9e-3)] + [trial(2 + i, LOG, 1e-5 * 2**i) for i in range(9)]
    assert find_edges(scattered, maximize=False) == []
    gathered = [trial(1, LOG, 9.9e-3)] + [trial(2 + i, LOG, 8e-3 / 1.5**i) for i in range(9)]
    assert len(find_edges(gathered, maximize=False)) == 1


@pytest.mark.parametrize(
    ("distribution", "x"), [(FloatDistribution(0, 0.5), 0.0), (FloatDistribution(0.25, 1), 1.0)]
)
def test_a_natural_bound_is_told_with_reserve(distribution: BaseDistribution, x: float) -> None:
    (edge,) = find_edges([trial(1, distribution, x)], maximize=False)
    assert edge.natural and f"If values beyond {x:g} make sense" in edge.words()


def test_pruned_and_failed_trials_prove_nothing() -> None:
    failed = create_trial(state=TrialState.FAIL, params={"x": 1e-2}, distributions={"x": LOG})
    assert find_edges([failed], maximize=False) == []
