"""Numbers as people read them: durations, metrics with their units."""

from __future__ import annotations

from dlnn_search.metrics import IN_MINUTES


def duration(seconds: float) -> str:
    """Return `45 s`, `3 min 05 s`, `2 h 10 min` or `3 d 4 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def metric_value(metric: str, value: float) -> str:
    """Return a metric's value with its unit, to four digits."""
    if metric in IN_MINUTES:
        return f"{value:.2f} min"
    return f"{value:.4f}"


def metric_unit(metric: str) -> str:
    """Return ` (min)` for a metric that has a unit, for an axis or a column."""
    return " (min)" if metric in IN_MINUTES else ""


def metric_name(metric: str) -> str:
    """Return a metric's name in words."""
    return metric.replace("_", " ")


def count_words(n: int, thing: str) -> str:
    """Return `1 seed` or `3 seeds`."""
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"
