"""A study's status as people and programs see it: live, once, or as JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dlnn_search.errors import StorageError, as_text, one_line
from dlnn_search.metrics import duration, metric_name, metric_value
from dlnn_search.report.tables import print_indented, say, short, table_of
from dlnn_search.results.status import StudyStatus
from dlnn_search.storage.budget import BudgetUse, duration_words, time_words
from dlnn_search.storage.control import in_short
from dlnn_search.storage.studies import StoredStudy
from dlnn_search.storage.workers import Event, WorkerStatus

#: What the table of workers leaves out first where it does not fit: its bars, then the rest.
LEFT_OUT = ("", "lease age", "memory", "img/s", "on")
BAR_COLUMNS = 16
#: Between two columns of a table.
GAP_COLUMNS = 2
#: A longer host's name is cut: the tables of a cluster's hosts differ at their ends.
HOST_CHARACTERS = 22
#: Of a failure's reason or an event, in a list.
REASON_CHARACTERS = 200
FAILURE_WORDS = {
    "diverged": "diverged",
    "out_of_memory": "out of memory",
    "lost": "lost (killed or hung)",
    "bug": "bug",
    "timeout": "without an epoch within --trial-timeout",
    "infeasible": "infeasible (the space refuses them)",
    "other": "failed",
}
STATE_STYLES = {"troubled": "bold yellow", "paused": "yellow", "waiting": "dim", "starting": "dim"}


def picture(
    status: StudyStatus,
    width: int,
    *,
    elapsed: float | None = None,
    events: Sequence[Event] = (),
    advice: Sequence[str] = (),
) -> Group:
    """Return all of it, to be drawn once or again and again.

    Args:
        status: To show.
        width: Of the terminal, in columns.
        elapsed: Seconds since the search was begun here; None leaves it out.
        events: The latest, oldest first.
        advice: Sentences.
    """
    head = Text(status.name, style="bold")
    if elapsed is not None:
        head.append(f"  {duration(elapsed)}")
    parts: list[RenderableType] = [head]
    limits = [limits_words(status.use)]
    if status.trial_timeout_seconds is not None:
        limits.append(f"each trial at most {duration_words(status.trial_timeout_seconds)}")
    for words in (budget_words(status), ", ".join(filter(None, limits))):
        parts += [Text(line) for line in _broken(words.split(", "), ", ", width)]
    # Padded, since a bar alone does not end its line.
    bar = ProgressBar(total=max(1, status.budget), completed=status.n_done, width=min(60, width))
    parts += [
        Padding(bar, expand=False),
        *_best(status, width),
        *(Text(line, style="bold yellow") for line in control_lines(status)),
        *_workers(status, width),
        *_troubles(status),
        *(Text(line, style="red") for line in failure_lines(status)),
    ]
    if events:
        parts.append(Text("Recent events", style="dim"))
        parts += [Text(f"  {line}", style="dim") for line in event_lines(events)]
    parts += [Text(f"→ {sentence}", style="bold yellow") for sentence in advice]
    return Group(*parts)


def _broken(parts: Sequence[str], between: str, width: int) -> list[str]:
    """Return the parts in as few lines as they fit into; none is broken itself."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(between) + len(part) <= width:
            lines[-1] += between + part
        elif part:
            lines.append(part)
    return lines


def _best(status: StudyStatus, width: int) -> list[Text]:
    """Return the best value so far and, cut to one line, the parameters that it has."""
    style = "green" if status.best else "dim"
    lines = [Text(best_words(status), style, no_wrap=True, overflow="ellipsis")]
    if status.best_params:
        params = [f"{name}={short(value, 3)}" for name, value in status.best_params.items()]
        shown = _broken(params, " ", width - len("   …"))
        cut = " …" if len(shown) > 1 else ""
        lines.append(Text(f"  {shown[0]}{cut}", "dim", no_wrap=True, overflow="ellipsis"))
    return lines


def budget_words(status: StudyStatus) -> str:
    """Return `12 of 40 trials, 3 pruned, about 2 h 10 min left`."""
    parts = [f"{status.n_done} of {status.budget} trials"]
    for key in ("pruned", "failed"):
        if status.counts.get(key):
            parts.append(f"{status.counts[key]} {key}")
    if n_waiting := status.counts.get("waiting"):
        parts.append(f"{n_waiting} waiting for another trial")
    if status.remaining_seconds is not None:
        parts.append(f"about {duration(status.remaining_seconds)} left")
    return ", ".join(parts)


