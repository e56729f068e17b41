"""Which studies the database knows: their definitions, and those that train others' configs."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dlnn_search.config import Config
from dlnn_search.errors import StudyError, UsageError, did_you_mean
from dlnn_search.files import shipped, study_name
from dlnn_search.storage.budget import counts_of, lock_study, new_slot
from dlnn_search.storage.checkpoints import EARLIER_NAMES, lasting_name
from dlnn_search.storage.database import Database, storage_errors
from dlnn_search.storage.halves import (
    KINDS,
    Kind,
    archive,
    begun_slots,
    linked_name,
    lost_words,
    n_optuna_trials,
)
from dlnn_search.storage.schema import now, slots
from dlnn_search.storage.schema import studies as table

#: Changed lines shown of an edited study; the rest is counted.
MAX_DIFFERENCES = 12
#: Part of what version 0.1 stored: trials are comparable whatever sampler suggested them.
NOT_COMPARED = {"sampler"}
#: Kept with a definition, and no part of what is compared: where the study's file lies.
FILE = "file"
#: A linked study is named after the one that its configs are from: `STUDY-confirm`.


@dataclass(frozen=True)
class StoredStudy:
    """A study as the database knows it.

    Attributes:
        definition: `settings` (plain values) and `code` (normalised source), as
            `dlnn_search.study.Study.definition` makes them.
    """

    id: int
    name: str
    definition: dict[str, Any]

    @property
    def earlier_names(self) -> list[str]:
        """What it was called before it was renamed, the first name first."""
        return list(self.definition.get(EARLIER_NAMES, ()))

    @property
    def lasting_name(self) -> str:
        """Its first name, by which its folders are called and its samplers are seeded."""
        return lasting_name(self.name, self.definition)

    @property
    def file(self) -> str | None:
        """The study file that it was started from; None where an older version started it."""
        return self.definition.get(FILE)

    @property
    def is_built_in(self) -> bool:
        """Whether its file comes with the product."""
        return self.file is not None and Path(self.file).parent == shipped("studies").resolve()

    def named_now(self, name: str) -> str:
        """Return the present name where an earlier one, or a linked study's of it, is given."""
        for earlier in self.earlier_names:
            if name in (earlier, *(linked_name(earlier, kind) for kind in KINDS)):
                return self.name + name.removeprefix(earlier)
        return name

    @property
    def metric(self) -> str:
        return str(self.definition["settings"]["metric"])

    @property
    def direction(self) -> str:
        return str(self.definition["settings"]["direction"])


def register(
    database: Database,
    name: str,
    definition: dict[str, Any],
    *,
    fresh: bool = False,
    file: str = "",
    say: Callable[[str], None] = lambda words: None,
) -> StoredStudy:
    """Store a study at its first start; later, check that it is still the same one.

    A study that was edited, of whose trials none is complete or pruned, begins anew: what it had
    is archived under another name.

    Args:
        database: Where.
        name: The study's.
        definition: As it is now.
        fresh: Whether it begins anew in any case.
        file: Where its study file lies, for whoever names the study alone.
        say: Told under which name the trials so far are kept.

    Raises:
        StudyError: If the study was edited since a trial came to its end, with the lines that
            differ; or if it would begin anew while a worker holds one of its trials.
    """
    _check_new(database, name)
    if file:
        definition = {**definition, FILE: file}
    # An IntegrityError says that it is stored already, perhaps a moment ago by another worker.
    with (
        storage_errors(database.url),
        suppress(sa.exc.IntegrityError),
        database.engine.begin() as connection,
    ):
        connection.execute(
            table.insert().values(name=name, definition=definition, created_at=now())
        )
    stored = find(database, name)
    _check_not_moved(database, stored)
    differences = _differences(stored.definition, definition)
    with database.transaction() as connection:
        has_trials = bool(begun_slots(connection, stored.id, 1))
    if differences and not has_trials:
        # A study that has not begun may be mended, for example after its data were not found.
        if stored.earlier_names:
            definition = {**definition, EARLIER_NAMES: stored.earlier_names}
        return _redefined(database, stored, definition)
    has_results = has_trials and {"complete", "pruned"} & counts_of(database, stored.id).keys()
    if has_trials and (fresh or (differences and not has_results)):
        kept_as = archive(database, stored.id, name)
        if kept_as is not None:
            say(f"'{name}' starts again. Its trials so far are kept: dlnn-search trials {kept_as}")
        return register(database, name, definition, file=file, say=say)
    if differences:
        raise StudyError(
            f"The study '{name}' was edited after its first trial, and trials of two definitions "
            "cannot be compared. Undo the edit; or start with --fresh, which keeps the trials so "
            "far under another name; or copy the file, which gives the study another name; or "
            "choose another database with --storage.",
            details=_what_differs(differences, "now"),
        )
    if file and stored.file != file:  # moved meanwhile, or stored by an older version
        return _redefined(database, stored, {**stored.definition, FILE: file})
    return stored


