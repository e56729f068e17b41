"""Whether the workers of this machine live: a number alone does not tell, nor does the clock."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dlnn_search.storage import schema
from dlnn_search.storage import workers as worker_row
from dlnn_search.storage.database import Database
from dlnn_search.storage.studies import register
from dlnn_search.storage.workers import (
    WorkerRow,
    dead_workers,
    looked_after,
    orphans,
    process_mark,
    process_space,
)

from .slot_life import DEFINITION


@pytest.fixture
def study_id(database: Database) -> int:
    return register(database, "some-study", DEFINITION).id


@pytest.fixture
def another() -> Iterator[psutil.Process]:
    """A process that began long after this one."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield psutil.Process(process.pid)
        process.kill()


@pytest.fixture
def gone() -> int:
    """The number of a process that ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def set_worker(database: Database, worker: str, **values: object) -> None:
    with database.transaction() as connection:
        connection.execute(
            schema.workers.update().where(schema.workers.c.id == worker).values(**values)
        )


def set_the_clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """The system tells when it was booted, and when a process began, by its clock of now."""
    boot, create = psutil.boot_time, psutil.Process.create_time
    monkeypatch.setattr(psutil, "boot_time", lambda: boot() + seconds)
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: create(self) + seconds)


def test_a_worker_is_dead_when_its_process_is_gone_or_its_number_is_anothers(
    database: Database, study_id: int, another: psutil.Process, gone: int
) -> None:
    for name in ("living", "gone", "replaced", "stopped", "elsewhere"):
        WorkerRow(database, study_id, name)
    assert dead_workers(database, study_id) == []
    set_worker(database, "gone", pid=gone)
    set_worker(database, "replaced", pid=another.pid)
    set_worker(database, "stopped", pid=gone, state="stopped")
    set_worker(database, "elsewhere", pid=gone, processes="host 0-1-2 pid:[3] 4.0")
    assert dead_workers(database, study_id) == ["gone", "replaced"]


def test_a_worker_whose_supervisor_died_is_an_orphan_whatever_has_its_number(
    database: Database, study_id: int, another: psutil.Process, gone: int
) -> None:
    ours = process_mark()
    number, start = process_mark(another.pid).split()
    WorkerRow(database, study_id, "looked-after", supervisor=ours)
    WorkerRow(database, study_id, "alone")
    WorkerRow(database, study_id, "orphan", supervisor=f"{gone} {start}")
    WorkerRow(database, study_id, "orphan-2", supervisor=f"{number} {float(start) - 100}")
    assert [orphan.worker for orphan in orphans(database, study_id)] == ["orphan", "orphan-2"]
    assert looked_after(database, study_id) == {os.getpid(): 1}


@pytest.mark.parametrize("hours", [-3, 3])
def test_a_clock_that_is_set_makes_no_worker_dead_and_no_orphan(
    database: Database, study_id: int, monkeypatch: pytest.MonkeyPatch, gone: int, hours: int
) -> None:
    WorkerRow(database, study_id, "w", supervisor=process_mark())
    WorkerRow(database, study_id, "dead", supervisor=process_mark())
    set_worker(database, "dead", pid=gone)
    set_the_clock(monkeypatch, hours * 3600)
    assert dead_workers(database, study_id) == ["dead"]
    assert orphans(database, study_id) == []
    assert looked_after(database, study_id) == {os.getpid(): 1}


def test_workers_that_noted_the_time_of_the_boot_and_no_start_are_found_too(
    database: Database, study_id: int, another: psutil.Process, gone: int
) -> None:
    """As dlnn-search did before it knew the boot's id."""
    inside = process_space().rpartition(" ")[2]
    old = f"{socket.gethostname()[:60]} {round(psutil.boot_time())} {inside}"
    mark = f"{os.getpid()} {psutil.Process().create_time():.0f}"
    for name, pid, supervisor in (
        ("living", os.getpid(), None),
        ("gone", gone, None),
        ("replaced", another.pid, mark),
    ):
        WorkerRow(database, study_id, name, supervisor=supervisor)
        set_worker(database, name, pid=pid, processes=old)
    assert dead_workers(database, study_id) == ["gone", "replaced"]
    WorkerRow(database, study_id, "new", supervisor=mark)
    assert looked_after(database, study_id) == {os.getpid(): 1}


def test_a_boot_is_named_by_its_id_else_by_what_macos_calls_it_else_by_its_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    boot_id, sysctl = tmp_path / "boot_id", tmp_path / "sysctl"
    monkeypatch.setattr(worker_row, "BOOT_ID", boot_id)
    monkeypatch.setattr(worker_row, "SYSCTL", sysctl)

    def boot() -> str:
        worker_row._boot.cache_clear()
        return process_space().split()[1]

    try:
        assert boot() == str(round(psutil.boot_time()))
        sysctl.write_text('#!/bin/sh\n[ "$*" = "-n kern.bootsessionuuid" ] && echo A-UUID\n')
        sysctl.chmod(0o755)
        assert boot() == "A-UUID"
        boot_id.write_text("an-id\n")
        assert boot() == "an-id"
    finally:
        worker_row._boot.cache_clear()


def test_the_longest_name_of_a_worker_s_processes_fits_its_column(
    monkeypatch: pytest.MonkeyPatch, database: Database, study_id: int
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "h" * 200)
    monkeypatch.setattr(worker_row, "_boot", lambda: "66f76671-9dd0-46f2-8e7d-d41662f2308d")
    WorkerRow(database, study_id, "w")
    ten_years = 315_360_000.0
    space = process_space().replace(process_space().split()[2], "pid:[4294967295]")
    assert len(f"{space} {ten_years:.1f}") <= 128
    assert dead_workers(database, study_id) == []
