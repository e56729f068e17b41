"""The order in which images are seen, and their way from the shared file into a batch."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dlnn_search.data.split import Split

Images = NDArray[np.uint8]
Targets = NDArray[np.int32]


def epoch_order(n_images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of an epoch's images: a permutation that (seed, epoch) alone decides.

    So a resumed training sees exactly what an uninterrupted one would have seen.

    Args:
        n_images: Of the split.
        seed: Of the training.
        epoch: Counted from 1.

    Returns:
        Positions in the split, shape (n_images,).
    """
    return np.random.default_rng([seed, epoch]).permutation(n_images)


class Prefetch:
    """Hands out consecutive pieces of a split, gathering the next one in a thread.

    Pieces stay uint8, and only two are in memory at a time: a worker's memory does not depend
    on the size of the data set. Gathering is a copy of bytes, hidden behind the training of the
    piece before.
    """

    def __init__(self, split: Split, targets: Targets, order: NDArray[np.int64]) -> None:
        self._split = split
        self._targets = targets
        self._order = order
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dlnn-feed")
        self._ahead: tuple[int, int, Future[tuple[Images, Targets]]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def piece(self, start: int, stop: int, *, then: int) -> tuple[Images, Targets]:
        """Return the images and targets from `start` to `stop`, and begin to gather up to `then`.

        Returns:
            Images (stop - start, height, width, channels), uint8; targets (stop - start,
            outputs), int32.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[:2] == (start, stop):
            found = ahead[2].result()
        else:
            found = self._gather(start, stop)
        if then > stop:
            self._ahead = (stop, then, self._thread.submit(self._gather, stop, then))
        return found

    def _gather(self, start: int, stop: int) -> tuple[Images, Targets]:
        positions = self._order[start:stop]
        return self._split.batch(positions), self._targets[positions]
