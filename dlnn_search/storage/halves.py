"""The two halves of a study, Optuna's tables and ours: whether they fit, and changes to both.

Other programs (plain optuna-dashboard, Optuna's API) delete and rename Optuna's half alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

import optuna
import sqlalchemy as sa
from optuna.storages import BaseStorage

from dlnn_search.errors import StudyError, UsageError
from dlnn_search.files import CHECKPOINTS
from dlnn_search.storage.budget import lock_studies
from dlnn_search.storage.checkpoints import EARLIER_NAMES, folders_beside, lasting_name
from dlnn_search.storage.control import change_control
from dlnn_search.storage.database import Database, storage_errors
from dlnn_search.storage.database.sqlite import BUSY_SECONDS, file_of, network_file_system
from dlnn_search.storage.optuna import (
    finish_optuna_study,
    read_optuna_study,
    remove_unfinished,
    rename_within,
    write_optuna_study,
)
from dlnn_search.storage.schema import (
    artifacts,
    curves,
    events,
    ledger,
    schema,
    slots,
    studies,
    workers,
)
from dlnn_search.storage.workers import insert_event, searching

#: A user attribute that ties a trial to its slot from the trial's first moment, so that a worker
#: killed between the two rows leaves no trial without an owner.
SLOT_ATTRIBUTE = "slot"
LOGS = "logs"
#: What a new name leaves room for: a study's name has at most 100 characters, `-confirm` included.
MAX_NAME = 80

Kind = Literal["confirm", "retune"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Rows = Sequence[sa.Row[Any]]


def linked_name(parent: str, kind: Kind) -> str:
    """Return what a study's linked study of a kind is called."""
    return f"{parent}-{kind}"


def is_linked_name(name: str) -> bool:
    """Whether a name is that of a linked study, by how it ends."""
    return not name.endswith(".py") and name.endswith(
        tuple(linked_name("", kind) for kind in KINDS)
    )


def parent_and_kind(name: str) -> tuple[str, str]:
    """Return whose linked study a linked name is, and of which kind."""
    parent, _, kind = name.rpartition("-")
    return parent, kind


def lost_words(database: Database, study_id: int, name: str) -> str | None:
    """Say what became of a study that was deleted or renamed; None: it is whole.

    Args:
        database: Where.
        study_id: Of our tables.
        name: Of the study, as it was when it was looked up.
    """
    with database.transaction() as connection:
        row = connection.execute(
            sa.select(studies.c.name, studies.c.definition).where(studies.c.id == study_id)
        ).first()
        last = begun_slots(connection, study_id, 1)
    if row is None or (row.name != name and name not in row.definition.get(EARLIER_NAMES, ())):
        return f"The study '{name}' was deleted from {database.shown}."
    if row.name != name:
        return f"The study '{name}' was renamed to '{row.name}'. Use that name."
    with storage_errors(database.url):
        if _fits(database, name, last):
            return None
        copy = _copy_of(database, study_id)
    if copy is None:
        return (
            f"The study '{name}' in {database.shown} is broken: another program deleted or renamed "
            "its trials in Optuna's tables. Remove what is left with 'dlnn-search delete "
            f"{name}'. Then start it again, or restore a backup with 'dlnn-search storage restore "
            "FILE'."
        )
    return (
        f"The study '{name}' in {database.shown} is broken: another program renamed it to '{copy}' "
        f"in Optuna's tables alone. Finish that with 'dlnn-search rename {name} {copy}'."
    )


def n_optuna_trials(database: Database, name: str) -> int:
    """Return how many trials Optuna has in a study of that name; 0 where it has no such study."""
    with storage_errors(database.url), suppress(KeyError):
        return database.optuna.get_n_trials(database.optuna.get_study_id_from_name(name))
    return 0


def check_idle(database: Database, study_id: int, name: str) -> list[str]:
    """Check that nobody searches a study, or one that trains its configs again.

    Returns:
        The names of all these studies.

    Raises:
        UsageError: If somebody does, or the study is not there any more.
    """
    with database.transaction() as connection:
        return [row.name for row in _idle_family(connection, database, study_id, name)]


