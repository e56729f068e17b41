"""Preparation shown to whoever waits for it: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

#: Without a terminal, a line is written each time this share of the work is done.
LINE_EVERY_PERCENT = 20


@dataclass(frozen=True)
class Progress:
    """How far a preparation is; `total` 0: nothing to count, `what` is all there is to say."""

    what: str
    done: int = 0
    total: int = 0


OnProgress = Callable[[Progress], None]


class ProgressDisplay:
    """Draws `Progress` on standard error; draws nothing as long as nothing comes in."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._percents: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __call__(self, progress: Progress) -> None:
        """Show it."""
        if sys.stderr.isatty():
            self._draw(progress)
        else:
            self._write_line(progress)

    def _draw(self, progress: Progress) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(console=Console(stderr=True))
            self._bar.start()
        if progress.total == 0:
            self._bar.console.print(progress.what, highlight=False, markup=False)
            return
        if progress.what not in self._tasks:
            from rich.markup import escape

            self._tasks[progress.what] = self._bar.add_task(escape(progress.what))
        self._bar.update(self._tasks[progress.what], completed=progress.done, total=progress.total)

    def _write_line(self, progress: Progress) -> None:
        if progress.total == 0:
            print(progress.what, file=sys.stderr, flush=True)
            return
        percent = 100 * progress.done // progress.total
        last = self._percents.get(progress.what, -LINE_EVERY_PERCENT)
        if percent >= last + LINE_EVERY_PERCENT or (percent == 100 and last < 100):
            self._percents[progress.what] = percent
            print(f"{progress.what}: {percent} %", file=sys.stderr, flush=True)
