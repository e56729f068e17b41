"""Version 2: control, budgets of time, kinds of failure, reused configs; events and artifacts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"


def upgrade() -> None:
    """Add columns and tables; no row changes."""
    for column in (
        sa.Column("control", sa.String(16), nullable=False, server_default="run"),
        sa.Column("control_reason", sa.Text),
        sa.Column("control_at", sa.Float),
        sa.Column("lease_seconds", sa.Float, nullable=False, server_default="120"),
        sa.Column("wall_seconds", sa.Float),
        sa.Column("worker_seconds", sa.Float),
        sa.Column("deadline_at", sa.Float),
        sa.Column("wall_used_seconds", sa.Float, nullable=False, server_default="0"),
        sa.Column("active_since", sa.Float),
        sa.Column("reuse", sa.Integer, nullable=False, server_default="1"),
        sa.Column("moved_to", sa.Text),
        sa.Column("parent", sa.String(128)),
    ):
        op.add_column("dlnn_studies", column)
    for column in (
        sa.Column("memory_failures", sa.Integer, nullable=False, server_default="0"),
        sa.Column("claim_token", sa.String(32)),
        sa.Column("failure", sa.String(16)),
        sa.Column("note", sa.Text),
        sa.Column("claimed_at", sa.Float),
        sa.Column("settled_at", sa.Float),
        sa.Column("spent_seconds", sa.Float, nullable=False, server_default="0"),
        sa.Column("fingerprint", sa.String(32)),
        sa.Column("waits_for", sa.Integer),
        sa.Column("reused_from", sa.Integer),
        sa.Column("checkpoint_place", sa.String(255)),
        sa.Column("checkpoint_epoch", sa.Integer),
    ):
        op.add_column("dlnn_slots", column)
    begun = sa.text("state = 'open' AND trial_id IS NOT NULL")
    op.create_index(
        "dlnn_slots_begun",
        "dlnn_slots",
        ["study_id", "state", "number"],
        sqlite_where=begun,
        postgresql_where=begun,
    )
    op.create_index("dlnn_slots_spent", "dlnn_slots", ["study_id", "spent_seconds"])
    op.create_index("dlnn_slots_fingerprint", "dlnn_slots", ["study_id", "fingerprint"])
    for column in (
        sa.Column("message", sa.Text),
        sa.Column("started_at", sa.Float),
        sa.Column("gpu", sa.String(32)),
        sa.Column("threads", sa.Integer),
        sa.Column("memory_bytes", sa.BigInteger),
        sa.Column("log", sa.Text),
        sa.Column("supervisor", sa.String(64)),
        sa.Column("slot_id", sa.Integer),
    ):
        op.add_column("dlnn_workers", column)
    op.create_table(
        "dlnn_events",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column(
            "study_id",
            sa.Integer,
            sa.ForeignKey("dlnn_studies.id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("worker", sa.String(128)),
        sa.Column("slot_id", sa.Integer),
        sa.Column("words", sa.Text, nullable=False),
    )
    op.create_index("dlnn_events_study", "dlnn_events", ["study_id", "id"])
    op.create_table(
        "dlnn_artifacts",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column(
            "study_id",
            sa.Integer,
            sa.ForeignKey("dlnn_studies.id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("slot_id", sa.Integer),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("place", sa.String(255), nullable=False),
        sa.Column("path", sa.String(512), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.UniqueConstraint("place", "path"),
    )
    op.create_index("dlnn_artifacts_study", "dlnn_artifacts", ["study_id", "slot_id"])
