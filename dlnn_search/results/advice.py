"""What is wrong with a search, and what to do about it: facts read, then plain functions."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from dlnn_search.errors import one_line
from dlnn_search.metrics import count_words
from dlnn_search.results.status import StudyStatus, best_trials, study_status
from dlnn_search.samplers.regions import Edge, find_edges, n_elites
from dlnn_search.storage.budget import BudgetUse, duration_words
from dlnn_search.storage.database import Database, storage_errors
from dlnn_search.storage.halves import is_linked_name, lost_words, parent_and_kind
from dlnn_search.storage.studies import StoredStudy
from dlnn_search.storage.trials import Trial, trials_of
from dlnn_search.storage.workers import Event, last_events

#: Trials of each sort whose learning rates are looked at, the latest.
N_RATES = 50
#: Events of before that are over; what is repeated comes again.
RECENT_SECONDS = 3_600.0
#: Events that are read, the latest.
N_EVENTS = 100


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
    diverged: Sequence[Trial] = ()
    sound: Sequence[Trial] = ()
    if any(failure.kind == "diverged" for failure in status.failures):
        diverged = trials_of(database, study, failure="diverged", order="latest", limit=N_RATES)
        sound = trials_of(database, study, outcome="complete", order="latest", limit=N_RATES)
    return Facts(
        status=status,
        edges=_edges(database, study, status.counts.get("complete", 0)),
        diverged_rates=_rates(diverged),
        sound_rates=_rates(sound),
        event_counts=counts,
        n_killed=sum("signal 9" in event.words for event in recent),
    )


def look(database: Database, study: StoredStudy) -> tuple[StudyStatus, Sequence[Event], list[str]]:
    """Return a study's status, its latest events, and advice."""
    found = study_status(database, study)
    events = last_events(database, study.id, N_EVENTS)
    lost = lost_words(database, study.id, study.name)
    if lost is not None:  # what else could be done can not
        return found, events, [lost]
    return found, events, advice(facts_of(database, study, found, events))


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


def _rates(trials: Sequence[Trial]) -> list[float]:
    rates = [(trial.config or {}).get("training", {}).get("learning_rate") for trial in trials]
    return [rate for rate in rates if rate is not None]


#: Trials that must have ended before a share of them says anything.
N_FOR_SHARES = 4
N_FOR_PRUNING = 10
DAY_SECONDS = 86_400
#: Networks of one space differ several times in speed; beyond that it is the machine.
SLOW_FACTOR = 8.0


@dataclass(frozen=True)
class Facts:
    """What advice is given on.

    Attributes:
        edges: Parameters whose best value lies at an end of their range.
        diverged_rates: Learning rates of trials that diverged.
        sound_rates: Learning rates of trials that did not.
        event_counts: How often each kind of event is among the latest.
        n_killed: How many of these tell of a worker that died by signal 9.
    """

    status: StudyStatus
    edges: Sequence[Edge] = ()
    diverged_rates: Sequence[float] = ()
    sound_rates: Sequence[float] = ()
    event_counts: dict[str, int] | None = None
    n_killed: int = 0


def advice(facts: Facts) -> list[str]:
    """Return a sentence for each thing that is wrong, the gravest first."""
    return [
        sentence
        for find in (
            _no_worker,
            _troubled,
            _stopped_by_bug,
            _fruitless,
            _killed,
            _out_of_memory,
            _out_of_time,
            _diverging,
            _all_pruned,
            _started_over,
            _slow,
            _on_the_edge,
        )
        for sentence in find(facts)
    ]


def _no_worker(facts: Facts) -> Iterator[str]:
    status = facts.status
    if status.workers or status.use.exhausted_by is not None or status.control != "run":
        return
    n_open = status.budget - status.n_done
    yield (
        f"No worker is running, and {n_open} of {status.budget} trials are left. Start workers "
        f"with 'dlnn-search start {status.name}', or one on any machine with "
        f"'dlnn-search worker {status.name}'."
    )


def _troubled(facts: Facts) -> Iterator[str]:
    troubled = [worker for worker in facts.status.workers if worker.state == "troubled"]
    if not troubled:
        return
    message = one_line((troubled[-1].message or "none given").strip().partition("\n")[0])
    all_of_them = len(troubled) == len(facts.status.workers)
    who = (
        "All workers" if all_of_them else f"{len(troubled)} of {len(facts.status.workers)} workers"
    )
    where = ", ".join(sorted({worker.host for worker in troubled}))
    yield f"{who} on {where} cannot train now. They keep trying. Reason: {message}"


def _stopped_by_bug(facts: Facts) -> Iterator[str]:
    if is_bug(facts.status):
        yield f"A bug of the study stopped it. {mend_words(facts.status)}"


def _fruitless(facts: Facts) -> Iterator[str]:
    if facts.status.is_fruitless:
        yield f"Every trial failed. {mend_words(facts.status)}"


def mend_words(status: StudyStatus, again: str | None = None) -> str:
    """Return how to go on with a study that fails by its own fault.

    Args:
        status: Of the study.
        again: The command that starts it again; None: by its name.
    """
    last = "".join(
        f" The last failed trial said: {one_line(each.last_reason)}" for each in status.failures[:1]
    )
    if again is None:
        again = f"dlnn-search start {status.name}{' --fresh' if status.has_results else ''}"
    return (
        f"Fix the study's file, check it with 'dlnn-search validate {status.name}', and start "
        f"again with '{again}'. The trials so far are kept under another name.{last}"
    )


