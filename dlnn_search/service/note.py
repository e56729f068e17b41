"""The note of a trial in optuna-dashboard: its config and its curve in words."""

from __future__ import annotations

import optuna
from optuna_dashboard import save_note

from dlnn_search.search.objective import Verdict
from dlnn_search.storage.curves import Point, curve_of_slot
from dlnn_search.storage.database import Database
from dlnn_search.storage.slots import Slot

#: Rows of the curve's table; a longer curve is thinned to that many.
MAX_ROWS = 12


def write_note(trial: optuna.Trial, slot: Slot, verdict: Verdict, database: Database) -> None:
    """Put the outcome and the curve of a trial beside it in the dashboard."""
    points = curve_of_slot(database, slot.id)
    lines = [f"**{(verdict.outcome or '').capitalize()}**"]
    if verdict.value is not None:
        lines[0] += f": {verdict.value:.5g} at epoch {verdict.best_epoch} of {len(points)}"
    if verdict.reason:
        lines += ["", verdict.reason]
    if points:
        lines += ["", *_table(_thinned(points))]
    save_note(trial, "\n".join(lines))


def _thinned(points: list[Point]) -> list[Point]:
    if len(points) <= MAX_ROWS:
        return points
    step = (len(points) - 1) / (MAX_ROWS - 1)
    return [points[round(step * row)] for row in range(MAX_ROWS)]


def _table(points: list[Point]) -> list[str]:
    names = sorted(points[0].metrics)
    head = "| epoch | " + " | ".join(name.replace("_", " ") for name in names) + " | images/s |"
    rule = "|" + " ---: |" * (len(names) + 2)
    rows = [
        f"| {point.epoch} | "
        + " | ".join(f"{point.metrics[name]:.5g}" for name in names)
        + f" | {point.images_per_second:,.0f} |"
        for point in points
    ]
    return [head, rule, *rows]
