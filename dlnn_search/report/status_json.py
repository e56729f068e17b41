"""A study's status for programs: the schema of docs/status.md, which only ever gains fields."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from dlnn_search.report.study_view import state_words
from dlnn_search.results.status import StudyStatus, WorkerStatus
from dlnn_search.storage.events import Event

#: Counted up when a field changes its meaning or goes.
FORMAT_VERSION = 1


def status_json(
    status: StudyStatus, events: Sequence[Event], advice: Sequence[str]
) -> dict[str, Any]:
    """Return one study's status as plain data."""
    use, best = status.use, status.best
    return {
        "format": FORMAT_VERSION,
        "study": status.name,
        "state": state_words(status),
        "control": status.control,
        "control_reason": status.control_reason,
        "metric": status.metric,
        "direction": status.direction,
        "at": _time(use.now),
        "seconds_left": status.remaining_seconds,
        "budget": {
            "trials": use.trials,
            "settled": use.settled,
            "held": use.held,
            "wall_seconds": use.wall_seconds,
            "wall_used_seconds": use.wall_used_seconds,
            "worker_seconds": use.worker_seconds,
            "worker_used_seconds": use.worker_used_seconds,
            "deadline": _time(use.deadline_at),
            "exhausted_by": use.exhausted_by,
        },
        "trials": {
            key: status.counts.get(key, 0)
            for key in ("complete", "pruned", "failed", "held", "waiting", "open")
        },
        "best": None
        if best is None
        else {
            "trial": best.number,
            "value": best.value,
            "epoch": best.best_epoch,
            "epochs": best.epochs_done,
        },
        "failures": [
            {
                "kind": failure.kind,
                "n": failure.n,
                "last_trial": failure.last_trial,
                "last_reason": failure.last_reason,
            }
            for failure in status.failures
        ],
        "workers": [_worker(worker) for worker in status.workers],
        "events": [
            {
                "at": _time(event.at),
                "kind": event.kind,
                "worker": event.worker,
                "words": event.words,
            }
            for event in events
        ],
        "advice": list(advice),
    }


def _worker(worker: WorkerStatus) -> dict[str, Any]:
    return {
        "name": worker.name,
        "host": worker.host,
        "gpu": worker.gpu,
        "pid": worker.pid,
        "state": worker.state,
        "message": worker.message,
        "trial": worker.trial_number if worker.state == "training" else None,
        "epoch": worker.epoch if worker.state == "training" else None,
        "epochs": worker.epochs if worker.state == "training" else None,
        "value": worker.value if worker.state == "training" else None,
        "images_per_second": worker.images_per_second,
        "lease_age_seconds": worker.lease_age_seconds,
        "silent_seconds": worker.silent_seconds,
        "memory_bytes": worker.memory_bytes,
        "threads": worker.threads,
        "log": worker.log,
    }


def _time(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
