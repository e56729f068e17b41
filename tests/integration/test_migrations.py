"""Tables of an older version are brought to the newest, all of it or nothing, on every storage."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from optuna.trial import TrialState

from dlnn_search.cli.groups import upgrade
from dlnn_search.config import Config, Mlp, Mnist, Training
from dlnn_search.errors import StorageError
from dlnn_search.results.status import study_status
from dlnn_search.samplers.observations import DUPLICATE_ATTRIBUTE
from dlnn_search.storage import migrations, schema
from dlnn_search.storage.database import Database, open_database
from dlnn_search.storage.ledger import openings
from dlnn_search.storage.slots import Slots
from dlnn_search.storage.studies import find
from dlnn_search.storage.trials import curve_of_slot
from dlnn_search.study import Study
from dlnn_search.worker.worker import run_worker

from .version_1 import Rows, make_version_1


def space(trial: optuna.Trial) -> Config:
    rate = trial.suggest_float("rate", 1e-4, 1e-2, log=True)
    return Config(model=Mlp(), training=Training(learning_rate=rate))


STUDY = Study(
    space=space, data=Mnist(n_training=256), maximize="accuracy", epochs=1, name="some-study"
)
CONFIG = Config(data=Mnist(), model=Mlp()).model_dump(mode="json")


@pytest.fixture
def old(address: str) -> Rows:
    """The rows of a database of the first version, at `address`."""
    return make_version_1(address, STUDY.name, STUDY.definition(), CONFIG)


def stored_rows(url: str, like: Rows) -> Rows:
    engine = sa.create_engine(url)
    found: Rows = {}
    with engine.connect() as connection:
        for name, rows in like.items():
            table = schema.metadata.tables[name]
            columns = [table.c[each] for each in rows[0]]
            query = sa.select(*columns).order_by(*table.primary_key.columns)
            found[name] = [dict(row) for row in connection.execute(query).mappings()]
    engine.dispose()
    return found


def tables(url: str) -> set[str]:
    engine = sa.create_engine(url)
    names = set(sa.inspect(engine).get_table_names())
    engine.dispose()
    return names


def test_an_older_database_is_upgraded_with_all_its_rows(address: str, old: Rows) -> None:
    open_database(address, create=True).close()
    found = stored_rows(address, old)
    assert found.pop("dlnn_schema")[0]["version"] == schema.SCHEMA_VERSION
    old.pop("dlnn_schema")
    assert found == old
    database = open_database(address, create=False)
    stored = find(database, STUDY.name)
    assert len(curve_of_slot(database, 1)) == 2
    assert len(openings(database)) == 1
    status = study_status(database, stored)
    assert status.budget == 4
    with database.transaction() as connection:
        row = connection.execute(sa.select(schema.studies)).mappings().one()
    assert (row["control"], row["lease_seconds"], row["wall_used_seconds"]) == ("run", 120, 0)
    database.close()


def test_an_upgraded_database_is_searched_on(address: str, old: Rows) -> None:
    database = open_database(address, create=True)
    try:
        assert run_worker(STUDY, database, name="w") == 0
        with database.transaction() as connection:
            slots = connection.execute(sa.select(schema.slots).order_by("number")).all()
        trials = optuna.load_study(study_name=STUDY.name, storage=database.optuna).trials
    finally:
        database.close()
    assert [row.outcome for row in slots] == ["complete", "failed", "complete", "complete"]
    assert [trial.state for trial in trials] == [
        TrialState.COMPLETE,
        TrialState.FAIL,
        TrialState.COMPLETE,
        TrialState.COMPLETE,
    ]


def make_version_2(address: str) -> None:
    """Let the old database be one of version 2: trial 1 has trial 0's result, slot 2 waits."""
    engine = sa.create_engine(address)
    with engine.begin() as connection:
        migrations.run_steps(connection, 1, "2")
        connection.exec_driver_sql("UPDATE dlnn_schema SET version = 2")
        connection.exec_driver_sql("UPDATE dlnn_slots SET reused_from = 1 WHERE id = 2")
        connection.exec_driver_sql("UPDATE dlnn_slots SET waits_for = 1 WHERE id = 3")
    engine.dispose()


def test_what_waited_and_what_was_a_duplicate_in_version_2_is_so_ever_after(
    address: str, old: Rows
) -> None:
    make_version_2(address)
    database = open_database(address, create=True)
    with database.transaction() as connection:
        slots = connection.execute(sa.select(schema.slots).order_by("number")).all()
    assert [(row.state, row.waiting_reason, row.waits_for) for row in slots] == [
        ("done", None, None),
        ("done", None, None),
        ("waiting", "duplicate", 1),
        ("open", None, None),
    ]
    trials = optuna.load_study(study_name=STUDY.name, storage=database.optuna).trials
    assert [trial.user_attrs.get(DUPLICATE_ATTRIBUTE) for trial in trials] == [None, 0]
    stored = find(database, STUDY.name)
    claimed = Slots(database, stored.id).claim("w")
    assert claimed is not None and claimed.number == 2, "what it waited for is settled"
    database.close()