def delete_study(
    database: Database, study_id: int, name: str, optunas: BaseStorage | None = None
) -> list[str]:
    """Delete a study with the studies that train its configs again: rows, checkpoints and logs.

    The ledger stays: what was tested remains known.

    Args:
        database: Where.
        study_id: Of our tables.
        name: Of the study.
        optunas: What reads Optuna's half in this process, if it remembers what it read.

    Returns:
        The names of what was deleted.

    Raises:
        UsageError: If somebody searches one of them, or the study is not there any more.
    """
    storage = optunas or database.optuna
    with database.transaction() as connection:
        family = _idle_family(connection, database, study_id, name)
    with storage_errors(database.url):
        # A study of the same name that another program made is not ours to delete.
        whole = [optuna_id for row in family if (optuna_id := _optuna_id(database, row))]

    def delete_optunas() -> None:
        with database.transaction() as connection:
            _idle_family(connection, database, study_id, name)
        for optuna_id in whole:
            with suppress(KeyError):  # an attempt before was cut off after it
                storage.delete_study(optuna_id)

    def delete_ours() -> None:
        ids = [row.id for row in family]
        of_slots = curves.c.slot_id.in_(sa.select(slots.c.id).where(slots.c.study_id.in_(ids)))
        with database.transaction() as connection:
            connection.execute(curves.delete().where(of_slots))
            for table in (artifacts, events, workers, slots):
                connection.execute(table.delete().where(table.c.study_id.in_(ids)))
            connection.execute(studies.delete().where(studies.c.id.in_(ids)))

    with storage_errors(database.url):
        database.at_once(delete_optunas, delete_ours)
    _remove_folders(database, family)
    return [row.name for row in family]


def rename_study(database: Database, study_id: int, name: str, new_name: str) -> list[str]:
    """Rename a study with the studies that train its configs again.

    Its first name stays with it: for its folders, for its samplers' seeds, and to find its file.
    Where another program has renamed Optuna's half, by a copy, that copy becomes the half.

    Returns:
        What the studies are called now.

    Raises:
        UsageError: If somebody searches one of them, or the study is not there any more, or the
            name is taken.
        StudyError: If Optuna's half is gone.
    """
    with database.transaction() as connection:
        family = _idle_family(connection, database, study_id, name)
    new = {row.id: new_name + row.name.removeprefix(name) for row in family}
    copies: dict[int, dict[int, int]] = {}
    optuna_ids: dict[int, int | None] = {}
    with storage_errors(database.url):
        for row in family:
            optuna_ids[row.id] = _optuna_id(database, row)
            if optuna_ids[row.id] is None and lost_words(database, row.id, row.name):
                copies[row.id] = _copy_named(database, row, new[row.id])
            if not database.joins and optuna_ids[row.id] is not None:
                remove_unfinished(database.optuna, new[row.id])
            _check_free(database, row, new[row.id], is_copied=row.id in copies)
        for row in family:
            if not database.joins and optuna_ids[row.id] is not None and new_name != name:
                copies[row.id] = _moved(database, row, new[row.id])
                optuna_ids[row.id] = None
    with storage_errors(database.url), database.together(), database.transaction() as connection:
        for row in _idle_family(connection, database, study_id, name):
            _have_trials(connection, copies.get(row.id, {}))
            if new[row.id] == row.name:
                continue
            optuna_id = optuna_ids[row.id]
            if optuna_id is not None:
                rename_within(database.optuna, optuna_id, new[row.id])
            earlier = dict.fromkeys([*row.definition.get(EARLIER_NAMES, ()), row.name])
            connection.execute(
                studies.update()
                .where(studies.c.id == row.id)
                .values(
                    name=new[row.id],
                    definition={**row.definition, EARLIER_NAMES: list(earlier)},
                    parent=None if row.parent is None else new_name,
                )
            )
            words = f"Renamed from '{row.name}' to '{new[row.id]}'."
            insert_event(connection, row.id, "renamed", words)
    return list(new.values())


