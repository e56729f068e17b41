"""A best value at an end of its range is found, with the range that leaves room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, create_trial

from dlnn_search.samplers.regions import Edge, find_edges, n_elites

LOG = FloatDistribution(1e-5, 1e-2, log=True)
N = 9


def trial(distribution: BaseDistribution, x: Any) -> FrozenTrial:
    return create_trial(value=1.0, params={"x": x}, distributions={"x": distribution})


def edges(distribution: BaseDistribution, *best: Any, n_complete: int = N) -> Sequence[Edge]:
    return find_edges([trial(distribution, x) for x in best], n_complete)


def test_a_rate_at_its_upper_end_is_widened_by_a_decade() -> None:
    (edge,) = edges(LOG, 9.9e-3, 9.1e-3, 4e-3)
    assert (edge.parameter, edge.side, edge.wider) == ("x", "upper", (1e-5, 0.1))
    assert edge.words() == (
        "The best trial lies on the edge of x (0.0099, upper end of 1e-05 to 0.01), as 1 of the "
        "next 2 do: widen it to 1e-05 to 0.1, in a copy of the study."
    )


@pytest.mark.parametrize(
    ("distribution", "x", "side", "wider"),
    [
        (FloatDistribution(-4, 4), -3.95, "lower", (-8, 4)),
        (FloatDistribution(1e-3, 1e-2, log=True), 1.01e-3, "lower", (0.00032, 0.01)),
        (FloatDistribution(0.1, 0.5), 0.5, "upper", (0.1, 0.7)),
        (FloatDistribution(0.1, 0.5), 0.1, "lower", (0.0, 0.5)),
        (FloatDistribution(0.0, 0.8), 0.8, "upper", (0.0, 0.9)),  # 1.2 were no share
        (FloatDistribution(0.0, 0.4, step=0.1), 0.4, "upper", (0.0, 0.6)),
        (FloatDistribution(0.3, 0.9, step=0.1), 0.3, "lower", (0.0, 0.9)),
        (FloatDistribution(0.01, 0.5, log=True), 0.5, "upper", (0.01, 0.75)),
        (IntDistribution(2, 6), 6, "upper", (2, 8)),
        (IntDistribution(2, 6), 2, "lower", (1, 6)),
        (IntDistribution(3, 8), 3, "lower", (2, 8)),
        (IntDistribution(32, 128), 32, "lower", (16, 128)),
        (IntDistribution(16, 128, step=16), 128, "upper", (16, 192)),
        (IntDistribution(16, 128, step=16), 16, "lower", (8, 128)),  # by a finer step
        (IntDistribution(16, 1024, log=True), 16, "lower", (2, 1024)),
        (IntDistribution(16, 1024, log=True), 1024, "upper", (16, 8192)),
        (IntDistribution(4, 32, log=True), 4, "lower", (1, 32)),
        (IntDistribution(1, 3, log=True), 3, "upper", (1, 6)),
        (IntDistribution(-2, 2), -2, "lower", (-4, 2)),
    ],
)
def test_ends_of_every_kind_of_number_are_found(
    distribution: BaseDistribution, x: float, side: str, wider: tuple[float, float]
) -> None:
    (edge,) = edges(distribution, x, x, x)
    assert (edge.side, edge.wider) == (side, wider)


@pytest.mark.parametrize(
    ("distribution", "x"),
    [
        (LOG, 3e-4),
        (IntDistribution(1, 4), 2),
        (IntDistribution(1, 3, log=True), 2),
        (IntDistribution(1, 2), 2),  # of two values each is an end
        (FloatDistribution(1.0, 1.0), 1.0),
        (CategoricalDistribution(["a", "b"]), "a"),
    ],
)
def test_what_is_inside_or_has_no_ends_is_no_edge(distribution: BaseDistribution, x: Any) -> None:
    assert edges(distribution, x, x, x) == []


@pytest.mark.parametrize(
    ("distribution", "x"),
    [
        (IntDistribution(1, 5), 1),  # there is no network of no layers
        (IntDistribution(0, 5), 0),
        (IntDistribution(1, 64, log=True), 1),
        (FloatDistribution(0.0, 0.5), 0.0),
        (FloatDistribution(0.25, 1.0), 1.0),
        (FloatDistribution(0.01, 1.0, log=True), 1.0),
        (FloatDistribution(0.0, 0.98), 0.97),  # nearly all is dropped
    ],
)
def test_an_end_with_nothing_beyond_is_no_edge(distribution: BaseDistribution, x: float) -> None:
    assert edges(distribution, x, x, x) == []


@st.composite
def _ranges(draw: st.DrawFn) -> FloatDistribution | IntDistribution:
    log = draw(st.booleans())
    if draw(st.booleans()):
        low = draw(st.integers(1 if log else 0, 2000))
        high = low + draw(st.integers(0, 5000))
        step = 1 if log else draw(st.integers(1, 64))
        return IntDistribution(low, high - (high - low) % step, log=log, step=step)
    low_part = draw(st.floats(1e-6 if log else 0.0, 0.9))
    high_part = draw(st.floats(low_part, 1.0))
    return FloatDistribution(low_part, high_part, log=log)


@given(_ranges(), st.booleans())
def test_no_range_is_widened_beyond_what_makes_sense(
    distribution: FloatDistribution | IntDistribution, is_low: bool
) -> None:
    x = distribution.low if is_low else distribution.high
    for edge in edges(distribution, x, x, x):
        low, high = edge.wider
        assert (
            low <= distribution.low
            and high >= distribution.high
            and edge.wider
            != (
                distribution.low,
                distribution.high,
            )
        )
        if distribution.log:
            assert low > 0
        if isinstance(distribution, IntDistribution):
            assert low == int(low) and high == int(high)
            assert low >= min(1, distribution.low)
        else:
            assert low >= 0 and high <= 1


def test_a_lucky_trial_is_no_edge_unless_others_of_the_elite_are_near() -> None:
    assert edges(LOG, 9.9e-3, 1e-4, 2e-4) == []
    assert len(edges(LOG, 9.9e-3, 8e-3, 2e-4)) == 1
    assert n_elites(9) == 3 and n_elites(26) == 6 and n_elites(10_000) == 12


def test_after_few_trials_the_best_ones_place_is_luck() -> None:
    assert edges(LOG, 9.9e-3, 9.9e-3, n_complete=4) == []
    assert edges(LOG, 9.9e-3, 9.9e-3, n_complete=5)


def test_a_parameter_that_only_the_best_trial_has_is_judged_by_that() -> None:
    other = create_trial(value=2.0, params={}, distributions={})
    (edge,) = find_edges([trial(LOG, 9.9e-3), other, other], N)
    assert edge.words().startswith("The best trial lies on the edge of x (0.0099, upper end of ")
    assert "of the next" not in edge.words()
