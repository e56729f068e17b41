"""What is read from the losses of a learning-rate range test, and the range that it centres."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import optuna
import pytest

from dlnn_search import Config, Mlp, Mnist, RangeTest, Study, Training, rate_range
from dlnn_search.errors import StudyError
from dlnn_search.study import centred_at
from dlnn_search.training.rate_range import Sweep


def swept(loss_at: Callable[[float], float], noise: float = 0.02, n: int = 300) -> Sweep:
    """Make up a test whose loss is a function of the rate's decade, from -5 to 0."""
    random = np.random.default_rng(0)
    decades = np.linspace(-5, 0, n)
    losses = [loss_at(float(decade)) + noise * float(random.normal()) for decade in decades]
    finite = next((k for k, loss in enumerate(losses) if not math.isfinite(loss)), n)
    return Sweep.of(1e-5, 1.0, n, losses[:finite])


def valley(decade: float) -> float:
    """A loss that falls from 2.3 at 1e-4 to 0.5 at 1e-3, and is lost from 1e-2 on."""
    if decade < -4:
        return 2.3
    if decade < -3:
        return 2.3 - 1.8 * (decade + 4)
    if decade < -2:
        return 0.5 + 0.3 * (decade + 3)
    return 4.0


def test_the_climb_and_the_highest_rate_are_found_within_a_fifth_of_a_decade() -> None:
    sweep = swept(valley)
    assert sweep.climbs_at is not None and sweep.highest is not None and sweep.half is not None
    assert math.log10(sweep.climbs_at) == pytest.approx(-3, abs=0.2)
    assert math.log10(sweep.highest) == pytest.approx(-2, abs=0.2)
    assert sweep.half == sweep.highest / 2
    assert sweep.suggested == min(sweep.climbs_at, sweep.half)
    assert sweep.diverged


@pytest.mark.parametrize("end", [math.nan, math.inf, 1e30])
def test_a_loss_that_is_not_finite_or_explodes_ends_it_at_the_same_rate(end: float) -> None:
    sweep = swept(lambda decade: end if decade > -2 else valley(decade))
    assert sweep.highest is not None
    assert math.log10(sweep.highest) == pytest.approx(-2, abs=0.2)
    assert sweep.diverged


def test_a_loss_that_never_falls_tells_nothing() -> None:
    flat = swept(lambda _: 6.6, noise=0.1)
    assert (flat.climbs_at, flat.highest, flat.half, flat.suggested) == (None,) * 4
    lost_at_once = swept(lambda _: math.nan)
    assert lost_at_once.suggested is None and lost_at_once.rates == ()


def test_a_loss_that_never_climbs_has_no_limit_below_the_highest_rate_tried() -> None:
    sweep = swept(lambda decade: 2.0 - 0.3 * (decade + 5))
    assert not sweep.diverged
    assert sweep.highest == pytest.approx(1.0)


def test_a_range_is_moved_to_its_centre_with_its_width_and_not_above_one() -> None:
    assert rate_range(1e-4, 1e-2) == (1e-4, 1e-2)
    with centred_at(0.005):
        assert rate_range(1e-4, 1e-2) == pytest.approx((5e-4, 5e-2))
    with centred_at(0.5):
        assert rate_range(1e-4, 1e-2) == pytest.approx((0.05, 1.0))
    with pytest.raises(StudyError, match="low < high"):
        rate_range(1e-2, 1e-4)


def space(trial: optuna.Trial) -> Config:
    rate = trial.suggest_float("learning_rate", *rate_range(1e-4, 1e-2), log=True)
    return Config(model=Mlp(blocks=()), training=Training(learning_rate=rate))


def test_a_study_gives_its_space_the_measured_centre() -> None:
    import dataclasses

    study = Study(space=space, data=Mnist(), maximize="accuracy", range_test=RangeTest())
    assert "range_test" in study.definition()["settings"]
    assert "range_test" not in dataclasses.replace(study, range_test=None).definition()["settings"]
    asked = optuna.create_study().ask()
    dataclasses.replace(study, measured_rate=0.005).config(asked)
    found = asked.distributions["learning_rate"]
    assert isinstance(found, optuna.distributions.FloatDistribution)
    assert (found.low, found.high) == pytest.approx((5e-4, 5e-2))
    with pytest.raises(StudyError, match="50 batches"):
        RangeTest(batches=3)
