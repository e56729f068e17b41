"""Data sets: found, prepared once a machine, split; the test split behind a ledger's entry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlnn_search.data.loading import (
        image_shape,
        load,
        load_folds,
        load_test,
        prepare_data,
        resolve,
    )
    from dlnn_search.data.splits import Split, TestOpening, TrainingData

__all__ = [
    "Split",
    "TestOpening",
    "TrainingData",
    "image_shape",
    "load",
    "load_folds",
    "load_test",
    "prepare_data",
    "resolve",
]


def __getattr__(name: str) -> Any:
    # Looked up when first used: NumPy and pydantic take a quarter of a second to import.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dlnn_search.data import loading
    from dlnn_search.data import splits as split

    found = getattr(loading if hasattr(loading, name) else split, name)
    globals()[name] = found
    return found
