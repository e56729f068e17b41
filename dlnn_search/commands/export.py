"""The use case `export`: the best trials as configs, one file each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dlnn_search import __version__
from dlnn_search.config import Config, Origin
from dlnn_search.errors import StorageError, UsageError
from dlnn_search.files import written_whole
from dlnn_search.results.confirmation import Candidate, Confirmation, confirmation, interval_words
from dlnn_search.results.status import TrialStatus, best_trials, count_complete
from dlnn_search.storage.database import Database
from dlnn_search.storage.definitions import StoredStudy
from dlnn_search.storage.halves import linked_name
from dlnn_search.storage.links import parent_of
from dlnn_search.words import count_words, metric_name, metric_value


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
        paths: Of the files, best first.
        words: Whether there are as many as asked for, whether the first one is confirmed, and what
            to do if not.
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
    """Write the n best configs, or all there are: `best.json`, then `best-2.json`, and so on.

    Confirmed ones come first, by the mean of their fresh seeds; the others, by what the search
    said of them, after these.

    Args:
        database: Of the study.
        study: Whose best.
        n: How many, at least 1.
        path: Of the best one, as `check_wishes` accepts it.

    Raises:
        UsageError: If the study has no complete trial.
        StorageError: If a file cannot be written.
    """
    configs = best_configs(database, study, n)
    paths = [
        path if rank == 1 else path.with_name(f"{path.stem}-{rank}{path.suffix}")
        for rank in range(1, len(configs) + 1)
    ]
    for config, target in zip(configs, paths, strict=True):
        write_whole(target, config.to_json())
    parent = parent_of(database, study.id)
    if parent is not None:
        words = f"These are trainings for '{parent}': rather export that study."
    else:
        words = _confirmed_words(study, confirmation(database, study))
    if len(configs) < n:
        words = f"{_too_few_words(database, study, n, len(configs))}\n{words}"
    return Exported(paths, words)


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
    return config.model_copy(update={"origin": origin})


def best_configs(database: Database, study: StoredStudy, n: int) -> list[Config]:
    """Return the n best configs with their origins, or all there are, the confirmed ones first.

    Raises:
        UsageError: If the study has no complete trial.
    """
    confirmed = confirmation(database, study)
    found: dict[str, Config] = {}
    if confirmed is not None and confirmed.winner is not None:
        for candidate in confirmed.ranked:
            config = confirmed_config(candidate)
            found.setdefault(config.fingerprint(), config)
    for config in searched_configs(database, study, n + len(found)):
        found.setdefault(config.fingerprint(), config)
    if not found:
        raise UsageError(
            f"Expected a complete trial of '{study.name}', it has 0 complete trials. "
            f"Search on with 'dlnn-search start {study.name}'."
        )
    return list(found.values())[:n]


def searched_configs(database: Database, study: StoredStudy, n: int) -> list[Config]:
    """Return the configs of a study's best trials: n distinct ones, or all there are."""
    found: dict[str, Config] = {}
    n_trials = n
    while True:
        trials = best_trials(database, study, n_trials)
        for trial in trials:
            config = config_of(study, trial)
            found.setdefault(config.fingerprint(), config)
        if len(found) >= n or len(trials) < n_trials:
            return list(found.values())[:n]
        n_trials *= 4


def _too_few_words(database: Database, study: StoredStudy, n: int, n_configs: int) -> str:
    trials = count_words(count_complete(database, study), "complete trial")
    return (
        f"Asked for the best {n}: '{study.name}' has {trials}, "
        f"{count_words(n_configs, 'distinct config')}."
    )


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
            f"search's own winner. See why: dlnn-search trials {linked_name(study.name, 'confirm')}"
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
    try:
        with written_whole(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"Cannot write '{path}': {error.strerror or error}.") from error
