"""A study at one moment: its workers, its budget, its best trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from dlnn_search.errors import StorageError
from dlnn_search.storage.budget import BudgetUse, budget_use, counts_of
from dlnn_search.storage.control import orders
from dlnn_search.storage.database import Database, open_database, storage_errors
from dlnn_search.storage.studies import StoredStudy, all_studies
from dlnn_search.storage.trials import (
    Failures,
    Point,
    Trial,
    curves_of,
    failures_of,
    mean_trial_seconds,
    trials_of,
)
from dlnn_search.storage.workers import WorkerStatus, present_workers

#: The dashboard loads every figure at each refresh: this many trials, the best ones, are enough.
MAX_CURVES = 30


@dataclass(frozen=True)
class StudyStatus:
    """A study's workers and budget."""

    name: str
    metric: str
    direction: str
    budget: int
    counts: dict[str, int]
    """Slots by outcome or state: complete, pruned, failed, held, waiting, open."""
    workers: Sequence[WorkerStatus]
    best: Trial | None
    mean_trial_seconds: float | None
    use: BudgetUse
    control: str
    """run, pause, stop or stop_now."""
    control_reason: str | None
    failures: Sequence[Failures]
    best_params: Mapping[str, Any] = field(default_factory=dict)
    """Of the best trial, in the space's order; none where its config was given."""

    @property
    def n_done(self) -> int:
        return sum(self.counts.get(key, 0) for key in ("complete", "pruned", "failed"))

    @property
    def has_results(self) -> bool:
        """Whether a trial tells something of its config: an edited study then has to begin anew."""
        return bool(self.counts.get("complete", 0) + self.counts.get("pruned", 0))

    @property
    def is_fruitless(self) -> bool:
        """Whether the budget is used up, and every trial failed."""
        return self.use.exhausted_by is not None and bool(self.n_done) and not self.has_results

    @property
    def is_over(self) -> bool:
        """Whether no worker has anything to do, now or later, unless it is asked again."""
        if self.use.exhausted_by is not None:
            return not any(worker.state == "training" for worker in self.workers)
        return self.control in ("stop", "stop_now") and not self.workers

    @property
    def remaining_seconds(self) -> float | None:
        """An estimate from the trials so far, or what a limit of time leaves; None before both."""
        limits = [] if self.use.seconds_left is None else [self.use.seconds_left]
        active = sum(worker.state == "training" for worker in self.workers)
        if self.mean_trial_seconds is not None and active:
            under_way = sum(_share_done(worker) for worker in self.workers)
            left = self.budget - self.n_done - under_way
            limits.append(max(0.0, left) * self.mean_trial_seconds / active)
        return min(limits) if limits and active else None


def _share_done(worker: WorkerStatus) -> float:
    if worker.state != "training" or not worker.epochs:
        return 0.0
    return min(1.0, (worker.epoch or 0) / worker.epochs)


def study_status(database: Database, study: StoredStudy) -> StudyStatus:
    """Return the study as it stands now."""
    counts, asked = counts_of(database, study.id), orders(database, study.id)
    best = best_trials(database, study, 1)
    return StudyStatus(
        name=study.name,
        metric=study.metric,
        direction=study.direction,
        budget=sum(counts.values()),
        counts=counts,
        workers=present_workers(database, study.id),
        best=best[0] if best else None,
        mean_trial_seconds=mean_trial_seconds(database, study.id),
        use=budget_use(database, study.id),
        control=asked.control,
        control_reason=asked.reason,
        failures=failures_of(database, study.id) if counts.get("failed") else (),
        best_params=_params_of(database, best[0]) if best else {},
    )


def _params_of(database: Database, trial: Trial) -> Mapping[str, Any]:
    # A study that was deleted in the dashboard has no trials of Optuna's any more.
    with storage_errors(database.url), suppress(KeyError):
        if trial.trial_id is not None:
            return dict(database.optuna.get_trial(trial.trial_id).params)
    return {}


def statuses_at(url: str) -> Mapping[str, StudyStatus]:
    """Return how each study of a database stands, by name; none where there is no database yet."""
    try:
        database = open_database(url, create=False, read_only=True)
    except StorageError:
        return {}
    with database:
        return {study.name: study_status(database, study) for study in all_studies(database)}


def best_trials(database: Database, study: StoredStudy, n: int) -> list[Trial]:
    """Return the n best complete trials, best first; ties go to the older one."""
    return trials_of(database, study, outcome="complete", order="best", limit=n)


def shown_curves(database: Database, study: StoredStudy) -> list[tuple[Trial, Sequence[Point]]]:
    """Return the unsettled trials and then the best ones, few enough to draw, with their epochs."""
    trials = trials_of(database, study, order="best", limit=MAX_CURVES)
    curves = curves_of(database, [trial.slot_id for trial in trials])
    return [(trial, curves.get(trial.slot_id, ())) for trial in trials]