def limits_words(use: BudgetUse) -> str:
    """Return what is used of each limit of time; empty without any."""
    parts = []
    if use.wall_seconds is not None:
        parts.append(f"wall time {_used(use.wall_used_seconds, use.wall_seconds)}")
    if use.worker_seconds is not None:
        parts.append(f"worker-hours {_used(use.worker_used_seconds, use.worker_seconds)}")
    if use.deadline_at is not None:
        left = use.deadline_at - use.now
        at = time_words(use.deadline_at)
        parts.append(f"deadline {at}" + (f" (in {duration(left)})" if left > 0 else " (over)"))
    return ", ".join(parts)


def _used(used: float, of: float) -> str:
    return f"{duration(min(used, of))} of {duration(of)}"


def best_words(status: StudyStatus) -> str:
    """Return the best value so far, and whose it is."""
    if status.best is None or status.best.value is None:
        return "no result yet"
    value = metric_value(status.metric, status.best.value)
    return f"best {value} (trial {status.best.number}, epoch {status.best.best_epoch})"


def control_lines(status: StudyStatus) -> list[str]:
    """Return what the workers are asked to do, if not simply to go on, and why none may begin."""
    n = len(status.workers)
    who = (
        "no worker is running"
        if not n
        else "its worker waits"
        if n == 1
        else f"its {n} workers wait"
    )
    words = {
        "pause": f"Paused: {who}. 'dlnn-search resume {status.name}' lets them go on.",
        "stop": "Stopped: running trials finish, and no new one starts.",
        "stop_now": "Stopped: the workers keep their checkpoints and end.",
    }
    lines = [words[status.control]] if status.control in words else []
    if status.control_reason:
        lines.append(f"  {_short(in_short(status.control_reason))}")
    if status.use.exhausted_by not in (None, "trials"):
        lines.append(f"The budget is {status.use.exhausted}.")
    return lines


def failure_lines(status: StudyStatus) -> list[str]:
    """Return a line for each kind of failure, with the last one's reason."""
    return [
        f"{failure.n} {FAILURE_WORDS.get(failure.kind, failure.kind)}, last trial "
        f"{'-' if failure.last_trial is None else failure.last_trial}: "
        f"{_short(failure.last_reason)}"
        for failure in status.failures
    ]


def event_lines(events: Sequence[Event]) -> list[str]:
    """Return a line for each event, with its time of day here."""
    return [
        f"{time.strftime('%m-%d %H:%M:%S', time.localtime(event.at))} {_short(event.words)}"
        for event in events
    ]


def _workers(status: StudyStatus, width: int) -> list[RenderableType]:
    if not status.workers:
        starting = status.use.exhausted_by is None and status.control == "run"
        return [Text("no worker yet", style="dim")] if starting else []
    metric = metric_name(status.metric)
    rows = [_cells(worker, status.metric) for worker in status.workers]
    needed = {
        name: max(len(name), *(_columns(row[name]) for row in rows)) + GAP_COLUMNS
        for name in ("worker", "on", "trial", "epoch", "", metric, "img/s", "lease age", "memory")
    }
    for name in LEFT_OUT:
        if sum(needed.values()) - GAP_COLUMNS > width:
            del needed[name]
    table = Table(box=None, pad_edge=False, header_style="dim", expand=False, padding=(0, 1))
    for name in needed:
        left = name in ("worker", "on", "")
        table.add_column(
            name, justify="left" if left else "right", no_wrap=True, overflow="ellipsis"
        )
    for row in rows:
        table.add_row(*(row[name] for name in needed))
    return [table]


def _columns(cell: RenderableType) -> int:
    return BAR_COLUMNS if isinstance(cell, ProgressBar) else len(str(cell))


