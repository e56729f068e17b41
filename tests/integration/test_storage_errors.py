"""What a user reads when the database cannot be used: what came, what to do, never a password."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import sqlite3
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa

from dlnn_search.cli.options import storage_words
from dlnn_search.config import Config, Mnist
from dlnn_search.errors import DlnnSearchError, StorageError, StudyError, UsageError
from dlnn_search.storage import schema
from dlnn_search.storage.database import (
    DEFAULT_URL,
    Database,
    database_url,
    files_folder,
    open_database,
    shown,
)
from dlnn_search.storage.schema import SCHEMA_VERSION
from dlnn_search.storage.slots import Slot, Slots
from dlnn_search.storage.studies import register
from dlnn_search.storage.trials import Point, add_points, curve_of_slot
from dlnn_search.study import Study
from dlnn_search.worker.optuna_study import open_optuna_study
from dlnn_search.worker.worker import run_worker

from .slot_life import give_trials

PASSWORD = "s3cret{word}"
AND_QUOTED = "s3cret%7Bword%7D"


def assert_no_password(error: BaseException) -> None:
    text = "".join(traceback.format_exception(error))
    assert PASSWORD not in text
    assert AND_QUOTED not in text


def refused(url: str, *, create: bool = True) -> str:
    with pytest.raises(StorageError) as caught:
        open_database(url, create=create)
    assert_no_password(caught.value)
    assert caught.value.exit_code == 5
    return str(caught.value)


def sqlite_url(path: Path) -> str:
    return f"sqlite:///{path}"


class TestAddresses:
    def test_without_an_address_a_file_in_this_folder_is_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("DLNN_SEARCH_STORAGE", raising=False)
        assert database_url(None) == sqlite_url(tmp_path / "storage/data/dlnn.db")
        assert DEFAULT_URL == "sqlite:///storage/data/dlnn.db"
        assert files_folder(database_url(None)) == tmp_path / "storage/data"

    def test_the_environment_names_the_database_and_an_option_overrides_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DLNN_SEARCH_STORAGE", sqlite_url(tmp_path / "a.db"))
        assert database_url(None) == sqlite_url(tmp_path / "a.db")
        assert database_url(sqlite_url(tmp_path / "b.db")) == sqlite_url(tmp_path / "b.db")

    def test_a_question_mark_in_a_path_does_not_cut_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "what? now"
        for given in (f"sqlite:///{tmp_path}/what? now/d.db", "sqlite:///d.db"):
            folder.mkdir(exist_ok=True)
            monkeypatch.chdir(folder)
            open_database(database_url(given), create=True).close()
            assert [path.name for path in tmp_path.iterdir()] == [folder.name]
            assert sqlite3.connect(folder / "d.db").execute("SELECT * FROM dlnn_schema").fetchall()
            with closing(
                open_database(database_url(given), create=False, read_only=True)
            ) as database:
                assert database_url(database.shown) == database.url
            shutil.rmtree(folder)

    def test_options_of_sqlite_are_refused_in_words(self) -> None:
        with pytest.raises(UsageError, match=r"without options, got '\?timeout=20'"):
            database_url("sqlite:///d.db?timeout=20")

    def test_a_printed_option_can_be_pasted_into_a_shell(self) -> None:
        address = "postgresql+psycopg://u@/name?host=/run/x"
        words = shlex.split(storage_words(address))
        assert words[0] == "--storage"
        assert sa.make_url(words[1]).query["host"] == "/run/x"
        assert "'" in storage_words(address), "a shell takes a bare '?' for a pattern"

    @pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
    def test_every_spelling_of_postgresql_means_the_driver_that_is_tested(
        self, scheme: str
    ) -> None:
        url = database_url(f"{scheme}://u:p@host:5433/name?sslmode=require")
        assert url == "postgresql+psycopg://u:p@host:5433/name?sslmode=require"

    @pytest.mark.parametrize(
        "text",
        [
            "nonsense",
            "://",
            "dlnn.db",
            f"postgresql://u:{PASSWORD}@host:port/name",
            f"postgresql://u:{PASSWORD}@[::1/name",
            f"{PASSWORD}",
            "sqlite://dlnn.db",  # one slash too few: a host
            "sqlite:///a\0b.db",
        ],
    )
    def test_what_is_no_address_is_refused_without_being_repeated(self, text: str) -> None:
        with pytest.raises(UsageError, match="Expected a database URL such as") as caught:
            database_url(text)
        assert "--storage" in str(caught.value)
        assert "DLNN_SEARCH_STORAGE" in str(caught.value)
        assert_no_password(caught.value)

    @pytest.mark.parametrize("scheme", ["mysql", "mysql+pymysql", "oracle", "redis", "http"])
    def test_another_kind_of_database_is_refused(self, scheme: str) -> None:
        with pytest.raises(UsageError, match="SQLite or PostgreSQL, got") as caught:
            database_url(f"{scheme}://u:{PASSWORD}@host/name")
        assert scheme in str(caught.value)
        assert_no_password(caught.value)

    @pytest.mark.parametrize(
        "text",
        ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"],
    )
    def test_a_database_in_memory_is_refused(self, text: str) -> None:
        with pytest.raises(UsageError, match="in memory"):
            database_url(text)

    def test_a_missing_driver_is_named_with_the_command_that_installs_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "psycopg", None)
        with pytest.raises(UsageError, match=r"pip install '\.\[postgres\]'") as caught:
            database_url(f"postgresql://u:{PASSWORD}@host/name")
        assert_no_password(caught.value)

    @pytest.mark.parametrize("name", ["a?b", "a#b", "a%20b", "{a}", "ü b", "a@b:c"])
    def test_a_folder_may_have_any_name(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name / "dlnn.db"
        path.parent.mkdir()
        url = URL_of(path)
        database = open_database(database_url(url), create=True)
        assert database.shown == f"sqlite:///{path}"
        assert database.files == path.parent
        database.close()
        assert path.is_file()

    @pytest.mark.parametrize(
        "query", [f"password={AND_QUOTED}", f"sslpassword={AND_QUOTED}", "passfile=s3cret"]
    )
    def test_a_password_is_not_shown_wherever_it_stands(self, query: str) -> None:
        url = database_url(f"postgresql://u:{AND_QUOTED}@host/name?{query}&sslmode=require")
        assert "s3cret" in url
        assert shown(url) == "postgresql+psycopg://u:***@host/name?sslmode=require"


def URL_of(path: Path) -> str:  # noqa: N802 - SQLAlchemy's own spelling
    return sa.URL.create("sqlite", database=str(path)).render_as_string()


class TestSQLite:
    def test_a_file_that_is_no_database_is_left_as_it_is(self, tmp_path: Path) -> None:
        path = tmp_path / "notes.txt"
        path.write_text("some notes\n" * 100)
        for create in (True, False):
            assert "is a file, but no SQLite database" in refused(sqlite_url(path), create=create)
        assert path.read_text() == "some notes\n" * 100

    def test_a_folder_is_answered_with_a_file_in_it(self, tmp_path: Path) -> None:
        said = refused(sqlite_url(tmp_path))
        assert "Expected an SQLite file, got the folder" in said
        assert f"--storage sqlite:///{tmp_path / 'dlnn.db'}" in said

    def test_a_folder_that_is_a_file_cannot_hold_a_database(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        assert "Cannot use the database" in refused(sqlite_url(tmp_path / "file" / "dlnn.db"))

    def test_no_database_is_made_to_look_into_it(self, tmp_path: Path) -> None:
        path = tmp_path / "none" / "dlnn.db"
        said = refused(sqlite_url(path), create=False)
        assert f"There is no database at '{path}'" in said
        assert "dlnn-search start STUDY" in said
        assert not path.parent.exists()

    def test_a_database_of_another_program_is_not_touched_to_look_into_it(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "other.db"
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE theirs (id INTEGER)")
        connection.close()
        before = path.read_bytes()
        assert "holds no study yet" in refused(sqlite_url(path), create=False)
        assert path.read_bytes() == before

    def test_a_file_that_may_not_be_written_is_said_to_be_so(
        self, sqlite_database: Database
    ) -> None:
        # What a file's mode says does not bind root: SQLite refuses to write instead.
        from_now_on(sqlite_database, "PRAGMA query_only = 1")
        with pytest.raises(StorageError, match=r"cannot be opened for writing.*readonly"):
            register(sqlite_database, "some-study", DEFINITION)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
    def test_a_read_only_disk_is_said_to_be_so(self, tmp_path: Path, disk: Path) -> None:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        for url in (sqlite_url(disk / "dlnn.db"), sqlite_url(disk / "new" / "dlnn.db")):
            said = refused(url)
            assert "cannot be opened for writing" in said or "Read-only file system" in said

    def test_a_damaged_database_is_said_to_be_so(
        self, sqlite_template: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "dlnn.db"
        content = bytearray(sqlite_template.read_bytes())
        content[5000:] = b"\xff" * (len(content) - 5000)
        path.write_bytes(content)
        said = refused(sqlite_url(path), create=False)
        assert "is damaged" in said
        assert "Restore a backup" in said

    def test_a_database_that_is_deleted_while_in_use_is_missed_at_once(
        self, sqlite_database: Database
    ) -> None:
        slots = slots_of(sqlite_database)
        Path(sa.make_url(sqlite_database.url).database or "").unlink()
        for _ in range(2):
            with pytest.raises(StorageError, match="was deleted or replaced while it was in use"):
                slots.claim("w")

    def test_a_database_that_is_replaced_while_in_use_is_missed_at_once(
        self, sqlite_database: Database, sqlite_template: Path
    ) -> None:
        path = Path(sa.make_url(sqlite_database.url).database or "")
        other = path.with_name("other.db")
        other.write_bytes(sqlite_template.read_bytes())
        other.replace(path)
        with pytest.raises(StorageError, match="was deleted or replaced while it was in use"):
            slots_of(sqlite_database)

    def test_tables_that_were_left_half_made_are_completed(self, tmp_path: Path) -> None:
        path = tmp_path / "dlnn.db"
        with sqlite3.connect(path) as connection:
            connection.execute(
                "CREATE TABLE dlnn_schema (version INTEGER NOT NULL PRIMARY KEY, program TEXT)"
            )
        connection.close()
        assert "holds no study yet" in refused(sqlite_url(path), create=False)
        database = open_database(sqlite_url(path), create=True)
        assert slots_of(database).claim("w") is not None
        database.close()


class TestPostgreSQL:
    def test_a_server_that_is_not_there_is_named_with_its_address(self) -> None:
        with socket.socket() as free:  # bound, but nobody listens
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
            said = refused(f"postgresql+psycopg://u:{AND_QUOTED}@127.0.0.1:{port}/name")
        assert f"postgresql+psycopg://u:***@127.0.0.1:{port}/name" in said
        assert "Check that it runs" in said

    def test_a_wrong_password_is_said_to_be_so(self, guarded: sa.URL) -> None:
        url = guarded.set(username="guarded", password=PASSWORD)
        said = refused(url.render_as_string(hide_password=False))
        assert "password authentication failed" in said
        assert "user and password are right" in said

    def test_the_right_password_is_accepted_with_its_braces(self, guarded: sa.URL) -> None:
        url = guarded.set(username="guarded", password="{right}")
        database = open_database(url.render_as_string(hide_password=False), create=True)
        assert "right" not in database.shown
        database.close()

    def test_an_unknown_role_is_said_to_be_so(self, postgresql: sa.URL) -> None:
        url = postgresql.set(username="nobody", password=PASSWORD)
        said = refused(url.render_as_string(hide_password=False))
        assert 'role "nobody" does not exist' in said

    def test_an_unknown_database_is_said_to_be_so(self, postgresql: sa.URL) -> None:
        url = postgresql.set(database="nowhere", password=PASSWORD)
        said = refused(url.render_as_string(hide_password=False))
        assert 'database "nowhere" does not exist' in said

    def test_a_role_that_may_not_make_tables_is_said_to_be_so(
        self, postgresql_database: Database
    ) -> None:
        with postgresql_database.transaction() as connection:
            connection.exec_driver_sql(f"CREATE ROLE reader LOGIN PASSWORD '{PASSWORD}'")
        url = sa.make_url(postgresql_database.url).set(username="reader", password=PASSWORD)
        assert "permission denied" in refused(url.render_as_string(hide_password=False))
        with postgresql_database.transaction() as connection:
            connection.exec_driver_sql("DROP ROLE reader")

    def test_a_restarted_connection_is_made_anew_between_two_transactions(
        self, postgresql_database: Database
    ) -> None:
        slots = slots_of(postgresql_database)
        hang_up(postgresql_database)
        assert slots.claim("w") is not None

    def test_a_database_that_is_dropped_while_in_use_is_said_to_be_gone(
        self, postgresql_database: Database, postgresql: sa.URL
    ) -> None:
        slots = slots_of(postgresql_database)
        engine = sa.create_engine(postgresql, isolation_level="AUTOCOMMIT")
        name = sa.make_url(postgresql_database.url).database
        with engine.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
        engine.dispose()
        with pytest.raises(StorageError, match=f'database "{name}" does not exist'):
            slots.claim("w")


class TestVersions:
    def test_tables_of_a_newer_version_are_refused(self, database: Database) -> None:
        version = SCHEMA_VERSION + 1
        with database.transaction() as connection:
            connection.execute(schema.schema.update().values(version=version, program="7.8.9"))
        for create in (True, False):
            said = refused(database.url, create=create)
            assert f"of version {version} (made by dlnn-search 7.8.9)" in said
            assert f"expects version {SCHEMA_VERSION}" in said
            assert "Install the newer dlnn-search" in said

    @pytest.mark.parametrize("version", ["v3.0.0.d", "v99.0.0"])
    def test_optunas_tables_of_another_version_are_refused(
        self, database: Database, version: str
    ) -> None:
        with database.transaction() as connection:
            connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{version}'")
        said = refused(database.url)
        assert "was made by another version of Optuna" in said
        assert "upgrade" in said or "updating" in said

    def test_a_database_with_other_tables_alone_holds_no_study_but_may_receive_one(
        self, address: str
    ) -> None:
        engine = sa.create_engine(address)
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE theirs (id INTEGER)")
            connection.exec_driver_sql("INSERT INTO theirs VALUES (7)")
        said = refused(address, create=False)
        assert "holds no study yet" in said
        assert sa.inspect(engine).get_table_names() == ["theirs"]
        database = open_database(address, create=True)
        slots_of(database)
        with database.transaction() as connection:
            assert connection.exec_driver_sql("SELECT id FROM theirs").scalar() == 7
        database.close()
        engine.dispose()

    def test_opening_again_keeps_what_is_there(self, address: str) -> None:
        for create in (True, True, False):
            database = open_database(address, create=create)
            slots = Slots(database, register(database, "some-study", DEFINITION).id)
            give_trials(slots, 2)
            database.close()
        database = open_database(address, create=False)
        assert [slot.number for slot in iter(lambda: claim(database), None)] == [0, 1]
        database.close()


DEFINITION = {"settings": {"metric": "loss", "direction": "minimize"}, "code": ""}


def slots_of(database: Database) -> Slots:
    slots = Slots(database, register(database, "some-study", DEFINITION).id)
    give_trials(slots, 1)
    return slots


def claim(database: Database) -> Slot | None:
    return Slots(database, register(database, "some-study", DEFINITION).id).claim("w")


def from_now_on(database: Database, pragma: str) -> None:
    """Set up every later connection."""
    sa.event.listen(database.engine, "connect", lambda connection, _: connection.execute(pragma))
    database.engine.dispose()


def n_pages(database: Database) -> int:
    with database.transaction() as connection:
        return int(connection.exec_driver_sql("PRAGMA page_count").scalar_one())


def hang_up(database: Database) -> None:
    """End every connection of a PostgreSQL database, as a restart of its server does."""
    engine = sa.create_engine(database.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    engine.dispose()


@pytest.fixture
def guarded(postgresql: sa.URL, tmp_path: Path) -> Iterator[sa.URL]:
    """A database whose role `guarded` has to give its password, which is `{right}`."""
    engine = sa.create_engine(postgresql, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        rules = Path(str(connection.exec_driver_sql("SHOW hba_file").scalar()))
        usual = rules.read_text()
        connection.exec_driver_sql("CREATE ROLE guarded LOGIN PASSWORD '{right}'")
        connection.exec_driver_sql("CREATE DATABASE guarded OWNER guarded")
        rules.write_text(f"local all guarded scram-sha-256\n{usual}")
        connection.exec_driver_sql("SELECT pg_reload_conf()")
        yield postgresql.set(database="guarded")
        rules.write_text(usual)
        connection.exec_driver_sql("SELECT pg_reload_conf()")
        connection.exec_driver_sql("DROP DATABASE guarded WITH (FORCE)")
        connection.exec_driver_sql("DROP ROLE guarded")
    engine.dispose()


@pytest.fixture
def disk(tmp_path: Path, sqlite_template: Path) -> Iterator[Path]:
    """A disk of one megabyte, with a database on it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small disk cannot be mounted here: {error}")
    (folder / "dlnn.db").write_bytes(sqlite_template.read_bytes())
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


