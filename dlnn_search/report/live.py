"""The live view of a search: redrawn in a terminal, plain lines where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dlnn_search.report.status import StudyStatus, WorkerStatus
from dlnn_search.report.words import duration, metric_name, metric_value

REDRAW_SECONDS = 1.0
#: Without a terminal: between two lines, unless a trial ended.
LINE_SECONDS = 15.0


class LiveView:
    """Draws a study's status while it is searched.

    Attributes:
        status: Reads the status from the database.
    """

    def __init__(self, console: Console, status: Callable[[], StudyStatus]) -> None:
        self._console = console
        self._status = status
        self._live: Live | None = None
        self._drawn = 0.0
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
            if kind is None:
                self._live.update(self._picture(self._status()), refresh=True)
            self._live.stop()
        elif kind is None:
            self._line(self._status())

    def say(self, message: str) -> None:
        """Print a message above the view."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    def refresh(self) -> None:
        """Draw anew, if the last drawing is old enough."""
        now = time.monotonic()
        if now - self._drawn < REDRAW_SECONDS:
            return
        status = self._status()
        if self._live is not None:
            self._live.update(self._picture(status), refresh=True)
        elif status.n_done != self._n_done or now - self._drawn >= LINE_SECONDS:
            self._line(status)
        else:
            return
        self._n_done = status.n_done
        self._drawn = now

    def _line(self, status: StudyStatus) -> None:
        """One line: budget, best, and what each worker is at."""
        at = "; ".join(_worker_words(worker, status.metric) for worker in status.workers)
        self._console.print(
            f"[{duration(time.monotonic() - self._started)}] {_budget_words(status)} | "
            f"{_best_words(status)} | {at or 'no worker yet'}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    def _picture(self, status: StudyStatus) -> Group:
        return Group(
            Text(f"{status.name}  {duration(time.monotonic() - self._started)}", style="bold"),
            Text(_budget_words(status)),
            # Padded, since a bar alone does not end its line.
            Padding(ProgressBar(total=max(1, status.budget), completed=status.n_done, width=60)),
            Text(_best_words(status), style="green" if status.best else "dim"),
            *self._workers(status),
        )

    def _workers(self, status: StudyStatus) -> list[Table | Text]:
        if not status.workers:
            starting = status.n_done < status.budget
            return [Text("workers are starting ...", style="dim")] if starting else []
        table = Table(box=None, pad_edge=False, header_style="dim", expand=False)
        for name in ("worker", "trial", "epoch", "", metric_name(status.metric), "img/s"):
            right = name not in ("worker", "")
            table.add_column(name, justify="right" if right else "left", no_wrap=True)
        for number, worker in enumerate(status.workers, start=1):
            table.add_row(*_row(number, worker, status.metric))
        return [table]


def _row(number: int, worker: WorkerStatus, metric: str) -> tuple[str | ProgressBar, ...]:
    if worker.state != "training" or worker.trial_number is None:
        return (f"{number} {worker.host}", "-", "", worker.state, "", "")
    epochs = worker.epochs or 1
    bar = ProgressBar(total=epochs, completed=(worker.epoch or 0), width=20)
    return (
        f"{number} {worker.host}",
        str(worker.trial_number),
        f"{worker.epoch or 0}/{epochs}",
        bar,
        "" if worker.value is None else metric_value(metric, worker.value),
        "" if worker.images_per_second is None else f"{worker.images_per_second:,.0f}",
    )


def _worker_words(worker: WorkerStatus, metric: str) -> str:
    if worker.state != "training" or worker.trial_number is None:
        return worker.state
    value = "" if worker.value is None else f" {metric_value(metric, worker.value)}"
    return f"trial {worker.trial_number} epoch {worker.epoch or 0}/{worker.epochs}{value}"


def _budget_words(status: StudyStatus) -> str:
    parts = [f"{status.n_done} of {status.budget} trials"]
    for key in ("pruned", "failed"):
        if status.counts.get(key):
            parts.append(f"{status.counts[key]} {key}")
    if status.remaining_seconds is not None:
        parts.append(f"about {duration(status.remaining_seconds)} left")
    return ", ".join(parts)


def _best_words(status: StudyStatus) -> str:
    if status.best is None or status.best.value is None:
        return "no result yet"
    value = metric_value(status.metric, status.best.value)
    return f"best {value} (trial {status.best.number}, epoch {status.best.best_epoch})"
