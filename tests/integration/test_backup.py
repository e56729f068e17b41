"""Studies come back from a backup, and move between databases, with all that they have."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa

from dlnn_search.archive import rows as copies
from dlnn_search.archive.backup import back_up, migrate, restore
from dlnn_search.archive.rows import StudyRows, read_study
from dlnn_search.cli.groups import backup as backup_command
from dlnn_search.cli.groups import migrate_from as migrate_command
from dlnn_search.cli.groups import restore as restore_command
from dlnn_search.errors import StorageError, StudyError, UsageError
from dlnn_search.files import latest_checkpoint, slot_path
from dlnn_search.storage import schema
from dlnn_search.storage.budget import budget_use
from dlnn_search.storage.checkpoints import artifacts_of, place_of, sha256_of
from dlnn_search.storage.database import Database, open_database
from dlnn_search.storage.ledger import openings
from dlnn_search.storage.slots import Slots
from dlnn_search.storage.studies import register
from dlnn_search.storage.trials import curve_of_slot
from dlnn_search.worker.optuna_study import begin_trial, open_optuna_study

from .slot_life import give_trials
from .whole_study import STATES, a_study, checkpoint, fill, notes, optuna_trials

NAME = "some-study"


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where both servers' files lie; an SQLite file's lie beside it."""
    monkeypatch.setenv("DLNN_SEARCH_FILES", str(tmp_path / "files"))
    return tmp_path / "files"


def whole(database: Database, name: str = NAME) -> StudyRows:
    with database.transaction() as connection:
        return read_study(connection, database.optuna, name)


def assert_equal_studies(source: Database, target: Database, name: str = NAME) -> None:
    """Compare through the product's own readers, not through the backup's."""
    assert optuna_trials(target, name) == optuna_trials(source, NAME)
    assert notes(target, name) == notes(source, NAME)
    states = [
        trial.state for trial in optuna.load_study(study_name=name, storage=target.optuna).trials
    ]
    assert states == STATES
    left = {"id", "study_id", "trial_id", "worker", "lease_ends_at", "claimed_at", "fence"}
    left |= {"spent_seconds", "checkpoint_place", "claim_token"}
    found = []
    for database, its_name in ((source, NAME), (target, name)):
        with database.transaction() as connection:
            study_id = connection.scalar(
                sa.select(schema.studies.c.id).where(schema.studies.c.name == its_name)
            )
            rows = connection.execute(
                sa.select(schema.slots)
                .where(schema.slots.c.study_id == study_id)
                .order_by(schema.slots.c.number)
            ).all()
            events = connection.execute(
                sa.select(schema.events.c.kind, schema.events.c.words)
                .where(schema.events.c.study_id == study_id, schema.events.c.kind != "moved")
                .order_by(schema.events.c.id)
            ).all()
        curves = [curve_of_slot(database, row.id) for row in rows]
        plain = [{k: v for k, v in row._mapping.items() if k not in left} for row in rows]
        for row in plain:
            row["state"] = row["state"].replace("held", "open")
        found.append((plain, curves, [tuple(event) for event in events]))
    assert found[0] == found[1]
    assert [len(curve) for curve in found[1][1]] == [2, 2, 2, 2, 2, 0, 0, 0]
    trials = optuna.load_study(study_name=name, storage=target.optuna).trials
    with target.transaction() as connection:
        ids = connection.execute(
            sa.select(schema.slots.c.trial_id, schema.slots.c.trial_number)
            .join(schema.studies)
            .where(schema.studies.c.name == name, schema.slots.c.trial_id.is_not(None))
        ).all()
    assert {row.trial_id: row.trial_number for row in ids} == {
        trial._trial_id: trial.number for trial in trials[:5]
    }


def assert_goes_on(database: Database, name: str = NAME) -> None:
    """What was held or given back goes on with its trial, its curve and its checkpoint."""
    study = a_study(name)
    stored = register(database, name, study.definition())
    trials = open_optuna_study(study, database)
    slots = Slots(database, stored.id)
    for number in (3, 4):
        slot = slots.claim("new")
        assert slot is not None
        assert slot.number == number
        assert begin_trial(trials, study, slot).number == number
        path = latest_checkpoint((database.files / slot_path(name, number)).parent)
        assert path is not None
        assert path.read_bytes() == checkpoint(number)
    with database.transaction() as connection:
        places = connection.execute(
            sa.select(schema.slots.c.checkpoint_place).where(
                schema.slots.c.checkpoint_epoch.is_not(None)
            )
        ).scalars()
        assert set(places) <= {place_of(database.files)}
    (artifact,) = artifacts_of(database, stored.id)
    assert artifact.path == slot_path(name, 0)
    assert artifact.place == place_of(database.files)
    assert sha256_of(database.files / artifact.path) == artifact.sha256