class TestFullDisk:
    def test_a_full_disk_is_said_to_be_so_and_loses_nothing(
        self, sqlite_database: Database
    ) -> None:
        slots = slots_of(sqlite_database)
        slot = slots.claim("w")
        assert slot is not None
        from_now_on(sqlite_database, f"PRAGMA max_page_count = {n_pages(sqlite_database) + 8}")
        n_stored = fill(sqlite_database, slot, r"is full\. Nothing that was stored is lost")
        assert 0 < n_stored == len(curve_of_slot(sqlite_database, slot.id))

    def test_a_disk_that_runs_full_is_said_to_be_so_and_goes_on_once_there_is_room(
        self, disk: Path
    ) -> None:
        database = open_database(sqlite_url(disk / "dlnn.db"), create=False)
        slots = slots_of(database)
        slot = slots.claim("w")
        assert slot is not None
        (disk / "checkpoint").write_bytes(b"x" * room(disk, but=40_000))
        n_stored = fill(database, slot, "is full")
        assert len(curve_of_slot(database, slot.id)) == n_stored
        (disk / "checkpoint").unlink()
        slots.settle(slot, "complete", value=1.0)
        database.close()

    def test_a_database_is_not_made_on_a_full_disk(self, disk: Path) -> None:
        (disk / "checkpoint").write_bytes(b"x" * room(disk, but=8_000))
        assert "is full" in refused(sqlite_url(disk / "new.db"))


