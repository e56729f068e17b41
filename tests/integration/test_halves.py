"""A study's two halves, Optuna's tables and ours: changed together, and missed when one is gone."""

from __future__ import annotations

import dataclasses
import io
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
import typer

from dlnn_search.archive.backup import back_up, restore
from dlnn_search.cli import control as cli
from dlnn_search.commands.confirm import check_new_name, enqueue
from dlnn_search.commands.doctor import _database as database_findings
from dlnn_search.dashboard import FIGURE_ID, paint
from dlnn_search.errors import StorageError, StudyError, UsageError
from dlnn_search.files import slot_path
from dlnn_search.samplers.coarse_to_fine import CoarseToFine
from dlnn_search.storage import schema
from dlnn_search.storage.checkpoints import find_orphans
from dlnn_search.storage.database import Database, open_database
from dlnn_search.storage.halves import check_idle, delete_study, describe, lost_words, rename_study
from dlnn_search.storage.ledger import openings
from dlnn_search.storage.slots import Slots
from dlnn_search.storage.studies import StoredStudy, find, linked, look_up, register
from dlnn_search.storage.workers import WorkerRow
from dlnn_search.study import RandomSearch, Sampler, Study, Tpe
from dlnn_search.study.finding import built_in_studies
from dlnn_search.worker.joining import join_study
from dlnn_search.worker.optuna_study import make_sampler
from dlnn_search.worker.worker import run_worker

from .whole_study import a_study, fill, optuna_trials

NAME = "some-study"


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a server's files a folder of this test's own."""
    monkeypatch.setenv("DLNN_SEARCH_FILES", str(tmp_path))


@pytest.fixture
def stored(database: Database) -> StoredStudy:
    """A whole study that nobody searches."""
    study_id = fill(database)
    with database.transaction() as connection:
        held = schema.slots.c.state == "held"
        connection.execute(schema.slots.update().where(held).values(state="open"))
    return StoredStudy(study_id, NAME, find(database, NAME).definition)


def rename_as_optuna_dashboard_does(database: Database, name: str, new: str) -> None:
    """Copy all trials to a new study and delete the old one, through Optuna's API."""
    old = optuna.load_study(study_name=name, storage=database.optuna)
    copy = optuna.create_study(study_name=new, storage=database.optuna, directions=old.directions)
    copy.add_trials(old.get_trials(deepcopy=False))
    for key, value in old.user_attrs.items():
        copy.set_user_attr(key, value)
    optuna.delete_study(study_name=name, storage=database.optuna)


def rows(database: Database, *tables: sa.Table) -> list[int]:
    with database.transaction() as connection:
        return [
            connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0
            for table in tables
        ]


def test_a_deleted_study_leaves_nothing_but_the_ledger(
    database: Database, stored: StoredStudy
) -> None:
    fill(database, "another")
    before = optuna_trials(database, "another")
    tested = openings(database)
    assert delete_study(database, stored.id, NAME) == [NAME]
    with pytest.raises(UsageError, match=f"has no study '{NAME}'"):
        find(database, NAME)
    assert [each.study_name for each in database.optuna.get_all_studies()] == ["another"]
    assert optuna_trials(database, "another") == before
    assert rows(database, schema.studies, schema.slots, schema.curves) == [1, 8, 10]
    assert openings(database) == tested
    assert not (database.files / "checkpoints" / NAME).exists()
    assert (database.files / slot_path("another", 0)).is_file()


class Terminal(io.StringIO):
    """A user who sits at it and types one answer."""

    def isatty(self) -> bool:
        return True


