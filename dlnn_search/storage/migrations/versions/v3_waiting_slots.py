"""Version 3: a slot that waits is `waiting`, with its reason; Optuna's trials know duplicates."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "3"
down_revision = "2"

#: A trial that had another's result is marked as such, as later ones are by `tell`. Optuna's trial
#: is found by study and number, too: in SQLite a deleted one's id may be another's.
_MARK_DUPLICATES = """
INSERT INTO trial_user_attributes (trial_id, key, value_json)
SELECT trials.trial_id, 'duplicate_of', CAST(first.trial_number AS VARCHAR)
FROM dlnn_slots AS again
JOIN dlnn_slots AS first ON first.id = again.reused_from
JOIN dlnn_studies ON dlnn_studies.id = again.study_id
JOIN trials ON trials.trial_id = again.trial_id AND trials.number = again.trial_number
JOIN studies ON studies.study_id = trials.study_id AND studies.study_name = dlnn_studies.name
WHERE first.trial_number IS NOT NULL
"""


def upgrade() -> None:
    """Add the reason; what was open and waited for another slot is waiting."""
    op.add_column("dlnn_slots", sa.Column("waiting_reason", sa.String(16)))
    op.execute(
        "UPDATE dlnn_slots SET state = 'waiting', waiting_reason = 'duplicate' "
        "WHERE state = 'open' AND waits_for IS NOT NULL"
    )
    op.execute(_MARK_DUPLICATES)
