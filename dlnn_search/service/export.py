"""The use case `export`: the best trials as configs, one file each."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from dlnn_search import __version__
from dlnn_search.config import Config, Origin
from dlnn_search.errors import StorageError, UsageError
from dlnn_search.report.status import TrialStatus, best_trials
from dlnn_search.storage.database import Database
from dlnn_search.storage.definitions import StoredStudy


def export_best(database: Database, study: StoredStudy, n: int, path: Path) -> list[Path]:
    """Write the n best complete trials' configs: `best.json`, then `best-2.json`, and so on.

    Raises:
        UsageError: If the study has fewer complete trials, or the folder does not exist.
        StorageError: If a file cannot be written.
    """
    if n < 1:
        raise UsageError(f"Expected at least 1 config to export, got --top {n}.")
    if not path.parent.is_dir():
        raise UsageError(f"There is no folder '{path.parent}' to write '{path.name}' into.")
    if path.is_dir():
        raise UsageError(f"Expected a file to write, got the folder '{path}': -o {path}/best.json")
    trials = best_trials(database, study, n)
    if len(trials) < n:
        came = f"{len(trials)} complete trial{'s' if len(trials) != 1 else ''}"
        raise UsageError(
            f"Expected at least {n} complete trial{'s' if n != 1 else ''} of '{study.name}', "
            f"it has {came}. Search on with 'dlnn-search start {study.name}'."
        )
    paths = [
        path if rank == 1 else path.with_name(f"{path.stem}-{rank}{path.suffix}")
        for rank in range(1, n + 1)
    ]
    for trial, target in zip(trials, paths, strict=True):
        write_whole(target, config_of(study, trial).to_json())
    return paths


def config_of(study: StoredStudy, trial: TrialStatus) -> Config:
    """Return a trial's config with its origin."""
    origin = Origin(
        study=study.name,
        trial=trial.number,
        metric=study.metric,
        value=trial.value if trial.value is not None else 0.0,
        epoch=trial.best_epoch,
        dlnn_search_version=__version__,
    )
    return Config.model_validate({**(trial.config or {}), "origin": origin})


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise StorageError(f"Cannot write '{path}': {error.strerror or error}.") from error