def archive(database: Database, study_id: int, name: str) -> str:
    """Put a study aside, and those linked to it, in one transaction: its own name is free then.

    Workers that still wait for its trials are asked to end. Checkpoints are moved along on this
    machine; those in other machines' files folders are lost to the study of the new name.

    Returns:
        The new name.

    Raises:
        UsageError: If somebody searches one of them, or the study is not there any more.
    """
    moved: dict[int, dict[int, int]] = {}
    free: str | None = None
    with database.transaction() as connection:
        family = _idle_family(connection, database, study_id, name)
    with storage_errors(database.url):
        optuna_ids = {row.id: _optuna_id(database, row) for row in family}
        if not database.joins:
            with database.transaction() as connection:
                free = _free_name(connection, database, name)
            for row in family:
                if optuna_ids.pop(row.id) is not None:
                    moved[row.id] = _moved(database, row, free + row.name.removeprefix(name))
    with storage_errors(database.url), database.together(), database.transaction() as connection:
        family = _idle_family(connection, database, study_id, name)
        new_name = free or _free_name(connection, database, name)
        new = {row.id: new_name + row.name.removeprefix(name) for row in family}
        for row in family:
            reason = f"The study is archived as '{new[row.id]}', and '{row.name}' begins anew."
            change_control(connection, row.id, "stop", reason)
            _have_trials(connection, moved.get(row.id, {}))
            optuna_id = optuna_ids.get(row.id)
            if optuna_id is not None:
                rename_within(database.optuna, optuna_id, new[row.id])
            for column in (studies.c.name, studies.c.parent, ledger.c.study):
                mine = column.table.update().where(column == row.name)
                connection.execute(mine.values({column.name: new[row.id]}))
            before = f"{CHECKPOINTS}/{lasting_name(row.name, row.definition)}/"
            rest = sa.func.substr(artifacts.c.path, len(before) + 1)
            connection.execute(
                artifacts.update()
                .where(artifacts.c.study_id == row.id)
                .where(artifacts.c.path.startswith(before, autoescape=True))
                .values(path=sa.literal(f"{CHECKPOINTS}/{new[row.id]}/").concat(rest))
            )
            plain = {key: said for key, said in row.definition.items() if key != EARLIER_NAMES}
            connection.execute(
                studies.update().where(studies.c.id == row.id).values(definition=plain)
            )
    for row in family:
        folder = database.files / CHECKPOINTS / lasting_name(row.name, row.definition)
        with suppress(OSError):  # none was kept, or a stranger has one of the new name
            folder.rename(folder.with_name(new[row.id]))
    return new_name


def _moved(database: Database, row: sa.Row[Any], name: str) -> dict[int, int]:
    """Move Optuna's half to another name by its documented interface: it is copied, then deleted.

    A kill leaves an unfinished copy, or the state in which another program renamed that half.

    Returns:
        The new id of each slot's trial, by the slot's id.
    """
    storage = database.optuna
    with database.transaction() as connection:
        begun = begun_slots(connection, row.id, None)
    study, trials, _ = read_optuna_study(storage, row.name)
    assert study is not None
    ids = write_optuna_study(storage, name, study, trials)
    storage.delete_study(storage.get_study_id_from_name(row.name))
    finish_optuna_study(storage, name)
    return {slot.id: ids[slot.trial_number] for slot in begun}


def _have_trials(connection: sa.Connection, ids: Mapping[int, int]) -> None:
    for slot_id, trial_id in ids.items():
        connection.execute(slots.update().where(slots.c.id == slot_id).values(trial_id=trial_id))


def _free_name(connection: sa.Connection, database: Database, name: str) -> str:
    taken = set(connection.scalars(sa.select(studies.c.name)))
    taken |= set(optuna.get_all_study_names(database.optuna))
    number = 1
    while any(known.startswith(f"{name[:MAX_NAME]}-old-{number}") for known in taken):
        number += 1
    return f"{name[:MAX_NAME]}-old-{number}"


