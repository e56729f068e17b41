"""Put a study aside: all of its rows, Optuna's too, stay under a new name; its own is free."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dlnn_search.errors import StudyError
from dlnn_search.storage.artifacts import CHECKPOINTS
from dlnn_search.storage.budget import lock_study
from dlnn_search.storage.control import change_control
from dlnn_search.storage.database import Database
from dlnn_search.storage.schema import artifacts, ledger, now, slots, studies

#: What a new name leaves room for: a study's name has at most 100 characters, `-confirm` included.
MAX_NAME = 80


def archive(database: Database, name: str) -> str | None:
    """Give a study, and those linked to it, a new name, in one transaction.

    Workers that still wait for its trials are asked to end. Checkpoints are moved along on this
    machine; those in other machines' files folders are lost to the study of the new name.

    Returns:
        The new name; None where there is no study of that name any more.

    Raises:
        StudyError: If a worker holds one of its trials.
    """
    with database.together(), database.transaction() as connection:
        ids = {
            row.name: row.id
            for row in connection.execute(
                sa.select(studies.c.id, studies.c.name).where(
                    sa.or_(studies.c.name == name, studies.c.parent == name)
                )
            )
        }
        if name not in ids:
            return None
        for study_id in ids.values():
            lock_study(connection, study_id)
        _check_that_none_is_held(connection, ids)
        new_name = _free_name(connection, name)
        for old, study_id in ids.items():
            new = new_name + old.removeprefix(name)
            reason = f"The study is archived as '{new}', and '{old}' begins anew."
            change_control(connection, study_id, "stop", reason)
            rename(database, connection, old, new)
    for old in ids:
        folder = database.files / CHECKPOINTS / old
        with suppress(OSError):  # none was kept, or a stranger has one of the new name
            folder.rename(folder.with_name(new_name + old.removeprefix(name)))
    return new_name


def rename(database: Database, connection: Connection, old: str, new: str) -> None:
    """Write a study's new name wherever rows hold the old one: in our tables and in Optuna's.

    Args:
        database: In whose `together` this is done.
        connection: Of that transaction.
        old: The name as it is.
        new: A name that is free.
    """
    study_id = connection.scalar(sa.select(studies.c.id).where(studies.c.name == old))
    for column in (studies.c.name, studies.c.parent, ledger.c.study):
        connection.execute(column.table.update().where(column == old).values({column.name: new}))
    before = f"{CHECKPOINTS}/{old}/"
    rest = sa.func.substr(artifacts.c.path, len(before) + 1)
    connection.execute(
        artifacts.update()
        .where(
            artifacts.c.study_id == study_id, artifacts.c.path.startswith(before, autoescape=True)
        )
        .values(path=sa.literal(f"{CHECKPOINTS}/{new}/").concat(rest))
    )
    database.optuna.rename_study(old, new)


def _check_that_none_is_held(connection: Connection, ids: Mapping[str, int]) -> None:
    held = connection.execute(
        sa.select(slots.c.number, slots.c.worker, (slots.c.lease_ends_at - now()).label("left"))
        .where(slots.c.study_id.in_(ids.values()), slots.c.state == "held")
        .where(slots.c.lease_ends_at > now())
    ).first()
    if held is not None:
        name = min(ids, key=len)
        raise StudyError(
            f"Worker {held.worker} holds a trial of the study '{name}', which cannot begin anew "
            f"meanwhile. Stop it with 'dlnn-search stop {name} --now', then start again; if it "
            f"was killed, start again in {held.left:.0f} s."
        )


def _free_name(connection: Connection, name: str) -> str:
    taken = set(connection.scalars(sa.select(studies.c.name)))
    taken |= set(connection.scalars(sa.text("SELECT study_name FROM studies")))  # Optuna's
    number = 1
    while any(known.startswith(f"{name[:MAX_NAME]}-old-{number}") for known in taken):
        number += 1
    return f"{name[:MAX_NAME]}-old-{number}"
