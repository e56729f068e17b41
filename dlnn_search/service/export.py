"""The use case `export`: the best trials as configs, one file each."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dlnn_search import __version__
from dlnn_search.config import Config, Origin
from dlnn_search.errors import StorageError, UsageError
from dlnn_search.report.confirmation import (
    Candidate,
    Confirmation,
    confirmation,
    interval_words,
)
from dlnn_search.report.status import TrialStatus, best_trials
from dlnn_search.report.words import metric_name, metric_value
from dlnn_search.storage.database import Database
from dlnn_search.storage.definitions import StoredStudy
from dlnn_search.storage.links import parent_of


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
        paths: Of the files, best first.
        words: Whether the first one is confirmed, and what to do if not.
    """

    paths: list[Path]
    words: str


def check_wishes(n: int, config: Path, model: Path | None) -> None:
    """Refuse what cannot be meant, before a file is written.

    Args:
        n: How many configs.
        config: The first one's file.
        model: The file of a model, if one is wanted.

    Raises:
        UsageError: If a file is a folder, or in none, or the model's does not end in `.keras`.
    """
    if n < 1:
        raise UsageError(f"Expected at least 1 config to export, got --top {n}.")
    if model is not None and model.suffix != ".keras":
        raise UsageError(f"Expected a file that ends in .keras for --model, got '{model}'.")
    for path, like in ((config, "-o {}/best.json"), (model, "--model {}/best.keras")):
        if path is None:
            continue
        if not path.parent.is_dir():
            raise UsageError(f"There is no folder '{path.parent}' to write '{path.name}' into.")
        if path.is_dir():
            raise UsageError(
                f"Expected a file to write, got the folder '{path}': {like.format(path)}"
            )


def export_best(database: Database, study: StoredStudy, n: int, path: Path) -> Exported:
    """Write the n best configs: `best.json`, then `best-2.json`, and so on.

    Confirmed ones come first, by the mean of their fresh seeds; the others, by what the search
    said of them, after these.

    Args:
        database: Of the study.
        study: Whose best.
        n: How many, at least 1.
        path: Of the best one, as `check_wishes` accepts it.

    Raises:
        UsageError: If the study has fewer complete trials.
        StorageError: If a file cannot be written.
    """
    configs = best_configs(database, study, n)
    paths = [
        path if rank == 1 else path.with_name(f"{path.stem}-{rank}{path.suffix}")
        for rank in range(1, n + 1)
    ]
    for config, target in zip(configs, paths, strict=True):
        write_whole(target, config.to_json())
    parent = parent_of(database, study.id)
    if parent is not None:
        return Exported(paths, f"These are trainings for '{parent}': rather export that study.")
    return Exported(paths, _confirmed_words(study, confirmation(database, study)))


def confirmed_config(candidate: Candidate) -> Config:
    """Return a confirmed config as the search trained it, with what its fresh seeds came to."""
    config = Config.model_validate(candidate.config)
    assert config.origin is not None  # `confirm` gives it one
    origin = config.origin.model_copy(
        update={
            "study": candidate.study,  # as it is called now
            "confirmed_mean": candidate.mean,
            "confirmed_seeds": len(candidate.values),
        }
    )
    # The first fresh seed is the one after the search's own.
    training = config.training.model_copy(update={"seed": config.training.seed - 1})
    return config.model_copy(update={"origin": origin, "training": training})


def best_configs(database: Database, study: StoredStudy, n: int) -> list[Config]:
    """Return the n best configs with their origins, the confirmed ones first.

    Raises:
        UsageError: If the study has fewer complete trials.
    """
    confirmed = confirmation(database, study)
    found: dict[str, Config] = {}
    if confirmed is not None and confirmed.winner is not None:
        for candidate in confirmed.ranked:
            config = confirmed_config(candidate)
            found.setdefault(config.fingerprint(), config)
    for trial in best_trials(database, study, n + len(found)):
        config = config_of(study, trial)
        found.setdefault(config.fingerprint(), config)
    configs = list(found.values())[:n]
    if len(configs) < n:
        came = f"{len(configs)} complete trial{'s' if len(configs) != 1 else ''}"
        raise UsageError(
            f"Expected at least {n} complete trial{'s' if n != 1 else ''} of '{study.name}', "
            f"it has {came}. Search on with 'dlnn-search start {study.name}'."
        )
    return configs


def _confirmed_words(study: StoredStudy, confirmed: Confirmation | None) -> str:
    how = f"dlnn-search confirm {study.name}"
    if confirmed is None:
        return (
            "Not confirmed: the best of many trials owes a part of its value to luck. "
            f"Before the test split is opened, let fresh seeds decide: {how}"
        )
    winner = confirmed.winner
    if winner is None and confirmed.n_left:
        return (
            f"Not confirmed yet: {confirmed.n_left} trainings are left, so this is the search's "
            f"own winner. Go on: {how}"
        )
    if winner is None:
        return (
            "Not confirmed: no trial came to its end with two fresh seeds, so this is the "
            f"search's own winner. See why: dlnn-search trials {study.name}-confirm"
        )
    return (
        f"Confirmed: trial {winner.trial} of {winner.study}, {metric_name(study.metric)} "
        f"{interval_words(study.metric, winner)} over {len(winner.values)} fresh seeds; the search "
        f"had said {metric_value(study.metric, winner.search_value)}."
    )


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