def _fits(database: Database, name: str, rows: Rows) -> bool:
    """Whether these slots' trials are those of Optuna's study of that name.

    By number and id: a study that was made anew has the numbers, and SQLite gives the ids of
    what was deleted to others.
    """
    storage = database.optuna
    try:
        for row in rows:
            study_id = storage.get_study_id_from_name(name)
            found = storage.get_trial_id_from_study_id_trial_number(study_id, row.trial_number)
            # Trials of the first version do not name their slots.
            owner = storage.get_trial(found).user_attrs.get(SLOT_ATTRIBUTE, row.number)
            if (found, owner) != (row.trial_id, row.number):
                return False
    except KeyError:
        return False
    return True


def _optuna_id(database: Database, row: sa.Row[Any]) -> int | None:
    """Return Optuna's id of the study of our row; None where its trials are not those there."""
    with database.transaction() as connection:
        last = begun_slots(connection, row.id, 1)
    if not _fits(database, row.name, last):
        return None
    with suppress(KeyError):
        return database.optuna.get_study_id_from_name(row.name)
    return None  # it was never begun


def begun_slots(connection: sa.Connection, study_id: int, limit: int | None = None) -> Rows:
    """Return a study's slots that have a trial, the last one first."""
    query: sa.Select[Any] = (
        sa.select(slots.c.id, slots.c.number, slots.c.trial_id, slots.c.trial_number)
        .where(slots.c.study_id == study_id, slots.c.trial_id.is_not(None))
        .order_by(slots.c.number.desc())
        .limit(limit)
    )
    return connection.execute(query).all()


def _copy_of(database: Database, study_id: int) -> str | None:
    """Return the name of the Optuna study that holds a copy of all of a study's trials."""
    with database.transaction() as connection:
        others = set(connection.scalars(sa.select(studies.c.name).where(studies.c.id != study_id)))
        rows = begun_slots(connection, study_id)
    for name in optuna.get_all_study_names(database.optuna):
        if name not in others and _copied_ids(database, rows, name) is not None:
            return name
    return None


def _copy_named(database: Database, row: sa.Row[Any], name: str) -> dict[int, int]:
    """Return the ids of the trials that another program copied to a study of that name, by slot.

    Raises:
        StudyError: If there are none.
    """
    with database.transaction() as connection:
        begun = begun_slots(connection, row.id)
    with suppress(KeyError):
        ids = _copied_ids(database, begun, name)
        if ids is not None:
            return ids
    raise StudyError(lost_words(database, row.id, row.name) or f"'{row.name}' was just changed.")


def _copied_ids(database: Database, rows: Rows, name: str) -> dict[int, int] | None:
    """Return the id of each slot's trial among copies, by the slot's id; None if one is missing.

    A copy keeps the number, and the attribute that names the slot.
    """
    storage = database.optuna
    copy_id = storage.get_study_id_from_name(name)
    trials = storage.get_all_trials(copy_id, deepcopy=False)
    by_number = {trial.number: trial for trial in trials}
    ids = {}
    for row in rows:
        trial = by_number.get(row.trial_number)
        if trial is None or trial.user_attrs.get(SLOT_ATTRIBUTE) != row.number:
            return None
        ids[row.id] = storage.get_trial_id_from_study_id_trial_number(copy_id, trial.number)
    return ids


def _idle_family(
    connection: sa.Connection, database: Database, study_id: int, name: str
) -> list[sa.Row[Any]]:
    """Lock and return a study's row, and those of the studies that train its configs again.

    Raises:
        UsageError: If somebody searches one of them, or the study is not there any more.
    """
    own = sa.and_(studies.c.id == study_id, studies.c.name == name)
    where = sa.or_(own, studies.c.parent == name)
    lock_studies(connection, where)
    family = list(connection.execute(sa.select(studies).where(where).order_by(studies.c.id)))
    if not any(row.id == study_id for row in family):
        raise UsageError(f"The database {database.shown} has no study '{name}' any more.")
    for row in family:
        hosts = searching(database, row.id)
        if hosts:
            n = len(hosts)
            raise UsageError(
                f"The study '{row.name}' is being searched by {n} worker{'s' * (n > 1)} (on "
                f"{', '.join(sorted(set(hosts)))}). Stop it with 'dlnn-search stop {row.name} "
                f"--now', and try again when 'dlnn-search status {row.name}' shows no worker."
            )
    return family


