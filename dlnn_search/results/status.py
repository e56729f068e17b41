"""A study at one moment: its workers, its budget, its best trial. Reads the database only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from dlnn_search.storage.budget import BudgetUse, budget_use
from dlnn_search.storage.database import Database
from dlnn_search.storage.duplicates import TRAINED_ITSELF
from dlnn_search.storage.schema import curves, now, slots, studies, workers
from dlnn_search.storage.studies import StoredStudy
from dlnn_search.storage.workers import SILENT_SECONDS

#: Trials that the time of the next ones is estimated from.
N_TRIALS_FOR_ESTIMATE = 50

#: Why a slot waits, in words.
WAITING_WORDS = {
    "duplicate": "Waits for another trial, which trains the same config just now.",
    "space": "Waits for another trial: the space brought only configs that are trained already.",
}


@dataclass(frozen=True)
class WorkerStatus:
    """One worker.

    Attributes:
        name: Unique among all workers.
        state: starting, training, waiting, paused, or troubled (`message` says by what).
        silent_seconds: Since it last wrote to the database.
        lease_age_seconds: Since its trial last made progress; None where it holds none.
        share: The part of the running epoch that is done.
        gpu: As given to `--gpus`; None is the processor.
    """

    name: str
    host: str
    pid: int
    state: str
    silent_seconds: float
    trial_number: int | None
    epoch: int | None
    epochs: int | None
    share: float | None
    value: float | None
    images_per_second: float | None
    message: str | None = None
    gpu: str | None = None
    threads: int | None = None
    memory_bytes: int | None = None
    lease_age_seconds: float | None = None
    age_seconds: float | None = None
    log: str | None = None

    @property
    def short_name(self) -> str:
        """The part of the name that differs between the workers of one host."""
        return self.name.rpartition("-")[2]

    @property
    def where(self) -> str:
        """Its host, and its GPU there."""
        return self.host if self.gpu is None else f"{self.host} GPU {self.gpu}"


@dataclass(frozen=True)
class TrialStatus:
    """One trial, settled or under way."""

    number: int
    slot_id: int
    outcome: str
    """complete, pruned, failed, running, waiting (for another trial), or interrupted (it goes on at
    the next start)."""
    value: float | None
    best_epoch: int | None
    epochs_done: int
    seconds: float
    reason: str | None
    config: dict[str, Any] | None
    trial_id: int | None = None
    """Optuna's."""


@dataclass(frozen=True)
class FailureStatus:
    """The failed trials of one kind: diverged, out_of_memory, lost, bug."""

    kind: str
    n: int
    last_trial: int | None
    last_reason: str


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
    best: TrialStatus | None
    mean_trial_seconds: float | None
    use: BudgetUse
    control: str
    """run, pause, stop or stop_now."""
    control_reason: str | None
    failures: Sequence[FailureStatus]

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
    ended = (
        sa.select(slots.c.outcome.label("key"), sa.func.count().label("n"))
        .where(slots.c.study_id == study.id, slots.c.outcome.is_not(None))
        .group_by(slots.c.outcome)
    )
    under_way = (
        sa.select(slots.c.state, sa.func.count())
        .where(slots.c.study_id == study.id, slots.c.state.in_(["open", "held", "waiting"]))
        .group_by(slots.c.state)
    )
    with database.transaction() as connection:
        # Apart, since an index answers each without a look at the rows and their configs.
        rows = connection.execute(ended.union_all(under_way)).all()
        present = connection.execute(_present_workers(study)).all()
        mean_trial_seconds = connection.scalar(_mean_seconds_of_last_trials(study))
        control = connection.execute(
            sa.select(studies.c.control, studies.c.control_reason).where(studies.c.id == study.id)
        ).one()
    counts = {row.key: row.n for row in rows}
    best = best_trials(database, study, 1)
    return StudyStatus(
        name=study.name,
        metric=study.metric,
        direction=study.direction,
        budget=sum(counts.values()),
        counts=counts,
        workers=[_worker(row) for row in present],
        best=best[0] if best else None,
        mean_trial_seconds=mean_trial_seconds,
        use=budget_use(database, study.id),
        control=control.control,
        control_reason=control.control_reason,
        failures=_failures(database, study) if counts.get("failed") else (),
    )


def _present_workers(study: StoredStudy) -> sa.Select[Any]:
    # A lease lasts from the last progress on; the study says how long.
    age = now() - (slots.c.lease_ends_at - studies.c.lease_seconds)
    return (
        sa.select(
            workers,
            (now() - workers.c.seen_at).label("silent_seconds"),
            (now() - workers.c.started_at).label("age_seconds"),
            age.label("lease_age_seconds"),
        )
        .join(studies, studies.c.id == workers.c.study_id)
        .outerjoin(
            slots,
            sa.and_(
                slots.c.study_id == study.id,
                slots.c.state == "held",
                slots.c.worker == workers.c.id,
            ),
        )
        .where(workers.c.study_id == study.id, workers.c.state != "stopped")
        .where(sa.or_(workers.c.seen_at > now() - SILENT_SECONDS, slots.c.lease_ends_at > now()))
        .order_by(workers.c.host, workers.c.gpu, workers.c.id)
    )


