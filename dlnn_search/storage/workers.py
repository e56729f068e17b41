"""Who works on a study, what each is at, and what happened out of the ordinary."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dlnn_search.storage.database import Database
from dlnn_search.storage.schema import events, now, slots, studies
from dlnn_search.storage.schema import workers as table


@dataclass(frozen=True)
class Event:
    """One thing that happened; `at` is in seconds since 1970 by the database's clock."""

    id: int
    at: float
    kind: str
    worker: str | None
    slot_id: int | None
    words: str


def add_event(
    database: Database,
    study_id: int,
    kind: str,
    words: str,
    *,
    worker: str | None = None,
    slot_id: int | None = None,
) -> None:
    """Note what happened: `kind` is one word for programs, `words` a sentence for people."""
    with database.transaction() as connection:
        insert_event(connection, study_id, kind, words, worker=worker, slot_id=slot_id)


def insert_event(
    connection: Connection,
    study_id: int,
    kind: str,
    words: str,
    *,
    worker: str | None = None,
    slot_id: int | None = None,
) -> None:
    """Note what happened in the transaction that makes it happen: both or neither."""
    connection.execute(
        events.insert().values(
            study_id=study_id, at=now(), kind=kind, worker=worker, slot_id=slot_id, words=words
        )
    )


def last_events(database: Database, study_id: int, n: int) -> Sequence[Event]:
    """Return the last n events, oldest first."""
    query = (
        sa.select(events).where(events.c.study_id == study_id).order_by(events.c.id.desc()).limit(n)
    )
    with database.transaction() as connection:
        rows = connection.execute(query).all()
    return [
        Event(row.id, row.at, row.kind, row.worker, row.slot_id, row.words) for row in rows[::-1]
    ]


#: A worker that was silent for longer is taken for gone, unless it still holds a lease.
SILENT_SECONDS = 150.0
#: How much two readings of one process's start may differ.
CLOCK_SECONDS = 2.0
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # Linux
SYSCTL = Path("/usr/sbin/sysctl")  # macOS


class WorkerRow:
    """One worker's row, from its start to its end."""

    def __init__(
        self, database: Database, study_id: int, worker: str | None = None, **about: Any
    ) -> None:
        """Show a worker that starts.

        Args:
            database: Where.
            study_id: Of the study that it works on.
            worker: Its name; None makes one.
            about: `gpu`, `threads`, `log`, `supervisor`, as the table has it.
        """
        self.worker = worker or new_worker_name()
        self.study_id = study_id
        self._database = database
        self._process = psutil.Process()
        with database.transaction() as connection:
            connection.execute(
                table.insert().values(
                    id=self.worker,
                    study_id=study_id,
                    host=socket.gethostname(),
                    processes=f"{process_space()} {process_mark().split()[1]}",
                    pid=os.getpid(),
                    state="starting",
                    seen_at=now(),
                    started_at=now(),
                    memory_bytes=self._process.memory_info().rss,
                    **about,
                )
            )

    def show(self, **values: Any) -> None:
        """Set `state`, `trial_number`, `epoch`, `epochs`, `share`, `value`, as the table has it."""
        values["memory_bytes"] = self._process.memory_info().rss
        with self._database.transaction() as connection:
            connection.execute(
                table.update().where(table.c.id == self.worker).values(seen_at=now(), **values)
            )


@dataclass(frozen=True)
class WorkerStatus:
    """One worker.

    Attributes:
        name: Unique among all workers.
        state: starting, training, waiting, paused, or troubled (`message` says by what).
        silent_seconds: Since it last wrote to the database.
        lease_age_seconds: Since its trial last made progress; None where it holds none.
        share: The part of the running epoch that is done.
        gpu: As given to `--gpus`; None is the processor.
    """

    name: str
    host: str
    pid: int
    state: str
    silent_seconds: float
    trial_number: int | None
    epoch: int | None
    epochs: int | None
    share: float | None
    value: float | None
    images_per_second: float | None
    message: str | None = None
    gpu: str | None = None
    threads: int | None = None
    memory_bytes: int | None = None
    lease_age_seconds: float | None = None
    age_seconds: float | None = None
    log: str | None = None

    @property
    def short_name(self) -> str:
        """The part of the name that differs between the workers of one host."""
        return self.name.rpartition("-")[2]

    @property
    def where(self) -> str:
        """Its host, and its GPU there."""
        return self.host if self.gpu is None else f"{self.host} GPU {self.gpu}"