def room(disk: Path, but: int) -> int:
    status = os.statvfs(disk)
    return status.f_bavail * status.f_bsize - but


def fill(database: Database, slot: Slot, message: str) -> int:
    """Write epochs until there is no room left, and return how many were written."""
    metrics = {f"some_metric_{n}": n / 7 for n in range(50)}
    for epoch in range(1, 10_000):
        try:
            assert add_points(database, slot.id, slot.fence, [Point(epoch, metrics, 1.0, 1.0)])
        except StorageError as error:
            assert database.shown in str(error)
            assert re.search(message, str(error))
            return epoch - 1
    raise AssertionError("there is room without end")


class TestWorkers:
    """Optuna's own errors, in the middle of a trial, are never taken for a bug of the study."""

    def work(self, database: Database, break_it: Callable[[], object]) -> DlnnSearchError:
        """Run a worker whose study's space breaks the database, then asks Optuna for a value."""

        def space(trial: optuna.Trial) -> Config:
            trial.suggest_float("before", 0, 1)
            break_it()
            # So long that it needs room of its own.
            trial.suggest_categorical("after", ["x" * 50_000])
            raise StorageError("The space went on.")

        study = Study(space=space, data=Mnist(), minimize="loss", name="some-study")
        open_optuna_study(study, database)
        slots = Slots(database, register(database, study.name, study.definition()).id)
        give_trials(slots, 2)
        with pytest.raises(DlnnSearchError) as caught:
            run_worker(study, database, name="w")
        assert_no_password(caught.value)
        return caught.value

    def settled(self, url: str) -> int:
        database = open_database(url, create=False)
        with database.transaction() as connection:
            n = connection.scalar(
                sa.select(sa.func.count()).where(schema.slots.c.outcome.is_not(None))
            )
        database.close()
        return n or 0

    def test_a_table_that_is_gone_fails_the_worker_not_the_trial(self, database: Database) -> None:
        def rename(old: str, new: str) -> None:
            engine = sa.create_engine(database.url)
            with engine.begin() as connection:
                connection.exec_driver_sql(f"ALTER TABLE {old} RENAME TO {new}")
            engine.dispose()

        error = self.work(database, lambda: rename("trial_params", "elsewhere"))
        assert isinstance(error, StorageError)
        assert "Cannot use the database" in str(error)
        rename("elsewhere", "trial_params")
        assert self.settled(database.url) == 0

    def test_a_connection_lost_between_two_calls_is_not_even_noticed(
        self, postgresql_database: Database
    ) -> None:
        error = self.work(postgresql_database, lambda: hang_up(postgresql_database))
        assert str(error) == "The space went on."
        assert self.settled(postgresql_database.url) == 0

    def test_a_full_disk_fails_the_worker_not_the_trial(
        self, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DLNN_SEARCH_PATIENCE", "1")

        def fill_up() -> None:
            from_now_on(sqlite_database, f"PRAGMA max_page_count = {n_pages(sqlite_database)}")

        error = self.work(sqlite_database, fill_up)
        assert isinstance(error, StorageError)
        assert "is full" in str(error)
        assert self.settled(sqlite_database.url) == 0

    def test_a_deleted_database_fails_the_worker(self, sqlite_database: Database) -> None:
        path = Path(sa.make_url(sqlite_database.url).database or "")

        def delete_then_fail() -> None:
            path.unlink()
            raise ValueError("so that the trial is settled")

        error = self.work(sqlite_database, delete_then_fail)
        assert isinstance(error, StorageError)
        assert "was deleted or replaced" in str(error)

    def test_a_study_deleted_in_optuna_fails_the_worker(self, database: Database) -> None:
        error = self.work(
            database,
            lambda: optuna.delete_study(study_name="some-study", storage=database.optuna),
        )
        assert isinstance(error, StudyError)
        assert "another program deleted or renamed its trials" in str(error)
