"""The use case `export`: the best trials as configs, or as models with their weights."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from dlnn_search._version import __version__
from dlnn_search.config import Config, Origin, OwnModel
from dlnn_search.data import image_shape
from dlnn_search.errors import StorageError, StudyError, UsageError
from dlnn_search.files import written_whole
from dlnn_search.metrics import count_words, metric_name, metric_value
from dlnn_search.results.advice import next_words
from dlnn_search.results.confirmation import Candidate, Confirmation, confirmation, interval_words
from dlnn_search.results.status import best_trials, study_status
from dlnn_search.storage.budget import counts_of
from dlnn_search.storage.checkpoints import Artifact, artifacts_of, inside, place_of, sha256_of
from dlnn_search.storage.database import Database
from dlnn_search.storage.halves import linked_name
from dlnn_search.storage.studies import StoredStudy, code_file, find, parent_of
from dlnn_search.storage.trials import Trial, trials_of
from dlnn_search.study.finding import bring_code
from dlnn_search.training.checkpoint import OtherCheckpointError


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
        words = f"This study trains configs of '{parent}' again. Export '{parent}' instead."
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
            f"Expected a complete trial of '{study.name}', which has 0 complete trials. "
            f"{next_words(study_status(database, study))}"
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
    trials = count_words(counts_of(database, study.id)["complete"], "complete trial")
    return (
        f"Asked for the best {n}: '{study.name}' has {trials}, "
        f"{count_words(n_configs, 'distinct config')}."
    )


def _confirmed_words(study: StoredStudy, confirmed: Confirmation | None) -> str:
    how = f"dlnn-search confirm {study.name}"
    if confirmed is None:
        return (
            "Not confirmed: the best of many trials owes part of its value to luck. Confirm it "
            f"with fresh seeds before you open the test split: {how}"
        )
    winner = confirmed.winner
    if winner is None and confirmed.n_left:
        return (
            f"Not confirmed yet: {confirmed.n_left} trainings are left, so this is the search's "
            f"own winner. Go on: {how}"
        )
    if winner is None:
        return (
            "Not confirmed: no config was trained to the end with two fresh seeds, so this is the "
            f"search's own winner. See why: dlnn-search trials {linked_name(study.name, 'confirm')}"
        )
    return (
        f"Confirmed: trial {winner.trial} of {winner.study}, {metric_name(study.metric)} "
        f"{interval_words(study.metric, winner)} over {len(winner.values)} fresh seeds; the search "
        f"had said {metric_value(study.metric, winner.search_value)}."
    )


def config_of(study: StoredStudy, trial: Trial) -> Config:
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


#: Alone: neither this package's nor the user's modules can be imported.
LOAD = "import sys, keras; keras.saving.load_model(sys.argv[1])"
LOAD_SECONDS = 300.0


@dataclass(frozen=True)
class ExportedModel:
    """A model that was written.

    Attributes:
        path: The `.keras` file; its config stands beside it as `.json`.
        words: Whose weights these are, and who can open the file.
    """

    path: Path
    words: str


@dataclass(frozen=True)
class KeptModel:
    """A trained model that the database knows of.

    Attributes:
        config: With its own code.
        folder: Of its checkpoint.
        study: Whose best trial's it is.
    """

    config: Config
    folder: Path
    study: str


def kept_model(database: Database, study: StoredStudy, study_file: str | None) -> KeptModel:
    """Find the model of a study's best trial, or of the confirmed winner; without TensorFlow.

    Args:
        database: Of the study.
        study: Whose best trial.
        study_file: Brings a builder or loader of the config's own; None: the one that the
            search was started from.

    Raises:
        UsageError: If the study has no complete trial, or its own code is not given.
        StorageError: If its checkpoint was not kept, lies elsewhere or is damaged.
        StudyError: If the study's own code is another version.
    """
    (config,) = best_configs(database, study, 1)
    config = bring_code(config, study.name, code_file(database, config, study_file))
    assert config.origin is not None  # `best_configs` gives it one
    folder = _kept_folder(database, config.origin.study, config.origin.trial, _name_of(config))
    return KeptModel(config, folder, study.name)


def _name_of(config: Config) -> str:
    assert config.origin is not None
    return f"trial {config.origin.trial} of '{config.origin.study}'"


def export_model(kept: KeptModel, path: Path) -> ExportedModel:
    """Write a trained model as the search left it after its best epoch, whole or not at all.

    Args:
        kept: As `kept_model` finds it.
        path: As `check_wishes` accepts it.

    Raises:
        StorageError: If its checkpoint cannot be read, or the model cannot be written.
        StudyError: If the study's own builder makes a model that cannot be saved.
    """
    from dlnn_search.training.fit import best_model
    from dlnn_search.training.portable import portable_model

    config, folder, name = kept.config, kept.folder, _name_of(kept.config)
    origin = config.origin
    assert origin is not None
    try:
        model = best_model(config, folder, image_shape(config.data))
    except OtherCheckpointError as error:
        raise StorageError(
            f"The checkpoint of {name} was written by a version of dlnn-search that builds another "
            f"model from its config. {_instead(kept.study)}"
        ) from error
    is_own = isinstance(config.model, OwnModel)
    try:
        with written_whole(path) as partial:
            (model if is_own else portable_model(model)).save(partial)
            write_whole(path.with_suffix(".json"), config.to_json())
    except OSError as error:
        raise StorageError(f"Cannot write '{path}': {error.strerror or error}.") from error
    except (ValueError, TypeError, NotImplementedError) as error:
        if not is_own:
            raise
        first_line = str(error).strip().partition("\n")[0]
        raise StudyError(
            f"The model that the builder of '{origin.study}' makes cannot be saved: {first_line}"
        ) from error
    words = f"The weights of {name} after its best epoch, {origin.epoch}."
    problem = _plain_problem(path) if is_own else None
    if problem is None:
        return ExportedModel(path, f"{words} keras.models.load_model('{path}') opens it.")
    return ExportedModel(
        path,
        f"{words} Warning: plain Keras cannot open it, since the model has parts of its own: "
        f"{problem} Import the code that defines them first, and pass what is not registered as "
        "load_model(..., custom_objects=...).",
    )


def _kept_folder(database: Database, study_name: str, trial: int, name: str) -> Path:
    """Return the folder of the checkpoint that was kept of a trial, and prove it."""
    study = find(database, study_name)
    artifact = _artifact(database, study, trial)
    if artifact is None:
        raise StorageError(
            f"No checkpoint of {name} was kept: expected it among the study's best ones "
            f"(Study(keep_checkpoints=3) keeps three). {_instead(study_name)}"
        )
    if artifact.place != place_of(database.files):
        raise StorageError(
            f"The checkpoint of {name} is not in this files folder, '{database.files}'. The "
            "worker that trained it keeps it elsewhere. Run this command on that machine; or, if "
            "you can reach its folder from here, name the folder in DLNN_SEARCH_FILES. "
            f"{_instead(study_name)}"
        )
    file = inside(database.files, artifact.path)
    if file is None or not file.is_file():
        raise StorageError(
            f"The checkpoint of {name} is gone: expected '{database.files / artifact.path}'. "
            f"{_instead(study_name)}"
        )
    try:
        found = sha256_of(file)
    except OSError as error:
        raise StorageError(f"Cannot read '{file}': {error.strerror or error}.") from error
    if found != artifact.sha256:
        raise StorageError(
            f"The checkpoint of {name}, '{file}', is damaged: expected the SHA-256 "
            f"{artifact.sha256[:12]}..., got {found[:12]}.... {_instead(study_name)}"
        )
    return file.parent


def _artifact(database: Database, study: StoredStudy, trial: int) -> Artifact | None:
    (found,) = trials_of(database, study, number=trial)
    # A result that was reused is another slot's, and so is its checkpoint.
    slot_id = found.reused_from or found.slot_id
    kept = artifacts_of(database, study.id)
    return next((artifact for artifact in kept if artifact.slot_id == slot_id), None)


def _instead(study_name: str) -> str:
    return (
        f"Or train the config again with 'dlnn-search export {study_name} -o best.json' and "
        "'dlnn-search evaluate best.json', which keeps the models."
    )


def _plain_problem(path: Path) -> str | None:
    """Return why plain Keras cannot open a model; None if it can."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", LOAD, path],
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LOAD_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"it took more than {LOAD_SECONDS:g} s."
    if done.returncode == 0:
        return None
    said = re.findall(r"^\w*(?:Error|Exception): .*", done.stderr, re.MULTILINE)
    # The first is the cause of those that follow.
    return str(said[0]) if said else done.stderr.strip().rpartition("\n")[2]
