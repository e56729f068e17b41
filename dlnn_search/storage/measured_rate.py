"""The learning rate that a study's range test found: measured once, kept with the study."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from dlnn_search.storage.database import Database
from dlnn_search.storage.schema import studies

KEY = "measured_rate"


@dataclass(frozen=True)
class MeasuredRate:
    """What the test found; a `rate` of None: it could not tell, and will not be asked again."""

    rate: float | None


def keep_rate(database: Database, study_id: int, rate: float | None) -> MeasuredRate:
    """Keep a measured rate unless there is one, and return the one that counts."""
    with database.transaction() as connection:
        # Touching the row locks it: of two first starts one's rate is kept.
        connection.execute(
            studies.update().where(studies.c.id == study_id).values(name=studies.c.name)
        )
        definition = connection.scalar(
            sa.select(studies.c.definition).where(studies.c.id == study_id)
        )
        assert definition is not None
        if KEY not in definition:
            definition = {**definition, KEY: rate}
            connection.execute(
                studies.update().where(studies.c.id == study_id).values(definition=definition)
            )
    return MeasuredRate(definition[KEY])


def kept_rate(database: Database, study_id: int) -> MeasuredRate | None:
    """Return the study's measured rate; None before its test."""
    with database.transaction() as connection:
        definition = connection.scalar(
            sa.select(studies.c.definition).where(studies.c.id == study_id)
        )
    return None if definition is None or KEY not in definition else MeasuredRate(definition[KEY])
