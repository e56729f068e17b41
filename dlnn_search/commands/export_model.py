"""The use case `export --model`: the weights that a search kept of its best trial, for Keras."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from dlnn_search.commands.export import best_configs, write_whole
from dlnn_search.config import OwnModel
from dlnn_search.data import image_shape
from dlnn_search.errors import StorageError, StudyError
from dlnn_search.files import written_whole
from dlnn_search.storage.artifacts import Artifact, artifacts_of, inside, sha256_of
from dlnn_search.storage.database import Database
from dlnn_search.storage.definitions import StoredStudy, find
from dlnn_search.storage.place import place_of
from dlnn_search.storage.schema import slots
from dlnn_search.study.finding import bring_code
from dlnn_search.training.checkpoint import OtherCheckpointError
from dlnn_search.training.fit import best_model
from dlnn_search.training.portable import portable_model

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


def export_model(
    database: Database, study: StoredStudy, path: Path, study_file: str | None
) -> ExportedModel:
    """Write the model of a study's best trial, as the search left it after its best epoch.

    The confirmed winner's, if there is one. The file is there whole or not at all.

    Args:
        database: Of the study.
        study: Whose best trial.
        path: As `check_paths` accepts it.
        study_file: Brings a builder or loader of the config's own.

    Raises:
        UsageError: If the study has no complete trial, or its own code is not given.
        StorageError: If its checkpoint was not kept, lies elsewhere or is damaged; or if the
            model cannot be written.
        StudyError: If the study's own code is another version, or its model cannot be saved.
    """
    (config,) = best_configs(database, study, 1)
    config = bring_code(config, study.name, study_file)
    origin = config.origin
    assert origin is not None  # `best_configs` gives it one
    name = f"trial {origin.trial} of '{origin.study}'"
    folder = _kept_folder(database, origin.study, origin.trial, name)
    try:
        model = best_model(config, folder, image_shape(config.data))
    except OtherCheckpointError as error:
        raise StorageError(
            f"The checkpoint of {name} was written by a version of dlnn-search that read its "
            f"config otherwise. {_instead(study.name)}"
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
            f"The checkpoint of {name} is not in this files folder, '{database.files}': the "
            "worker that trained it keeps it elsewhere. Run this command on that machine, or "
            "name its folder, where it can be reached from here, in DLNN_SEARCH_FILES. "
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
    with database.transaction() as connection:
        row = connection.execute(
            sa.select(slots.c.id, slots.c.reused_from).where(
                slots.c.study_id == study.id, slots.c.trial_number == trial
            )
        ).one()
    # A result that was reused is another slot's, and so is its checkpoint.
    slot_id = row.reused_from or row.id
    kept = artifacts_of(database, study.id)
    return next((artifact for artifact in kept if artifact.slot_id == slot_id), None)


def _instead(study_name: str) -> str:
    return (
        "Or train the config anew, with models kept: "
        f"dlnn-search export {study_name} -o best.json, then dlnn-search evaluate best.json"
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
