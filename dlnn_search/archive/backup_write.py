"""Write studies into a database: all of them whole, or none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dlnn_search.archive.rows import SLOT_REFERENCES, TABLES, Row, StudyRows, read_study
from dlnn_search.errors import StorageError, UsageError
from dlnn_search.files import slot_path
from dlnn_search.storage import schema
from dlnn_search.storage.database import Database, storage_errors
from dlnn_search.storage.optuna.plain import (
    finish_optuna_study,
    remove_unfinished,
    write_optuna_study,
)
from dlnn_search.storage.place import EARLIER_NAMES

#: Rows that one statement inserts.
ROWS_AT_ONCE = 1_000


def check_names(database: Database, names: Sequence[str]) -> None:
    """Check that these names are free, in our tables (earlier names, too) and in Optuna's.

    Raises:
        UsageError: If one is taken.
    """
    with database.transaction() as connection:
        ours: set[str] = set()
        for row in connection.execute(sa.select(schema.studies)):
            ours |= {row.name, *row.definition.get(EARLIER_NAMES, ())}
    with storage_errors(database.url):
        for name in names:
            theirs = remove_unfinished(database.optuna, name) if name not in ours else True
            if theirs:
                raise UsageError(
                    f"The database {database.shown} has a study '{name}' already; nothing was "
                    "changed. Give the copy another name with --as, or name another database with "
                    "--storage."
                )


def write_studies(database: Database, copies: Sequence[StudyRows], place: str) -> None:
    """Write studies, read them again, and compare; in case of any failure leave nothing behind.

    Optuna commits each of its trials, so its studies come first, marked as unfinished; one
    transaction for all of our rows then decides. A kill before it leaves studies that nobody
    knows of, which the next attempt removes.

    Args:
        place: Which files folder their checkpoints lie in now.

    Raises:
        UsageError: If a name is taken.
        StorageError: If the database fails, or does not return what was written.
    """
    check_names(database, [name for copy in copies for name in copy.names])
    try:
        with storage_errors(database.url):
            ids = {
                copy.name: write_optuna_study(
                    database.optuna, copy.name, copy.optuna_study, copy.trials
                )
                for copy in copies
                if copy.optuna_study is not None
            }
        with database.transaction() as connection:
            for copy in copies:
                _write_rows(connection, copy, ids.get(copy.name, {}), place)
            for copy in copies:
                _compare(copy, read_study(connection, database.optuna, copy.name))
    except BaseException:
        with suppress(Exception):  # the first error is the one to tell
            for copy in copies:
                remove_unfinished(database.optuna, copy.name)
        raise
    with storage_errors(database.url):
        for name in ids:
            finish_optuna_study(database.optuna, name)


def _write_rows(
    connection: Connection, copy: StudyRows, trial_ids: Mapping[int, int], place: str
) -> None:
    study_id = connection.execute(
        schema.studies.insert().values(**copy.study).returning(schema.studies.c.id)
    ).scalar_one()
    slots = [_slot(row, study_id, trial_ids, place) for row in copy.rows["slots"]]
    _insert(connection, schema.slots, slots)
    numbered = sa.select(schema.slots.c.number, schema.slots.c.id).where(
        schema.slots.c.study_id == study_id
    )
    slot_ids = {row.number: row.id for row in connection.execute(numbered)}
    for row in copy.rows["slots"]:
        references = {key: slot_ids[row[key]] for key in SLOT_REFERENCES if key in row}
        if references:
            connection.execute(
                schema.slots.update()
                .where(schema.slots.c.id == slot_ids[row["number"]])
                .values(**references)
            )
    for name in ("curves", "events", "artifacts"):
        table = TABLES[name][0]
        rows = [_with_ids(row, study_id, slot_ids, table) for row in copy.rows[name]]
        if name == "artifacts":
            for row, plain in zip(rows, copy.rows[name], strict=True):
                row |= {"place": place, "path": slot_path(copy.folder, plain["slot"])}
        _insert(connection, table, rows)
    _add_openings(connection, copy.rows["ledger"])


def add_openings(database: Database, rows: Sequence[Row]) -> None:
    """Add openings to the ledger, those that it has already left out."""
    with database.transaction() as connection:
        _add_openings(connection, rows)


def _add_openings(connection: Connection, rows: Sequence[Row]) -> None:
    known = Counter(
        _opening(row) for row in connection.execute(sa.select(schema.ledger)).mappings()
    )
    new = []
    for row in rows:
        if known[_opening(row)] > 0:
            known[_opening(row)] -= 1
        else:
            new.append(row)
    _insert(connection, schema.ledger, new)


def _slot(row: Row, study_id: int, trial_ids: Mapping[int, int], place: str) -> Row:
    slot = {key: value for key, value in row.items() if key not in SLOT_REFERENCES}
    number = row.get("trial_number")
    if number is not None:
        if number not in trial_ids:
            raise StorageError(
                f"Slot {row['number']} names trial {number}, which Optuna's tables do not have: "
                "the study was deleted there, in the dashboard or by another program."
            )
        slot["trial_id"] = trial_ids[number]
    if "checkpoint_epoch" in row:
        slot["checkpoint_place"] = place
    return {**slot, "study_id": study_id}


def _with_ids(row: Row, study_id: int, slot_ids: Mapping[int, int], table: sa.Table) -> Row:
    found = {key: value for key, value in row.items() if key != "slot"}
    if "study_id" in table.c:
        found["study_id"] = study_id
    if "slot" in row:
        if row["slot"] not in slot_ids:
            raise StorageError(
                f"A row of {table.name} belongs to slot {row['slot']}, which is none."
            )
        found["slot_id"] = slot_ids[row["slot"]]
    return found


def _insert(connection: Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    """Insert rows that may lack columns: those of a kind together, in their order."""
    start = 0
    while start < len(rows):
        end = start + 1
        while end < min(len(rows), start + ROWS_AT_ONCE) and set(rows[end]) == set(rows[start]):
            end += 1
        connection.execute(table.insert(), list(rows[start:end]))
        start = end


def _opening(row: Mapping[Any, Any]) -> tuple[Any, ...]:
    names = ("opened_at", "fingerprint", "study", "trial", "seed", "user", "host")
    return tuple(row.get(name) for name in names)


def _compare(written: StudyRows, found: StudyRows) -> None:
    """Check that the database returns what was written.

    Raises:
        StorageError: If it does not.
    """
    expected, came = written.digests(), found.digests()
    counts, found_counts = written.counts(), found.counts()
    for kind in expected:
        if kind == "ledger":  # openings of the same name that were there before stay
            continue
        if kind == "optuna_study" and written.optuna_study is None:
            continue
        if expected[kind] != came[kind]:
            raise StorageError(
                f"Expected '{written.name}' to be read as it was written, but its {kind} differ "
                f"({counts.get(kind, 1)} written, {found_counts.get(kind, 1)} found). Nothing was "
                "kept. Try again; if it fails again, report it."
            )
