"""The database's server goes away for longer than a lease, under a search with an idle worker."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from .command_line import SLOW, Place, wait_for

if TYPE_CHECKING:
    from tests.conftest import RestartablePostgresql

EPOCHS = 12
LEASE_SECONDS = 25


def test_workers_train_on_while_the_server_is_away_and_none_loses_its_trial(
    place: Place, restartable: RestartablePostgresql
) -> None:
    place = dataclasses.replace(
        place, environment={**place.environment, "DLNN_SEARCH_STORAGE": restartable.url}
    )
    engine = sa.create_engine(restartable.url, poolclass=sa.NullPool)

    def rows(query: str) -> list[Any]:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(query)]

    study = place.write_study(**{**SLOW, "epochs": EPOCHS})
    # One trial alone, so that the other worker waits.
    search = ("start", study, "--workers", 2, "--trials", 1, "--lease", f"{LEASE_SECONDS}s")
    with place.begin(*search) as start:
        wait_for("the tables", lambda: sa.inspect(engine).has_table("dlnn_workers"))
        wait_for("an epoch", lambda: rows("SELECT 1 FROM dlnn_curves"))
        wait_for(
            "an idle worker", lambda: rows("SELECT 1 FROM dlnn_workers WHERE state = 'waiting'")
        )
        restartable.stop("immediate")
        stopped = time.time()
        wait_for(
            "an epoch without the server",
            lambda: max(path.stat().st_mtime for path in place.checkpoints()) > stopped,
        )
        time.sleep(max(0.0, stopped + LEASE_SECONDS + 3 - time.time()))
        restartable.start()
        assert start.wait() == 0, start.said()
    assert rows("SELECT state, outcome, fence, losses FROM dlnn_slots") == [
        ("done", "complete", 1, 0)
    ]
    assert rows("SELECT epoch FROM dlnn_curves ORDER BY epoch") == [
        (epoch,) for epoch in range(1, EPOCHS + 1)
    ]
    assert rows("SELECT state FROM trials") == [("COMPLETE",)]
    assert not rows("SELECT words FROM dlnn_events WHERE kind IN ('lost', 'fenced')")
