"""Our tables, which stand beside Optuna's in the same database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UnaryExpression,
    UniqueConstraint,
    text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from dlnn_search.metrics import loss_sign

SCHEMA_VERSION = 3

metadata = MetaData()

schema = Table(
    "dlnn_schema",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("program", String(64), nullable=False),
)

studies = Table(
    "dlnn_studies",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(128), nullable=False, unique=True),
    Column("definition", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    # What every worker, anywhere, is asked to do: run, pause, stop (finish what runs), stop_now.
    Column("control", String(16), nullable=False, server_default="run"),
    Column("control_reason", Text),  # why, in words; a bug's traceback where that stopped it
    Column("control_at", Float),  # since when
    Column("lease_seconds", Float, nullable=False, server_default="120"),
    # The budget beside the number of slots; NULL is without limit.
    Column("wall_seconds", Float),
    Column("worker_seconds", Float),
    Column("deadline_at", Float),
    # Wall time counts while a slot is held: what earlier spells used, and when this one began.
    Column("wall_used_seconds", Float, nullable=False, server_default="0"),
    Column("active_since", Float),
    # Whether a config that was trained already has that result, or is trained again (0).
    Column("reuse", Integer, nullable=False, server_default="1"),
    Column("moved_to", Text),  # the database that goes on with it; nobody searches it here
    Column("parent", String(128)),  # the study whose best trials this one trains again
)

#: A slot's `fence` grows with every claim; who writes with an old one writes nothing.
slots = Table(
    "dlnn_slots",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("study_id", ForeignKey("dlnn_studies.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", String(8), nullable=False),  # open, held, waiting, done
    Column("fence", Integer, nullable=False),
    Column("losses", Integer, nullable=False),
    Column("memory_failures", Integer, nullable=False, server_default="0"),
    Column("worker", String(128)),  # its holder; of an open slot, who lost it
    Column("claim_token", String(32)),  # finds a claim again whose answer was lost
    Column("lease_ends_at", Float),  # of a slot that is not held: when it was given back
    Column("trial_id", Integer),
    Column("trial_number", Integer),
    Column("config", JSON),
    Column("outcome", String(16)),  # complete, pruned, failed
    Column("value", Float),
    Column("best_epoch", Integer),
    Column("failure", String(16)),  # a `failures.Kind`; NULL unless failed
    Column("reason", Text),
    Column("note", Text),  # what a reader of the trial should know, such as that it started over
    Column("told", Integer, nullable=False),  # 1 when Optuna's trial has the outcome
    Column("claimed_at", Float),
    Column("settled_at", Float),
    Column("spent_seconds", Float, nullable=False, server_default="0"),  # of earlier holds
    Column("fingerprint", String(32)),  # of the config, to find one that was trained already
    # Why it waits: duplicate (its config is trained just now), space (all that it drew are).
    Column("waiting_reason", String(16)),
    Column("waits_for", Integer),  # the slot that is to be settled first
    Column("reused_from", Integer),  # the slot whose result this one has
    Column("checkpoint_place", String(255)),  # which files folder holds its checkpoint
    Column("checkpoint_epoch", Integer),
    UniqueConstraint("study_id", "number"),
    Index("dlnn_slots_claim", "study_id", "state", "number"),
    # Begun and given back: few of many, and claimed first.
    Index(
        "dlnn_slots_begun",
        "study_id",
        "state",  # as in the index above, or SQLite takes that one, of many rows
        "number",
        sqlite_where=text("state = 'open' AND trial_id IS NOT NULL"),
        postgresql_where=text("state = 'open' AND trial_id IS NOT NULL"),
    ),
    # A budget of worker-hours is a sum over all slots, asked each second.
    Index("dlnn_slots_spent", "study_id", "spent_seconds"),
    # Every worker asks for the untold before each claim, and nearly always there is none.
    Index("dlnn_slots_untold", "study_id", "state", "told"),
    Index("dlnn_slots_best", "study_id", "outcome", "value", "trial_number"),
    Index("dlnn_slots_fingerprint", "study_id", "fingerprint"),
)


def best_first(direction: str) -> UnaryExpression[float]:
    """Return the order of slots by value, the best first."""
    return slots.c.value.asc() if loss_sign(direction) > 0 else slots.c.value.desc()


curves = Table(
    "dlnn_curves",
    metadata,
    Column("slot_id", ForeignKey("dlnn_slots.id", ondelete="CASCADE"), primary_key=True),
    Column("epoch", Integer, primary_key=True),
    Column("metrics", JSON, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("images_per_second", Float, nullable=False),
    # A curve's epochs side by side on the disk, and one tree to write instead of two.
    sqlite_with_rowid=False,
)

workers = Table(
    "dlnn_workers",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("study_id", ForeignKey("dlnn_studies.id", ondelete="CASCADE"), nullable=False),
    Column("host", String(255), nullable=False),
    Column("processes", String(128), nullable=False),  # what its pid is counted in, its start
    Column("pid", Integer, nullable=False),
    # starting, training, waiting, paused, troubled (no data, disk or database), stopped
    Column("state", String(16), nullable=False),
    Column("message", Text),  # what troubles it, or why it stopped
    Column("seen_at", Float, nullable=False),
    Column("started_at", Float),
    Column("gpu", String(32)),  # as given to --gpus; NULL is none
    Column("threads", Integer),
    Column("memory_bytes", BigInteger),
    Column("log", Text),  # its log's path on its host
    Column("supervisor", String(64)),  # "pid start" of who looks after it; NULL: nobody
    Column("slot_id", Integer),
    Column("trial_number", Integer),
    Column("epoch", Integer),
    Column("epochs", Integer),
    Column("share", Float),
    Column("value", Float),
    Column("images_per_second", Float),
    Index("dlnn_workers_study", "study_id", "seen_at"),
)

#: What happened out of the ordinary: losses, fences, restarts, pauses. Rows are only added.
events = Table(
    "dlnn_events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("study_id", ForeignKey("dlnn_studies.id", ondelete="CASCADE"), nullable=False),
    Column("at", Float, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("worker", String(128)),
    Column("slot_id", Integer),
    Column("words", Text, nullable=False),
    Index("dlnn_events_study", "study_id", "id"),
)

#: Files that belong to a study: what they are, where they lie, and the sum that proves them.
artifacts = Table(
    "dlnn_artifacts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("study_id", ForeignKey("dlnn_studies.id", ondelete="CASCADE"), nullable=False),
    Column("slot_id", Integer),
    Column("kind", String(32), nullable=False),  # checkpoint
    Column("place", String(255), nullable=False),  # which files folder
    Column("path", String(512), nullable=False),  # within it
    Column("sha256", String(64), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", Float, nullable=False),
    UniqueConstraint("place", "path"),
    Index("dlnn_artifacts_study", "study_id", "slot_id"),
)

#: Every time a test split was opened; rows are added, completed, and never taken away.
ledger = Table(
    "dlnn_ledger",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("opened_at", Float, nullable=False),
    Column("closed_at", Float),
    Column("data", String(128), nullable=False),
    Column("fingerprint", String(32), nullable=False),
    Column("config", JSON, nullable=False),
    Column("study", String(128)),
    Column("trial", Integer),
    Column("seed", Integer, nullable=False),
    Column("user", String(128), nullable=False),
    Column("host", String(255), nullable=False),
    Column("metrics", JSON),
)


class now(FunctionElement[float]):  # noqa: N801 - reads as the SQL function it is
    """Seconds since 1970 by the database's clock: workers' clocks may differ."""

    type = Float()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: SQLCompiler, **kw: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: SQLCompiler, **kw: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"