def test_who_only_looks_is_told_to_upgrade_and_changes_nothing(address: str, old: Rows) -> None:
    with pytest.raises(StorageError, match="dlnn-search storage upgrade") as caught:
        open_database(address, create=False)
    assert "of version 1 (made by dlnn-search 0.1.0)" in str(caught.value)
    assert stored_rows(address, old) == old
    assert migrations.VERSION_TABLE not in tables(address)


def test_the_command_upgrades_and_says_so(
    address: str, old: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ("Upgraded", "is up to date"):
        upgrade(address)
        assert words in capsys.readouterr().out
    open_database(address, create=False).close()


def test_the_command_makes_no_database(address: str) -> None:
    with pytest.raises(StorageError, match=r"holds no study yet|There is no database"):
        upgrade(address)


def differences(database: Database) -> list[Any]:
    def ours(thing: Any, name: str | None, kind: str, reflected: bool, other: Any) -> bool:
        table = name if kind == "table" else thing.table.name
        return bool(str(table).startswith("dlnn_") and table != migrations.VERSION_TABLE)

    with database.engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={"include_object": ours, "compare_type": True, "compare_server_default": True},
        )
        return list(compare_metadata(context, schema.metadata))


def test_new_tables_are_what_the_program_expects(database: Database) -> None:
    assert differences(database) == []


def test_upgraded_tables_are_what_the_program_expects(address: str, old: Rows) -> None:
    database = open_database(address, create=True)
    assert differences(database) == []
    database.close()


def test_a_table_that_lacks_a_column_would_be_noticed(database: Database) -> None:
    with database.transaction() as connection:
        connection.exec_driver_sql("ALTER TABLE dlnn_slots DROP COLUMN note")
    assert differences(database)


def test_a_database_from_before_alembic_is_taken_at_its_word(database: Database) -> None:
    with database.transaction() as connection:
        connection.exec_driver_sql(f"DROP TABLE {migrations.VERSION_TABLE}")
    assert migrations.upgrade(database.engine, database.shown) == (
        schema.SCHEMA_VERSION,
        schema.SCHEMA_VERSION,
    )
    with database.transaction() as connection:
        noted = connection.exec_driver_sql(f"SELECT version_num FROM {migrations.VERSION_TABLE}")
        assert noted.scalars().all() == [str(schema.SCHEMA_VERSION)]


def test_optunas_own_version_is_left_alone(database: Database) -> None:
    with database.transaction() as connection:
        theirs = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    assert theirs == database.optuna.get_head_version()


def _open(url: str) -> int:
    database = open_database(url, create=True)
    n = len(tables(url))
    database.close()
    return n


@pytest.mark.parametrize("is_new", [True, False])
def test_several_starters_at_once_upgrade_once(
    address: str, is_new: bool, request: pytest.FixtureRequest
) -> None:
    if not is_new:
        request.getfixturevalue("old")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(3, mp_context=context) as pool:
        assert len(set(pool.map(_open, [address] * 6))) == 1


KILLED = """
import os, sys
from alembic import op
from dlnn_search.storage.database import open_database
make = op.create_table
def then_die(name, *columns, **options):
    make(name, *columns, **options)
    if name == sys.argv[2]:
        os._exit(9)
op.create_table = then_die
open_database(sys.argv[1], create=True)
"""


@pytest.mark.parametrize(
    ("table", "is_new"), [("dlnn_slots", True), ("dlnn_events", True), ("dlnn_events", False)]
)
def test_an_upgrade_killed_in_the_middle_changed_nothing_and_is_done_by_the_next(
    address: str, table: str, is_new: bool, request: pytest.FixtureRequest
) -> None:
    before = None if is_new else request.getfixturevalue("old")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, address, table], env=environment, timeout=120, check=False
    )
    assert done.returncode == 9
    ours = {name for name in tables(address) if name.startswith("dlnn_")}
    if before is None:
        assert ours == set()
    else:
        assert ours == set(before)
        assert stored_rows(address, before) == before
    open_database(address, create=True).close()
    assert set(schema.metadata.tables) <= tables(address)


def test_a_migration_that_fails_changes_nothing(
    address: str, old: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = sa.create_engine(address)
    with engine.begin() as connection:  # in the way of the last table
        connection.exec_driver_sql("CREATE TABLE dlnn_artifacts (id INTEGER)")
    with pytest.raises(StorageError, match="dlnn_artifacts"):
        open_database(address, create=True)
    assert stored_rows(address, old) == old
    assert "dlnn_events" not in tables(address)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE dlnn_artifacts")
    engine.dispose()
    open_database(address, create=True).close()