def present_workers(database: Database, study_id: int) -> list[WorkerStatus]:
    """Return the workers that were heard of lately or hold a lease, by host and GPU."""
    columns = [column for column in table.c if column.name in WorkerStatus.__annotations__]
    query = (
        sa.select(
            *columns,
            table.c.id.label("name"),
            (now() - table.c.seen_at).label("silent_seconds"),
            (now() - table.c.started_at).label("age_seconds"),
            # A lease lasts from the last progress on; the study says how long.
            (now() - (slots.c.lease_ends_at - studies.c.lease_seconds)).label("lease_age_seconds"),
        )
        .join(studies, studies.c.id == table.c.study_id)
        .outerjoin(
            slots,
            sa.and_(
                slots.c.study_id == study_id,
                slots.c.state == "held",
                slots.c.worker == table.c.id,
            ),
        )
        .where(table.c.study_id == study_id, table.c.state != "stopped")
        .where(sa.or_(table.c.seen_at > now() - SILENT_SECONDS, slots.c.lease_ends_at > now()))
        .order_by(table.c.host, table.c.gpu, table.c.id)
    )
    with database.transaction() as connection:
        return [WorkerStatus(**row) for row in connection.execute(query).mappings()]


def has_trained_here(database: Database, study_id: int) -> bool:
    """Whether a worker of this host has trained an epoch of the study: its data were here."""
    with database.transaction() as connection:
        found = connection.scalar(
            sa.select(table.c.id)
            .where(table.c.study_id == study_id, table.c.host == socket.gethostname())
            .where(table.c.images_per_second.is_not(None))
            .limit(1)
        )
    return found is not None


def what_was_trained(database: Database, study_id: int, worker: str) -> tuple[bool, int]:
    """Return whether a worker trained an epoch, and how many trials the study has trained."""
    with database.transaction() as connection:
        # A worker that died early has no row.
        speed = connection.scalar(sa.select(table.c.images_per_second).where(table.c.id == worker))
        n_trained = connection.scalar(
            sa.select(sa.func.count())
            .select_from(slots)
            .where(slots.c.study_id == study_id, slots.c.outcome.in_(("complete", "pruned")))
        )
    return speed is not None, n_trained or 0


def dead_workers(database: Database, study_id: int) -> list[str]:
    """Return the workers of this machine's present run whose processes are gone.

    Their leases would end by themselves; a start after a crash need not wait for that.
    """
    return [row.id for row, is_alive in _workers_here(database, study_id) if not is_alive]


def searching(database: Database, study_id: int) -> list[str]:
    """Return the host of each worker that is at a study, or holds a slot of it, on any machine."""
    dead = dead_workers(database, study_id)
    with database.transaction() as connection:
        present = connection.execute(
            sa.select(table.c.id, table.c.host).where(
                table.c.study_id == study_id,
                table.c.state != "stopped",
                table.c.id.not_in(dead),
                # A worker of this machine that is alive may only sleep.
                sa.or_(
                    table.c.seen_at > now() - SILENT_SECONDS,
                    table.c.processes == process_space(),
                ),
            )
        ).all()
        holders = connection.execute(
            sa.select(slots.c.worker, table.c.host)
            .outerjoin(table, table.c.id == slots.c.worker)
            .where(slots.c.study_id == study_id, slots.c.state == "held")
            .where(slots.c.lease_ends_at >= now(), slots.c.worker.not_in(dead))
        ).all()
    hosts = {row.worker: row.host or "an unknown machine" for row in holders}
    return list((hosts | {row.id: row.host for row in present}).values())


@dataclass(frozen=True)
class Orphan:
    """A living worker whose supervisor died."""

    worker: str
    pid: int
    gpu: str | None