def _worker(row: sa.Row[Any]) -> WorkerStatus:
    return WorkerStatus(
        name=row.id,
        host=row.host,
        pid=row.pid,
        state=row.state,
        silent_seconds=row.silent_seconds,
        trial_number=row.trial_number,
        epoch=row.epoch,
        epochs=row.epochs,
        share=row.share,
        value=row.value,
        images_per_second=row.images_per_second,
        message=row.message,
        gpu=row.gpu,
        threads=row.threads,
        memory_bytes=row.memory_bytes,
        lease_age_seconds=row.lease_age_seconds,
        age_seconds=row.age_seconds,
        log=row.log,
    )


def _failures(database: Database, study: StoredStudy) -> list[FailureStatus]:
    failed = sa.and_(slots.c.study_id == study.id, slots.c.outcome == "failed")
    kinds = (
        sa.select(sa.func.count().label("n"), sa.func.max(slots.c.id).label("last"))
        .where(failed)
        .group_by(slots.c.failure)
        .subquery()
    )
    query = (
        sa.select(slots.c.failure, slots.c.trial_number, slots.c.reason, kinds.c.n)
        .join(kinds, kinds.c.last == slots.c.id)
        .order_by(kinds.c.n.desc())
    )
    with database.transaction() as connection:
        rows = connection.execute(query).all()
    # Trials of the time before failures were told apart have no kind.
    return [
        FailureStatus(row.failure or "other", row.n, row.trial_number, row.reason or "")
        for row in rows
    ]


def _mean_seconds_of_last_trials(study: StoredStudy) -> sa.Select[Any]:
    """Of the last only: the view asks each second, and a sum over 1,000,000 epochs takes 0.4 s."""
    last = (
        sa.select(slots.c.id)
        .where(slots.c.study_id == study.id, slots.c.state == "done", TRAINED_ITSELF)
        .order_by(slots.c.number.desc())
        .limit(N_TRIALS_FOR_ESTIMATE)
        .subquery()
    )
    n = sa.select(sa.func.count()).select_from(last).scalar_subquery()
    return sa.select(sa.func.sum(curves.c.seconds) / n).join(last, last.c.id == curves.c.slot_id)


def best_trials(database: Database, study: StoredStudy, n: int) -> list[TrialStatus]:
    """Return the n best complete trials, best first; ties go to the older one."""
    value = slots.c.value.asc() if study.direction == "minimize" else slots.c.value.desc()
    return _trials(
        database,
        sa.and_(slots.c.study_id == study.id, slots.c.outcome == "complete"),
        [value, slots.c.trial_number],
        n,
    )


def count_complete(database: Database, study: StoredStudy) -> int:
    """Return how many trials of a study are complete."""
    complete = sa.and_(slots.c.study_id == study.id, slots.c.outcome == "complete")
    with database.transaction() as connection:
        return int(connection.execute(sa.select(sa.func.count()).where(complete)).scalar_one())


def all_trials(database: Database, study: StoredStudy) -> list[TrialStatus]:
    """Return every trial that was begun, by number."""
    begun = sa.and_(slots.c.study_id == study.id, slots.c.trial_number.is_not(None))
    return _trials(database, begun, [slots.c.trial_number], None)


def _trials(
    database: Database,
    where: sa.ColumnElement[bool],
    order: Sequence[Any],
    limit: int | None,
) -> list[TrialStatus]:
    # The trials first, then their curves: a sum over all curves of the database takes 0.4 s.
    chosen = sa.select(slots.c.id).where(where).order_by(*order).limit(limit)
    spent = (
        sa.select(
            curves.c.slot_id,
            sa.func.count().label("epochs_done"),
            sa.func.sum(curves.c.seconds).label("seconds"),
        )
        .where(curves.c.slot_id.in_(chosen))
        .group_by(curves.c.slot_id)
        .subquery()
    )
    query = (
        sa.select(slots, spent.c.epochs_done, spent.c.seconds)
        .outerjoin(spent, spent.c.slot_id == slots.c.id)
        .where(slots.c.id.in_(chosen))
        .order_by(*order)
    )
    with database.transaction() as connection:
        rows = connection.execute(query).all()
    unsettled = {"held": "running", "waiting": "waiting", "open": "interrupted"}
    return [
        TrialStatus(
            number=row.trial_number,
            slot_id=row.id,
            outcome=row.outcome or unsettled[row.state],
            value=row.value,
            best_epoch=row.best_epoch,
            epochs_done=row.epochs_done or 0,
            seconds=row.seconds or 0.0,
            reason=row.reason or WAITING_WORDS.get(row.waiting_reason),
            config=row.config,
            trial_id=row.trial_id,
        )
        for row in rows
    ]
