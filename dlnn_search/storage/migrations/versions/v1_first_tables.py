"""Version 1: studies, slots, curves, workers, ledger."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "dlnn_schema",
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("program", sa.String(64), nullable=False),
        if_not_exists=True,  # an SQLite file whose making was cut off
    )
    op.create_table(
        "dlnn_studies",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(128), nullable=False, unique=True),
        sa.Column("definition", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "dlnn_slots",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column(
            "study_id",
            sa.Integer,
            sa.ForeignKey("dlnn_studies.id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("losses", sa.Integer, nullable=False),
        sa.Column("worker", sa.String(128)),
        sa.Column("lease_ends_at", sa.Float),
        sa.Column("trial_id", sa.Integer),
        sa.Column("trial_number", sa.Integer),
        sa.Column("config", sa.JSON),
        sa.Column("outcome", sa.String(16)),
        sa.Column("value", sa.Float),
        sa.Column("best_epoch", sa.Integer),
        sa.Column("reason", sa.Text),
        sa.Column("told", sa.Integer, nullable=False),
        sa.UniqueConstraint("study_id", "number"),
    )
    op.create_index("dlnn_slots_claim", "dlnn_slots", ["study_id", "state", "number"])
    op.create_index("dlnn_slots_untold", "dlnn_slots", ["study_id", "state", "told"])
    op.create_index(
        "dlnn_slots_best", "dlnn_slots", ["study_id", "outcome", "value", "trial_number"]
    )
    op.create_table(
        "dlnn_curves",
        sa.Column(
            "slot_id",
            sa.Integer,
            sa.ForeignKey("dlnn_slots.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("epoch", sa.Integer, primary_key=True),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("images_per_second", sa.Float, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "dlnn_workers",
        sa.Column("id", sa.String(128), primary_key=True),
        sa.Column(
            "study_id",
            sa.Integer,
            sa.ForeignKey("dlnn_studies.id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("processes", sa.String(128), nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("seen_at", sa.Float, nullable=False),
        sa.Column("trial_number", sa.Integer),
        sa.Column("epoch", sa.Integer),
        sa.Column("epochs", sa.Integer),
        sa.Column("share", sa.Float),
        sa.Column("value", sa.Float),
        sa.Column("images_per_second", sa.Float),
    )
    op.create_index("dlnn_workers_study", "dlnn_workers", ["study_id", "seen_at"])
    op.create_table(
        "dlnn_ledger",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("opened_at", sa.Float, nullable=False),
        sa.Column("closed_at", sa.Float),
        sa.Column("data", sa.String(128), nullable=False),
        sa.Column("fingerprint", sa.String(32), nullable=False),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("study", sa.String(128)),
        sa.Column("trial", sa.Integer),
        sa.Column("seed", sa.Integer, nullable=False),
        sa.Column("user", sa.String(128), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("metrics", sa.JSON),
    )
