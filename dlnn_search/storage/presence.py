"""Who works on a study, and what each is at: the ground of every live view."""

from __future__ import annotations

import os
import socket
import uuid
from typing import Any

from dlnn_search.storage.database import Database
from dlnn_search.storage.schema import now
from dlnn_search.storage.schema import workers as table


class Presence:
    """One worker's row, from its start to its end."""

    def __init__(self, database: Database, study_id: int, worker: str | None = None) -> None:
        self.worker = worker or new_worker_name()
        self._database = database
        with database.transaction() as connection:
            connection.execute(
                table.insert().values(
                    id=self.worker,
                    study_id=study_id,
                    host=socket.gethostname(),
                    pid=os.getpid(),
                    state="starting",
                    seen_at=now(),
                )
            )

    def show(self, **values: Any) -> None:
        """Set `state`, `trial_number`, `epoch`, `epochs`, `share`, `value`, as the table has it."""
        with self._database.transaction() as connection:
            connection.execute(
                table.update().where(table.c.id == self.worker).values(seen_at=now(), **values)
            )


def new_worker_name() -> str:
    """Return a name that no other worker has: host, process, and a random part."""
    return f"{socket.gethostname()[:80]}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
