"""The corners of a space: both ends, every choice, and what a choice brings up."""

from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from dlnn_search.worker.first_trials import corner_trials, extremes, middle


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def corners(space: Callable[[optuna.Trial], object], n_random: int = 0) -> list[dict[str, Any]]:
    return [dict(trial.params) for trial in corner_trials(space, n_random)]


def flat(trial: optuna.Trial) -> None:
    trial.suggest_int("units", 10, 30)
    trial.suggest_float("rate", 1e-4, 1e-2, log=True)
    trial.suggest_categorical("head", ["one", "two", "three"])


def test_everything_low_comes_first_then_everything_high() -> None:
    assert corners(flat)[:2] == [
        {"units": 10, "rate": 1e-4, "head": "one"},
        {"units": 30, "rate": 1e-2, "head": "three"},
    ]


def test_each_end_and_each_choice_comes_with_the_rest_in_the_middle() -> None:
    found = corners(flat)[2:]
    in_the_middle = {"units": 20, "rate": pytest.approx(1e-3), "head": "one"}
    for change in ({"units": 10}, {"units": 30}, {"rate": 1e-4}, {"rate": 1e-2}, {"head": "two"}):
        assert {**in_the_middle, **change} in found
    assert {**in_the_middle, "head": "three"} in found


def test_equal_trials_come_once() -> None:
    found = [repr(sorted(params.items())) for params in corners(flat)]
    assert len(found) == len(set(found))
    assert corners(lambda trial: trial.suggest_int("only", 3, 3)) == [{"only": 3}]


def test_what_a_choice_brings_up_is_taken_to_its_ends_behind_that_choice() -> None:
    def space(trial: optuna.Trial) -> None:
        if trial.suggest_categorical("kind", ["plain", "deep", "last"]) == "deep":
            trial.suggest_int("depth_of_deep", 1, 500)

    found = corners(space)
    for depth in (1, 500):
        assert {"kind": "deep", "depth_of_deep": depth} in found


def test_layers_that_a_count_brings_up_are_taken_to_their_ends() -> None:
    def space(trial: optuna.Trial) -> None:
        for layer in range(trial.suggest_int("layers", 1, 3)):
            trial.suggest_int(f"filters_{layer}", 8, 64)

    found = corners(space)
    for filters in (8, 64):
        assert any(params.get("filters_2") == filters for params in found)


def test_random_draws_follow_and_are_the_same_each_time() -> None:
    first, again = corners(flat, n_random=5), corners(flat, n_random=5)
    assert first == again
    assert len(first) == len(corners(flat)) + 5
    assert len({params["rate"] for params in first[-5:]}) == 5


def test_what_the_space_raises_passes_through() -> None:
    def space(trial: optuna.Trial) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        corners(space)


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        (IntDistribution(1, 9), 5),
        (IntDistribution(1, 100, log=True), 10),
        (IntDistribution(8, 64, step=8), 40),
        (FloatDistribution(0.0, 0.5), 0.25),
        (FloatDistribution(0.0, 1.0, step=0.25), 0.5),
        (FloatDistribution(1e-5, 1e-1, log=True), pytest.approx(1e-3)),
        (CategoricalDistribution(["a", "b"]), "a"),
    ],
)
def test_the_middle_is_on_the_scale_and_on_a_step(
    distribution: BaseDistribution, expected: Any
) -> None:
    value = middle(distribution)
    assert value == expected
    assert distribution._contains(distribution.to_internal_repr(value))
    assert all(
        distribution._contains(distribution.to_internal_repr(v)) for v in extremes(distribution)
    )
