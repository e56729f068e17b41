"""The ledger: the record of every time that a test split was opened."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from dlnn_search.config import Config, title_of
from dlnn_search.config.training import is_of
from dlnn_search.storage.database import Database
from dlnn_search.storage.schema import ledger as table
from dlnn_search.storage.schema import now


@dataclass(frozen=True)
class Opening:
    """One time that a test split was opened. Times are seconds since 1970.

    Attributes:
        metrics: What was measured; None where the evaluation did not come to its end.
    """

    id: int
    opened_at: float
    data: str
    fingerprint: str
    study: str | None
    trial: int | None
    seed: int
    user: str
    host: str
    metrics: Mapping[str, float] | None


class LedgerEntry:
    """An entry for one config: `record` writes it, which alone opens the test split."""

    def __init__(self, database: Database, config: Config) -> None:
        self._database = database
        self._config = config
        self._id: int | None = None

    def record(self) -> None:
        """Write the entry and commit it, before a single test image is read."""
        origin = self._config.origin
        with self._database.transaction() as connection:
            self._id = connection.execute(
                table.insert()
                .values(
                    opened_at=now(),
                    data=title_of(self._config.data),
                    fingerprint=self._config.fingerprint(),
                    config=self._config.model_dump(mode="json"),
                    study=origin.study if origin else None,
                    trial=origin.trial if origin else None,
                    seed=self._config.training.seed,
                    user=_user(),
                    host=socket.gethostname(),
                )
                .returning(table.c.id)
            ).scalar_one()

    def complete(self, metrics: Mapping[str, float]) -> None:
        """Add what was measured.

        Raises:
            RuntimeError: If the entry was not recorded first.
        """
        if self._id is None:
            raise RuntimeError("Expected a recorded entry: call record() first.")
        with self._database.transaction() as connection:
            connection.execute(
                table.update()
                .where(table.c.id == self._id)
                .values(metrics=dict(metrics), closed_at=now())
            )


def earlier_tests(database: Database, config: Config) -> list[list[Opening]]:
    """Return a config's completed openings, whatever their seeds: one list an evaluation."""
    query = (
        sa.select(table)
        .where(table.c.data == title_of(config.data), table.c.closed_at.is_not(None))
        .order_by(table.c.id)
    )
    with database.transaction() as connection:
        rows = connection.execute(query).mappings().all()
    found: list[list[Opening]] = []
    for row in rows:
        if not is_same(config, row["config"], row["fingerprint"]):
            continue
        seed = row["seed"]
        if not found or any(
            one.seed == seed or is_of("test", one.seed) != is_of("test", seed) for one in found[-1]
        ):
            found.append([])
        found[-1].append(_opening(row))
    return found


def is_same(config: Config, plain: Mapping[str, Any], fingerprint: str) -> bool:
    """Whether a stored config is this one, but for its seed and what `auto` precision became.

    Args:
        config: This one.
        plain: The stored one, as plain data.
        fingerprint: Of the stored one.
    """
    wanted = config.training.precision
    precision = plain["training"]["precision"] if wanted == "auto" else wanted
    changes = {"seed": plain["training"]["seed"], "precision": precision}
    training = config.training.model_copy(update=changes)
    return config.model_copy(update={"training": training}).fingerprint() == fingerprint


def openings(database: Database, fingerprint: str | None = None) -> Sequence[Opening]:
    """Return every recorded opening, oldest first, or those of one config."""
    query = sa.select(table).order_by(table.c.id)
    if fingerprint is not None:
        query = query.where(table.c.fingerprint == fingerprint)
    with database.transaction() as connection:
        rows = connection.execute(query).mappings().all()
    return [_opening(row) for row in rows]


def _opening(row: Mapping[Any, Any]) -> Opening:
    return Opening(**{name: row[name] for name in Opening.__dataclass_fields__})


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"
