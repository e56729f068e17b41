"""The use case `start`: make the budget, prepare the data, run the workers, tell of the end."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

import optuna

from dlnn_search import data
from dlnn_search.commands.on_end import ON_END, Ended, OnEnd
from dlnn_search.commands.warm_start import WarmStart, warm_start
from dlnn_search.config import Config
from dlnn_search.errors import DlnnSearchError, StudyError, TrainingError, UsageError
from dlnn_search.launch.detached import (
    LOG_NAME,
    Background,
    PidFile,
    logs_folder,
    run_in_background,
)
from dlnn_search.launch.supervisor import Supervisor
from dlnn_search.machine import Seat, plan_seats
from dlnn_search.metrics import count_words
from dlnn_search.report.live import LiveView
from dlnn_search.results.advice import is_bug, mend_words
from dlnn_search.results.status import StudyStatus, study_status
from dlnn_search.storage.budget import Budget, budget_use, duration_words, extend_budget
from dlnn_search.storage.control import (
    go_on,
    in_short,
    keep_trial_timeout,
    kept_rate,
    kept_trial_timeout,
    set_lease_seconds,
    set_reuse,
)
from dlnn_search.storage.database import Database, open_database, storage_errors
from dlnn_search.storage.database.known import remember_database
from dlnn_search.storage.slots import Slots
from dlnn_search.storage.studies import StoredStudy, register
from dlnn_search.storage.workers import dead_workers, looked_after, orphans
from dlnn_search.study import Study
from dlnn_search.worker.first_trials import example_config
from dlnn_search.worker.joining import as_stored, check_pictures, converged_words, settle
from dlnn_search.worker.optuna_study import (
    check_libraries,
    choose_sampler,
    open_optuna_study,
    sampler_of_name,
)
from dlnn_search.worker.reports import sweep

MAX_WORKERS = 1_024


@dataclass(frozen=True)
class Wishes:
    """What the options of `start` ask for.

    Attributes:
        n_workers: None: one a GPU, or one. With 0 only the budget and the data are made, for
            workers that join.
        gpus: As given to `--gpus`.
        budget: In all. A limit that is None stays as an earlier start made it; the first start
            takes the study's number of trials. It never shrinks.
        lease_seconds: A worker that makes no progress for that long loses its trial.
        trial_timeout_seconds: For all workers. None keeps what an earlier start chose; the first
            start takes the study's own. `math.inf` removes the limit.
        reuse: Whether a config that was trained already has that result, or is trained anew.
        sampler: By name, for all workers. None keeps what an earlier start chose; the first start
            takes the study's own.
        timeout_seconds: After it the workers of this start finish their epoch and stop.
        warm: What to try first.
        stop_when_converged: For all workers. None keeps what an earlier start chose; the first
            start takes the study's own.
        fresh: Start the study again; its trials so far are kept under another name.
        on_end: A shell command that runs once when the search ends, however it ends.
    """

    n_workers: int | None = None
    gpus: str | None = None
    workers_per_gpu: int | None = None
    budget: Budget = field(default_factory=Budget)
    lease_seconds: float | None = None
    trial_timeout_seconds: float | None = None
    reuse: bool | None = None
    timeout_seconds: float | None = None
    sampler: str | None = None
    warm: WarmStart | None = None
    stop_when_converged: bool | None = None
    fresh: bool = False
    on_end: str | None = None

    def __post_init__(self) -> None:
        if self.n_workers is not None and not 0 <= self.n_workers <= MAX_WORKERS:
            raise UsageError(
                f"Expected 0 to {MAX_WORKERS} workers, got --workers {self.n_workers}."
            )
        if self.on_end is not None and not self.on_end.strip():
            raise UsageError("Expected a shell command after --on-end, got an empty text.")
        if self.on_end is not None and self.n_workers == 0:
            raise UsageError(
                "Expected no --on-end with --workers 0: this command does not wait for the end of "
                "the search."
            )


@dataclass(frozen=True)
class Detached:
    """What runs in the background.

    Attributes:
        already: Whether it ran before.
    """

    background: Background
    already: bool


@dataclass(frozen=True)
class _Prepared:
    """A study that workers can be started on."""

    database: Database
    stored: StoredStudy
    seats: Sequence[Seat]
    example: Config

    def status(self) -> StudyStatus:
        return study_status(self.database, self.stored)


def start(
    study: Study,
    arguments: list[str],
    url: str,
    wishes: Wishes,
    *,
    view: Callable[[Callable[[], StudyStatus]], LiveView],
    say: Callable[[str], None],
    in_background: bool = False,
) -> Ended:
    """Search with worker processes on this machine until the budget is used up.

    Args:
        study: What to search.
        arguments: The study's name or file and options, as a worker finds it again.
        url: Of the database.
        wishes: How much, and with what.
        view: Makes what shows the search.
        say: Tells what comes before there is a view.
        in_background: Whether this is the process that `start_detached` started.

    Raises:
        DlnnSearchError: If the study, the data, the database or the workers fail.
    """
    command = os.environ.pop(ON_END, None) if in_background else wishes.on_end
    with (
        OnEnd(command, study, url, say) as on_end,
        _prepared(study, arguments, url, wishes, say) as prepared,
    ):
        database, stored = prepared.database, prepared.stored
        if not prepared.seats or _is_over(database, stored):
            on_end.ended = Ended(prepared.status(), by_itself=True)
        elif in_background:
            logs = logs_folder(database, study.lasting_name)
            with PidFile(database.files, study.name).held(logs / LOG_NAME):
                on_end.ended = _run(prepared, arguments, url, wishes, view, ignore_hangup=True)
        else:
            _say_who_else(prepared, say)
            on_end.ended = _run(prepared, arguments, url, wishes, view, ignore_hangup=False)
    assert on_end.ended is not None, "else there was an error"
    return on_end.ended


def start_detached(
    study: Study,
    arguments: list[str],
    options: list[str],
    url: str,
    wishes: Wishes,
    *,
    say: Callable[[str], None],
) -> Detached | Ended:
    """Do the same in the background; what can fail at once fails here, in the foreground.

    Args:
        study: What to search.
        arguments: The study's name or file and options, as a worker finds it again.
        options: Of this start, for the one in the background; the budget is stored here.
        url: Of the database.
        wishes: How much, and with what.
        say: Tells of what goes on meanwhile.

    Returns:
        What runs; or how it stands, where nothing is left to do.

    Raises:
        DlnnSearchError: If the study, the data, the database or the background process fails.
    """
    with (
        OnEnd(wishes.on_end, study, url, say) as on_end,
        _prepared(study, arguments, url, wishes, say) as prepared,
    ):
        if not prepared.seats or _is_over(prepared.database, prepared.stored):
            on_end.ended = Ended(prepared.status(), by_itself=True)
            return on_end.ended
        on_end.leave()  # the process in the background runs it
        files = prepared.database.files
        pid_file = PidFile(files, study.name)
        running = pid_file.running()
        if running is not None:
            if wishes.on_end is not None:
                say("The running search keeps its own --on-end. The new command is not used.")
            return Detached(running, already=True)
        log = logs_folder(prepared.database, study.lasting_name) / LOG_NAME
        # Not in the arguments: everybody sees those in a list of processes.
        environment = {"DLNN_SEARCH_STORAGE": url}
        if wishes.on_end is not None:
            environment[ON_END] = wishes.on_end
        command = ["start", *arguments, *options, "--in-background"]
        return Detached(run_in_background(command, environment, pid_file, log), already=False)


def _make_budget(
    database: Database,
    stored: StoredStudy,
    study: Study,
    wishes: Wishes,
    say: Callable[[str], None],
) -> None:
    budget = wishes.budget
    if budget.trials is None and not budget_use(database, stored.id).trials:
        budget = replace(budget, trials=study.trials)
    for kept in extend_budget(database, stored.id, budget):
        say(kept)
    if wishes.lease_seconds is not None:
        set_lease_seconds(database, stored.id, wishes.lease_seconds)
    if wishes.reuse is not None:
        set_reuse(database, stored.id, wishes.reuse)
    _settle_trial_timeout(database, stored, study, wishes.trial_timeout_seconds, say)
    if settle(database, stored, study, wishes.stop_when_converged) is not None:
        return
    if go_on(database, stored.id):
        say(f"{stored.name} was paused or stopped. It now continues.")


def _settle_trial_timeout(
    database: Database,
    stored: StoredStudy,
    study: Study,
    asked: float | None,
    say: Callable[[str], None],
) -> None:
    """Keep for all workers how long a trial may train, and say so."""
    settled, limit = kept_trial_timeout(database, stored.id)
    if asked is not None or not settled:
        former, limit = limit, study.trial_timeout_seconds if asked is None else asked
        limit = None if limit == math.inf else limit
        keep_trial_timeout(database, stored.id, limit)
        if former is not None and limit is None:
            say("The limit of time for each trial is removed.")
    if limit is not None:
        say(f"Each trial trains for at most {duration_words(limit)} (--trial-timeout).")


def _is_over(database: Database, stored: StoredStudy) -> bool:
    if budget_use(database, stored.id).exhausted_by is not None:
        return True
    return converged_words(database, stored.id) is not None


def _begin_warm(
    study: Study,
    database: Database,
    stored: StoredStudy,
    optuna_study: optuna.Study,
    wishes: Wishes,
    example: Config,
    say: Callable[[str], None],
) -> None:
    if wishes.warm is None:
        return
    if budget_use(database, stored.id).exhausted_by == "trials":
        raise UsageError(
            "All trials are done, so the given configs cannot be tried. Raise the budget with "
            "--trials."
        )
    for line in warm_start(study, database, stored, optuna_study, wishes.warm, example):
        say(line)


@contextmanager
def _prepared(
    study: Study,
    arguments: list[str],
    url: str,
    wishes: Wishes,
    say: Callable[[str], None],
) -> Iterator[_Prepared]:
    check_libraries(study.sampler if wishes.sampler is None else sampler_of_name(wishes.sampler))
    # What this machine cannot do is told before anything is stored, and so is a broken space.
    seats = plan_seats(
        gpus=wishes.gpus,
        n_workers=wishes.n_workers,
        workers_per_gpu=wishes.workers_per_gpu,
        say=say,
    )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    example = example_config(study)
    with open_database(url, create=True) as database:
        begun = study if wishes.fresh else as_stored(study, database)
        if begun is not study:
            study, example = begun, example_config(begun)
        stored = register(
            database, study.name, study.definition(), file=study.file, fresh=wishes.fresh, say=say
        )
        remember_database(url)
        optuna_study = open_optuna_study(study, database)
        if wishes.sampler is not None:
            with storage_errors(database.url):
                choose_sampler(optuna_study, wishes.sampler)
        slots = Slots(database, stored.id)
        _make_budget(database, stored, study, wishes, say)
        for worker in dead_workers(database, stored.id):
            slots.release_of_dead(worker)
        with storage_errors(database.url):
            sweep(optuna_study, slots)
        _begin_warm(study, database, stored, optuna_study, wishes, example, say)
        if not _is_over(database, stored):
            # Before a worker starts: the wait for data is shown here.
            data.prepare_data(example.data, example.training.curriculum)
            check_pictures(study, database, stored)
            measure(study, database, stored, arguments, say)
        yield _Prepared(database, stored, seats, example)
        # Workers that had to be killed told nobody what they left.
        with suppress(DlnnSearchError), storage_errors(database.url):
            sweep(optuna_study, slots)


def _run(
    prepared: _Prepared,
    arguments: list[str],
    url: str,
    wishes: Wishes,
    view: Callable[[Callable[[], StudyStatus]], LiveView],
    *,
    ignore_hangup: bool,
) -> Ended:
    database, stored = prepared.database, prepared.stored
    live = view(prepared.status)
    deadline = None
    if wishes.timeout_seconds is not None:
        deadline = time.monotonic() + wishes.timeout_seconds
    supervisor = Supervisor(
        command=["worker", *arguments],
        environment={"DLNN_SEARCH_STORAGE": url},
        seats=prepared.seats,
        database=database,
        study_id=stored.id,
        logs=logs_folder(database, stored.lasting_name),
        say=live.say,
        away=live.show_away,
    )
    with live:
        by_itself = supervisor.run(
            live.refresh,
            deadline,
            orphans(database, stored.id),
            ignore_hangup=ignore_hangup,
        )
    status = prepared.status()
    if is_bug(status):
        raise StudyError(
            f"The study '{stored.name}' was stopped because its trials failed with a bug. The last "
            f"error: {in_short(status.control_reason or '').rstrip('.')}. 'dlnn-search logs "
            f"{stored.name}' shows the traceback. {mend_words(status)}"
        )
    return Ended(status, by_itself, supervisor.timed_out)


def _say_who_else(prepared: _Prepared, say: Callable[[str], None]) -> None:
    """Two starts of one study are not forbidden, but should be meant."""
    for pid, n_workers in looked_after(prepared.database, prepared.stored.id).items():
        say(
            f"Process {pid} already searches {prepared.stored.name} on this machine with "
            f"{count_words(n_workers, 'worker')}. This start adds {len(prepared.seats)}."
        )


def measure(
    study: Study,
    database: Database,
    stored: StoredStudy,
    arguments: list[str],
    say: Callable[[str], None],
) -> None:
    """Let a study that wants a learning-rate range test have one, unless it had.

    Args:
        study: With or without `range_test=RangeTest()`.
        database: Where what was measured is kept.
        stored: The same study, stored.
        arguments: The study's name or file and options, as a worker finds it again.
        say: Tells of the test.

    Raises:
        TrainingError: If the test fails.
    """
    if study.range_test is None:
        return
    kept = kept_rate(database, stored.id)
    if kept is None:
        say(f"Running the learning-rate range test of {study.name}. This is done once.")
        # TensorFlow stays out of the process that looks after workers.
        command = [sys.executable, "-m", "dlnn_search", "lr-range"]
        done = subprocess.run(
            [*command, *arguments, "--keep", "--batches", str(study.range_test.batches)],
            env={**os.environ, "DLNN_SEARCH_STORAGE": database.url},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise TrainingError(
                f"The range test of '{study.name}' failed: "
                f"{done.stderr.strip().rpartition('Error: ')[2] or 'it printed nothing'}"
            )
        kept = kept_rate(database, stored.id)
    rate = None if kept is None else kept.rate
    say(
        "The range test found no clear learning rate. The study keeps its own range."
        if rate is None
        else f"The range test chose a learning rate of {rate:.3g}. The search stays near it."
    )