def _redefined(database: Database, study: StoredStudy, definition: dict[str, Any]) -> StoredStudy:
    with database.transaction() as connection:
        mine = table.update().where(table.c.id == study.id)
        connection.execute(mine.values(definition=definition))
    return replace(study, definition=definition)


def join(
    database: Database, name: str, definition: dict[str, Any], *, start_as: str | None = None
) -> StoredStudy:
    """Return a study that was started already, for a worker that brings its own copy of it.

    Args:
        database: Where.
        name: The study's.
        definition: As it is here.
        start_as: What `start` is told to begin it; None: its name.

    Raises:
        UsageError: If no study of that name was started.
        StudyError: If the copy differs, with what differs.
    """
    known = all_studies(database)
    check_not_renamed(name, known)
    if all(study.name != name for study in known):
        raise UsageError(
            f"The database {database.shown} has no study '{name}' yet. Start it with "
            f"'dlnn-search start {start_as or name}'."
        )
    stored = find(database, name)
    differences = _differences(stored.definition, definition)
    if differences:
        raise StudyError(
            f"The study '{name}' is another one here (definition {short_hash(definition)}) than "
            f"in the database ({short_hash(stored.definition)}), and trials of two definitions "
            "cannot be compared. Copy the study's file to this machine, and install the same "
            "version of dlnn-search.",
            details=_what_differs(differences, "here"),
        )
    return stored


def check_data(database: Database, stored: StoredStudy, identity: Sequence[str]) -> None:
    """Store which pictures a study learns from; later, check that they are the same ones here.

    Args:
        database: That holds the study.
        stored: The study.
        identity: As `dlnn_search.data.loading.identity_of` says it.

    Raises:
        StudyError: If the study's trials learned from others.
    """
    with database.transaction() as connection:
        lock_study(connection, stored.id)  # of two first workers one stores, the other compares
        definition = connection.scalar(sa.select(table.c.definition).where(table.c.id == stored.id))
        known = None if definition is None else definition.get("pictures")
        if known is not None and _are_same(known, identity):
            return
        if known is None or not begun_slots(connection, stored.id, 1):
            connection.execute(
                table.update()
                .where(table.c.id == stored.id)
                .values(definition={**(definition or {}), "pictures": list(identity)})
            )
            return
    raise StudyError(
        f"The study '{stored.name}' has other pictures on this machine than its trials learned "
        "from, and their results cannot be compared. Copy the same data to this machine "
        "('dlnn-search data list' shows what it has); or, if your own loader draws at random, give "
        "it a seed; or start with --fresh, which keeps the trials so far under another name.",
        details=_what_differs(_changed(known, identity), "here"),
    )


def _what_differs(lines: Iterable[str], now: str) -> str:
    return "\n".join([f"What differs ('-' as stored, '+' as it is {now}):", *lines])


def _are_same(known: Sequence[str], identity: Sequence[str]) -> bool:
    """Whether pictures are the same; an earlier version said less of a study's own ones."""
    return len(known) == len(identity) and all(
        new == old or new.startswith(f"{old}, all ")
        for old, new in zip(known, identity, strict=True)
    )


