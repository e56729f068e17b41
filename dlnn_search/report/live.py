"""The live view of a search: redrawn in a terminal, plain lines where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from dlnn_search.errors import StorageError
from dlnn_search.report.study_view import best_words, budget_words, picture, worker_words
from dlnn_search.results.status import StudyStatus
from dlnn_search.words import duration

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
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)

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
