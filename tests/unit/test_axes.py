"""Every value has a place on its parameter's own scale, and every place a value."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from dlnn_search.samplers.observations import Axis, hull

KINDS = ["float", "log", "step", "fine step", "int", "huge int", "int log", "int step", "choice"]


@st.composite
def distributions(draw: st.DrawFn) -> BaseDistribution:
    kind = draw(st.sampled_from(KINDS))
    low = draw(st.integers(-1000, 1000))
    width = draw(st.integers(0, 500))
    match kind:
        case "huge int":
            return IntDistribution(low, low + 10**9 + width)
        case "fine step":
            return FloatDistribution(low, low + 100 + width, step=0.001)
        case "float":
            return FloatDistribution(low / 7, low / 7 + width / 3)
        case "log":
            return FloatDistribution(1e-7 * (1 + abs(low)), 1e-7 * (1 + abs(low)) + width, log=True)
        case "step":
            return FloatDistribution(low / 4, low / 4 + 0.25 * width, step=0.25)
        case "int":
            return IntDistribution(low, low + width)
        case "int log":
            return IntDistribution(1 + abs(low), 1 + abs(low) + width, log=True)
        case "int step":
            return IntDistribution(low, low + 3 * width, step=3)
    return CategoricalDistribution(list(range(1 + width % 7)))


@given(distributions(), st.floats(0, 1))
def test_a_place_has_a_value_of_the_distribution_which_has_that_place_again(
    distribution: BaseDistribution, share: float
) -> None:
    axis = Axis("x", distribution)
    place = min(int(share * axis.n_choices), axis.n_choices - 1) if axis.n_choices else share
    value = axis.value(place)
    assert distribution._contains(distribution.to_internal_repr(value))
    snapped = place if axis.n_choices else axis.snapped(np.array([share]))[0]
    assert axis.place(value) == pytest.approx(snapped, abs=1e-5)
    assert axis.value(axis.place(value)) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize(
    ("distribution", "middle"),
    [
        (FloatDistribution(-1, 3), 1.0),
        (FloatDistribution(1e-6, 1e-2, log=True), 1e-4),
        (FloatDistribution(0, 1, step=0.5), 0.5),
        (IntDistribution(1, 5), 3),
        (IntDistribution(10, 1000, log=True), 100),
        (IntDistribution(0, 96, step=8), 48),
    ],
)
def test_the_middle_is_half_way_on_the_parameters_own_scale(
    distribution: BaseDistribution, middle: float
) -> None:
    axis = Axis("x", distribution)
    assert axis.value(0.5) == pytest.approx(middle, rel=0.04)
    assert axis.place(middle) == pytest.approx(0.5, abs=0.02)


def test_each_value_of_a_grid_has_an_equal_part_of_the_axis() -> None:
    axis = Axis("x", IntDistribution(1, 4))
    values = [axis.value(place) for place in (np.arange(400) + 0.5) / 400]
    assert [values.count(value) for value in (1, 2, 3, 4)] == [100] * 4


def test_a_range_of_a_grid_holds_its_end_values_whole() -> None:
    low, high = Axis("x", IntDistribution(1, 4)).between(2, 3)
    assert (low, high) == (0.25, 0.75)
    low, high = Axis("x", IntDistribution(1, 100, log=True)).between(1, 10)
    assert low == 0 and high == pytest.approx(math.log(10.5 / 0.5) / math.log(100.5 / 0.5))


@pytest.mark.parametrize(
    ("known", "seen", "both"),
    [
        (FloatDistribution(0, 2), FloatDistribution(1, 3), FloatDistribution(0, 3)),
        (IntDistribution(1, 4), IntDistribution(2, 9), IntDistribution(1, 9)),
        (
            FloatDistribution(0, 1, step=0.25),
            FloatDistribution(0.5, 2, step=0.25),
            FloatDistribution(0, 2, step=0.25),
        ),
        (FloatDistribution(0, 2), IntDistribution(1, 3), IntDistribution(1, 3)),
        (
            CategoricalDistribution(["a"]),
            CategoricalDistribution(["a", "b"]),
            CategoricalDistribution(["a", "b"]),
        ),
    ],
)
def test_bounds_that_differ_between_trials_are_joined(known: Any, seen: Any, both: Any) -> None:
    assert hull(known, seen) == both
