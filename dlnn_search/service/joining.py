"""Workers of one study train the same: its definition and its pictures are compared."""

from __future__ import annotations

from dlnn_search.config import OwnData
from dlnn_search.data.identity import identity_of
from dlnn_search.search.corners import example_config
from dlnn_search.storage.database import Database
from dlnn_search.storage.definitions import StoredStudy, check_data, join
from dlnn_search.storage.links import parent_of
from dlnn_search.study import Study


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
