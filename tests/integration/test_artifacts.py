"""The best trials' checkpoints stay, and what no study needs is swept, on every storage."""

from __future__ import annotations

import os
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa

from dlnn_search.cli.groups import info, sweep
from dlnn_search.config import Config, Mlp, Mnist
from dlnn_search.files import slot_path
from dlnn_search.storage import schema
from dlnn_search.storage.checkpoints import (
    artifacts_of,
    find_orphans,
    place_of,
    remove,
    settle_checkpoint,
    sha256_of,
)
from dlnn_search.storage.database import Database, open_database
from dlnn_search.storage.database.sqlite import network_file_system
from dlnn_search.storage.slots import Slot, Slots
from dlnn_search.storage.studies import register
from dlnn_search.study import Study

from .slot_life import give_trials


def space(trial: optuna.Trial) -> Config:
    return Config(model=Mlp())


NAME = "some-study"
STUDY = Study(space=space, data=Mnist(), minimize="loss", name=NAME)


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLNN_SEARCH_FILES", str(tmp_path))


@pytest.fixture
def slots(database: Database) -> Slots:
    found = Slots(database, register(database, NAME, STUDY.definition()).id)
    give_trials(found, 8)
    return found


def begin(database: Database, slots: Slots) -> Slot:
    slot = slots.claim("w")
    assert slot is not None
    slots.begin(slot, slot.number + 1, slot.number)
    path = database.files / slot_path(NAME, slot.number)
    path.parent.mkdir(parents=True)
    path.with_name("last-9.npz").write_bytes(b"an earlier holder's")
    path.with_name("last-10.npz").write_bytes(f"weights {slot.number}".encode())
    return slot


def settle(database: Database, slots: Slots, value: float | None, keep: int = 2) -> Slot:
    slot = begin(database, slots)
    if value is None:
        slots.settle(slot, "failed", reason="It failed.")
    else:
        slots.settle(slot, "complete", value=value, best_epoch=1)
    settle_checkpoint(database, slot.id, keep)
    return slot


def kept(database: Database) -> list[int]:
    """Return which slots have a checkpoint; rows and files must agree."""
    folders = (database.files / "checkpoints" / NAME).glob("*/last.npz")
    on_disk = sorted(int(path.parent.name) for path in folders)
    rows = sorted(int(Path(artifact.path).parent.name) for artifact in artifacts_of(database))
    assert on_disk == rows
    return on_disk


class TestKeeping:
    def test_the_best_stay_and_a_better_one_takes_the_place_of_the_worst(
        self, database: Database, slots: Slots
    ) -> None:
        expected = [(0.5, [0]), (0.7, [0, 1]), (0.6, [0, 2]), (0.9, [0, 2]), (0.1, [0, 4])]
        for value, those in expected:
            settle(database, slots, value)
            assert kept(database) == those
        settle(database, slots, None)
        assert kept(database) == [0, 4]
        for artifact in artifacts_of(database):
            path = database.files / artifact.path
            assert path.read_bytes() == f"weights {path.parent.name}".encode()
            assert artifact.place == place_of(database.files)
            assert artifact.sha256 == sha256_of(path)
            assert artifact.size_bytes == path.stat().st_size

    def test_none_stays_where_none_is_asked_for(self, database: Database, slots: Slots) -> None:
        for value in (0.5, 0.4):
            settle(database, slots, value, keep=0)
        assert kept(database) == []

    def test_a_study_that_maximises_keeps_its_highest(self, database: Database) -> None:
        study = Study(space=space, data=Mnist(), maximize="accuracy", name=NAME)
        slots = Slots(database, register(database, NAME, study.definition()).id)
        give_trials(slots, 3)
        for value in (0.5, 0.9, 0.7):
            settle(database, slots, value, keep=1)
        assert kept(database) == [1]

    def test_a_reused_result_takes_no_place(self, database: Database, slots: Slots) -> None:
        first = settle(database, slots, 0.5)
        second = settle(database, slots, 0.6)
        duplicate = begin(database, slots)
        slots.settle(duplicate, "complete", value=0.5, best_epoch=1)
        with database.transaction() as connection:
            connection.execute(
                schema.slots.update()
                .where(schema.slots.c.id == duplicate.id)
                .values(reused_from=first.id)
            )
        settle_checkpoint(database, duplicate.id, 2)
        assert kept(database) == [first.number, second.number]

    def test_settling_again_changes_nothing(self, database: Database, slots: Slots) -> None:
        slot = settle(database, slots, 0.5)
        settle_checkpoint(database, slot.id, 2)
        assert kept(database) == [0]


def age(folder: Path) -> None:
    """Let all files be a day old."""
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (path.stat().st_mtime - 86_400,) * 2)


