"""Read from the database what advice is given on: few rows, whatever the study's size."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import sqlalchemy as sa

from dlnn_search.results.advice import Facts
from dlnn_search.results.status import StudyStatus, best_trials
from dlnn_search.samplers.edges import Edge, find_edges, n_elites
from dlnn_search.storage.database import Database, storage_errors
from dlnn_search.storage.definitions import StoredStudy
from dlnn_search.storage.events import Event
from dlnn_search.storage.schema import slots

#: Trials of each sort whose learning rates are looked at, the latest.
N_RATES = 50
#: Events of before that are over; what is repeated comes again.
RECENT_SECONDS = 3_600.0


def facts_of(
    database: Database, study: StoredStudy, status: StudyStatus, events: Sequence[Event]
) -> Facts:
    """Return what is known of a study that may call for advice.

    Args:
        database: Read only.
        study: Of the status.
        status: As it is now.
        events: The latest.
    """
    recent = [event for event in events if status.use.now - event.at < RECENT_SECONDS]
    counts: dict[str, int] = {}
    for event in recent:
        counts[event.kind] = counts.get(event.kind, 0) + 1
    diverges = any(failure.kind == "diverged" for failure in status.failures)
    return Facts(
        status=status,
        edges=_edges(database, study, status.counts.get("complete", 0)),
        diverged_rates=_rates(database, study, slots.c.failure == "diverged") if diverges else (),
        sound_rates=_rates(database, study, slots.c.outcome == "complete") if diverges else (),
        event_counts=counts,
        n_killed=sum("signal 9" in event.words for event in recent),
    )


def _edges(database: Database, study: StoredStudy, n_complete: int) -> list[Edge]:
    best = []
    # A study that was deleted in the dashboard has no trials of Optuna's any more.
    with storage_errors(database.url), suppress(KeyError):
        storage = database.optuna
        study_id = storage.get_study_id_from_name(study.name)
        for trial in best_trials(database, study, n_elites(n_complete)):
            trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
            if trial_id == trial.trial_id:
                best.append(storage.get_trial(trial_id))
    return find_edges(best, n_complete)


def _rates(database: Database, study: StoredStudy, which: sa.ColumnElement[bool]) -> list[float]:
    rate: Any = slots.c.config["training"]["learning_rate"]
    query = (
        sa.select(rate.as_float())
        .where(slots.c.study_id == study.id, which, slots.c.config.is_not(None))
        .order_by(slots.c.number.desc())
        .limit(N_RATES)
    )
    with database.transaction() as connection:
        return [value for value in connection.scalars(query) if value is not None]
