"""A study as plain rows of no database, by slots' and trials' numbers: read, checked, written.

Backups hold it, and a study that moves to another database goes through it.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.storages import BaseStorage
from sqlalchemy.engine import Connection

from dlnn_search.errors import StorageError, StudyError, UsageError, did_you_mean
from dlnn_search.files import slot_path
from dlnn_search.samplers.observations import DUPLICATE_ATTRIBUTE
from dlnn_search.storage import schema
from dlnn_search.storage.budget import held_seconds, wall_used
from dlnn_search.storage.checkpoints import EARLIER_NAMES, lasting_name
from dlnn_search.storage.database import Database, open_database, storage_errors
from dlnn_search.storage.database.sqlite import connect_to_read
from dlnn_search.storage.halves import SLOT_ATTRIBUTE
from dlnn_search.storage.optuna import (
    finish_optuna_study,
    read_optuna_study,
    remove_unfinished,
    write_optuna_study,
)

Row = dict[str, Any]

#: Tables in the order of a file, and which of their columns a copy has of its own: ids, and
#: what holds only where and while a worker runs.
TABLES: Mapping[str, tuple[sa.Table, frozenset[str]]] = {
    "slots": (
        schema.slots,
        frozenset(
            {"id", "study_id", "trial_id", "worker", "lease_ends_at", "claim_token"}
            | {"checkpoint_place"}
        ),
    ),
    "curves": (schema.curves, frozenset({"slot_id"})),
    "events": (schema.events, frozenset({"id", "study_id", "slot_id"})),
    "artifacts": (schema.artifacts, frozenset({"id", "study_id", "slot_id", "place", "path"})),
    "ledger": (schema.ledger, frozenset({"id"})),
}
STUDY_COLUMNS_LEFT = frozenset({"id", "active_since", "moved_to"})
#: Study names, as `dlnn_search.study` has them: a folder's name.
STUDY_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,127}")
#: Numbers in place of ids.
SLOT_REFERENCES = ("waits_for", "reused_from")


@dataclass
class StudyRows:
    """A study, whole.

    Attributes:
        study: Our row of it.
        rows: By table: `slots`, `curves`, `events`, `artifacts`, `ledger`.
        optuna_study: Directions and attributes; None where Optuna never had the study.
        trials: Optuna's, by number.
    """

    study: Row
    rows: dict[str, list[Row]]
    optuna_study: Row | None = None
    trials: list[Row] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.study["name"])

    @property
    def folder(self) -> str:
        """How its folders are called."""
        return lasting_name(self.name, self.study["definition"])

    @property
    def names(self) -> list[str]:
        """All that it was ever called."""
        return [self.name, *self.study["definition"].get(EARLIER_NAMES, ())]

    def counts(self) -> dict[str, int]:
        """Return how many rows of each kind there are."""
        return {**{name: len(rows) for name, rows in self.rows.items()}, "trials": len(self.trials)}

    def digests(self) -> dict[str, str]:
        """Return a SHA-256 of each kind of rows; equal for equal studies in any database."""
        parts: dict[str, Iterable[Any]] = {
            "study": [self.study],
            **self.rows,
            "optuna_study": [self.optuna_study],
            "trials": self.trials,
        }
        return {name: _digest(rows) for name, rows in parts.items()}


def read_study(connection: Connection, storage: BaseStorage, name: str) -> StudyRows:
    """Read a study; a slot that is held is read as one that was given back just now.

    Raises:
        UsageError: If there is no such study.
        StudyError: If the trials of its slots are not among Optuna's.
    """
    found = connection.execute(sa.select(schema.studies).where(schema.studies.c.name == name))
    study = found.mappings().first()
    if study is None:
        raise UsageError(f"There is no study '{name}'.")
    used = connection.execute(
        sa.select(wall_used(study["id"])).where(schema.studies.c.id == study["id"])
    ).scalar_one()
    slots = schema.slots
    mine = slots.c.study_id == study["id"]
    held_for = held_seconds().label("held_for")
    found = connection.execute(sa.select(slots, held_for).where(mine).order_by(slots.c.number))
    rows: dict[str, list[Row]] = {"slots": [_given_back(dict(row)) for row in found.mappings()]}
    numbers = {row["id"]: row["number"] for row in rows["slots"]}
    for name_, query in (
        (
            "curves",
            sa.select(schema.curves)
            .join(slots, slots.c.id == schema.curves.c.slot_id)
            .where(mine)
            .order_by(slots.c.number, schema.curves.c.epoch),
        ),
        ("events", _of_study(schema.events, study["id"])),
        ("artifacts", _of_study(schema.artifacts, study["id"])),
        (
            "ledger",
            sa.select(schema.ledger).where(
                schema.ledger.c.study.in_([name, *study["definition"].get(EARLIER_NAMES, ())])
            ),
        ),
    ):
        if name_ == "ledger":
            query = query.order_by(schema.ledger.c.id)
        rows[name_] = [dict(row) for row in connection.execute(query).mappings()]
    optuna_study, trials, numbers_by_id = read_optuna_study(storage, name)
    owners = {trial["number"]: trial["user_attrs"].get(SLOT_ATTRIBUTE) for trial in trials}
    for row in rows["slots"]:
        number = row["trial_number"]
        if row["trial_id"] is None or (
            numbers_by_id.get(row["trial_id"]) == number
            and owners[number] in (None, row["number"])  # None: a trial of the first version
        ):
            continue
        raise StudyError(
            f"Trial {number} of the study '{name}' is gone from Optuna's tables: another program "
            f"deleted or renamed the study there. 'dlnn-search status {name}' says what to do."
        )
    return StudyRows(
        study=_study_row(dict(study), float(used)),
        rows={table: [_by_number(table, row, numbers) for row in rows[table]] for table in TABLES},
        optuna_study=optuna_study,
        trials=trials,
    )


def _of_study(table: sa.Table, study_id: int) -> sa.Select[Any]:
    return sa.select(table).where(table.c.study_id == study_id).order_by(table.c.id)


def _study_row(row: Row, wall_used_seconds: float) -> Row:
    row["wall_used_seconds"] = wall_used_seconds
    return _whole({key: value for key, value in row.items() if key not in STUDY_COLUMNS_LEFT})


def _given_back(row: Row) -> Row:
    row["spent_seconds"] += row.pop("held_for")
    return {**row, "state": "open", "claimed_at": None} if row["state"] == "held" else row


def _by_number(table: str, row: Row, numbers: Mapping[int, int]) -> Row:
    left = TABLES[table][1]
    plain = {key: value for key, value in row.items() if key not in left}
    if "slot_id" in row:
        plain["slot"] = numbers.get(row["slot_id"]) if row["slot_id"] is not None else None
    for key in SLOT_REFERENCES:
        if plain.get(key) is not None:
            plain[key] = numbers.get(plain[key])
    return _whole(plain)


def _whole(row: Row) -> Row:
    """Leave out what is NULL: a later version's new column need not be known."""
    return {key: value for key, value in row.items() if value is not None}


