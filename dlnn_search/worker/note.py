"""The note of a trial in optuna-dashboard: its config and its curve in words."""

from __future__ import annotations

from typing import cast

import optuna
from optuna_dashboard import save_note

from dlnn_search.metrics import metric_name, metric_unit, metric_value
from dlnn_search.storage.curves import Point, curve_of_slot, is_best_so_far, note_of_slot
from dlnn_search.storage.database import Database
from dlnn_search.storage.slots import Settled, Slots
from dlnn_search.storage.studies import all_studies
from dlnn_search.worker.failures import Kind
from dlnn_search.worker.objective import Verdict
from dlnn_search.worker.optuna_study import storage_of

#: Rows of the curve's table; a longer curve is thinned to that many.
MAX_ROWS = 12
#: Of so many trials each has a note; of later ones those alone that stand out. For every note the
#: dashboard looks through all notes, and each is sent at each refresh.
MAX_NOTED = 100


def mend_note(optuna_study: optuna.Study, settled: Settled, slots: Slots) -> None:
    """Write the note of a trial whose worker settled its slot and vanished right after."""
    database = slots.database
    (study,) = (study for study in all_studies(database) if study.id == slots.study_id)
    # A sampler of its own: nothing is to be drawn for this trial any more.
    quiet = optuna.load_study(
        study_name=optuna_study.study_name,
        storage=storage_of(optuna_study),
        sampler=optuna.samplers.RandomSampler(),
    )
    verdict = Verdict(
        settled.outcome,
        value=settled.value,
        best_epoch=settled.best_epoch,
        reason=settled.reason,
        failure=cast(Kind | None, settled.failure),
    )
    trial = optuna.Trial(quiet, settled.trial_id)
    write_note(trial, settled.slot_id, verdict, database, study.metric)


def write_note(
    trial: optuna.Trial, slot_id: int, verdict: Verdict, database: Database, metric: str
) -> None:
    """Put the outcome and the curve of a trial beside it in the dashboard.

    Of the trials after the first `MAX_NOTED`, only those get a note that failed, did not simply
    run through, or are the best so far.
    """
    note = note_of_slot(database, slot_id)
    if trial.number >= MAX_NOTED and not (
        verdict.failure
        or note
        or (verdict.value is not None and is_best_so_far(database, slot_id, verdict.value, metric))
    ):
        return
    points = curve_of_slot(database, slot_id)
    lines = [f"**{(verdict.outcome or '').capitalize()}**"]
    if verdict.value is not None:
        lines[0] += (
            f": {metric_name(metric)} {metric_value(metric, verdict.value)} "
            f"at epoch {verdict.best_epoch} of {len(points)}"
        )
    if verdict.failure:
        lines[0] += f": {verdict.failure.replace('_', ' ')}"
    if verdict.reason:
        lines += ["", verdict.reason]
    if note:
        lines += ["", note]
    if points:
        lines += ["", *_table(_thinned(points), metric)]
    save_note(trial, "\n".join(lines))


def _thinned(points: list[Point]) -> list[Point]:
    if len(points) <= MAX_ROWS:
        return points
    step = (len(points) - 1) / (MAX_ROWS - 1)
    return [points[round(step * row)] for row in range(MAX_ROWS)]


def _table(points: list[Point], metric: str) -> list[str]:
    """Return a table in Markdown, the metric that counts first."""
    others = sorted(name for name in points[0].metrics if name != metric)
    names = [name for name in (metric, *others) if name in points[0].metrics]
    titles = ["epoch", *(f"{metric_name(name)}{metric_unit(name)}" for name in names), "images/s"]
    rows = [
        [
            str(point.epoch),
            *(f"{point.metrics[name]:.4g}" for name in names),
            f"{point.images_per_second:,.0f}",
        ]
        for point in points
    ]
    # The dashboard sets columns without a gap between them.
    head = "|" + "|".join(f" &nbsp; {title} " for title in titles) + "|"
    return [head, "|" + " ---: |" * len(titles), *(f"| {' | '.join(row)} |" for row in rows)]
