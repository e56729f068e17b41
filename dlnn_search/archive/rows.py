"""One study as plain rows that belong to no database: without ids, by slots' and trials' numbers.

Backups hold it, and a study that moves to another database goes through it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.storages import BaseStorage
from sqlalchemy.engine import Connection

from dlnn_search.errors import StorageError, StudyError, UsageError
from dlnn_search.samplers.observations import DUPLICATE_ATTRIBUTE
from dlnn_search.storage import schema
from dlnn_search.storage.budget import held_seconds, wall_used
from dlnn_search.storage.checkpoints import EARLIER_NAMES, lasting_name
from dlnn_search.storage.halves import SLOT_ATTRIBUTE
from dlnn_search.storage.optuna import read_optuna_study

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
        raise StorageError(f"a row of '{table}' has fields that the table has not")
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
