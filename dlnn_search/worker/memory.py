"""When a worker has grown so much that a fresh process should go on in its place.

TensorFlow keeps memory across the trials of a process, whatever is cleared
(tensorflow#61791, #36465): only the process's end gives it back.
"""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from dlnn_search.machine import usable_memory_bytes

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
