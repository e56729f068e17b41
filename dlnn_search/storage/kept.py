"""What starts settle for all workers, kept with the study: a measured rate, when to stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from dlnn_search.storage.database import Database
from dlnn_search.storage.schema import studies

RATE = "measured_rate"
STOP_RULE = "stop_when_converged"
_MISSING = object()


@dataclass(frozen=True)
class MeasuredRate:
    """What a range test found; a `rate` of None: it could not tell, and will not be asked again."""

    rate: float | None


def keep_rate(database: Database, study_id: int, rate: float | None) -> MeasuredRate:
    """Keep a measured rate unless there is one, and return the one that counts."""
    return MeasuredRate(_keep(database, study_id, RATE, rate, replace=False))


def kept_rate(database: Database, study_id: int) -> MeasuredRate | None:
    """Return the study's measured rate; None before its test."""
    found = _kept(database, study_id, RATE)
    return None if found is _MISSING else MeasuredRate(found)


def keep_stop_rule(database: Database, study_id: int, rule: dict[str, float] | None) -> None:
    """Keep when the study has converged, as plain data; None: it never stops by itself."""
    _keep(database, study_id, STOP_RULE, rule, replace=True)


def kept_stop_rule(database: Database, study_id: int) -> tuple[bool, dict[str, float] | None]:
    """Return whether a start has settled the rule, and the rule."""
    found = _kept(database, study_id, STOP_RULE)
    return (False, None) if found is _MISSING else (True, found)


def _keep(database: Database, study_id: int, key: str, value: Any, *, replace: bool) -> Any:
    with database.transaction() as connection:
        # Touching the row locks it: of two first starts one's value is kept.
        connection.execute(
            studies.update().where(studies.c.id == study_id).values(name=studies.c.name)
        )
        definition = connection.scalar(
            sa.select(studies.c.definition).where(studies.c.id == study_id)
        )
        assert definition is not None
        if replace or key not in definition:
            definition = {**definition, key: value}
            connection.execute(
                studies.update().where(studies.c.id == study_id).values(definition=definition)
            )
    return definition[key]


def _kept(database: Database, study_id: int, key: str) -> Any:
    with database.transaction() as connection:
        definition = connection.scalar(
            sa.select(studies.c.definition).where(studies.c.id == study_id)
        )
    return _MISSING if definition is None else definition.get(key, _MISSING)
