"""Who works on a study, and what each is at: the ground of every live view."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa

from dlnn_search.storage.database import Database
from dlnn_search.storage.schema import now
from dlnn_search.storage.schema import workers as table


class Presence:
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
                    processes=process_space(),
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


def dead_workers(database: Database, study_id: int) -> list[str]:
    """Return the workers of this machine's present run whose processes are gone.

    Their leases would end by themselves; a start after a crash need not wait for that.
    """
    with database.transaction() as connection:
        rows = connection.execute(
            sa.select(table.c.id, table.c.pid)
            .where(table.c.study_id == study_id, table.c.state != "stopped")
            .where(table.c.processes == process_space())
        ).all()
    return [row.id for row in rows if not psutil.pid_exists(row.pid)]


def process_space() -> str:
    """Name what a process number is counted in: a host's run since its boot, or a container."""
    try:
        inside = Path("/proc/self/ns/pid").readlink()
    except OSError:  # not Linux: no containers of this kind
        inside = Path()
    return f"{socket.gethostname()[:60]} {round(psutil.boot_time())} {inside}"


def new_worker_name() -> str:
    """Return a name that no other worker has: host, process, and a random part."""
    return f"{socket.gethostname()[:80]}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