def _cells(worker: WorkerStatus, metric: str) -> dict[str, RenderableType]:
    memory = "" if worker.memory_bytes is None else f"{worker.memory_bytes / 2**30:.1f} GiB"
    where = worker.host[:HOST_CHARACTERS] + ("" if worker.gpu is None else f" GPU {worker.gpu}")
    cells: dict[str, RenderableType] = {
        "worker": worker.short_name,
        "on": where,
        "memory": memory,
        "trial": "-",
        "epoch": Text(worker.state, style=STATE_STYLES.get(worker.state, "")),
        "": "",
        metric_name(metric): "",
        "img/s": "",
        "lease age": "",
    }
    if worker.state != "training" or worker.trial_number is None:
        return cells
    epochs = worker.epochs or 1
    return cells | {
        "trial": str(worker.trial_number),
        "epoch": f"{worker.epoch or 0}/{epochs}",
        "": ProgressBar(total=epochs, completed=worker.epoch or 0, width=BAR_COLUMNS),
        metric_name(metric): "" if worker.value is None else metric_value(metric, worker.value),
        "img/s": "" if not worker.images_per_second else f"{worker.images_per_second:,.0f}",
        "lease age": _age(worker.lease_age_seconds),
    }


def _age(seconds: float | None) -> Text:
    """Return how long ago the last batches were done: a worker that hangs stands out."""
    if seconds is None:
        return Text("")
    # A second at most between two renewals, and batches that take a while.
    style = "dim" if seconds < 10 else "yellow" if seconds < 60 else "bold red"
    return Text(f"{duration(max(0.0, seconds))}", style=style)


def _troubles(status: StudyStatus) -> list[Text]:
    return [
        Text(f"{worker.short_name} on {worker.where}: {_short(worker.message)}", style="yellow")
        for worker in status.workers
        if worker.state == "troubled" and worker.message
    ]


def worker_words(worker: WorkerStatus, metric: str) -> str:
    """Return what a worker is at, for a line without a terminal."""
    if worker.state != "training" or worker.trial_number is None:
        return worker.state
    value = "" if worker.value is None else f" {metric_value(metric, worker.value)}"
    return f"trial {worker.trial_number} epoch {worker.epoch or 0}/{worker.epochs}{value}"


def studies_table(statuses: Sequence[StudyStatus]) -> Table:
    """Return one row a study."""
    titles = ("study", "state", "trials", "workers", "best", "pruned", "failed", "left")
    table = table_of(titles, ["study", "state"])
    for status in statuses:
        best = status.best.value if status.best is not None else None
        left_seconds = status.remaining_seconds
        table.add_row(
            status.name,
            state_words(status),
            f"{status.n_done}/{status.budget}",
            str(len(status.workers)),
            "-" if best is None else metric_value(status.metric, best),
            str(status.counts.get("pruned", 0)),
            str(status.counts.get("failed", 0)),
            "-" if left_seconds is None else duration(left_seconds),
        )
    return table


def print_stored(console: Console, studies: Sequence[tuple[StoredStudy, StudyStatus, str]]) -> None:
    """Print each study of a database: how it stands, and below it where it is from."""
    width = max(len(stored.name) for stored, _, _ in studies)
    for stored, status, origin in studies:
        best = "no value yet"
        if status.best is not None and status.best.value is not None:
            best = f"best {metric_value(status.metric, status.best.value)}"
        words = f"{state_words(status)}, {status.n_done} of {status.budget} trials"
        say(
            console,
            f"{stored.name:<{width}}  {words}, {status.direction} {metric_name(status.metric)}, "
            f"{best}",
        )
        print_indented(console, origin)


def state_words(status: StudyStatus) -> str:
    """Return in a word or two how a study stands: running, paused, stopped, done, idle."""
    if status.use.exhausted_by == "trials":
        return "done"
    if status.control == "pause":
        return "paused"
    if status.control in ("stop", "stop_now"):
        return "stopping" if status.workers else "stopped"
    if status.use.exhausted_by is not None:
        return f"out of {status.use.exhausted_by}"
    return "running" if status.workers else "idle"


def _short(text: str | None) -> str:
    line = one_line(text or "")
    return line if len(line) <= REASON_CHARACTERS else f"{line[: REASON_CHARACTERS - 1]}…"


#: Counted up when a field changes its meaning or goes.
FORMAT_VERSION = 1


