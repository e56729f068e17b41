"""The use case `start`: make the budget, prepare the data, run the workers, show them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import optuna

from dlnn_search import data
from dlnn_search.errors import UsageError
from dlnn_search.report.live import LiveView
from dlnn_search.report.status import StudyStatus, study_status
from dlnn_search.search.optuna_study import (
    check_libraries,
    choose_sampler,
    example_config,
    open_optuna_study,
    sampler_of_name,
)
from dlnn_search.service.measured_rate import measure
from dlnn_search.service.supervisor import Supervisor, threads_per_worker, worker_environment
from dlnn_search.storage.database import open_database, storage_errors
from dlnn_search.storage.definitions import register
from dlnn_search.storage.presence import dead_workers
from dlnn_search.storage.slots import Slots
from dlnn_search.study import Study

MAX_WORKERS = 1_024


@dataclass(frozen=True)
class Started:
    """How a start ended."""

    status: StudyStatus
    ended_by_itself: bool


def start(
    study: Study,
    arguments: list[str],
    url: str,
    *,
    n_workers: int,
    n_trials: int | None,
    timeout_seconds: float | None,
    sampler: str | None = None,
    view: Callable[[Callable[[], StudyStatus]], LiveView],
) -> Started:
    """Search with worker processes on this machine until the budget is used up.

    Args:
        arguments: The study's name or file and options, as a worker finds it again.
        n_workers: With 0 only the budget and the data are made, for workers that join.
        n_trials: The budget in all; None: what an earlier start made it, else the study's own.
            It never shrinks.
        timeout_seconds: After it the workers finish their epoch and stop.
        sampler: By name, for all workers; None: what an earlier start chose, else the study's own.

    Raises:
        DlnnSearchError: If the study, the data, the database or the workers fail.
    """
    if not 0 <= n_workers <= MAX_WORKERS:
        raise UsageError(f"Expected 0 to {MAX_WORKERS} workers, got --workers {n_workers}.")
    if n_trials is not None and n_trials < 1:
        raise UsageError(f"Expected a budget of at least 1 trial, got --trials {n_trials}.")
    check_libraries(study.sampler if sampler is None else sampler_of_name(sampler))
    # A space that fails is told before anything is stored of it.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    example = example_config(study)
    database = open_database(url, create=True)
    try:
        stored = register(database, study.name, study.definition())
        optuna_study = open_optuna_study(study, database)
        if sampler is not None:
            with storage_errors(database.url):
                choose_sampler(optuna_study, sampler)
        slots = Slots(database, stored.id)
        made_before = study_status(database, stored).budget
        slots.extend_to(n_trials or made_before or study.trials)
        for worker in dead_workers(database, stored.id):
            slots.release_of_dead(worker)
        live = view(lambda: study_status(database, stored))
        if slots.all_done():
            return Started(study_status(database, stored), ended_by_itself=True)
        # Before a worker starts: the wait for data is shown here.
        data.prepare_data(example.data, example.training.curriculum)
        measure(study, database, stored, arguments, live.say)
        if n_workers == 0:
            return Started(study_status(database, stored), ended_by_itself=True)
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        supervisor = Supervisor(
            command=["worker", *arguments],
            environment={
                **worker_environment(threads_per_worker(n_workers)),
                "DLNN_SEARCH_STORAGE": url,
            },
            n_workers=n_workers,
            slots=slots,
            logs=database.files / "logs" / study.name,
            say=live.say,
        )
        with live:
            ended = supervisor.run(live.refresh, deadline)
        return Started(study_status(database, stored), ended_by_itself=ended)
    finally:
        database.close()
