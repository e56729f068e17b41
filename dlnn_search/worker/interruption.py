"""What ends a worker's training before its time: signals, orders, memory that has grown."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import psutil

from dlnn_search.machine import usable_memory_bytes
from dlnn_search.storage.control import Orders

MEBIBYTE = 2**20
#: Twice the first trial's is no leak yet where that was tiny: networks differ in size.
LEAST_GROWTH_BYTES = 512 * MEBIBYTE
#: A worker that begins near its share of the machine must still be let train.
LEAST_GROWTH_FACTOR = 1.2
#: Of the machine's memory, for all workers together; the rest is the system's and file cache.
WORKERS_SHARE = 0.9


@dataclass
class MemoryWatch:
    """Remembers what a worker held after its first trial.

    Attributes:
        share_bytes: The worker's part of the machine's memory.
    """

    share_bytes: float
    _first_bytes: int | None = None

    def grown_words(self, held_bytes: int | None = None) -> str | None:
        """Return in words how much the worker has grown, if too much; call it after each trial.

        Args:
            held_bytes: Its resident memory; None asks the system.
        """
        held = psutil.Process().memory_info().rss if held_bytes is None else held_bytes
        if self._first_bytes is None:
            self._first_bytes = held
            return None
        limit = limit_bytes(self._first_bytes, self.share_bytes)
        if held <= limit:
            return None
        return (
            f"memory grew from {self._first_bytes / MEBIBYTE:,.0f} MiB after the first trial to "
            f"{held / MEBIBYTE:,.0f} MiB (limit {limit / MEBIBYTE:,.0f} MiB)"
        )


def limit_bytes(first_bytes: int, share_bytes: float) -> float:
    """Return how much a worker may hold that held `first_bytes` after its first trial.

    Twice that or 512 MiB more, but no more than its share of the machine; and in any case a
    fifth more than at first, or it would be replaced after each trial.
    """
    grown = max(2 * first_bytes, first_bytes + LEAST_GROWTH_BYTES)
    return max(min(grown, share_bytes), LEAST_GROWTH_FACTOR * first_bytes)


def share_bytes(n_workers: int) -> float:
    """Return one worker's part of what this process may use of the machine's memory."""
    return WORKERS_SHARE * usable_memory_bytes() / n_workers


#: Compose kills 10 s after SIGTERM, Slurm and Kubernetes after 30 s; giving a slot back takes one.
GRACE_SECONDS = 5.0
#: Two SIGTERMs within that time are one: Slurm sends one to each process, and a supervisor passes
#: its own on.
SAME_SECONDS = 1.0


class Interruption:
    """Whether training should end, asked after each epoch; it ends late epochs by itself."""

    def __init__(self, *, alone: bool = True) -> None:
        """Begin with nothing asked; `alone` where no supervisor looks after this worker."""
        self._parent = None if alone else os.getppid()
        self._by_signal = False
        self._heard_at = 0.0
        self._orders = Orders("run")
        self._now = False
        self._may_raise = False
        self._alarm = False

    def __call__(self) -> bool:
        """Whether a training that is under way should end with its epoch, and be kept."""
        orders = self._orders
        return self._by_signal or orders.time_is_up or orders.control in ("pause", "stop_now")

    @property
    def by_signal(self) -> bool:
        """Whether this process was asked to end."""
        return self._by_signal

    @property
    def now(self) -> bool:
        """Whether the epoch was given up, too: errors that arise by that mean nothing."""
        return self._now

    @property
    def trial_timeout_seconds(self) -> float | None:
        """How long a trial may train, as far as this worker knows; None: there is no limit."""
        return self._orders.trial_timeout_seconds

    def hear(self, orders: Orders) -> None:
        """Take what the study's workers are asked to do, as of now."""
        self._orders = orders
        if orders.control == "stop_now":
            self._set_alarm()
        elif not self._by_signal:
            self._stop_alarm()

    def begin_anew(self) -> None:
        """Forget what was asked of an earlier training: a slot was given, so the study runs."""
        self._orders = Orders("run", trial_timeout_seconds=self.trial_timeout_seconds)
        if not self._by_signal:
            self._now = False
            self._stop_alarm()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear signals; leave them afterwards to whoever had them.

        A process that was asked to end hears them to its end: what it still has to do, such as
        closing the database, is not cut by the next one.
        """
        signals = {
            signal.SIGINT: self._hear_signal,
            signal.SIGTERM: self._hear_signal,
            signal.SIGALRM: self._end_now,
        }
        previous = {number: signal.signal(number, handler) for number, handler in signals.items()}
        try:
            yield
        finally:
            self._stop_alarm()
            if not self._by_signal:
                for number, handler in previous.items():
                    signal.signal(number, handler)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Let the epoch be given up inside: a KeyboardInterrupt then comes out.

        Outside, where a result is stored or a slot given back, nothing is cut in two.
        """
        self._may_raise = True
        try:
            if self._now:
                raise KeyboardInterrupt
            yield
        finally:
            self._may_raise = False

    def _hear_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._by_signal:
            self._by_signal, self._heard_at = True, time.monotonic()
            # Whose parent is another than at first has lost its supervisor.
            if number == signal.SIGTERM and os.getppid() != self._parent:
                self._set_alarm()
        elif number != signal.SIGTERM or time.monotonic() - self._heard_at > SAME_SECONDS:
            self._end_now(number, frame)

    def _end_now(self, number: int, frame: FrameType | None) -> None:
        self._now = True
        if self._may_raise:
            self._may_raise = False  # once: what cleans up after it is not cut, too
            raise KeyboardInterrupt

    def _set_alarm(self) -> None:
        if not self._alarm:
            self._alarm = True
            signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)

    def _stop_alarm(self) -> None:
        if self._alarm:
            self._alarm = False
            signal.setitimer(signal.ITIMER_REAL, 0)
