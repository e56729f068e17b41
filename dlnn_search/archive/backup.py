"""`storage backup` and `storage restore`: studies into one file, and back into any database."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dlnn_search.archive.file import BackupReader, BackupWriter
from dlnn_search.archive.rows import SLOT_REFERENCES, TABLES, Row, StudyRows, check_row, read_study
from dlnn_search.errors import StorageError, UsageError, did_you_mean
from dlnn_search.files import generations, latest_checkpoint, slot_path, written_whole
from dlnn_search.storage import schema
from dlnn_search.storage.checkpoints import EARLIER_NAMES, place_of
from dlnn_search.storage.database import Database, open_database, storage_errors
from dlnn_search.storage.database.sqlite import connect_to_read
from dlnn_search.storage.optuna import (
    finish_optuna_study,
    remove_unfinished,
    write_optuna_study,
)


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


@dataclass(frozen=True)
class Copied:
    """What a backup, a restore or a move took along, of one study.

    Attributes:
        counts: Rows by kind, such as `slots`, `curves`, `trials`.
        n_checkpoints: Checkpoints that lie beside it.
        n_unreachable: Checkpoints that were not within reach: their trials start over.
    """

    name: str
    counts: dict[str, int]
    n_checkpoints: int
    n_unreachable: int


def back_up(
    database: Database,
    names: Sequence[str] | None,
    path: Path,
    say: Callable[[str], None] = lambda words: None,
) -> tuple[list[Copied], int]:
    """Write studies as they are at this moment into one file; workers go on meanwhile.

    Args:
        names: Which studies; None for all, and the whole ledger.

    Returns:
        What it holds, and its size in bytes.

    Raises:
        UsageError: If there is no such study, or the file exists.
        StorageError: If the database cannot be read or the file not be written.
    """
    writer = BackupWriter(path)
    try:
        copies, others = read_all(database, names)
        copied = []
        for copy in copies:
            say(f"{copy.name}: {words_of(copy.counts())}")
            number = writer.add_study(copy)
            n_there, n_lacking = 0, 0
            for slot, file in checkpoints_of(copy, database.files).items():
                there = writer.add_checkpoint(number, slot, file)
                n_there, n_lacking = n_there + there, n_lacking + (not there)
            copied.append(Copied(copy.name, copy.counts(), n_there, n_lacking))
        if names is None:
            writer.add_other_ledger(others)
        return copied, writer.finish()
    except FileExistsError:
        raise UsageError(f"'{path}' exists already; a backup replaces nothing.") from None
    except OSError as error:
        raise StorageError(f"Cannot write '{path}': {error.strerror or error}.") from error
    finally:
        writer.discard()


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


def restore(
    database: Database,
    path: Path,
    *,
    new_name: str | None = None,
    only: str | None = None,
    say: Callable[[str], None] = lambda words: None,
) -> list[Copied]:
    """Write a backup's studies into a database: all of them, or, in case of failure, none.

    Args:
        new_name: The one study's name in this database.
        only: Which study of several; None for all.

    Raises:
        UsageError: If a name is taken, or names do not fit the file.
        StorageError: If the file is damaged, or the database or the disk fails.
    """
    reader = BackupReader(path)
    try:
        entries = reader.manifest.studies
        numbers = [number for number, entry in enumerate(entries) if only in (None, entry.name)]
        if only is not None and not numbers:
            raise UsageError(
                f"The backup '{path}' has no study '{only}'."
                f"{did_you_mean(only, [entry.name for entry in entries])}"
            )
        if new_name is not None and len(numbers) != 1:
            raise UsageError(
                f"--as gives one study another name, but '{path}' has {len(numbers)}: "
                f"{', '.join(entry.name for entry in entries)}. Choose one with --study."
            )
        others = reader.other_ledger() if only is None else []
        copies = [reader.read_study(number) for number in numbers]
        if new_name is not None:  # beside the first one it needs folders of its own
            copies[0].study["name"] = new_name
            copies[0].study["definition"].pop(EARLIER_NAMES, None)
        check_names(database, [name for copy in copies for name in copy.names])
        copied, put = [], PutFiles(database.files)
        try:
            for number, copy in zip(numbers, copies, strict=True):
                members = reader.checkpoints(number)
                copied.append(_put_checkpoints(copy, members, reader, put))
                say(f"{copy.name}: {words_of(copy.counts())}")
            write_studies(database, copies, put.place)
        except BaseException:
            put.undo()
            raise
        add_openings(database, others)
        return copied
    finally:
        reader.close()


def _put_checkpoints(
    copy: StudyRows, members: dict[int, str], reader: BackupReader, put: PutFiles
) -> Copied:
    wanted = checkpoints_of(copy, put.files)
    for slot, member in members.items():
        if slot in wanted:

            def write(file: Any, member: str = member) -> None:
                reader.copy_member(member, file)

            put.put(slot_path(copy.folder, slot), write)
    n_there = len(set(members) & set(wanted))
    n_lacking = forget_unreachable(copy, set(members))
    return Copied(copy.name, copy.counts(), n_there, n_lacking)


def checkpoints_of(copy: StudyRows, files: Path) -> dict[int, Path]:
    """Return where the checkpoints lie that a copy takes along, by slot.

    These are those of trials that will go on, and those that are kept as artifacts.
    """
    kept = {row["slot"] for row in copy.rows["artifacts"] if "slot" in row}
    begun = {
        row["number"]
        for row in copy.rows["slots"]
        if row["state"] in ("open", "waiting") and row.get("trial_number") is not None
    }
    paths = {slot: files / slot_path(copy.folder, slot) for slot in sorted(kept | begun)}
    return {slot: _latest(path) for slot, path in paths.items()}


def _latest(path: Path) -> Path:
    with contextlib.suppress(OSError):
        return latest_checkpoint(path.parent) or path
    return path


def forget_unreachable(copy: StudyRows, there: set[int]) -> int:
    """Take from a copy what its rows say of checkpoints that do not come along."""
    artifacts = [row for row in copy.rows["artifacts"] if row.get("slot") in there]
    n_lacking = len(copy.rows["artifacts"]) - len(artifacts)
    copy.rows["artifacts"] = artifacts
    for row in copy.rows["slots"]:
        is_to_go_on = row["state"] in ("open", "waiting")
        if is_to_go_on and "checkpoint_epoch" in row and row["number"] not in there:
            del row["checkpoint_epoch"]
            n_lacking += 1
    return n_lacking


class PutFiles:
    """Files put into a files folder, which can be taken away again."""

    def __init__(self, files: Path) -> None:
        self.files = files
        self.place = place_of(files)
        self._put: list[Path] = []

    def put(self, place: str, write: Callable[[Any], None]) -> None:
        """Write a file whole; what `write` gets is open for writing bytes.

        Raises:
            StorageError: If the disk is full or cannot be written.
        """
        target = self.files / place
        is_new = not target.exists()
        try:
            with written_whole(target) as partial, partial.open("wb") as file:
                write(file)
            if is_new:
                self._put.append(target)
            for generation, path in generations(target.parent).items():
                if generation:  # of a study that is gone: it would count
                    path.unlink()
        except OSError as error:
            raise StorageError(f"Cannot write '{target}': {error.strerror or error}.") from error

    def copy(self, path: str, source: Path) -> bool:
        """Copy a file; return False where there is none any more."""
        try:
            with source.open("rb") as file:
                target = self.files / path
                if target.parent.exists() and target.parent.samefile(source.parent):
                    return True
                self.put(path, lambda copy: shutil.copyfileobj(file, copy))
        except FileNotFoundError:
            return False
        return True

    def undo(self) -> None:
        """Remove what was put where nothing was, and folders that are empty by that."""
        for path in self._put:
            with contextlib.suppress(OSError):
                path.unlink()
            for folder in path.parents[:3]:  # the slot's, the study's, all checkpoints'
                with contextlib.suppress(OSError):
                    folder.rmdir()


def words_of(counts: dict[str, int]) -> str:
    """Return counts in words: `24 slots, 24 trials, 240 epochs`."""
    named = (("slots", "slots"), ("trials", "trials"), ("curves", "epochs"), ("events", "events"))
    return ", ".join(f"{counts[kind]:,} {word}" for kind, word in named)
