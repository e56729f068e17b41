"""Workers of one study train the same: its definition and its pictures are compared."""

from __future__ import annotations

import dataclasses

from dlnn_search.config import OwnData
from dlnn_search.data.loading import identity_of
from dlnn_search.errors import StudyError
from dlnn_search.storage.control import kept_rate
from dlnn_search.storage.database import Database
from dlnn_search.storage.studies import (
    StoredStudy,
    all_studies,
    check_data,
    is_same,
    join,
    parent_of,
)
from dlnn_search.study import Study
from dlnn_search.study.finding import earlier_version, register
from dlnn_search.worker.first_trials import example_config


def as_stored(study: Study, database: Database) -> Study:
    """Return a study as its search began, where this version of the program still has that.

    That is a built-in study's earlier file; or, of a study whose helper modules an earlier version
    found by `PYTHONPATH` and did not count in, the study without them.
    """
    stored = next((known for known in all_studies(database) if known.name == study.name), None)
    if stored is None or is_same(stored, study.definition()):
        return study
    former = dataclasses.replace(study, helpers=())
    for candidate in (earlier_version(study, stored.definition["code"]), former):
        if candidate is not None and is_same(stored, candidate.definition()):
            study = candidate
            break
    register(study.own_code())
    return study


def join_study(study: Study, database: Database) -> StoredStudy:
    """Return the study as it was started, for a worker that brings its own copy of it.

    Raises:
        UsageError: If it was never started.
        StudyError: If the copy, or this machine's pictures, differ: with what differs.
        DataError: If this machine cannot have the pictures.
    """
    stored = database.retrying(lambda: join(database, study.name, study.definition()))
    check_pictures(study, database, stored)
    return stored


def check_pictures(study: Study, database: Database, stored: StoredStudy) -> None:
    """Note at first which pictures a study learns from; later, check that they are the same.

    Raises:
        StudyError: If they are others.
        DataError: If this machine cannot have them.
    """
    if parent_of(database, stored.id) is not None:
        return  # it trains given configs, each of which says what from
    # A space may name its own data; and only a config says whose code an `OwnData` needs.
    data = study.data
    if data is None or isinstance(data, OwnData):
        data = example_config(study).data
    identity = identity_of(data)
    database.retrying(lambda: check_data(database, stored, identity))


def with_kept_rate(study: Study, database: Database, stored: StoredStudy) -> Study:
    """Return the study with the rate that was kept, for a worker.

    Raises:
        StudyError: If the study wants a test and had none.
    """
    if study.range_test is None:
        return study
    kept = kept_rate(database, stored.id)
    if kept is None:
        raise StudyError(
            f"The study '{study.name}' has no range test yet, which its first start makes: "
            f"dlnn-search start {study.name}"
        )
    return dataclasses.replace(study, measured_rate=kept.rate)
