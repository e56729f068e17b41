"""Several searches on the same axes: the best so far against trials and training time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import sqlalchemy as sa
from rich.console import Console
from rich.table import Table

from dlnn_search.errors import UsageError
from dlnn_search.storage.database import Database
from dlnn_search.storage.definitions import StoredStudy, all_studies
from dlnn_search.storage.duplicates import TRAINED_ITSELF
from dlnn_search.storage.links import parent_of
from dlnn_search.storage.schema import curves, slots
from dlnn_search.study import is_better
from dlnn_search.words import duration, metric_name, metric_unit, metric_value


@dataclass(frozen=True)
class Progress:
    """How a search got on, settled trial by settled trial.

    Attributes:
        study: Which.
        settings: Of its definition; a linked study trains what its parent's trials were.
        seconds: Of training until then, all workers' added up, pruned and failed trials' too.
        best: The best complete trial's value until then; None before the first one.
    """

    study: StoredStudy
    settings: Mapping[str, Any]
    seconds: tuple[float, ...]
    best: tuple[float | None, ...]

    def after_trials(self, n: int) -> float | None:
        """Return the best after so many trials."""
        return self.best[min(n, len(self.best)) - 1] if self.best and n else None

    def after_seconds(self, seconds: float) -> float | None:
        """Return the best after so much training."""
        n = sum(at <= seconds for at in self.seconds)
        return self.after_trials(n)


def progress_of(database: Database, study: StoredStudy) -> Progress:
    """Return how a search got on so far, in the order of its trials' numbers."""
    spent = (
        sa.select(curves.c.slot_id, sa.func.sum(curves.c.seconds).label("seconds"))
        .join(slots, slots.c.id == curves.c.slot_id)
        # A slot that has another's result cost nothing.
        .where(slots.c.study_id == study.id, TRAINED_ITSELF)
        .group_by(curves.c.slot_id)
        .subquery()
    )
    with database.transaction() as connection:
        rows = connection.execute(
            sa.select(slots.c.outcome, slots.c.value, spent.c.seconds)
            .outerjoin(spent, spent.c.slot_id == slots.c.id)
            .where(slots.c.study_id == study.id, slots.c.state == "done")
            .where(slots.c.trial_number.is_not(None))
            .order_by(slots.c.trial_number)
        ).all()
    total, best = 0.0, None
    seconds: list[float] = []
    bests: list[float | None] = []
    for row in rows:
        total += row.seconds or 0.0
        if row.outcome == "complete" and is_better(row.value, best, study.direction):
            best = row.value
        seconds.append(total)
        bests.append(best)
    return Progress(study, _settings_of(database, study), tuple(seconds), tuple(bests))


def _settings_of(database: Database, study: StoredStudy) -> Mapping[str, Any]:
    parent = parent_of(database, study.id)
    given_by = next((one for one in all_studies(database) if one.name == parent), study)
    settings: Mapping[str, Any] = given_by.definition["settings"]
    return settings


def compared(database: Database, studies: Sequence[StoredStudy]) -> list[Progress]:
    """Return the searches' progress, if they can be compared.

    Raises:
        UsageError: If they optimise different metrics, or one has no complete trial.
    """
    metrics = {study.metric for study in studies}
    if len(metrics) > 1:
        said = ", ".join(f"'{study.name}' {study.metric}" for study in studies)
        raise UsageError(f"Expected studies of one metric, got {said}.")
    if len({study.name for study in studies}) < len(studies) or len(studies) < 2:
        raise UsageError("Expected two or more different studies to compare.")
    found = [progress_of(database, study) for study in studies]
    for progress in found:
        if progress.after_trials(len(progress.best)) is None:
            raise UsageError(
                f"'{progress.study.name}' has no complete trial yet. "
                f"Search with 'dlnn-search start {progress.study.name}'."
            )
    return found


def differences(found: Sequence[Progress]) -> list[str]:
    """Return what makes the comparison unfair: other data or another number of epochs."""
    told = []
    for key in ("data", "epochs"):
        values = [one.settings.get(key) for one in found]
        if any(value != values[0] for value in values):
            told.append(key)
    return told


def print_comparison(console: Console, found: Sequence[Progress]) -> None:
    """Print the best of each search, in all and at the budget that all of them had."""
    first = found[0].study
    n_common = min(len(one.best) for one in found)
    seconds = min(one.seconds[-1] for one in found)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("study", no_wrap=True)
    for title in (
        "trials",
        "training",
        "best",
        f"after {n_common} trial{'s' if n_common != 1 else ''}",
        f"after {duration(seconds)}",
    ):
        table.add_column(title, justify="right", no_wrap=True)
    for one in found:
        values = (
            one.best[-1],
            one.after_trials(n_common),
            one.after_seconds(seconds),
        )
        table.add_row(
            one.study.name,
            str(len(one.best)),
            duration(one.seconds[-1]),
            *("-" if value is None else metric_value(first.metric, value) for value in values),
        )
    console.print(
        f"Best {metric_name(first.metric)} on validation; the last columns at equal budgets\n",
        soft_wrap=True,
    )
    console.print(table)
    unfair = differences(found)
    if unfair:
        console.print(
            f"\nMind: their {' and '.join(unfair)} differ, so the values tell of that, too.",
            soft_wrap=True,
        )


def comparison_figures(found: Sequence[Progress]) -> list[tuple[str, go.Figure]]:
    """Draw the best so far against trials, and against the seconds of training."""
    by_trials, by_seconds = go.Figure(), go.Figure()
    for one in found:
        line: dict[str, Any] = {"mode": "lines", "line": {"shape": "hv"}, "name": one.study.name}
        by_trials.add_scatter(x=list(range(1, len(one.best) + 1)), y=one.best, **line)
        by_seconds.add_scatter(x=one.seconds, y=one.best, **line)
    metric = found[0].study.metric
    for figure, against in (
        (by_trials, "trials"),
        (by_seconds, "seconds of training, all workers"),
    ):
        figure.update_layout(
            xaxis_title=against,
            yaxis_title=f"best {metric_name(metric)}{metric_unit(metric)} so far, validation",
            template="plotly_white",
            showlegend=True,
        )
    return [
        ("Best so far, by trials", by_trials),
        ("Best so far, by training time", by_seconds),
    ]