def orphans(database: Database, study_id: int) -> list[Orphan]:
    """Return the living workers of this machine's present run that nobody looks after."""
    return [
        Orphan(row.id, row.pid, row.gpu)
        for row, is_alive in _workers_here(database, study_id)
        if is_alive and row.supervisor is not None and not _is_marked(row.supervisor)
    ]


def looked_after(database: Database, study_id: int) -> dict[int, int]:
    """Return how many living workers each living supervisor has here, by its process number."""
    counts: dict[int, int] = {}
    for row, is_alive in _workers_here(database, study_id):
        if is_alive and row.supervisor is not None and _is_marked(row.supervisor):
            pid = int(row.supervisor.split()[0])
            counts[pid] = counts.get(pid, 0) + 1
    return counts


@dataclass(frozen=True)
class WorkerLog:
    """Where a worker of any host writes; `log` is None where it writes to its terminal."""

    worker: str
    host: str
    log: str | None


def worker_logs(database: Database, study_id: int) -> list[WorkerLog]:
    """Return all workers that a study has had, in the order of their starts."""
    with database.transaction() as connection:
        rows = connection.execute(
            sa.select(table.c.id, table.c.host, table.c.log)
            .where(table.c.study_id == study_id)
            .order_by(table.c.started_at, table.c.id)
        ).all()
    return [WorkerLog(row.id, row.host, row.log) for row in rows]


def process_mark(pid: int | None = None) -> str:
    """Return a process's number and start, which no later process shares.

    The start is in seconds after the boot: clocks are set while processes run.
    """
    process = psutil.Process(pid)
    return f"{process.pid} {process.create_time() - psutil.boot_time():.1f}"


def _workers_here(database: Database, study_id: int) -> list[tuple[sa.Row[Any], bool]]:
    """Return the workers of this machine's present run, and whether each is alive."""
    with database.transaction() as connection:
        rows = connection.execute(
            sa.select(table)
            .where(table.c.study_id == study_id, table.c.state != "stopped")
            .order_by(table.c.id)
        ).all()
    here, earlier = process_space(), _process_space(str(round(psutil.boot_time())))
    found = []
    for row in rows:
        space, _, start = row.processes.rpartition(" ")
        if space == here:
            found.append((row, _is_marked(f"{row.pid} {start}")))
        elif row.processes == earlier:  # dlnn-search 0.1 noted no start, and when the boot was
            is_alive = _is_alive(row.pid) if row.supervisor is None else _is_named(row.pid, row.id)
            found.append((row, is_alive))
    return found


def _is_marked(mark: str) -> bool:
    """Whether the process that `process_mark` named is alive."""
    pid, start = mark.split()
    if not _is_alive(int(pid)):
        return False
    since = psutil.boot_time() if float(start) < 1e9 else 0.0  # dlnn-search 0.1: since 1970
    try:
        began = psutil.Process(int(pid)).create_time() - since
    except psutil.NoSuchProcess:
        return False
    return abs(began - float(start)) <= CLOCK_SECONDS


def _is_named(pid: int, worker: str) -> bool:
    """Whether a process was started as this worker: its number may be another program's by now."""
    try:
        return worker in psutil.Process(pid).cmdline()
    except psutil.Error:
        return False


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def process_space() -> str:
    """Name what a process number is counted in: a host's run since its boot, or a container."""
    return _process_space(_boot())


def _process_space(boot: str) -> str:
    try:
        inside = Path("/proc/self/ns/pid").readlink()
    except OSError:  # not Linux: no containers of this kind
        inside = Path()
    return f"{socket.gethostname()[:60]} {boot} {inside}"


@functools.cache
def _boot() -> str:
    """Name this machine's run since its boot; when that was depends on how the clock is set."""
    with suppress(OSError):
        return BOOT_ID.read_text(encoding="ascii").strip()
    asking = [str(SYSCTL), "-n", "kern.bootsessionuuid"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(asking, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()
    return str(round(psutil.boot_time()))


def new_worker_name() -> str:
    """Return a name that no other worker has: host, process, and a random part."""
    return f"{socket.gethostname()[:80]}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
