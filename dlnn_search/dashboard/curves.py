"""The learning curves of every study as figures, kept up to date in what the dashboard shows."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress

import optuna
import plotly.graph_objects as go
import sqlalchemy as sa
from optuna_dashboard import save_plotly_graph_object

from dlnn_search.errors import DlnnSearchError
from dlnn_search.metrics import metric_name, metric_unit
from dlnn_search.report.figures import narrowing_figure, narrowing_of
from dlnn_search.storage.database import Database
from dlnn_search.storage.halves import lost_words
from dlnn_search.storage.schema import curves, slots
from dlnn_search.storage.studies import StoredStudy, all_studies

#: The dashboard loads every figure at each refresh: this many trials, the best ones, are enough.
MAX_CURVES = 30
MAX_POINTS = 60
MAX_TICKS = 12
REFRESH_SECONDS = 10.0
FIGURE_ID = "learning-curves"
REGIONS_ID = "regions"

log = logging.getLogger(__name__)


def paint(database: Database, ended: threading.Event) -> None:
    """Keep every study's figure up to date until it ended: one painter, so none is half-drawn."""
    painted: dict[int, tuple[int, int, str]] = {}
    told: set[str] = set()
    while True:
        try:
            for study in all_studies(database):
                state = _state(database, study)
                if state == painted.get(study.id) or not state[0]:
                    continue
                lost = lost_words(database, study.id, study.name)
                if lost is None:
                    # It may be deleted in this very moment: the next round says so.
                    with suppress(KeyError):
                        _put_figure(database, study)
                        painted[study.id] = state
                elif lost not in told:
                    told.add(lost)
                    log.warning("%s", lost)
        except DlnnSearchError as error:  # the database is away: the next round may find it
            log.warning("The learning curves could not be drawn: %s", error)
        if ended.wait(REFRESH_SECONDS):
            return


def _state(database: Database, study: StoredStudy) -> tuple[int, int, str]:
    """Return what changes whenever a curve does: epochs stored, slots settled; and its title."""
    with database.transaction() as connection:
        epochs = connection.scalar(
            sa.select(sa.func.count())
            .select_from(curves.join(slots))
            .where(slots.c.study_id == study.id)
        )
        done = connection.scalar(
            sa.select(sa.func.count()).where(slots.c.study_id == study.id, slots.c.state == "done")
        )
    return epochs or 0, done or 0, study.name


def _put_figure(database: Database, study: StoredStudy) -> None:
    optuna_study = optuna.load_study(study_name=study.name, storage=database.optuna)
    save_plotly_graph_object(
        optuna_study, learning_curves(database, study), graph_object_id=FIGURE_ID
    )
    narrowing = narrowing_of(optuna_study)
    if narrowing.regions:
        figure = narrowing_figure(narrowing, f"How the space of {study.name} narrowed")
        save_plotly_graph_object(optuna_study, figure, graph_object_id=REGIONS_ID)


def learning_curves(database: Database, study: StoredStudy) -> go.Figure:
    """Draw the study's metric by epoch: the best trials' and the running ones'."""
    best_first = slots.c.value.asc() if study.direction == "minimize" else slots.c.value.desc()
    with database.transaction() as connection:
        shown = connection.execute(
            sa.select(slots.c.id, slots.c.trial_number, slots.c.outcome)
            .where(slots.c.study_id == study.id, slots.c.trial_number.is_not(None))
            # Of equal values the first counts, as Optuna counts.
            .order_by(slots.c.state == "done", best_first.nulls_last(), slots.c.trial_number)
            .limit(MAX_CURVES)
        ).all()
        points = connection.execute(
            sa.select(curves.c.slot_id, curves.c.epoch, curves.c.metrics)
            .where(curves.c.slot_id.in_([row.id for row in shown]))
            .order_by(curves.c.slot_id, curves.c.epoch)
        ).all()
    by_slot: dict[int, list[tuple[int, float]]] = {}
    for point in points:
        if study.metric in point.metrics:
            by_slot.setdefault(point.slot_id, []).append(
                (point.epoch, float(f"{point.metrics[study.metric]:.5g}"))
            )
    best_id = next((row.id for row in shown if row.outcome == "complete"), None)
    figure = go.Figure()
    for row in sorted(shown, key=lambda row: int(row.trial_number)):
        line = _thinned(by_slot.get(row.id, []))
        if line:
            best = row.id == best_id
            outcome = "best" if best else row.outcome or "running"
            figure.add_scatter(
                x=[epoch for epoch, _ in line],
                y=[value for _, value in line],
                mode="lines+markers",
                name=f"trial {row.trial_number}" + f", {outcome}" * (outcome != "complete"),
                line={"dash": "dot" if outcome == "pruned" else "solid", "width": 4 if best else 2},
            )
    n_epochs = max((point.epoch for point in points), default=1)
    figure.update_layout(
        title=f"Learning curves of {study.name}, validation",
        # No half epochs on the axis.
        xaxis={"title": "epoch", "dtick": 1 if n_epochs <= MAX_TICKS else None},
        yaxis_title=metric_name(study.metric) + metric_unit(study.metric),
        template="plotly_white",
    )
    return figure


def _thinned(line: list[tuple[int, float]]) -> list[tuple[int, float]]:
    step = -(-len(line) // MAX_POINTS) if line else 1
    return line if step == 1 else [*line[:-1:step], line[-1]]
