"""Limits of time, as the command line takes them."""

from __future__ import annotations

import math
import time
from datetime import datetime, timedelta

import pytest

from dlnn_search.cli.options import limit_hours, limit_moment, limit_seconds
from dlnn_search.errors import UsageError


def test_wall_time_is_a_duration() -> None:
    assert limit_seconds("8h") == 28_800
    assert limit_seconds(None) is None
    assert limit_seconds("none") == math.inf


@pytest.mark.parametrize(("text", "seconds"), [("20", 72_000), ("0.5", 1_800), ("90m", 5_400)])
def test_worker_hours_are_hours_unless_they_name_a_unit(text: str, seconds: float) -> None:
    assert limit_hours(text) == seconds


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "many", ""])
def test_worker_hours_that_cannot_be_meant_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="Expected"):
        limit_hours(text)


def test_a_deadline_is_of_this_machines_clock() -> None:
    tomorrow = (datetime.now() + timedelta(days=1)).replace(second=0, microsecond=0)
    assert limit_moment(tomorrow.isoformat(timespec="minutes")) == tomorrow.timestamp()
    assert limit_moment("none") == math.inf


def test_a_deadline_with_a_zone_is_of_that_zone() -> None:
    assert limit_moment("2999-01-01T00:00+02:00") == 32_472_136_800


def test_a_deadline_that_is_over_is_refused_with_the_time_that_it_is() -> None:
    today = time.strftime("%Y-%m-%d")
    with pytest.raises(UsageError, match=rf"it is {today} \d\d:\d\d UTC[+-]\d\d:\d\d now"):
        limit_moment("2020-01-01")


@pytest.mark.parametrize("text", ["tomorrow", "8h", "2026-13-01", ""])
def test_a_deadline_that_is_none_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"such as 2026-12-01T08:00"):
        limit_moment(text)