def short_hash(definition: dict[str, Any]) -> str:
    """Return 12 hexadecimal digits that tell a study's settings and code from others'."""
    text = json.dumps([definition["settings"], definition["code"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def find(database: Database, name: str) -> StoredStudy:
    """Return a stored study that is whole.

    Raises:
        UsageError: If the database has none of that name.
        StudyError: If another program deleted or renamed Optuna's half of it.
    """
    study = look_up(database, name)
    check_whole(database, study)
    return study


def check_whole(database: Database, study: StoredStudy) -> None:
    """Check that Optuna's tables hold the trials of a study.

    Raises:
        StudyError: If they do not, with the way out.
    """
    words = lost_words(database, study.id, study.name)
    if words is not None:
        raise StudyError(words)


def look_up(database: Database, name: str) -> StoredStudy:
    """Return what our tables hold of a study, whatever became of Optuna's half of it.

    Raises:
        UsageError: If the database has none of that name.
    """
    known = {study.name: study for study in all_studies(database)}
    if name in known:
        return known[name]
    check_not_renamed(name, known.values())
    hint = did_you_mean(name, known)
    if "Did you mean" not in hint:
        hint += " 'dlnn-search studies' lists what can be started."
    raise UsageError(f"The database {database.shown} has no study '{name}'.{hint}")


def all_studies(database: Database) -> Sequence[StoredStudy]:
    """Return every stored study, oldest first."""
    with database.transaction() as connection:
        rows = connection.execute(sa.select(table).order_by(table.c.id)).all()
    return [StoredStudy(row.id, row.name, row.definition) for row in rows]


def code_file(database: Database, config: Config, given: str | None = None) -> str | None:
    """Return the study file that has a config's own code.

    Args:
        database: Knows which files studies were started from.
        config: With own parts or without.
        given: By the user, who is asked only where no file is known that is still there.
    """
    names = [part.study for part in config.own_parts]
    if given is not None or not names:
        return given
    for stored in reversed(all_studies(database)):
        path = None if stored.file is None else Path(stored.file)
        if path is not None and study_name(path) in names and path.is_file():
            return stored.file
    return None


def check_not_renamed(name: str, known: Iterable[StoredStudy]) -> None:
    """Check that a name is none that a study had before it was renamed.

    Raises:
        UsageError: If it is, with the present name.
    """
    for study in known:
        if name in study.earlier_names:
            raise UsageError(
                f"The study '{name}' was renamed to '{study.name}'. Use that name. For a new "
                "study, copy the file under another name."
            )


def _check_new(database: Database, name: str) -> None:
    """Check that nothing of another study goes by a new study's name."""
    known = all_studies(database)
    if any(study.name == name for study in known):
        return
    check_not_renamed(name, known)
    n_trials = n_optuna_trials(database, name)
    if n_trials:
        raise StudyError(
            f"Optuna's tables in {database.shown} have a study '{name}' with {n_trials} trials "
            "that dlnn-search did not start. Delete it in the dashboard, or copy the file of the "
            "new study under another name, or choose another database with --storage."
        )


def _check_not_moved(database: Database, study: StoredStudy) -> None:
    with database.transaction() as connection:
        moved_to = connection.scalar(sa.select(table.c.moved_to).where(table.c.id == study.id))
    if moved_to is not None:
        raise StudyError(
            f"The study '{study.name}' was moved from {database.shown} to {moved_to}. Here it can "
            "only be looked at. Search it there, with --storage URL (storage/README.md says how to "
            "move it back)."
        )


def is_same(stored: StoredStudy, definition: dict[str, Any]) -> bool:
    """Whether trials of a study and of a stored one are comparable."""
    return not _differences(stored.definition, definition)


def _differences(stored: dict[str, Any], current: dict[str, Any]) -> list[str]:
    def as_lines(definition: dict[str, Any]) -> list[str]:
        settings = definition["settings"]
        # In one order: a backup has an object's keys sorted.
        told = {key: json.dumps(settings[key], sort_keys=True) for key in settings}
        compared = sorted(settings.keys() - NOT_COMPARED)
        return [f"{key} = {json.loads(told[key])}" for key in compared] + str(
            definition["code"]
        ).splitlines()

    return _changed(as_lines(stored), as_lines(current))


def _changed(stored: Sequence[str], current: Sequence[str]) -> list[str]:
    # The first two lines name the files that are compared; a changed line may begin as they do.
    changed = [
        line
        for line in list(difflib.unified_diff(stored, current, n=0, lineterm=""))[2:]
        if not line.startswith("@@")
    ]
    if len(changed) > MAX_DIFFERENCES:
        more = len(changed) - MAX_DIFFERENCES
        changed = [*changed[:MAX_DIFFERENCES], f"... and {more} more lines"]
    return changed


#: Tells of a config in plain data what makes it this one.
Identity = Callable[[dict[str, Any]], str]


def linked(database: Database, parent: StoredStudy, kind: Kind) -> StoredStudy | None:
    """Return a study's linked study, if it has one."""
    name = linked_name(parent.name, kind)
    return next((stored for stored in all_studies(database) if stored.name == name), None)


def set_parent(database: Database, study_id: int, parent: str) -> None:
    """Note whose trials a study trains again."""
    with database.transaction() as connection:
        connection.execute(table.update().where(table.c.id == study_id).values(parent=parent))


def parent_of(database: Database, study_id: int) -> str | None:
    """Return whose trials a study trains again; None where it searches by itself."""
    with database.transaction() as connection:
        return connection.scalar(sa.select(table.c.parent).where(table.c.id == study_id))


def seeds_of(database: Database, study_ids: Sequence[int]) -> list[int]:
    """Return the seeds that studies' trials were trained with, in their order, each once."""
    seed = slots.c.config["training"]["seed"].as_string()
    with database.transaction() as connection:
        rows = connection.execute(
            sa.select(seed.label("its_seed"), sa.func.min(slots.c.number).label("first"))
            .where(slots.c.study_id.in_(study_ids), seed.is_not(None))
            .group_by("its_seed")
            .order_by("first")
        ).all()
    return [int(row[0]) for row in rows]


def family_of(database: Database, name: str) -> list[int]:
    """Return a study with all that are linked with it; nothing where it is not known here."""
    with database.transaction() as connection:
        parent = connection.scalar(
            sa.select(sa.func.coalesce(table.c.parent, table.c.name)).where(table.c.name == name)
        )
        query = sa.select(table.c.id).where(
            sa.or_(table.c.name == parent, table.c.parent == parent)
        )
        return list(connection.scalars(query))


def add_given(
    database: Database, study_id: int, configs: Sequence[dict[str, Any]], identity: Identity
) -> int:
    """Extend a study's budget by slots that train given configs, unless it has them.

    Returns:
        How many were added.
    """
    with database.transaction() as connection:
        lock_study(connection, study_id)
        fresh, n_slots = _fresh(connection, study_id, configs, identity)
        if fresh:
            connection.execute(
                slots.insert(),
                [
                    {**new_slot(study_id, number), "config": config}
                    for number, config in enumerate(fresh, start=n_slots)
                ],
            )
    return len(fresh)


def give_first(
    database: Database, study_id: int, configs: Sequence[dict[str, Any]], identity: Identity
) -> tuple[int, int]:
    """Let the first slots that nobody has begun train given configs, unless the study has them.

    Returns:
        How many configs were given a slot, and how many were left without one.
    """
    with database.transaction() as connection:
        lock_study(connection, study_id)
        fresh, _ = _fresh(connection, study_id, configs, identity)
        open_slots = connection.execute(
            sa.select(slots.c.id, slots.c.config)
            .where(slots.c.study_id == study_id, slots.c.state == "open")
            .where(slots.c.fence == 0, slots.c.trial_id.is_(None))
            .order_by(slots.c.number)
        ).all()
        places = [row.id for row in open_slots if not row.config]
        n_given = 0
        for slot_id, config in zip(places, fresh, strict=False):
            # A worker that claims it this moment wins: the slot is then not untouched any more.
            result = connection.execute(
                slots.update()
                .where(slots.c.id == slot_id, slots.c.state == "open", slots.c.fence == 0)
                .values(config=config)
            )
            n_given += result.rowcount
    return n_given, len(fresh) - n_given


def _fresh(
    connection: Connection, study_id: int, configs: Sequence[dict[str, Any]], identity: Identity
) -> tuple[list[dict[str, Any]], int]:
    """Return the configs that no slot of the study has, each once, and the number of slots."""
    rows = connection.execute(
        sa.select(slots.c.number, slots.c.config).where(slots.c.study_id == study_id)
    ).all()
    known = {identity(row.config) for row in rows if row.config}
    fresh = []
    for config in configs:
        if identity(config) not in known:
            known.add(identity(config))
            fresh.append(config)
    return fresh, len(rows)
