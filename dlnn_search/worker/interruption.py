"""What ends a worker's training before its time: signals, and what the study's workers are asked.

A first SIGINT (Ctrl-C, with a person who can wait) lets the epoch end. SIGTERM (Slurm,
Kubernetes, compose, which kill soon after) and `stop --now` let it end if it does within
`GRACE_SECONDS`; else what the epoch had so far is dropped, and the checkpoint of the last one is
gone on from. A second signal drops it at once. Under a supervisor that lives, the supervisor
counts the seconds: it knows whether a person or a killer asks.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dlnn_search.storage.control import Orders

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

    def hear(self, orders: Orders) -> None:
        """Take what the study's workers are asked to do, as of now."""
        self._orders = orders
        if orders.control == "stop_now":
            self._set_alarm()
        elif not self._by_signal:
            self._stop_alarm()

    def begin_anew(self) -> None:
        """Forget what was asked of an earlier training: a slot was given, so the study runs."""
        self._orders = Orders("run")
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
