"""A database whose file and folder cannot be written is read, and never read as it was before."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from dlnn_search.archive.backup import back_up
from dlnn_search.cli.groups import sweep
from dlnn_search.commands.doctor import _disks
from dlnn_search.errors import StorageError
from dlnn_search.storage.control import set_control
from dlnn_search.storage.database import Database, open_database
from dlnn_search.storage.studies import all_studies, register

DEFINITION = {"settings": {"metric": "accuracy", "direction": "maximize"}, "code": "pass"}
NOBODY = 65_534


@pytest.fixture
def folder(sqlite_template: Path) -> Iterator[Path]:
    """A folder that every user reaches, with a database that knows the study `one`."""
    made = Path(tempfile.mkdtemp(prefix="ro"))
    shutil.copy(sqlite_template, made / "dlnn.db")
    with closing(open_database(url_of(made), create=False)) as database:
        register(database, "one", DEFINITION)
    yield made
    os.chmod(made, 0o755)
    shutil.rmtree(made)


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'dlnn.db'}"


@contextmanager
def without_write_permission(folder: Path) -> Iterator[None]:
    """Let nothing in the folder be writable, as another user's folder is; root is nobody inside."""
    for path in [folder, *folder.iterdir()]:
        os.chmod(path, 0o555 if path.is_dir() else 0o444)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        for path in [folder, *folder.iterdir()]:
            os.chmod(path, 0o755 if path.is_dir() else 0o644)


def names(folder: Path) -> list[str]:
    """Read the studies' names as a command does that only reads."""
    with closing(open_database(url_of(folder), create=False, read_only=True)) as database:
        return [study.name for study in all_studies(database)]


def test_a_database_that_every_writer_left_is_read(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["dlnn.db"]
    with without_write_permission(folder):
        assert names(folder) == ["one"]
    assert sorted(path.name for path in folder.iterdir()) == ["dlnn.db"]


def test_what_a_living_writer_adds_is_seen_at_once(folder: Path) -> None:
    with (
        closing(open_database(url_of(folder), create=False)) as writer,
        closing(sqlite3.connect(folder / "dlnn.db")) as open_all_along,
    ):
        open_all_along.execute("SELECT 1 FROM dlnn_studies").fetchone()
        register(writer, "two", DEFINITION)
        assert (folder / "dlnn.db-wal").stat().st_size
        with without_write_permission(folder):
            reader = open_database(url_of(folder), create=False, read_only=True)
            assert [study.name for study in all_studies(reader)] == ["one", "two"]
        register(writer, "three", DEFINITION)
        with without_write_permission(folder), closing(reader):
            assert [study.name for study in all_studies(reader)] == ["one", "two", "three"]


def test_a_writer_that_comes_after_the_reader_is_seen_too(folder: Path) -> None:
    with without_write_permission(folder):
        reader = open_database(url_of(folder), create=False, read_only=True)
        assert [study.name for study in all_studies(reader)] == ["one"]
    with closing(open_database(url_of(folder), create=False)) as writer:
        register(writer, "two", DEFINITION)
        with without_write_permission(folder), closing(reader):
            assert [study.name for study in all_studies(reader)] == ["one", "two"]


def killed_writer(folder: Path) -> None:
    """Let a process add the study `two`, and end without tidying up."""
    program = (
        "import os, sys; from dlnn_search.storage.database import open_database;"
        "from dlnn_search.storage.studies import register;"
        f"register(open_database(sys.argv[1], create=False), 'two', {DEFINITION!r}); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", program, url_of(folder)], check=True)
    assert (folder / "dlnn.db-wal").stat().st_size


def test_what_a_killed_writer_left_in_the_log_is_read(folder: Path) -> None:
    killed_writer(folder)
    with without_write_permission(folder):
        assert names(folder) == ["one", "two"]


def test_a_log_that_cannot_be_read_is_told_and_never_left_out(folder: Path) -> None:
    killed_writer(folder)
    (folder / "dlnn.db-shm").unlink()
    with (
        without_write_permission(folder),
        pytest.raises(StorageError, match=r"'dlnn\.db-wal' holds changes, .* Copy both files"),
    ):
        names(folder)
    assert names(folder) == ["one", "two"], "where the folder may be written"


def test_an_empty_log_without_a_writer_hides_nothing(folder: Path) -> None:
    (folder / "dlnn.db-wal").touch()
    with without_write_permission(folder):
        assert names(folder) == ["one"]


def test_a_database_with_a_rollback_journal_is_read(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "dlnn.db")) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    with without_write_permission(folder):
        assert names(folder) == ["one"]


def test_nothing_can_be_written_through_a_database_that_is_opened_to_read(folder: Path) -> None:
    with (
        closing(open_database(url_of(folder), create=False, read_only=True)) as database,
        pytest.raises(StorageError),
    ):
        set_control(database, 1, "stop")
    with closing(open_database(url_of(folder), create=False)) as database:
        assert controls(database) == ["run"]


def controls(database: Database) -> list[str]:
    with database.transaction() as connection:
        return [row[0] for row in connection.exec_driver_sql("SELECT control FROM dlnn_studies")]


def test_a_missing_and_an_unreadable_file_are_told_apart(folder: Path) -> None:
    with pytest.raises(StorageError, match="There is no database at"):
        open_database(f"sqlite:///{folder}/no.db", create=False, read_only=True)
    (folder / "dlnn.db").chmod(stat.S_IWUSR)
    if os.geteuid() == 0:
        os.seteuid(NOBODY)
    try:
        with pytest.raises(StorageError, match="Permission denied"):
            names(folder)
    finally:
        if os.getuid() == 0:
            os.seteuid(0)


def test_a_backup_is_written_through_a_database_that_is_opened_to_read(
    database: Database, tmp_path: Path
) -> None:
    register(database, "one", DEFINITION)
    with closing(open_database(database.url, create=False, read_only=True)) as reader:
        copied, n_bytes = back_up(reader, None, tmp_path / "backup.zip")
    assert [study.name for study in copied] == ["one"]
    assert n_bytes == (tmp_path / "backup.zip").stat().st_size


def test_a_sweep_that_only_looks_works_where_nothing_can_be_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with without_write_permission(folder):
        sweep(delete=False, storage=url_of(folder))
        assert "Nothing to sweep" in capsys.readouterr().out
        with pytest.raises(StorageError, match="cannot be opened for writing"):
            sweep(delete=True, storage=url_of(folder))
    assert sorted(path.name for path in folder.iterdir()) == ["dlnn.db"]


def test_doctor_says_what_a_folder_that_cannot_be_written_is_good_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLNN_SEARCH_CACHE", str(folder))
    with without_write_permission(folder):
        found = {finding.about: finding for finding in _disks(url_of(folder))}
    assert {finding.verdict for finding in found.values()} == {"note"}
    for finding in found.values():
        assert finding.words.startswith(f"{folder.resolve()} is read-only.")
    assert "'start' and 'worker' do not" in found["disk, studies"].words
    assert "can be used" in found["disk, data"].words