def status_json(
    status: StudyStatus, events: Sequence[Event], advice: Sequence[str]
) -> dict[str, Any]:
    """Return one study's status as plain data."""
    best, used = status.best, asdict(status.use)
    at, deadline = used.pop("now"), used.pop("deadline_at")
    return {
        "format": FORMAT_VERSION,
        "study": status.name,
        "state": state_words(status),
        "control": status.control,
        "control_reason": status.control_reason,
        "metric": status.metric,
        "direction": status.direction,
        "at": _time(at),
        "seconds_left": status.remaining_seconds,
        "budget": {
            **used,
            "deadline": _time(deadline),
            "exhausted_by": status.use.exhausted_by,
        },
        "trial_timeout_seconds": status.trial_timeout_seconds,
        "trials": {
            key: status.counts.get(key, 0)
            for key in ("complete", "pruned", "failed", "held", "waiting", "open")
        },
        "best": best
        and {
            "trial": best.number,
            "value": best.value,
            "epoch": best.best_epoch,
            "epochs": best.epochs_done,
            "params": dict(status.best_params),
        },
        "failures": [asdict(failure) for failure in status.failures],
        "workers": [_worker(worker) for worker in status.workers],
        "events": [
            {"at": _time(one.at), "kind": one.kind, "worker": one.worker, "words": one.words}
            for one in events
        ],
        "advice": list(advice),
    }


def _worker(worker: WorkerStatus) -> dict[str, Any]:
    told = asdict(worker)
    del told["age_seconds"], told["share"]
    told["trial"] = told.pop("trial_number")
    if worker.state != "training":
        told |= dict.fromkeys(("trial", "epoch", "epochs", "value"))
    return told


def _time(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


REDRAW_SECONDS = 1.0
#: Without a terminal: between two lines, unless a trial ended.
LINE_SECONDS = 15.0
#: The same in a log that grows for days.
BACKGROUND_LINE_SECONDS = 60.0


class LiveView:
    """Draws a study's status while it is searched.

    Attributes:
        status: Reads the status from the database.
    """

    def __init__(
        self,
        console: Console,
        status: Callable[[], StudyStatus],
        *,
        in_background: bool = False,
    ) -> None:
        self._line_seconds = BACKGROUND_LINE_SECONDS if in_background else LINE_SECONDS
        self._last: StudyStatus | None = None
        self._console = console
        self._status = status
        self._live: Live | None = None
        self._drawn = 0.0
        self._looked = 0.0
        self._n_done = -1
        self._started = time.monotonic()

    def __enter__(self) -> LiveView:
        self._started = time.monotonic()
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            with suppress(StorageError):  # away: the last picture stays
                if kind is None:
                    self._live.update(self._picture(self._status()), refresh=True)
            self._live.stop()
        elif kind is None:
            with suppress(StorageError):
                self._line(self._status())

    def say(self, message: str) -> None:
        """Print a message above the view."""
        self._console.print(as_text(message), highlight=False, markup=False, soft_wrap=True)

    def refresh(self) -> None:
        """Draw anew, if the last look is old enough."""
        now = time.monotonic()
        # Looks and not drawings: without a terminal few are drawn, and five looks a second cost
        # a twentieth of a core.
        if now - self._looked < REDRAW_SECONDS:
            return
        self._looked = now
        status = self._last = self._status()
        if self._live is not None:
            self._live.update(self._picture(status), refresh=True)
        elif status.n_done != self._n_done or now - self._drawn >= self._line_seconds:
            self._line(status)
        else:
            return
        self._n_done = status.n_done
        self._drawn = now

    def show_away(self, seconds: float) -> None:
        """Show that the database has not answered for that long, beside what was known then."""
        now = time.monotonic()
        words = f"database away since {duration(seconds)}; workers train on"
        if self._live is not None and now - self._drawn >= REDRAW_SECONDS:
            before = [] if self._last is None else [self._picture(self._last)]
            self._live.update(Group(*before, Text(words, style="bold yellow")), refresh=True)
        elif self._live is None and now - self._drawn >= LINE_SECONDS:
            self.say(f"[{duration(now - self._started)}] {words}")
        else:
            return
        self._drawn = now

    def _line(self, status: StudyStatus) -> None:
        """One line: budget, best, and what each worker is at."""
        at = "; ".join(worker_words(worker, status.metric) for worker in status.workers)
        nobody = "workers done" if status.n_done == status.budget else "no worker yet"
        self._console.print(
            f"[{duration(time.monotonic() - self._started)}] {budget_words(status)} | "
            f"{best_words(status)} | {at or nobody}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    def _picture(self, status: StudyStatus) -> Group:
        elapsed = time.monotonic() - self._started
        return picture(status, self._console.width, elapsed=elapsed)
