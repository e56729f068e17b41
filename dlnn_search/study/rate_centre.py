"""A learning-rate range that a range test has centred, the same for all workers of a study."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import sqrt

from dlnn_search.errors import StudyError

#: No rate is suggested above it: the range test of the report (section 2.5) ends there.
MAX_RATE = 1.0

_centre: ContextVar[float | None] = ContextVar("rate_centre", default=None)


@dataclass(frozen=True)
class RangeTest:
    """Lets a range test set where a study looks for its learning rate: `Study(range_test=...)`.

    It is made once, by the first `start`, of the config in the middle of the space, and kept with
    the study, so that all workers search the same range. See `rate_range`.

    Attributes:
        batches: That the test trains.

    Source: report, section 2.5.
    """

    batches: int = 300

    def __post_init__(self) -> None:
        if self.batches < 50:
            raise StudyError(f"Expected a range test of at least 50 batches, got {self.batches}.")


def rate_range(low: float, high: float) -> tuple[float, float]:
    """Return the range of learning rates to suggest from: for a study's `space`.

    ```python
    rate = trial.suggest_float("learning_rate", *rate_range(1e-4, 1e-2), log=True)
    ```

    Args:
        low: Lower end, where the study was not measured.
        high: Upper end, likewise.

    Returns:
        A range as wide as the given one by its ratio, with the measured rate in its (geometric)
        middle, and not above 1; the given one in a study without `range_test=RangeTest()`, or
        where the test could not tell.

    Raises:
        StudyError: If the range is none.
    """
    if not 0 < low < high:
        raise StudyError(f"Expected rate_range(low, high) with 0 < low < high, got {low}, {high}.")
    centre = _centre.get()
    if centre is None:
        return low, high
    half_width = sqrt(high / low)
    # Four digits, so that the same range comes out of any machine's arithmetic.
    return (
        float(f"{centre / half_width:.4g}"),
        float(f"{min(max(MAX_RATE, high), centre * half_width):.4g}"),
    )


@contextmanager
def centred_at(rate: float | None) -> Iterator[None]:
    """Let `rate_range` be centred at a measured rate inside; None: not at all."""
    token = _centre.set(rate)
    try:
        yield
    finally:
        _centre.reset(token)
