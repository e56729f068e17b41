"""`storage migrate-from`: studies move to another database, everything along."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from dlnn_search.archive.backup import (
    Copied,
    PutFiles,
    add_openings,
    check_names,
    checkpoints_of,
    forget_unreachable,
    read_all,
    words_of,
    write_studies,
)
from dlnn_search.errors import StorageError, UsageError, did_you_mean
from dlnn_search.files import slot_path
from dlnn_search.storage import schema
from dlnn_search.storage.database import Database, shown
from dlnn_search.storage.database.outages import EVER_SECONDS
from dlnn_search.storage.slots import open_expired
from dlnn_search.storage.workers import insert_event


def migrate(
    source: Database,
    target: Database,
    names: Sequence[str] | None,
    say: Callable[[str], None] = lambda words: None,
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
                say(f"{copy.name}: {words_of(copy.counts())}")
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
        # An update first takes the lock: no worker claims between the look and the mark.
        connection.execute(table.update().where(table.c.name.in_(names)).values(name=table.c.name))
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
                    f"train{'' if n_training > 1 else 's'} just now. Stop them first: "
                    f"dlnn-search stop {row.name} --now (their trials go on in the new database)."
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
