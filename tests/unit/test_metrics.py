"""Metrics: what a read clock is worth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlnn_search.metrics import (
    DIRECTIONS,
    IN_MINUTES,
    accuracy,
    clock_metrics,
    common_sense_error,
    minute_error,
)

time = st.integers(0, 719)
times = st.lists(st.tuples(time, time), min_size=1, max_size=50)


def clock(text: str) -> int:
    hour, minute = text.split(":")
    return int(hour) % 12 * 60 + int(minute)


@pytest.mark.parametrize(
    ("true", "pred", "error"),
    [
        ("3:59", "4:01", 2),  # the report's own example, section 4.1
        ("4:01", "4:03", 2),
        ("11:59", "12:00", 1),
        ("12:00", "11:59", 1),
        ("0:59", "1:59", 60),  # Table 6
        ("12:00", "6:00", 360),
        ("9:00", "3:01", 359),
    ],
)
def test_the_common_sense_error_is_the_shorter_way_round(true: str, pred: str, error: int) -> None:
    assert common_sense_error([clock(true)], [clock(pred)]).tolist() == [error]


@given(a=time, b=time, c=time, turned=st.integers(-2000, 2000))
def test_the_common_sense_error_is_a_distance_that_turning_the_dial_keeps(
    a: int, b: int, c: int, turned: int
) -> None:
    ab, bc, ac = common_sense_error([a, b, a], [b, c, c])
    assert 0 <= ab <= 360 and (ab == 0) == (a == b)
    assert common_sense_error([b], [a]) == ab
    assert ac <= ab + bc
    assert common_sense_error([a + turned], [b + turned]) == ab


@given(a=time, b=time)
def test_the_minute_error_forgets_the_hour_and_is_never_above_the_whole(a: int, b: int) -> None:
    error = minute_error([a], [b])[0]
    assert 0 <= error <= 30
    assert error == min((a - b) % 60, (b - a) % 60)
    assert error <= common_sense_error([a], [b])[0]
    assert minute_error([a], [b + 60])[0] == error


@given(times)
def test_clock_metrics_are_what_a_loop_over_the_dial_finds(pairs: list[tuple[int, int]]) -> None:
    found = clock_metrics([a for a, _ in pairs], [b for _, b in pairs])
    errors = sorted(min((a - b) % 720, (b - a) % 720) for a, b in pairs)
    minutes = [min((a - b) % 60, (b - a) % 60) for a, b in pairs]
    n = len(pairs)
    assert found["common_sense_error"] == pytest.approx(sum(errors) / n)
    assert found["median_error"] == (errors[(n - 1) // 2] + errors[n // 2]) / 2
    assert errors[int(0.95 * (n - 1))] <= found["p95_error"] <= errors[-1]
    assert found["minute_error"] == pytest.approx(sum(minutes) / n)
    assert found["hour_accuracy"] == sum(a // 60 == b // 60 for a, b in pairs) / n
    assert found["minute_accuracy"] == sum(a % 60 == b % 60 for a, b in pairs) / n
    assert found["gross_errors"] == sum(error > 30 for error in errors) / n


def test_perfect_and_guessed_times_are_the_ends_of_the_scale() -> None:
    truth = np.arange(720)
    perfect = clock_metrics(truth, truth)
    assert {name: value for name, value in perfect.items() if value} == {
        "hour_accuracy": 1.0,
        "minute_accuracy": 1.0,
    }
    guessed = clock_metrics(truth, np.zeros(720))
    assert guessed["common_sense_error"] == guessed["median_error"] == 180
    assert guessed["minute_error"] == 15
    assert guessed["gross_errors"] == 659 / 720  # 61 times are within half an hour of 12:00


def test_every_clock_metric_has_a_direction_and_those_in_minutes_are_named() -> None:
    names = set(clock_metrics([0], [0]))
    assert names <= set(DIRECTIONS)
    assert {name for name in names if name.endswith("error")} == IN_MINUTES
    assert {DIRECTIONS[name] for name in IN_MINUTES} == {"minimize"}


def test_shapes_that_differ_and_no_times_at_all_are_refused() -> None:
    for metric in (accuracy, common_sense_error, minute_error, clock_metrics):
        with pytest.raises(ValueError, match=r"shape of the truth \(2,\), got \(3,\)"):
            metric([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="at least one time"):
        clock_metrics([], [])
