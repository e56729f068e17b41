"""A study at one moment: its workers, its budget, its best trial."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import optuna

from dlnn_search.config import Config
from dlnn_search.errors import DlnnSearchError, StorageError, UsageError
from dlnn_search.metrics import loss_sign
from dlnn_search.storage.budget import BudgetUse, budget_use, counts_of
from dlnn_search.storage.control import orders
from dlnn_search.storage.database import (
    Database,
    database_url,
    open_database,
    storage_errors,
)
from dlnn_search.storage.database.known import known_databases
from dlnn_search.storage.studies import StoredStudy, all_studies, code_file
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
    trial_timeout_seconds: float | None = None
    """How long each trial may train."""
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
        trial_timeout_seconds=asked.trial_timeout_seconds,
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


def code_file_at(url: str, config: Config, given: str | None) -> str | None:
    """Return the study file that has a config's own code, as the database at an address knows it.

    Args:
        url: Of the database; it need not be there.
        config: With own parts or without.
        given: By the user; it goes first.
    """
    if given is not None or not config.own_parts:
        return given
    with suppress(StorageError), open_database(url, create=False, read_only=True) as database:
        return code_file(database, config)
    return None


#: Servers that are asked for a study, each for at most so long: one that is away holds nobody up.
N_SERVERS_ASKED = 3
SECONDS_FOR_A_SERVER = 2


def databases_with(study: str, but: str) -> list[str]:
    """Return the addresses of known databases that hold a study of a name, the latest used first.

    Args:
        study: Its name.
        but: The database in which it was looked for already.
    """
    found, n_servers = [], 0
    for address in known_databases(but):
        asked = address
        if not address.startswith("sqlite"):
            n_servers += 1
            if n_servers > N_SERVERS_ASKED:
                continue
            mark = "&" if "?" in address else "?"
            asked = f"{address}{mark}connect_timeout={SECONDS_FOR_A_SERVER}"
        with suppress(DlnnSearchError):
            url = database_url(asked)
            with open_database(url, create=False, read_only=True) as database:
                if any(stored.name == study for stored in all_studies(database)):
                    found.append(address)
    return found


def best_trials(database: Database, study: StoredStudy, n: int) -> list[Trial]:
    """Return the n best complete trials, best first; ties go to the older one."""
    return trials_of(database, study, outcome="complete", order="best", limit=n)


def shown_curves(database: Database, study: StoredStudy) -> list[tuple[Trial, Sequence[Point]]]:
    """Return the unsettled trials and then the best ones, few enough to draw, with their epochs."""
    trials = trials_of(database, study, order="best", limit=MAX_CURVES)
    curves = curves_of(database, [trial.slot_id for trial in trials])
    return [(trial, curves.get(trial.slot_id, ())) for trial in trials]


def params_by_number(database: Database, study: str) -> dict[int, dict[str, Any]]:
    """Return each trial's parameters, of all trials in the one order in which the space asks."""
    loaded = optuna.load_study(study_name=study, storage=database.optuna)
    found = {trial.number: trial.params for trial in loaded.get_trials(deepcopy=False)}
    order = merged(found.values())
    return {
        number: {name: params[name] for name in order if name in params}
        for number, params in found.items()
    }


def merged(lists: Iterable[Iterable[str]]) -> list[str]:
    """Return the names of all lists, each once, in an order that keeps theirs where they agree."""
    order: list[str] = []
    for names in lists:
        place = 0
        for name in names:
            if name in order:
                place = order.index(name) + 1
            else:  # behind its neighbour: a parameter that only some trials have
                order.insert(place, name)
                place += 1
    return order


@dataclass(frozen=True)
class ListedTrial:
    """A trial as `trials` lists it.

    Attributes:
        params: In the order that all trials of the study share.
        duplicate_of: The number of the trial whose result it has.
    """

    trial: Trial
    params: Mapping[str, Any]
    duplicate_of: int | None


@dataclass(frozen=True)
class Listing:
    """Trials of a study.

    Attributes:
        parameters: The names of those of all its trials, whichever are listed.
    """

    trials: Sequence[ListedTrial]
    parameters: Sequence[str]


#: What a trial is sorted by, beside its parameters.
COLUMNS = ("number", "value", "epochs", "time")
STATES = ("complete", "pruned", "failed", "running", "waiting", "interrupted")


def listed_trials(
    database: Database,
    study: StoredStudy,
    *,
    state: str | None = None,
    sort: str | None = None,
    top: int | None = None,
) -> Listing:
    """Return a study's trials.

    Args:
        database: Where.
        study: Whose.
        state: Only these, one of `STATES`.
        sort: One of `COLUMNS` or a parameter, smallest first; `value` has the best first. A trial
            without it comes last. None: by number.
        top: So many at most, the first ones.

    Raises:
        UsageError: If no trial can be meant by one of these.
    """
    if state is not None and state not in STATES:
        raise UsageError(f"Expected a state ({', '.join(STATES)}), got --state '{state}'.")
    if top is not None and top < 1:
        raise UsageError(f"Expected at least 1 trial to list, got --top {top}.")
    trials = trials_of(database, study)
    params = params_by_number(database, study.name)
    names = merged(params.values())
    if sort is not None and sort not in (*COLUMNS, *names):
        known = ", ".join((*COLUMNS, *names))
        raise UsageError(f"Expected a column to sort by ({known}), got --sort '{sort}'.")
    numbers = {trial.slot_id: trial.number for trial in trials}
    listed = [
        ListedTrial(
            trial,
            params.get(trial.number, {}),
            None if trial.reused_from is None else numbers.get(trial.reused_from),
        )
        for trial in trials
        if state in (None, trial.outcome)
    ]
    if sort is not None:
        sign = loss_sign(study.direction)
        listed.sort(key=lambda one: _sort_key(one, sort, sign))
    return Listing(listed[:top], names)


def _sort_key(listed: ListedTrial, column: str, sign: float) -> tuple[bool, bool, float, str]:
    trial = listed.trial
    value: Any = {
        "number": trial.number,
        "value": None if trial.value is None else sign * trial.value,
        "epochs": trial.epochs_done,
        "time": trial.seconds,
    }.get(column, listed.params.get(column))
    is_number = isinstance(value, int | float)
    is_missing = value is None and column not in listed.params
    return is_missing, not is_number, value if is_number else 0.0, str(value)