@pytest.fixture
def idle(database: Database) -> Database:
    """A database with a study whose held slot's lease has run out."""
    fill(database)
    with database.transaction() as connection:
        connection.execute(
            schema.slots.update()
            .where(schema.slots.c.state == "held")
            .values(lease_ends_at=schema.now() - 1)
        )
    return database


class TestBackup:
    def test_a_study_comes_back_on_an_empty_server_of_either_kind(
        self, database: Database, other: str, tmp_path: Path
    ) -> None:
        fill(database)
        before = whole(database)
        (copied,), n_bytes = back_up(database, [NAME], tmp_path / "b.zip")
        assert (copied.n_checkpoints, copied.n_unreachable) == (3, 0)
        assert n_bytes == (tmp_path / "b.zip").stat().st_size
        assert whole(database).counts() == before.counts()
        shutil.rmtree(database.files / "checkpoints")
        target = open_database(other, create=True)
        (restored,) = restore(target, tmp_path / "b.zip")
        assert restored == copied
        assert_equal_studies(database, target)
        assert_goes_on(target)
        assert [opening.metrics for opening in openings(target)] == [{"accuracy": 0.1 + 0.2}]
        target.close()

    def test_all_studies_come_with_the_whole_ledger_which_is_never_doubled(
        self, database: Database, other: str, tmp_path: Path
    ) -> None:
        for name in (NAME, "another-one"):
            fill(database, name)
        back_up(database, None, tmp_path / "b.zip")
        target = open_database(other, create=True)
        LedgerOf(target).some()
        assert len(restore(target, tmp_path / "b.zip")) == 2
        assert len(openings(target)) == len(openings(database)) + 1
        restore(target, tmp_path / "b.zip", only=NAME, new_name="third")
        assert len(openings(target)) == len(openings(database)) + 1
        target.close()

    def test_a_name_that_is_taken_is_refused_unless_another_is_given(
        self, idle: Database, tmp_path: Path
    ) -> None:
        back_up(idle, [NAME], tmp_path / "b.zip")
        before = whole(idle).digests()
        with pytest.raises(UsageError, match=f"has a study '{NAME}' already.*--as"):
            restore(idle, tmp_path / "b.zip")
        assert whole(idle).digests() == before
        restore(idle, tmp_path / "b.zip", new_name="copy")
        assert_equal_studies(idle, idle, "copy")
        assert whole(idle).digests() == before

    def test_a_backup_is_of_one_moment_while_workers_write(
        self, database: Database, tmp_path: Path
    ) -> None:
        """Each slot's config names how many slots were settled; a mixture would differ."""
        study_id = fill(database)
        ended = threading.Event()

        def write() -> None:
            writer = open_database(database.url, create=False)
            slots, n = Slots(writer, study_id), 8
            study = a_study()
            trials = open_optuna_study(study, writer)
            while not ended.is_set():
                n += 1
                give_trials(slots, n)
                trials.add_trial(optuna.trial.create_trial(value=float(n)))
            writer.close()

        thread = threading.Thread(target=write)
        thread.start()
        try:
            for number in range(3):
                path = tmp_path / f"{number}.zip"
                ((copied,), _) = back_up(database, [NAME], path)
                # The writer adds a slot, then a trial.
                extra = copied.counts["slots"] - 8, copied.counts["trials"] - 6
                assert 0 <= extra[0] - extra[1] <= 1
        finally:
            ended.set()
            thread.join()
        assert copied.counts["slots"] > 8

    def test_a_damaged_file_is_refused_before_anything_is_written(
        self, database: Database, other: str, tmp_path: Path
    ) -> None:
        fill(database)
        back_up(database, [NAME], tmp_path / "b.zip")
        shutil.rmtree(database.files / "checkpoints")
        whole_file = (tmp_path / "b.zip").read_bytes()
        (tmp_path / "cut.zip").write_bytes(whole_file[: len(whole_file) // 2])
        target = open_database(other, create=True)
        with pytest.raises(StorageError, match="damaged"):
            restore(target, tmp_path / "cut.zip")
        with target.transaction() as connection:
            assert connection.execute(sa.select(schema.studies)).all() == []
        assert optuna.get_all_study_names(target.optuna) == []
        assert not (target.files / "checkpoints").exists()
        target.close()

    def test_a_restore_that_fails_late_leaves_nothing_behind(
        self, database: Database, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fill(database)
        back_up(database, [NAME], tmp_path / "b.zip")
        shutil.rmtree(database.files / "checkpoints")
        target = open_database(other, create=True)

        def differ(*_: object) -> None:
            raise StorageError("They differ.")

        monkeypatch.setattr(copies, "_compare", differ)
        with pytest.raises(StorageError, match=r"They differ\."):
            restore(target, tmp_path / "b.zip")
        with target.transaction() as connection:
            for table in schema.metadata.sorted_tables:
                if table.name != "dlnn_schema":
                    assert connection.execute(sa.select(table)).all() == []
        assert optuna.get_all_study_names(target.optuna) == []
        assert not (target.files / "checkpoints").exists()
        monkeypatch.undo()
        monkeypatch.setenv("DLNN_SEARCH_FILES", str(tmp_path / "files"))
        restore(target, tmp_path / "b.zip")
        assert_equal_studies(database, target)
        target.close()

    def test_a_checkpoint_that_does_not_come_along_is_not_promised(
        self, database: Database, tmp_path: Path
    ) -> None:
        fill(database)
        shutil.rmtree(database.files / "checkpoints")
        ((copied,), _) = back_up(database, [NAME], tmp_path / "b.zip")
        assert (copied.n_checkpoints, copied.n_unreachable) == (0, 3)
        restore(database, tmp_path / "b.zip", new_name="copy")
        assert [artifact.path for artifact in artifacts_of(database)] == [slot_path(NAME, 0)]

    def test_what_cannot_be_meant_is_said(self, database: Database, tmp_path: Path) -> None:
        fill(database)
        path = tmp_path / "b.zip"
        with pytest.raises(UsageError, match="Did you mean 'some-study'"):
            back_up(database, ["some-stdy"], path)
        assert not list(tmp_path.glob("*.zip*")) + list(tmp_path.glob(".*zip*"))
        back_up(database, None, path)
        with pytest.raises(UsageError, match="exists already"):
            back_up(database, None, path)
        with pytest.raises(UsageError, match="no folder"):
            back_up(database, None, tmp_path / "none" / "b.zip")
        with pytest.raises(UsageError, match="has no study 'other'"):
            restore(database, path, only="other")
        with pytest.raises(UsageError, match="There is no backup at"):
            restore(database, tmp_path / "none.zip")


class LedgerOf:
    def __init__(self, database: Database) -> None:
        self.database = database

    def some(self) -> None:
        from dlnn_search.config import Config, Mlp, Mnist
        from dlnn_search.storage.ledger import LedgerEntry

        LedgerEntry(self.database, Config(data=Mnist(), model=Mlp())).record()


class TestMigrate:
    def test_a_study_moves_with_everything_and_the_old_one_is_not_searched_on(
        self, idle: Database, other: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        target = open_database(other, create=True)
        (copied,) = migrate(idle, target, [NAME])
        assert copied.n_checkpoints == 3
        assert_equal_studies(idle, target)
        assert_goes_on(target)
        with pytest.raises(StudyError, match=r"was moved from .* to "):
            register(idle, NAME, a_study().definition())
        with idle.transaction() as connection:
            row = connection.execute(sa.select(schema.studies)).mappings().one()
            event = connection.execute(
                sa.select(schema.events).order_by(schema.events.c.id.desc())
            ).first()
        assert (row["control"], row["moved_to"]) == ("stop", target.shown)
        assert event is not None
        assert event.kind == "moved"
        with target.transaction() as connection:
            row = connection.execute(sa.select(schema.studies)).mappings().one()
        assert (row["control"], row["moved_to"]) == ("run", None)
        with pytest.raises(UsageError, match="already"):
            migrate(idle, target, [NAME])
        target.close()

    def test_a_study_that_is_trained_just_now_does_not_move(
        self, database: Database, other: str
    ) -> None:
        fill(database)
        target = open_database(other, create=True)
        with pytest.raises(UsageError, match=r"1 worker of 'some-study' trains.*stop some-study"):
            migrate(database, target, None)
        with target.transaction() as connection:
            assert connection.execute(sa.select(schema.studies)).all() == []
        register(database, NAME, a_study().definition())  # it is not marked
        target.close()

    def test_a_move_that_fails_leaves_both_as_they_were(
        self, idle: Database, other: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target = open_database(other, create=True)

        def fail(*_: object) -> None:
            raise StorageError("They differ.")

        with monkeypatch.context() as patch:
            patch.setattr(copies, "_compare", fail)
            with pytest.raises(StorageError, match=r"They differ\."):
                migrate(idle, target, None)
        register(idle, NAME, a_study().definition())
        assert optuna.get_all_study_names(target.optuna) == []
        migrate(idle, target, None)
        assert_equal_studies(idle, target)
        assert len(openings(target)) == 2
        target.close()

    @pytest.mark.parametrize("when", ["trials", "rows"])
    def test_a_move_that_was_killed_is_done_by_the_next(
        self, idle: Database, other: str, when: str
    ) -> None:
        target = open_database(other, create=True)
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(
            [sys.executable, "-c", KILLED, idle.url, other, when],
            env=environment,
            timeout=120,
            check=False,
        )
        assert done.returncode == 9
        with target.transaction() as connection:
            assert connection.execute(sa.select(schema.studies)).all() == []
        migrate(idle, target, [NAME])
        assert_equal_studies(idle, target)
        assert_goes_on(target)
        target.close()

    def test_a_database_does_not_move_onto_itself(self, idle: Database) -> None:
        with pytest.raises(UsageError, match="another database than"):
            migrate(idle, idle, None)


@pytest.mark.parametrize("way", ["move", "backup of an idle study", "backup of a running one"])
def test_the_time_that_a_study_has_used_comes_along(
    database: Database, other: str, tmp_path: Path, way: str
) -> None:
    """Two hours of a trial that was begun, 600 s of one that ended, 900 s of wall time before."""
    study_id = fill(database)
    lease_ends_at = schema.now() + 60
    ago = 7_120
    if way != "backup of a running one":
        lease_ends_at, ago = schema.now() - 36_000, 43_120
    with database.transaction() as connection:
        connection.execute(
            schema.studies.update().values(
                wall_used_seconds=900, active_since=schema.now() - ago, worker_seconds=9e9
            )
        )
        of_slots = schema.slots.update()
        connection.execute(of_slots.where(schema.slots.c.number == 0).values(spent_seconds=600))
        connection.execute(
            of_slots.where(schema.slots.c.state == "held").values(
                claimed_at=schema.now() - ago, lease_ends_at=lease_ends_at
            )
        )

    def used(of: Database) -> list[float]:
        use = budget_use(of, study_id)
        return [use.wall_used_seconds, use.worker_used_seconds]

    assert used(database) == pytest.approx([8_020, 7_720], abs=30)
    target = open_database(other, create=True)
    if way == "move":
        migrate(database, target, None)
    else:
        back_up(database, None, tmp_path / "b.zip")
        restore(target, tmp_path / "b.zip")
    for of in (database, target):
        assert used(of) == pytest.approx([8_020, 7_720], abs=30)
    assert budget_use(target, study_id).worker_seconds == 9e9
    target.close()


KILLED = """
import os, sys
from dlnn_search.archive import rows as copies
from dlnn_search.archive.backup import migrate
from dlnn_search.storage.database import open_database
from dlnn_search.storage import optuna as plain
def die(*_, **__):
    os._exit(9)
if sys.argv[3] == "rows":
    copies._compare = die
else:
    make, made = plain._frozen_trial, []
    def then_die(trial):
        made.append(1)
        return die() if len(made) > 3 else make(trial)
    plain._frozen_trial = then_die
migrate(open_database(sys.argv[1], create=False), open_database(sys.argv[2], create=True), None)
"""


def test_the_commands_say_what_they_did(
    idle: Database, other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "b.zip"
    backup_command(studies=[NAME], output=path, everything=False, storage=idle.url)
    said = capsys.readouterr().out
    assert "some-study: 8 slots, 6 trials, 10 epochs, 2 events, 3 checkpoints" in said
    assert f"Wrote {path}" in said
    restore_command(path, new_name="copy", study=None, storage=other)
    said = capsys.readouterr().out
    assert "Restored into" in said
    assert "copy.py" in said
    migrate_command(idle.url, study=None, storage=other)
    assert "all rows are equal" in capsys.readouterr().out
    for studies, everything in ((None, False), ([NAME], True)):
        with pytest.raises(UsageError, match="--all"):
            backup_command(studies, tmp_path / "c.zip", everything, idle.url)
    with pytest.raises(UsageError, match=r"--as '\.\./x'"):
        restore_command(path, new_name="../x", study=None, storage=other)


def test_a_damaged_file_makes_no_database(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as file:
        file.writestr("manifest.json", "{}")
    with pytest.raises(StorageError, match="damaged"):
        restore_command(
            tmp_path / "b.zip", new_name=None, study=None, storage=f"sqlite:///{tmp_path}/new.db"
        )
    assert not (tmp_path / "new.db").exists()