def _digest(rows: Iterable[Any]) -> str:
    sha256 = hashlib.sha256()
    for row in rows:
        sha256.update(as_line(row))
    return sha256.hexdigest()


def as_line(row: Any) -> bytes:
    """Return a row as one line of JSON, the same for equal rows."""
    return json.dumps(row, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def check_row(table: str, row: Any) -> None:
    """Check a row that a file brought against its table's columns.

    Raises:
        StorageError: If it does not fit.
    """
    columns, left = (schema.studies, STUDY_COLUMNS_LEFT) if table == "study" else TABLES[table]
    expected = {column.name: column for column in columns.columns if column.name not in left}
    extra = {"slot"} if "slot_id" in columns.c else set()
    if not isinstance(row, dict) or not set(row) <= set(expected) | extra:
        raise StorageError(f"a row of '{table}' has fields that the table does not have")
    if "slot" in row and type(row["slot"]) is not int:
        raise StorageError(f"a row of '{table}' names no slot")
    if table == "curves" and "slot" not in row:
        raise StorageError("an epoch belongs to no slot")
    for name, column in expected.items():
        _check_value(table, column, row.get(name))


def _check_value(table: str, column: sa.Column[Any], value: Any) -> None:
    if value is None:
        if not column.nullable and column.server_default is None:
            raise StorageError(f"a row of '{table}' lacks '{column.name}'")
        return
    kind = column.type
    if isinstance(kind, sa.JSON):
        return
    if isinstance(kind, sa.Integer):
        bits = 63 if isinstance(kind, sa.BigInteger) else 31
        fits = type(value) is int and -(2**bits) <= value < 2**bits
    elif isinstance(kind, sa.Float):
        fits = type(value) in (int, float)
    else:
        fits = isinstance(value, str) and len(value) <= (getattr(kind, "length", None) or 10**7)
        fits = fits and "\0" not in value
    if not fits:
        raise StorageError(f"'{column.name}' of a row of '{table}' is no {kind!r}")


def check_whole(copy: StudyRows) -> None:
    """Check that rows belong together, so that nothing fails once they are being written.

    Raises:
        ValueError: If they do not.
    """
    # Names become folders.
    if not all(STUDY_NAME.fullmatch(str(name)) for name in copy.names):
        raise ValueError("an earlier name of the study is no name")
    slots = [row["number"] for row in copy.rows["slots"]]
    if slots != sorted(set(slots)):
        raise ValueError("slots are not numbered one by one")
    known = set(slots)
    for row in copy.rows["slots"]:
        if row["state"] not in ("open", "waiting", "done"):
            raise ValueError(f"slot {row['number']} is '{row['state']}'")
        number = row.get("trial_number")
        if number is not None and not 0 <= number < len(copy.trials):
            raise ValueError(f"slot {row['number']} names a trial that is not there")
        for key in SLOT_REFERENCES:
            if key in row and row[key] not in known:
                raise ValueError(f"slot {row['number']} names a slot that is not there")
    for table in ("curves", "events", "artifacts"):
        if not {row["slot"] for row in copy.rows[table] if "slot" in row} <= known:
            raise ValueError(f"rows of '{table}' belong to slots that are not there")
    epochs = [(row["slot"], row["epoch"]) for row in copy.rows["curves"]]
    if len(epochs) != len(set(epochs)):
        raise ValueError("a curve has an epoch twice")
    if copy.optuna_study is None:
        if copy.trials:
            raise ValueError("trials belong to no study of Optuna's")
        return
    if set(copy.optuna_study) != {"directions", "user_attrs", "system_attrs"}:
        raise ValueError("Optuna's study has other fields")
    for direction in copy.optuna_study["directions"]:
        optuna.study.StudyDirection[direction]
    for attributes in ("user_attrs", "system_attrs"):
        if not all(isinstance(key, str) for key in copy.optuna_study[attributes]):
            raise ValueError("Optuna's study has attributes without a name")


def bring_up(copy: StudyRows) -> None:
    """Bring rows of an older version's backup to this one's, as the migrations do with a database.

    Version 3: a slot that waits is `waiting`, and a trial says whose result it has.
    """
    trial_of = {row["number"]: row.get("trial_number") for row in copy.rows["slots"]}
    for row in copy.rows["slots"]:
        if row["state"] == "open" and "waits_for" in row:
            row |= {"state": "waiting", "waiting_reason": "duplicate"}
        first = trial_of.get(row.get("reused_from"))
        if first is not None and row.get("trial_number") is not None:
            attributes = copy.trials[row["trial_number"]]["user_attrs"]
            attributes.setdefault(DUPLICATE_ATTRIBUTE, first)


@contextmanager
def snapshot(database: Database) -> Iterator[tuple[Database, Connection]]:
    """Yield a database that no longer changes, and a connection in it; for reading only."""
    if database.engine.dialect.name == "sqlite":
        with _copy_of_file(database) as copy, copy.transaction() as connection:
            yield copy, connection
        return
    with storage_errors(database.url), _same_view(database) as pair:
        yield pair


@contextmanager
def _copy_of_file(database: Database) -> Iterator[Database]:
    with tempfile.TemporaryDirectory(prefix="dlnn-search-") as folder:
        path = Path(folder) / "copy.db"
        with (
            storage_errors(database.url),
            closing(connect_to_read(database.url)) as source,
            closing(sqlite3.connect(path)) as target,
        ):
            source.backup(target)  # in one step: writers wait for none of it in WAL mode
        with open_database(f"sqlite:///{path}", create=False) as copy:
            yield copy


@contextmanager
def _same_view(database: Database) -> Iterator[tuple[Database, Connection]]:
    """PostgreSQL lends a transaction's view to other transactions, Optuna's among them."""
    with open_database(database.url, create=False, read_only=database.read_only) as reading:
        isolated = reading.engine.execution_options(isolation_level="REPEATABLE READ")
        with isolated.connect() as connection:
            name = connection.execute(sa.select(sa.func.pg_export_snapshot())).scalar_one()

            @sa.event.listens_for(reading.engine, "begin")
            def take_view(other: Connection) -> None:
                other.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                other.exec_driver_sql(f"SET TRANSACTION SNAPSHOT '{name}'")

            yield reading, connection


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
                f"A row of {table.name} belongs to slot {row['slot']}, which does not exist."
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


def read_all(
    database: Database, names: Sequence[str] | None
) -> tuple[list[StudyRows], list[dict[str, Any]]]:
    """Read studies at one moment; None: all of them, and the openings that belong to none."""
    with snapshot(database) as (still, connection):
        known = list(
            connection.execute(sa.select(schema.studies.c.name).order_by(schema.studies.c.id))
            .scalars()
            .all()
        )
        for name in names or ():
            if name not in known:
                raise UsageError(
                    f"The database {database.shown} has no study '{name}'."
                    f"{did_you_mean(name, known)}"
                )
        wanted = known if names is None else names
        copies = [read_study(connection, still.optuna, name) for name in wanted]
        ledger = schema.ledger
        others = connection.execute(
            sa.select(ledger)
            .where(sa.or_(ledger.c.study.is_(None), ledger.c.study.not_in(wanted)))
            .order_by(ledger.c.id)
        ).mappings()
        plain = [
            {key: value for key, value in row.items() if key != "id" and value is not None}
            for row in others
        ]
    for copy in copies:
        _check_own(copy)
    return copies, plain


def _check_own(copy: StudyRows) -> None:
    """What a restore would refuse is told now, while there is a database to mend."""
    try:
        for kind, rows in {"study": [copy.study], **copy.rows}.items():
            for row in rows:
                check_row(kind, row)
    except StorageError as error:
        raise StorageError(f"The study '{copy.name}' cannot be copied: {error}.") from error
