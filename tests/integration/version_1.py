"""A database as the program of our tables' first version made it, with rows of every kind."""

from __future__ import annotations

import json
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

#: As that program's SQLAlchemy wrote it; {id} and {rowid} differ between databases.
TABLES = """
CREATE TABLE dlnn_schema (
    version INTEGER NOT NULL,
    program VARCHAR(64) NOT NULL,
    PRIMARY KEY (version)
);
CREATE TABLE dlnn_studies (
    id {id} NOT NULL,
    name VARCHAR(128) NOT NULL,
    definition JSON NOT NULL,
    created_at FLOAT NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (name)
);
CREATE TABLE dlnn_ledger (
    id {id} NOT NULL,
    opened_at FLOAT NOT NULL,
    closed_at FLOAT,
    data VARCHAR(128) NOT NULL,
    fingerprint VARCHAR(32) NOT NULL,
    config JSON NOT NULL,
    study VARCHAR(128),
    trial INTEGER,
    seed INTEGER NOT NULL,
    "user" VARCHAR(128) NOT NULL,
    host VARCHAR(255) NOT NULL,
    metrics JSON,
    PRIMARY KEY (id)
);
CREATE TABLE dlnn_slots (
    id {id} NOT NULL,
    study_id INTEGER NOT NULL,
    number INTEGER NOT NULL,
    state VARCHAR(8) NOT NULL,
    fence INTEGER NOT NULL,
    losses INTEGER NOT NULL,
    worker VARCHAR(128),
    lease_ends_at FLOAT,
    trial_id INTEGER,
    trial_number INTEGER,
    config JSON,
    outcome VARCHAR(16),
    value FLOAT,
    best_epoch INTEGER,
    reason TEXT,
    told INTEGER NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (study_id, number),
    FOREIGN KEY(study_id) REFERENCES dlnn_studies (id) ON DELETE CASCADE
);
CREATE INDEX dlnn_slots_untold ON dlnn_slots (study_id, state, told);
CREATE INDEX dlnn_slots_claim ON dlnn_slots (study_id, state, number);
CREATE INDEX dlnn_slots_best ON dlnn_slots (study_id, outcome, value, trial_number);
CREATE TABLE dlnn_workers (
    id VARCHAR(128) NOT NULL,
    study_id INTEGER NOT NULL,
    host VARCHAR(255) NOT NULL,
    processes VARCHAR(128) NOT NULL,
    pid INTEGER NOT NULL,
    state VARCHAR(16) NOT NULL,
    seen_at FLOAT NOT NULL,
    trial_number INTEGER,
    epoch INTEGER,
    epochs INTEGER,
    share FLOAT,
    value FLOAT,
    images_per_second FLOAT,
    PRIMARY KEY (id),
    FOREIGN KEY(study_id) REFERENCES dlnn_studies (id) ON DELETE CASCADE
);
CREATE INDEX dlnn_workers_study ON dlnn_workers (study_id, seen_at);
CREATE TABLE dlnn_curves (
    slot_id INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    metrics JSON NOT NULL,
    seconds FLOAT NOT NULL,
    images_per_second FLOAT NOT NULL,
    PRIMARY KEY (slot_id, epoch),
    FOREIGN KEY(slot_id) REFERENCES dlnn_slots (id) ON DELETE CASCADE
) {rowid};
"""

Rows = dict[str, list[dict[str, Any]]]


def make_version_1(url: str, name: str, definition: dict[str, Any], config: Any) -> Rows:
    """Make such a database: a study of 4 slots, one complete, one failed, two open.

    Returns:
        Its rows by table, as the first version's columns have them.
    """
    storage = RDBStorage(url)
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize")
    for number, state in enumerate((TrialState.COMPLETE, TrialState.FAIL)):
        study.add_trial(
            create_trial(
                state=state,
                value=0.75 if state == TrialState.COMPLETE else None,
                params={"rate": 0.001 + number / 1000},
                distributions={
                    "rate": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)
                },
                user_attrs={"slot": number},
                intermediate_values={1: 0.5, 2: 0.75},
            )
        )
    storage.remove_session()
    storage.engine.dispose()
    is_sqlite = url.startswith("sqlite")
    text = TABLES.format(
        id="INTEGER" if is_sqlite else "SERIAL", rowid="WITHOUT ROWID" if is_sqlite else ""
    )
    rows = _rows(name, definition, config)
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for statement in text.split(";"):
            if statement.strip():
                connection.exec_driver_sql(statement)
        for table, its_rows in rows.items():
            for row in its_rows:
                names = [key for key in row if row[key] is not None]
                columns = ", ".join(f'"{each}"' for each in names)
                values = ", ".join(f":{each}" for each in names)
                connection.execute(
                    sa.text(f"INSERT INTO {table} ({columns}) VALUES ({values})"),
                    {
                        each: json.dumps(row[each]) if isinstance(row[each], dict) else row[each]
                        for each in names
                    },
                )
            if not is_sqlite and "id" in its_rows[0] and table != "dlnn_workers":
                connection.exec_driver_sql(
                    f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), {len(its_rows)})"
                )
    engine.dispose()
    return rows


def _rows(name: str, definition: dict[str, Any], config: Any) -> Rows:
    slot: dict[str, Any] = {
        "id": 1,
        "study_id": 1,
        "number": 0,
        "state": "done",
        "fence": 1,
        "losses": 0,
        "worker": None,
        "lease_ends_at": None,
        "trial_id": 1,
        "trial_number": 0,
        "config": config,
        "outcome": "complete",
        "value": 0.75,
        "best_epoch": 2,
        "reason": None,
        "told": 1,
    }
    failed = {
        **slot,
        "id": 2,
        "number": 1,
        "trial_id": 2,
        "trial_number": 1,
        "outcome": "failed",
        "value": None,
        "best_epoch": None,
        "reason": "The loss became infinite.",
        "losses": 1,
    }
    fresh = {
        **slot,
        "state": "open",
        "fence": 0,
        "trial_id": None,
        "trial_number": None,
        "config": None,
        "outcome": None,
        "value": None,
        "best_epoch": None,
        "told": 0,
    }
    return {
        "dlnn_schema": [{"version": 1, "program": "0.1.0"}],
        "dlnn_studies": [{"id": 1, "name": name, "definition": definition, "created_at": 1.7e9}],
        "dlnn_slots": [
            slot,
            failed,
            {**fresh, "id": 3, "number": 2},
            {**fresh, "id": 4, "number": 3},
        ],
        "dlnn_curves": [
            {
                "slot_id": 1,
                "epoch": epoch,
                "metrics": {"loss": 1 / epoch, "accuracy": 0.25 + epoch / 4},
                "seconds": 1.5,
                "images_per_second": 1e4,
            }
            for epoch in (1, 2)
        ],
        "dlnn_workers": [
            {
                "id": "host-1-abcdef",
                "study_id": 1,
                "host": "host",
                "processes": "host 1",
                "pid": 1,
                "state": "stopped",
                "seen_at": 1.7e9,
                "trial_number": None,
                "epoch": 2,
                "epochs": 2,
                "share": 1.0,
                "value": 0.75,
                "images_per_second": 1e4,
            }
        ],
        "dlnn_ledger": [
            {
                "id": 1,
                "opened_at": 1.7e9,
                "closed_at": 1.7e9 + 1,
                "data": "mnist",
                "fingerprint": "0" * 32,
                "config": config,
                "study": name,
                "trial": 0,
                "seed": 3,
                "user": "somebody",
                "host": "host",
                "metrics": {"accuracy": 0.5},
            }
        ],
    }
