"""Numbers as people read them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlnn_search.metrics import DIRECTIONS, duration, metric_name, metric_value


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (7800, "2 h 10 min"),
        (86_399, "23 h 59 min"),
        (86_400, "1 d 0 h"),
        (273_600, "3 d 4 h"),
    ],
)
def test_a_duration_is_told_in_its_two_largest_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@given(st.floats(0, 1e7))
def test_a_duration_is_right_to_its_smaller_unit(seconds: float) -> None:
    unit_seconds = {"s": 1, "min": 60, "h": 3600, "d": 86_400}
    parts = re.findall(r"(\d+) (s|min|h|d)\b", duration(seconds))
    told = sum(int(n) * unit_seconds[unit] for n, unit in parts)
    assert told - 0.5 <= seconds <= told + unit_seconds[parts[-1][1]]


@pytest.mark.parametrize(
    ("metric", "value", "words"),
    [
        ("common_sense_error", 3.14159, "3.14 min"),
        ("median_error", 0, "0.00 min"),
        ("accuracy", 0.98765, "0.9877"),
        ("loss", 12.5, "12.5000"),
        ("gross_errors", 0.00004, "0.0000"),
    ],
)
def test_a_value_has_the_unit_of_its_metric(metric: str, value: float, words: str) -> None:
    assert metric_value(metric, value) == words


@pytest.mark.parametrize("metric", DIRECTIONS)
def test_a_metric_is_named_in_words(metric: str) -> None:
    assert "_" not in metric_name(metric)
    assert metric_name(metric).replace(" ", "_") == metric
