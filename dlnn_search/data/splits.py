"""Splits: stratified choices of rows that are the same everywhere, and the rows themselves."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from dlnn_search.errors import DataError


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


if TYPE_CHECKING:
    from numpy.typing import NDArray

MINUTES_AN_HOUR = 60


def strata_of(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return what a split is balanced by: the class, or the time in minutes since 12:00.

    Args:
        labels: Classes, shape (n,), or hours and minutes, shape (n, 2).

    Returns:
        Shape (n,), int64.
    """
    whole = labels.astype(np.int64)
    return whole if whole.ndim == 1 else whole[:, 0] * MINUTES_AN_HOUR + whole[:, 1]


def choose(
    strata: NDArray[np.int64], n_chosen: int, *, seed: int, purpose: str
) -> NDArray[np.bool_]:
    """Choose exactly `n_chosen` rows, from each stratum in proportion to its size.

    Where the counts do not divide, the largest remainders get one row more (Hamilton's method);
    ties fall at random.

    Args:
        strata: The stratum of each row, shape (n,).
        n_chosen: How many rows to choose, 0 to n.
        seed: Which choice; the same seed chooses the same rows everywhere.
        purpose: Keeps the choices made with one seed independent of each other.

    Returns:
        Which rows are chosen, shape (n,).

    Raises:
        ValueError: If `n_chosen` is not in [0, n].
    """
    n = len(strata)
    if not 0 <= n_chosen <= n:
        raise ValueError(f"Expected to choose 0 to {n} rows, got {n_chosen}.")
    _, stratum, counts = np.unique(strata, return_inverse=True, return_counts=True)
    quotas, remainders = np.divmod(counts * n_chosen, max(n, 1))
    ties = _random_keys(len(counts), seed, f"{purpose}, ties")
    favoured = np.lexsort((ties, -remainders))[: n_chosen - int(quotas.sum())]
    quotas[favoured] += 1

    order = np.lexsort((_random_keys(n, seed, purpose), stratum))
    starts = np.cumsum(counts) - counts
    place_in_stratum = np.empty(n, np.int64)
    place_in_stratum[order] = np.arange(n) - starts[stratum[order]]
    chosen: NDArray[np.bool_] = place_in_stratum < quotas[stratum]
    return chosen


def shuffled(rows: NDArray[np.int64], *, seed: int, purpose: str) -> NDArray[np.int64]:
    """Return the rows in random order, the same for the same seed and purpose."""
    return rows[np.argsort(_random_keys(len(rows), seed, purpose), kind="stable")]


def split_rows(
    labels: NDArray[np.uint8], *, validation: float, n_training: int | None, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split the rows that a search may see into training and validation.

    Args:
        labels: Of all rows that the test split leaves, shape (n,) or (n, 2).
        validation: Share of the rows to validate on; does not depend on `n_training`.
        n_training: Train on that many of the others only; None: on all of them.
        seed: The config's `split_seed`.

    Returns:
        Rows to train on and rows to validate on, each shuffled, shape (n_split,), int64.

    Raises:
        DataError: If a split would be empty, or there are not enough rows to train on.
    """
    strata = strata_of(labels)
    n_validation = round(validation * len(labels))
    n_left = len(labels) - n_validation
    if n_validation == 0 or n_left == 0:
        raise DataError(
            f"A validation share of {validation} leaves {n_validation:,} of {len(labels):,} "
            f"pictures to validate on and {n_left:,} to train on: expected some for each. "
            f"Choose another `validation`."
        )
    if n_training is not None and n_training > n_left:
        raise DataError(
            f"Expected `n_training` of at most {n_left:,} (what validation leaves of "
            f"{len(labels):,} pictures), got {n_training:,}. Lower it or `validation`."
        )
    validates = choose(strata, n_validation, seed=seed, purpose="validation")
    rows_validation = np.flatnonzero(validates)
    rows_train = np.flatnonzero(~validates)
    if n_training is not None:
        taken = choose(strata[rows_train], n_training, seed=seed, purpose="training subset")
        rows_train = rows_train[taken]
    return (
        shuffled(rows_train, seed=seed, purpose="order of training"),
        shuffled(rows_validation, seed=seed, purpose="order of validation"),
    )


def fold_rows(
    labels: NDArray[np.uint8], *, n_folds: int, n_training: int | None, seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Split the rows that a search may see into folds, each validated on once.

    Every stratum is spread over the folds as evenly as its size allows, and so are all rows.

    Args:
        labels: Of all rows that the test split leaves, shape (n,) or (n, 2).
        n_folds: At least 2.
        n_training: Train on that many of the other folds' rows only; None: on all of them.
        seed: The config's `split_seed`.

    Returns:
        For each fold, rows to train on and rows to validate on, each shuffled, int64.

    Raises:
        DataError: If there are fewer rows than folds, or not enough to train on.
    """
    strata, n = strata_of(labels), len(labels)
    if not 2 <= n_folds <= n:
        raise DataError(f"Expected 2 to {n:,} folds of {n:,} pictures, got {n_folds}.")
    # Dealt out like cards, stratum after stratum, going on with the fold where the last ended.
    order = np.lexsort((_random_keys(n, seed, "folds"), strata))
    fold_of = np.empty(n, np.int64)
    fold_of[order] = np.arange(n) % n_folds
    folds = []
    for fold in range(n_folds):
        rows_train = np.flatnonzero(fold_of != fold)
        if n_training is not None:
            if n_training > len(rows_train):
                raise DataError(
                    f"Expected `n_training` of at most {len(rows_train):,} (what one of {n_folds} "
                    f"folds leaves of {n:,} pictures), got {n_training:,}. Lower it."
                )
            purpose = f"training subset of fold {fold}"
            taken = choose(strata[rows_train], n_training, seed=seed, purpose=purpose)
            rows_train = rows_train[taken]
        folds.append(
            (
                shuffled(rows_train, seed=seed, purpose=f"order of training in fold {fold}"),
                shuffled(
                    np.flatnonzero(fold_of == fold),
                    seed=seed,
                    purpose=f"order of validation in fold {fold}",
                ),
            )
        )
    return folds


def _random_keys(n: int, seed: int, purpose: str) -> NDArray[np.uint64]:
    # Raw words of a bit generator are the only random numbers that NumPy promises to keep
    # (NEP 19); `Generator.permutation` may change with a release, and the test split with it.
    sequence = np.random.SeedSequence([seed, zlib.crc32(purpose.encode())])
    keys: NDArray[np.uint64] = np.random.PCG64(sequence).random_raw(n)
    return keys
