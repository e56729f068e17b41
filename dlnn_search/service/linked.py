"""Linked studies: `STUDY-confirm` and `STUDY-retune` train given configs, by any worker.

They need no study file, since every slot says what it trains; only configs with a loader or
builder of their own need the file that holds it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import optuna

from dlnn_search.config import Config
from dlnn_search.errors import DlnnSearchError, StudyError, UsageError
from dlnn_search.search.optuna_study import open_optuna_study
from dlnn_search.storage.database import Database, open_database
from dlnn_search.storage.definitions import StoredStudy, all_studies, register
from dlnn_search.storage.links import (
    Kind,
    add_given,
    first_config,
    is_linked_name,
    linked_name,
    parent_and_kind,
    parent_of,
    set_parent,
)
from dlnn_search.study import RandomSearch, Study
from dlnn_search.study_files import bring_code, load_study


def enqueue(
    database: Database,
    parent: StoredStudy,
    kind: Kind,
    configs: Sequence[Config],
    study_file: str | None,
) -> tuple[Study, int]:
    """Let a linked study train these configs, those that it has not trained yet.

    Returns:
        The study, and how many configs are new to it.

    Raises:
        UsageError: If the configs need own code, and `study_file` does not bring it.
        StorageError: If the database fails.
    """
    name = linked_name(parent.name, kind)
    study = _study(name, parent.metric, parent.direction, configs[0], study_file)
    stored = register(database, study.name, study.definition())
    set_parent(database, stored.id, parent.name)
    open_optuna_study(study, database)
    n_new = add_given(
        database, stored.id, [config.model_dump(mode="json") for config in configs], identity
    )
    return study, n_new


def find_study(name_or_file: str, url: str, *, quick: bool, study_file: str | None) -> Study:
    """Return a study by its name, from its file, or, a linked one, from the database.

    Raises:
        UsageError: If there is no such study, or it needs own code.
        StudyError: If the file cannot be read or makes no study.
        StorageError: If the database of a linked study cannot be opened.
    """
    if not is_linked_name(name_or_file):
        return load_study(name_or_file, quick=quick)
    database = open_database(url, create=False)
    try:
        for stored in all_studies(database):
            if stored.name == name_or_file and parent_of(database, stored.id) is not None:
                plain = first_config(database, stored.id)
                if plain is not None:
                    example = Config.model_validate(plain)
                    return _study(stored.name, stored.metric, stored.direction, example, study_file)
    finally:
        database.close()
    parent, kind = parent_and_kind(name_or_file)
    raise UsageError(
        f"The database has no study '{name_or_file}'. It is made by "
        f"'dlnn-search {kind} {parent}', once that study has complete trials."
    )


def identity(config: dict[str, Any]) -> str:
    """Return what is equal for configs that train alike."""
    try:
        return Config.model_validate(config).fingerprint()
    except (DlnnSearchError, ValueError):
        return repr(config)


def _study(
    name: str, metric: str, direction: str, example: Config, study_file: str | None
) -> Study:
    def given(trial: optuna.Trial) -> Config:
        """Stand for the slots' configs, where one is looked at before a slot is claimed."""
        if trial.study.study_name == name:
            parent, kind = parent_and_kind(name)
            raise StudyError(
                f"'{name}' trains given configs and has no space to search. Extend it with "
                f"'dlnn-search {kind} {parent}'."
            )
        return example

    goal: dict[str, Any] = {"minimize": None, "maximize": None, direction: metric}
    if not example.own_parts:
        return Study(space=given, sampler=RandomSearch(), name=name, **goal)
    bring_code(example, name, study_file)
    assert study_file is not None  # else there was an error
    return dataclasses.replace(
        load_study(study_file),
        space=given,
        sampler=RandomSearch(),
        pruner=None,
        quick=None,
        range_test=None,
        name=name,
        **goal,
    )