class TestSweep:
    @pytest.fixture
    def littered(self, database: Database, slots: Slots) -> Database:
        """Kept: slot 0. Unsettled: 1 held, 2 given back. Litter: what the test below names."""
        settle(database, slots, 0.5, keep=1)
        begin(database, slots)
        slots.release(begin(database, slots))
        root = database.files / "checkpoints"
        for place in ("no-study/0", f"{NAME}/77", f"{NAME}/3"):
            (root / place).mkdir(parents=True)
            (root / place / "last.npz").write_bytes(b"x" * 100)
        for number in range(3):
            (root / NAME / str(number) / ".last-3.npz.123").write_bytes(b"x" * 10)
        with database.transaction() as connection:
            connection.execute(
                schema.slots.update()
                .where(schema.slots.c.number == 3)
                .values(state="done", outcome="pruned")
            )
        age(root)
        return database

    def test_what_no_study_needs_is_found_and_removed_and_nothing_else(
        self, littered: Database
    ) -> None:
        orphans = find_orphans(littered)
        root = littered.files / "checkpoints"
        assert {str(orphan.path and orphan.path.relative_to(root)) for orphan in orphans} == {
            "no-study",
            f"{NAME}/77",
            f"{NAME}/3",
            f"{NAME}/0/.last-3.npz.123",
        }
        assert sum(orphan.size_bytes for orphan in orphans) == 310
        assert remove(littered, orphans) == (4, 310)
        assert find_orphans(littered) == []
        left = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
        assert left == {
            f"{NAME}/0/last.npz",
            f"{NAME}/1/last-9.npz",
            f"{NAME}/1/last-10.npz",
            f"{NAME}/1/.last-3.npz.123",
            f"{NAME}/2/last-9.npz",
            f"{NAME}/2/last-10.npz",
            f"{NAME}/2/.last-3.npz.123",
        }

    def test_what_was_written_a_moment_ago_is_left_alone(self, littered: Database) -> None:
        for path in (littered.files / "checkpoints").rglob("*"):
            os.utime(path)
        assert find_orphans(littered) == []

    def test_a_row_whose_file_is_gone_goes(self, littered: Database) -> None:
        remove(littered, find_orphans(littered))
        (littered.files / slot_path(NAME, 0)).unlink()
        (orphan,) = find_orphans(littered)
        assert "is gone" in orphan.why
        remove(littered, [orphan])
        assert artifacts_of(littered) == []

    def test_a_file_on_another_machine_keeps_its_row(self, littered: Database) -> None:
        remove(littered, find_orphans(littered))
        with littered.transaction() as connection:
            connection.execute(schema.artifacts.update().values(place="f" * 32, path="gone"))
        assert find_orphans(littered) == []

    def test_a_row_whose_path_leaves_the_folder_removes_nothing(self, littered: Database) -> None:
        remove(littered, find_orphans(littered))
        outside = littered.files / "precious"
        outside.mkdir()
        with littered.transaction() as connection:
            connection.execute(
                schema.artifacts.update().values(path="checkpoints/../precious/last.npz")
            )
        remove(littered, find_orphans(littered))
        assert outside.is_dir()

    def test_studies_of_a_database_beside_it_are_not_swept(self, littered: Database) -> None:
        beside = open_database(f"sqlite:///{littered.files / 'beside.db'}", create=True)
        register(beside, "no-study", STUDY.definition())
        beside.close()
        assert not any("no-study" in orphan.why for orphan in find_orphans(littered))

    def test_the_command_removes_only_if_asked(
        self, littered: Database, capsys: pytest.CaptureFixture[str]
    ) -> None:
        sweep(delete=False, storage=littered.url)
        said = capsys.readouterr().out
        assert "no study 'no-study'" in said
        assert "Remove them with --delete" in said
        assert (littered.files / "checkpoints" / "no-study").exists()
        sweep(delete=True, storage=littered.url)
        assert "Removed 4 of 4" in capsys.readouterr().out
        sweep(delete=True, storage=littered.url)
        assert "Nothing to sweep" in capsys.readouterr().out


def test_info_says_what_there_is(
    database: Database, slots: Slots, capsys: pytest.CaptureFixture[str]
) -> None:
    settle(database, slots, 0.5)
    info(storage=database.url)
    said = capsys.readouterr().out
    assert database.shown in said
    assert "1 studies, 8 slots (1 done)" in said
    assert "1 kept" in said
    assert f"version {schema.SCHEMA_VERSION}" in said
    words = ("SQLite 3.", "journal wal") if "sqlite" in database.url else ("PostgreSQL 1", "in use")
    for each in words:
        assert each in said


def test_a_search_on_a_network_file_system_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert network_file_system(tmp_path) is None

    class Mount:
        mountpoint = str(tmp_path)
        fstype = "nfs4"

    monkeypatch.setattr("psutil.disk_partitions", lambda **_: [Mount])
    assert network_file_system(tmp_path / "dlnn.db") == "nfs4"
    with caplog.at_level("WARNING"):
        open_database(f"sqlite:///{tmp_path / 'dlnn.db'}", create=True).close()
    assert "nfs4" in caplog.text
    assert "Use PostgreSQL" in caplog.text


def test_the_artifacts_of_another_study_are_left_alone(database: Database, slots: Slots) -> None:
    settle(database, slots, 0.5)
    other = register(database, "other", STUDY.definition())
    assert artifacts_of(database, other.id) == []
    with database.transaction() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(schema.artifacts)) == 1
