"""The use case `logs`: what a study's workers wrote, as far as it lies on this machine."""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlnn_search.errors import UsageError, did_you_mean
from dlnn_search.launch.detach import LOG_NAME
from dlnn_search.storage.database import Database
from dlnn_search.storage.definitions import StoredStudy
from dlnn_search.storage.workers import WorkerLog, worker_logs

FOLLOW_SECONDS = 0.5
#: A long study has had hundreds of workers, each with a log: the latest are shown unasked.
N_LATEST = 8
SUPERVISOR = "supervisor"


@dataclass(frozen=True)
class Log:
    """A log file of this machine; `about` is who wrote it."""

    about: str
    path: Path


def logs_folder(database: Database, lasting_name: str) -> Path:
    """Return where this machine's workers of a study write."""
    return database.files / "logs" / lasting_name


def find_logs(
    database: Database, study: StoredStudy, worker: str | None
) -> tuple[list[Log], list[WorkerLog]]:
    """Return the logs that lie here, oldest first, and those that another host has.

    Args:
        database: That knows the workers.
        study: Whose workers.
        worker: Its name or a part of it that no other has; `supervisor`; None: the latest.

    Raises:
        UsageError: If there is no such worker, or the name means several.
    """
    known = worker_logs(database, study.id)
    supervisor = Log(SUPERVISOR, logs_folder(database, study.lasting_name) / LOG_NAME)
    if worker == SUPERVISOR:
        if not supervisor.path.exists():
            raise UsageError(
                f"Expected a supervisor's log at '{supervisor.path}', found none: it is written "
                f"by 'dlnn-search start {study.name} --detach' on this machine."
            )
        return [supervisor], []
    if worker is not None:
        known = [_named(known, worker, study)]
    here, elsewhere = [], []
    for entry in known:
        # A shared folder shows other hosts' logs, too.
        if entry.log is not None and Path(entry.log).exists():
            here.append(Log(entry.worker, Path(entry.log)))
        elif entry.host != socket.gethostname():
            elsewhere.append(entry)
    if worker is not None and not here and not elsewhere:
        raise UsageError(
            f"The worker '{known[0].worker}' left no log on this machine: "
            "one that was not started by 'dlnn-search start' writes to where it was started."
            if known[0].log is None
            else f"The log '{known[0].log}' of the worker '{known[0].worker}' is gone."
        )
    if worker is None:
        here, elsewhere = here[-N_LATEST:], elsewhere[-N_LATEST:]
        if supervisor.path.exists():
            here.insert(0, supervisor)
    return here, elsewhere


def _named(known: Sequence[WorkerLog], worker: str, study: StoredStudy) -> WorkerLog:
    exact = [entry for entry in known if entry.worker == worker]
    near = exact or [entry for entry in known if worker in entry.worker]
    if len(near) == 1:
        return near[0]
    names = [entry.worker for entry in (near or known)]
    if near:
        raise UsageError(
            f"Expected a worker of '{study.name}', got '{worker}', a part of several names: "
            f"{', '.join(names[-N_LATEST:])}."
        )
    raise UsageError(
        f"The study '{study.name}' has had no worker '{worker}'."
        + did_you_mean(worker, names[-N_LATEST:])
    )


def last_lines(log: Log, n: int) -> list[str]:
    """Return the last n lines of a log; none where it cannot be read."""
    try:
        with log.path.open(encoding="utf-8", errors="replace") as file:
            return [line.rstrip("\n") for line in deque(file, maxlen=n)]
    except OSError:
        return []


def follow(
    find: Callable[[], Sequence[Log]], has_ended: Callable[[], bool]
) -> Iterator[tuple[Log, str]]:
    """Yield each line written to the logs from now on, those of new workers from their start.

    Args:
        find: The logs to follow at this moment.
        has_ended: Whether nothing more is to come.
    """
    at = {log.path: _size(log.path) for log in find()}
    while True:
        ended = has_ended()
        for log in find():
            lines, at[log.path] = _lines_from(log.path, at.get(log.path, 0))
            for line in lines:
                yield log, line
        if ended:
            return
        time.sleep(FOLLOW_SECONDS)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _lines_from(path: Path, start: int) -> tuple[list[str], int]:
    """Return the whole lines behind an offset in bytes, and the offset behind them."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            text = file.read()
    except OSError:
        return [], start
    whole = text[: text.rfind(b"\n") + 1]
    return whole.decode("utf-8", errors="replace").splitlines(), start + len(whole)