def test_at_a_terminal_a_study_is_deleted_only_by_who_says_yes(
    database: Database, stored: StoredStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for answer in ("n", "", "maybe\nno"):
        monkeypatch.setattr(sys, "stdin", Terminal(f"{answer}\n"))
        with pytest.raises(typer.Exit) as left:
            cli.delete(NAME, storage=database.url)
        assert left.value.exit_code == 1
        assert find(database, NAME).id == stored.id
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    cli.delete(NAME, storage=database.url)
    with pytest.raises(UsageError, match=f"has no study '{NAME}'"):
        find(database, NAME)


def test_a_renamed_study_keeps_trials_checkpoints_and_random_numbers(
    database: Database, stored: StoredStudy
) -> None:
    trials = optuna_trials(database, NAME)
    assert rename_study(database, stored.id, NAME, "better") == ["better"]
    found = find(database, "better")
    assert (found.id, found.lasting_name) == (stored.id, NAME)
    assert optuna_trials(database, "better") == trials
    assert [each.study_name for each in database.optuna.get_all_studies()] == ["better"]
    assert find_orphans(database, min_age_seconds=0.0) == []
    with pytest.raises(UsageError, match="was renamed to 'better'"):
        find(database, NAME)
    with pytest.raises(UsageError, match="was renamed to 'better'"):
        register(database, NAME, stored.definition)
    first, now = a_study(), a_study("better")
    renamed = dataclasses.replace(now, first_name=NAME)
    for sampler in (RandomSearch(), Tpe()):
        assert drawn(sampler, renamed) == drawn(sampler, first) != drawn(sampler, now)
    seeds = [make_sampler(CoarseToFine(), study, 3).seed for study in (renamed, first, now)]  # type: ignore[attr-defined]
    assert seeds[0] == seeds[1] != seeds[2]


def drawn(sampler: Sampler, study: Study) -> float:
    """Return what the third slot of a study without trials suggests."""
    trials = optuna.create_study(sampler=make_sampler(sampler, study, 3))
    return trials.ask().suggest_float("x", 0, 1)


def test_a_name_that_is_or_was_another_studys_is_not_given(
    database: Database, stored: StoredStudy
) -> None:
    fill(database, "other")
    optuna.create_study(study_name="theirs", storage=database.optuna)
    rename_study(database, stored.id, NAME, "better")
    better = find(database, "better")
    with database.transaction() as connection:
        held = schema.slots.c.state == "held"
        connection.execute(schema.slots.update().where(held).values(state="open"))
    other = find(database, "other")
    for taken in ("better", NAME, "theirs"):
        with pytest.raises(UsageError, match="is taken"):
            rename_study(database, other.id, "other", taken)
    for strange in ("Better", "a/b", "better-confirm", next(iter(built_in_studies())), ""):
        with pytest.raises(UsageError):
            check_new_name(database, better, strange)
    rename_study(database, better.id, "better", NAME)  # back again
    assert find(database, NAME).lasting_name == NAME
    assert {"other", NAME, "theirs"} == {
        each.study_name for each in database.optuna.get_all_studies()
    }


def test_while_a_worker_is_there_or_a_slot_is_held_nothing_is_changed(
    database: Database, stored: StoredStudy
) -> None:
    worker = WorkerRow(database, stored.id)
    changes: list[Callable[[], object]] = [
        lambda: check_idle(database, stored.id, NAME),
        lambda: delete_study(database, stored.id, NAME),
        lambda: rename_study(database, stored.id, NAME, "better"),
    ]
    for change in changes:
        with pytest.raises(UsageError, match=r"is being searched by 1 worker .*stop some-study"):
            change()
    worker.show(state="stopped")
    held = Slots(database, stored.id).claim("elsewhere-1")
    assert held is not None
    with pytest.raises(UsageError, match="is being searched by 1 worker"):
        delete_study(database, stored.id, NAME)
    assert lost_words(database, stored.id, NAME) is None
    assert len(optuna_trials(database, NAME)) == 6


def test_linked_studies_are_renamed_and_deleted_along(
    database: Database, stored: StoredStudy
) -> None:
    from dlnn_search.commands.export import config_of
    from dlnn_search.results.status import best_trials

    config = config_of(stored, best_trials(database, stored, 1)[0])
    study, _ = enqueue(database, stored, "confirm", [config], None)
    assert rename_study(database, stored.id, NAME, "better") == ["better", "better-confirm"]
    found = linked(database, find(database, "better"), "confirm")
    assert found is not None
    assert found.lasting_name == study.name
    again, n_new = enqueue(database, find(database, "better"), "confirm", [config], None)
    assert (again.name, again.lasting_name, n_new) == ("better-confirm", study.name, 0)
    with pytest.raises(UsageError, match="is renamed with that study"):
        check_new_name(database, found, "other")
    assert delete_study(database, stored.id, "better") == ["better", "better-confirm"]
    assert rows(database, schema.studies, schema.slots) == [0, 0]
    assert database.optuna.get_all_studies() == []


def test_a_renamed_study_is_backed_up_with_its_ledger_and_restored(
    database: Database, stored: StoredStudy, other: str, tmp_path: Path
) -> None:
    rename_study(database, stored.id, NAME, "better")
    back_up(database, ["better"], tmp_path / "b.zip")
    target = open_database(other, create=True)
    try:
        restore(target, tmp_path / "b.zip")
        assert find(target, "better").lasting_name == NAME
        assert optuna_trials(target, "better") == optuna_trials(database, "better")
        assert len(openings(target)) == 1
        if "sqlite" in other:
            assert (target.files / slot_path(NAME, 0)).is_file()
        with pytest.raises(UsageError, match="has a study"):
            restore(target, tmp_path / "b.zip")
        restore(target, tmp_path / "b.zip", new_name="third")
        assert find(target, "third").lasting_name == "third"
    finally:
        target.close()


LOST = "another program (deleted or renamed its trials|renamed it to)"


@pytest.mark.parametrize("how", ["deleted", "made anew", "renamed"])
def test_what_another_program_did_to_a_study_is_said_everywhere(
    database: Database, stored: StoredStudy, how: str, tmp_path: Path
) -> None:
    if how == "renamed":
        rename_as_optuna_dashboard_does(database, NAME, "theirs")
    else:
        optuna.delete_study(study_name=NAME, storage=database.optuna)
    if how == "made anew":  # SQLite gives its trials the ids of those before
        new = optuna.create_study(study_name=NAME, storage=database.optuna)
        for _ in range(8):
            new.enqueue_trial({})
            new.ask().set_user_attr("slot", 99)
    words = lost_words(database, stored.id, NAME)
    assert words is not None
    assert re.search(LOST, words)
    assert ("dlnn-search rename some-study theirs" in words) == (how == "renamed")
    assert ("dlnn-search delete some-study" in words) == (how != "renamed")
    study = a_study()
    for use in (
        lambda: find(database, NAME),
        lambda: register(database, NAME, study.definition()),
        lambda: join_study(study, database),
        lambda: run_worker(study, database),
    ):
        with pytest.raises(StudyError, match=LOST):
            use()
    with pytest.raises(StudyError, match="gone from Optuna's tables"):
        back_up(database, None, tmp_path / "b.zip")
    assert not (tmp_path / "b.zip").exists()
    assert ("broken", words) in describe(database)
    assert words in [one.words for one in database_findings(database.url)]
    assert look_up(database, NAME).id == stored.id
    delete_study(database, stored.id, NAME)
    assert len(database.optuna.get_all_studies()) == (how != "deleted")  # theirs is not ours


def test_a_study_that_another_program_renamed_takes_the_copy_and_goes_on(
    database: Database, stored: StoredStudy
) -> None:
    rename_as_optuna_dashboard_does(database, NAME, "theirs")
    with pytest.raises(StudyError, match="dlnn-search rename some-study theirs"):
        rename_study(database, stored.id, NAME, "elsewhere")
    assert rename_study(database, stored.id, NAME, "theirs") == ["theirs"]
    assert lost_words(database, stored.id, "theirs") is None
    ids = {
        trial._trial_id
        for trial in optuna.load_study(study_name="theirs", storage=database.optuna).trials
    }
    with database.transaction() as connection:
        told = set(connection.scalars(sa.select(schema.slots.c.trial_id)))
    assert told - {None} < ids
    assert find(database, "theirs").lasting_name == NAME


def test_another_programs_study_of_a_name_with_trials_is_not_searched_on(
    database: Database,
) -> None:
    theirs = optuna.create_study(study_name=NAME, storage=database.optuna)
    theirs.enqueue_trial({})
    theirs.tell(theirs.ask(), 1.0)
    with pytest.raises(StudyError, match="a study 'some-study' with 1 trials that dlnn-search"):
        register(database, NAME, a_study().definition())
    assert rows(database, schema.studies) == [0]


def test_the_curves_of_the_other_studies_are_drawn_on(
    database: Database, stored: StoredStudy, caplog: pytest.LogCaptureFixture
) -> None:
    fill(database, "other")
    optuna.delete_study(study_name=NAME, storage=database.optuna)
    ended = threading.Event()
    ended.set()
    paint(database, ended)
    other_id = database.optuna.get_study_id_from_name("other")
    shown = database.optuna.get_study_system_attrs(other_id)
    assert any(FIGURE_ID in key for key in shown)
    assert "The study 'some-study' in" in caplog.text


def test_a_hostile_backups_earlier_name_becomes_no_folder(
    database: Database, stored: StoredStudy, other: str, tmp_path: Path
) -> None:
    rename_study(database, stored.id, NAME, "better")
    with database.transaction() as connection:
        definition = {**find(database, "better").definition, "earlier_names": ["../../evil"]}
        connection.execute(schema.studies.update().values(definition=definition))
    with pytest.raises(Exception, match="earlier name"):
        back_up(database, None, tmp_path / "b.zip")
        target = open_database(other, create=True)
        try:
            restore(target, tmp_path / "b.zip")
        finally:
            target.close()
    assert not (tmp_path.parent / "evil").exists()


def test_a_read_only_address_keeps_its_own_options(
    postgresql_database: Database, postgresql: sa.URL
) -> None:
    url = sa.make_url(postgresql_database.url)
    with postgresql_database.engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA trials")
    in_schema = url.update_query_dict({"options": "-csearch_path=trials"}).render_as_string(False)
    open_database(in_schema, create=True).close()
    viewer = open_database(in_schema, create=False, read_only=True)
    try:
        with viewer.transaction() as connection:
            assert connection.exec_driver_sql("SHOW search_path").scalar() == "trials"
            assert connection.exec_driver_sql("SHOW transaction_read_only").scalar() == "on"
        with pytest.raises(StorageError, match="read-only"):
            fill(viewer)
    finally:
        viewer.close()
