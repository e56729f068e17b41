"""When a search has converged, on made-up values."""

from __future__ import annotations

import numpy as np
import pytest

from dlnn_search.errors import StudyError
from dlnn_search.pruners import Converged, Outlook, outlook


def searched(n: int, noise: float, seed: int) -> tuple[list[float], list[list[float]]]:
    """A random search of a bowl in three dimensions: its values, and its best curves."""
    random = np.random.default_rng(seed)
    points = random.uniform(-1, 1, (n, 3))
    values = (points**2).sum(axis=1) + noise * random.normal(size=n)
    curves = [list(0.5 + noise * random.normal(size=12)) for _ in range(5)]
    return [float(value) for value in values], curves


def seen(n: int, noise: float, seed: int = 0) -> Outlook:
    values, curves = searched(n, noise, seed)
    found = outlook(values, "minimize", curves)
    assert found is not None
    return found


@pytest.mark.parametrize("seed", range(5))
def test_what_is_below_the_noise_has_converged_and_what_is_far_above_has_not(seed: int) -> None:
    assert seen(60, noise=0.3, seed=seed).is_converged(Converged())
    assert not seen(60, noise=0.0005, seed=seed).is_converged(Converged())


def test_the_expected_gain_shrinks_as_a_search_goes_on_and_is_about_what_is_gained() -> None:
    gains = {n: [seen(n, 1e-6, seed).gain for seed in range(40)] for n in (20, 80, 320)}
    means = [float(np.mean(gains[n])) for n in (20, 80, 320)]
    assert means[0] > means[1] > means[2] > 0
    real = []
    for seed in range(40):
        values, _ = searched(160, 0.0, seed)
        real.append(min(values[:80]) - min(values))
    # The largest of five estimates errs upwards: rather too long than too short a search.
    assert float(np.mean(real)) / 3 < means[1] < float(np.mean(real)) * 6


def test_directions_are_mirrored() -> None:
    values, curves = searched(40, 0.01, seed=1)
    down = outlook(values, "minimize", curves)
    up = outlook([-value for value in values], "maximize", curves)
    assert down is not None and up is not None
    assert down.gain == pytest.approx(up.gain) and down.noise == pytest.approx(up.noise)


def test_noise_is_that_of_seeds_where_known_and_a_falling_curve_has_none() -> None:
    values, _ = searched(40, 0.01, seed=1)
    falling = [[10.0 - 0.5 * epoch for epoch in range(12)]]
    even = outlook(values, "minimize", falling)
    assert even is not None and even.noise == pytest.approx(0.0)
    seeded = outlook(values, "minimize", falling, seed_values=(1.0, 2.0, 3.0))
    assert seeded is not None and seeded.noise == pytest.approx(1.0)


def test_nothing_is_told_by_few_trials_or_short_curves() -> None:
    values, curves = searched(12, 0.01, seed=0)
    assert outlook(values, "minimize", curves) is None
    values, _ = searched(40, 0.01, seed=0)
    assert outlook(values, "minimize", [[1.0, 2.0]]) is None


def test_equal_values_gain_nothing() -> None:
    _, curves = searched(30, 0.01, seed=0)
    found = outlook([0.5] * 30, "maximize", curves)
    assert found is not None and found.gain == 0.0


def test_rules_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(StudyError, match="10 trials"):
        Converged(min_trials=3)
    with pytest.raises(StudyError, match="noises"):
        Converged(noises=0)
