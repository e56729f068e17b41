"""What every trial had reached at a rung: read from Optuna's trials, or from our stored curves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import optuna
import sqlalchemy as sa

from dlnn_search.metrics import DIRECTIONS
from dlnn_search.samplers.observations import is_duplicate
from dlnn_search.storage.database import Database
from dlnn_search.storage.duplicates import TRAINED_ITSELF
from dlnn_search.storage.schema import curves, slots
from dlnn_search.storage.schema import studies as studies_table


@dataclass(frozen=True)
class Reached:
    """The best that a trial had reached by a step.

    Attributes:
        value: Of what the study optimises.
        judged: Of what the pruner ranks by; the same, unless it ranks by another metric.
    """

    value: float
    judged: float


class RungValues(Protocol):
    """Where a pruner reads what trials had reached."""

    def __call__(self, study: optuna.Study, step: int) -> Mapping[int, Reached]:
        """Return what each trial that got to `step` had reached by then, by trial number."""


def reported_values(study: optuna.Study, step: int) -> Mapping[int, Reached]:
    """Return the best value that each of Optuna's trials reported up to a step.

    A trial got there if its last report is of that step or a later one. A duplicate, whose reports
    are another's, is nobody's rival.
    """
    better = max if study.direction == optuna.study.StudyDirection.MAXIMIZE else min
    found = {}
    for trial in study.get_trials(deepcopy=False):
        if trial.last_step is None or trial.last_step < step or is_duplicate(trial):
            continue
        until = [value for at, value in trial.intermediate_values.items() if at <= step]
        if until:
            best = better(until)
            found[trial.number] = Reached(best, best)
    return found


class StoredValues:
    """Reads every epoch from the curves' table, however thinly trials report to Optuna.

    Args:
        database: Of the study.
        metric: What the study optimises.
        judge: What the pruner ranks by; one of a curve's metrics.
    """

    def __init__(self, database: Database, metric: str, judge: str) -> None:
        self._database = database
        self._metric = metric
        self._judge = judge

    def __call__(self, study: optuna.Study, step: int) -> Mapping[int, Reached]:
        query = (
            sa.select(slots.c.trial_number, _best(self._metric), _best(self._judge))
            .select_from(curves)
            .join(slots, slots.c.id == curves.c.slot_id)
            .join(studies_table, studies_table.c.id == slots.c.study_id)
            .where(studies_table.c.name == study.study_name)
            .where(slots.c.trial_number.is_not(None), TRAINED_ITSELF, curves.c.epoch <= step)
            .group_by(slots.c.id, slots.c.trial_number)
            .having(sa.func.max(curves.c.epoch) == step)
        )
        with self._database.transaction() as connection:
            rows = connection.execute(query).all()
        return {row[0]: Reached(row[1], row[2]) for row in rows}


def direction_of(metric: str) -> str:
    """Return `minimize` or `maximize`; the training loss is no metric that a study optimises."""
    return "minimize" if metric == "train_loss" else DIRECTIONS[metric]


def _best(metric: str) -> sa.ColumnElement[Any]:
    best = sa.func.max if direction_of(metric) == "maximize" else sa.func.min
    return best(curves.c.metrics[metric].as_float())