def next_words(status: StudyStatus) -> str:
    """Return how a study comes to more complete trials, as it stands now."""
    name, use = status.name, status.use
    if is_bug(status) or status.is_fruitless:
        return mend_words(status)
    if use.exhausted_by is not None:
        if is_linked_name(name):
            parent, kind = parent_and_kind(name)
            return f"Train more with 'dlnn-search {kind} {parent}'."
        return (
            f"Its budget is {use.exhausted}. Extend it with "
            f"'dlnn-search start {name} {extension(use)}'."
        )
    if status.workers and status.control == "run":
        return f"'dlnn-search status {name} --watch' shows when its workers complete one."
    return f"Search with 'dlnn-search start {name}'."


def extension(use: BudgetUse) -> str:
    """Return the option of `start` that extends a budget, so that the search can go on."""
    limit = use.exhausted_by
    if limit == "deadline":
        tomorrow = time.localtime(use.now + DAY_SECONDS)
        return f"--deadline {time.strftime('%Y-%m-%dT%H:%M', tomorrow)}"
    if limit == "wall time" and use.wall_seconds is not None:
        return f"--wall-time {_doubled(use.wall_seconds)}"
    if limit == "worker-hours" and use.worker_seconds is not None:
        return f"--worker-hours {_doubled(use.worker_seconds)}"
    return f"--trials {2 * use.trials}"


def _doubled(seconds: float) -> str:
    """Return twice a time, as options take it."""
    for unit, unit_seconds in (("h", 3_600), ("m", 60)):
        if seconds >= unit_seconds:
            return f"{2 * seconds / unit_seconds:.4g}{unit}"
    return f"{math.ceil(2 * seconds)}s"


def is_bug(status: StudyStatus) -> bool:
    """Whether a bug of the study stopped it: then the traceback is the reason."""
    return status.control in ("stop", "stop_now") and "Traceback" in (status.control_reason or "")


def _killed(facts: Facts) -> Iterator[str]:
    if facts.n_killed >= 2:
        yield (
            f"Signal 9 killed workers {facts.n_killed} times in the last hour. If nobody did that, "
            "the system ran out of memory ('dmesg' shows it). Start fewer workers, or lower the "
            "batch size or the size of the networks."
        )


def _out_of_memory(facts: Facts) -> Iterator[str]:
    n = _n_failed(facts, "out_of_memory") + (facts.event_counts or {}).get("out_of_memory", 0)
    if not n:
        return
    on_gpu = any(worker.gpu is not None for worker in facts.status.workers)
    option = "--workers-per-gpu" if on_gpu else "--workers"
    yield (
        f"Trials ran out of memory {count_words(n, 'time')}. Lower the upper end of the batch size "
        f"or of the networks' size, or start with fewer {option}."
    )


def _out_of_time(facts: Facts) -> Iterator[str]:
    n, seconds = _n_failed(facts, "timeout"), facts.status.trial_timeout_seconds
    if n and seconds is not None:
        yield (
            f"{n} trials did not finish one epoch within {duration_words(seconds)}: raise "
            "--trial-timeout, or let the space offer smaller networks."
        )


def _diverging(facts: Facts) -> Iterator[str]:
    n, n_done = _n_failed(facts, "diverged"), facts.status.n_done
    if n_done < N_FOR_SHARES or n < 2 or n < n_done / 4:
        return
    yield (
        f"{n} of {n_done} trials diverged. Lower the upper end of the learning rate"
        f"{_rates_words(facts.diverged_rates, facts.sound_rates)}."
    )


def _rates_words(diverged: Sequence[float], sound: Sequence[float]) -> str:
    if not diverged:
        return ""
    words = f" (those that diverged had {_range(diverged)}"
    if sound:
        words += f"; those that did not, {_range(sound)}"
    return f"{words})"


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.2g}" if low == high else f"{low:.2g} to {high:.2g}"


def _all_pruned(facts: Facts) -> Iterator[str]:
    status = facts.status
    n_pruned, n_complete = status.counts.get("pruned", 0), status.counts.get("complete", 0)
    if n_pruned >= N_FOR_PRUNING and n_pruned >= 19 * n_complete:
        of = n_pruned + n_complete
        if status.trial_timeout_seconds is not None:
            yield (
                f"{n_pruned} of {of} trials were pruned: raise --trial-timeout, or let the pruner "
                "judge later. 'dlnn-search trials' says which of both stopped a trial."
            )
            return
        yield (
            f"{n_pruned} of {of} trials were pruned, and configs that learn slowly are never found "
            "so. Prune later or less, with Halving(first_rung=..., factor=...) in a copy of the "
            "study."
        )


def _started_over(facts: Facts) -> Iterator[str]:
    n = (facts.event_counts or {}).get("started_over", 0)
    if n:
        yield (
            f"{n} times in the last hour a trial started over, because the machine that went on "
            "with it could not reach its checkpoint. Give all machines one shared folder "
            "(DLNN_SEARCH_FILES)."
        )


def _slow(facts: Facts) -> Iterator[str]:
    speeds = [
        (worker.images_per_second, worker)
        for worker in facts.status.workers
        if worker.state == "training" and worker.images_per_second
    ]
    if len(speeds) < 3:
        return
    slowest, worker = min(speeds, key=lambda pair: pair[0])
    usual = statistics.median(speed for speed, _ in speeds)
    if usual > SLOW_FACTOR * slowest:
        yield (
            f"Worker {worker.short_name} on {worker.where} trains {slowest:,.0f} images a second, "
            f"and half of the workers train {usual:,.0f} or more. If its network is not that much "
            "larger, look what else runs on its machine."
        )


def _on_the_edge(facts: Facts) -> Iterator[str]:
    for edge in facts.edges:
        yield edge.words()


def _n_failed(facts: Facts, kind: str) -> int:
    return sum(failure.n for failure in facts.status.failures if failure.kind == kind)
