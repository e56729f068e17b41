"""`storage backup`, `restore` and `migrate-from`: studies into a file, back, and elsewhere."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from dlnn_search.archive.file import BackupReader, BackupWriter
from dlnn_search.archive.rows import (
    StudyRows,
    add_openings,
    check_names,
    read_all,
    write_studies,
)
from dlnn_search.errors import StorageError, UsageError, did_you_mean
from dlnn_search.files import generations, latest_checkpoint, slot_path, written_whole
from dlnn_search.storage import schema
from dlnn_search.storage.budget import lock_studies
from dlnn_search.storage.checkpoints import EARLIER_NAMES, place_of
from dlnn_search.storage.database import Database, shown
from dlnn_search.storage.database.outages import EVER_SECONDS
from dlnn_search.storage.slots import open_expired
from dlnn_search.storage.workers import insert_event


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
        raise UsageError(
            f"'{path}' exists already. A backup never replaces a file: choose another name with -o."
        ) from None
    except OSError as error:
        raise StorageError(f"Cannot write '{path}': {error.strerror or error}.") from error
    finally:
        writer.discard()


def restore(
    database: Database,
    path: Path,
    *,
    new_name: str | None = None,
    only: str | None = None,
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


def migrate(
    source: Database,
    target: Database,
    names: Sequence[str] | None,
) -> list[Copied]:
    """Move studies from one database to another: all of them, or, in case of failure, none.

    The source keeps all its rows. Each study there is marked as moved, so that nobody goes on
    with it by accident while the others search in the new database.

    Args:
        names: Which studies; None for all that were not moved before, and the whole ledger.

    Raises:
        UsageError: If there is no such study, a worker trains one of them, or the target has one.
        StorageError: If a database or a disk fails, or the target does not return what was written.
    """
    if _same(source.url, target.url):
        raise UsageError(
            f"Expected another database than {source.shown} to move to. Name it with --storage."
        )
    wanted = _wanted(source, target, names)
    check_names(target, wanted)
    copied = []
    with _marked(source, target, wanted):
        copies, others = read_all(source, wanted)
        put = PutFiles(target.files)
        try:
            for copy in copies:
                copy.study["control"] = "run"  # it was stopped to be moved
                copy.study.pop("control_reason", None)
                copy.study.pop("control_at", None)
                there = {
                    slot
                    for slot, path in checkpoints_of(copy, source.files).items()
                    if put.copy(slot_path(copy.folder, slot), path)
                }
                n_lacking = forget_unreachable(copy, there)
                copied.append(Copied(copy.name, copy.counts(), len(there), n_lacking))
            write_studies(target, copies, put.place)
        except BaseException:
            put.undo()
            raise
    if names is None:
        add_openings(target, others)
    return copied


def _same(source: str, target: str) -> bool:
    first, second = make_url(source), make_url(target)
    return (first.get_backend_name(), first.host, first.port, first.database, first.query) == (
        second.get_backend_name(),
        second.host,
        second.port,
        second.database,
        second.query,
    )


def _wanted(source: Database, target: Database, names: Sequence[str] | None) -> list[str]:
    table = schema.studies
    with source.transaction() as connection:
        rows = connection.execute(
            sa.select(table.c.name, table.c.moved_to).order_by(table.c.id)
        ).all()
    moved = {row.name: row.moved_to for row in rows}
    for name in names or ():
        if name not in moved:
            raise UsageError(
                f"The database {source.shown} has no study '{name}'.{did_you_mean(name, moved)}"
            )
        # Marked for this very target: an attempt before was killed, and goes on now.
        if moved[name] not in (None, target.shown):
            raise UsageError(
                f"The study '{name}' was moved to {moved[name]} before. Move it from there."
            )
    if names is not None:
        return list(names)
    with target.transaction() as connection:
        there = set(connection.execute(sa.select(table.c.name)).scalars())
    wanted = [
        name
        for name, to in moved.items()
        if to is None or (to == target.shown and name not in there)
    ]
    if not wanted:
        raise UsageError(f"The database {source.shown} has no study that was not moved already.")
    return wanted


@contextmanager
def _marked(source: Database, target: Database, names: Sequence[str]) -> Iterator[None]:
    """Mark studies as moved before they are read; take the mark back if the move fails."""
    table, slots = schema.studies, schema.slots
    with source.transaction() as connection:
        # Before the look: no worker claims between it and the mark.
        lock_studies(connection, table.c.name.in_(names))
        before = connection.execute(sa.select(table).where(table.c.name.in_(names))).all()
        for row in before:
            n_training = connection.scalar(
                sa.select(sa.func.count())
                .select_from(slots)
                .where(slots.c.study_id == row.id, slots.c.state == "held")
                .where(slots.c.lease_ends_at >= schema.now())
            )
            if n_training:
                raise UsageError(
                    f"{n_training} worker{'s' if n_training > 1 else ''} of '{row.name}' "
                    f"train{'' if n_training > 1 else 's'} just now. Stop them first with "
                    f"'dlnn-search stop {row.name} --now'. Their trials go on in the new database."
                )
        connection.execute(
            table.update()
            .where(table.c.name.in_(names))
            .values(
                control="stop",
                control_reason=f"Moved to {target.shown}: search there.",
                control_at=schema.now(),
                moved_to=target.shown,
            )
        )
        # Who was held up since with an expired lease changes nothing any more.
        for row in before:
            open_expired(connection, row.id, EVER_SECONDS)
    try:
        yield
    except BaseException:
        with suppress(StorageError), source.transaction() as connection:
            for row in before:
                connection.execute(
                    table.update()
                    .where(table.c.id == row.id)
                    .values(
                        control=row.control if row.moved_to is None else "run",
                        control_reason=row.control_reason if row.moved_to is None else None,
                        control_at=row.control_at,
                        moved_to=None,
                    )
                )
        raise
    with source.transaction() as connection:
        for row in before:
            insert_event(
                connection, row.id, "moved", f"Moved to {shown(target.url)}: search there."
            )