def _check_free(database: Database, row: sa.Row[Any], name: str, *, is_copied: bool) -> None:
    """Check that no other study has a name, or had it."""
    with database.transaction() as connection:
        others = connection.execute(sa.select(studies).where(studies.c.id != row.id)).all()
    taken = {
        each for other in others for each in (other.name, *other.definition.get(EARLIER_NAMES, ()))
    }
    if not is_copied and name != row.name:
        taken |= {study.study_name for study in database.optuna.get_all_studies()}
    if name in taken:
        raise UsageError(
            f"The name '{name}' is taken: a study in {database.shown} has it, or had it before it "
            "was renamed. Choose another."
        )


def _remove_folders(database: Database, family: Rows) -> None:
    """Remove the files that lie here; those on other machines are swept there."""
    beside = folders_beside(database)
    for row in family:
        folder = lasting_name(row.name, row.definition)
        if folder not in beside:
            for kind in (CHECKPOINTS, LOGS):
                shutil.rmtree(database.files / kind / folder, ignore_errors=True)


Facts = list[tuple[str, str]]


def describe(database: Database) -> Facts:
    """Return what there is to say of a database, as pairs of what about and words."""
    with database.transaction() as connection:
        facts = [("database", database.shown)]
        file = file_of(database.url)
        facts += _postgresql(connection) if file is None else _sqlite(connection, file)
        row = connection.execute(sa.select(schema)).one()
        facts.append(("our tables", f"version {row.version}, by dlnn-search {row.program}"))
        facts += _contents(connection)
        known = connection.execute(sa.select(studies.c.id, studies.c.name)).all()
    version = database.optuna.get_current_version()
    facts.insert(-1, ("Optuna's tables", f"{version}, by Optuna {optuna.__version__}"))
    facts.append(("files", str(database.files)))
    for row in known:
        lost = lost_words(database, row.id, row.name)
        if lost is not None:
            facts.append(("broken", lost))
    return facts


def _sqlite(connection: sa.Connection, path: Path) -> Facts:
    mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
    version = connection.exec_driver_sql("SELECT sqlite_version()").scalar()
    size = sum(
        file.stat().st_size for file in (path, path.with_name(f"{path.name}-wal")) if file.exists()
    )
    facts = [
        ("server", f"SQLite {version}, journal {mode}, waits {BUSY_SECONDS} s for a writer"),
        ("size", f"{size / 1e6:,.1f} MB"),
    ]
    if (kind := network_file_system(path)) is not None:
        facts.append(
            ("warning", f"on a network file system ({kind}), where SQLite's locks do not hold")
        )
    return facts


def _postgresql(connection: sa.Connection) -> Facts:
    def ask(query: str) -> str:
        return str(connection.exec_driver_sql(query).scalar())

    used = ask("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")
    reserved = ask("SHOW superuser_reserved_connections")
    size = int(ask("SELECT pg_database_size(current_database())"))
    return [
        ("server", f"PostgreSQL {ask('SHOW server_version')}"),
        (
            "connections",
            f"{used} in use of {ask('SHOW max_connections')} ({reserved} reserved); "
            "a worker takes 1, at most 4",
        ),
        ("size", f"{size / 1e6:,.1f} MB"),
    ]


def _contents(connection: sa.Connection) -> Facts:
    def count(table: sa.Table) -> int:
        return connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0

    done = connection.scalar(
        sa.select(sa.func.count()).select_from(slots).where(slots.c.state == "done")
    )
    kept = connection.scalar(sa.select(sa.func.sum(artifacts.c.size_bytes))) or 0
    return [
        (
            "holds",
            f"{count(studies):,} studies, {count(slots):,} slots ({done:,} done), "
            f"{count(curves):,} epochs, {count(ledger):,} openings of test splits",
        ),
        (
            "checkpoints",
            f"{count(artifacts):,} kept, {int(kept) / 1e6:,.1f} MB",
        ),
    ]
