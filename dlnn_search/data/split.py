"""A split: some rows of a memory-mapped array of pictures, with their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Split:
    """Pictures and labels of one split; the pictures stay in the shared file until taken.

    Attributes:
        images: All pictures of the data set that the split's user may see, uint8, read-only and
            memory-mapped: the workers of a machine share one copy. Shape (n_all, height, width),
            or (n_all, height, width, channels) where there are more channels than one.
        rows: The split's rows of `images`, shape (n,), int64.
        labels: The split's labels, in the order of `rows`: shape (n,) with the class, or (n, 2)
            with hour (0-11) and minute (0-59); uint8.
    """

    images: NDArray[np.uint8]
    rows: NDArray[np.int64]
    labels: NDArray[np.uint8]

    def __post_init__(self) -> None:
        if len(self.rows) != len(self.labels):
            raise ValueError(
                f"Expected a label for each of {len(self.rows)} rows, got {len(self.labels)}."
            )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height and width in pixels, and channels where there are more than one."""
        return self.images.shape[1:]

    def take(self, positions: NDArray[np.int64] | slice) -> NDArray[np.uint8]:
        """Return a copy of the pictures at these positions, (n, *image_shape)."""
        return self.images[self.rows[positions]]

    def batch(self, positions: NDArray[np.int64] | slice) -> NDArray[np.uint8]:
        """Return a copy as a network takes it, (n, height, width, channels)."""
        pictures = self.take(positions)
        return pictures if pictures.ndim == 4 else pictures[..., None]


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What a search may see of a data set: never its test split."""

    train: Split
    validation: Split
    curriculum: tuple[Split, ...] = ()
    """Rendered clocks for each stage of a config's curriculum."""


class TestOpening(Protocol):
    """A ledger's entry that is about to be written: the only key to a test split."""

    def record(self) -> None:
        """Write the entry so that it lasts.

        Raises:
            StorageError: If it could not be written; the test split stays closed then.
        """
