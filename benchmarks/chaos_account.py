"""What must hold after a search in chaos, read from the database, from Optuna and from the disk."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.trial import TrialState

from dlnn_search.config import Config
from dlnn_search.storage.database import Database
from dlnn_search.storage.schema import artifacts, events, slots, studies
from dlnn_search.storage.trials import Point, curve_of_slot

_STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


@dataclass
class Account:
    """Figures of a search that has ended, and every rule that it broke, in words.

    Attributes:
        n_slots: Slots of the study.
        n_settled: Those that are done and told.
        n_lost: Those without an outcome or without a trial of Optuna's.
        n_doubled: Trials beyond one a slot, and slots beyond one a trial.
        n_running: Trials of Optuna's that have no outcome.
        outcomes: Slots by outcome; failures by their kind.
        n_resumed: Settled slots that were claimed more than once.
        n_gaps: Curves with an epoch that is missing or there twice.
        n_unlike: Trials whose reported values are not the curve's.
        n_compared: Trials that were trained again without interruption.
        n_different: Those of them whose metrics differ in any bit.
        events: What the study's log of events says, by kind.
        wrong: The rules that are broken; empty where all holds.
    """

    n_slots: int = 0
    n_settled: int = 0
    n_lost: int = 0
    n_doubled: int = 0
    n_running: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    n_resumed: int = 0
    n_gaps: int = 0
    n_unlike: int = 0
    n_compared: int = 0
    n_different: int = 0
    events: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def expect(self, holds: bool, words: str) -> None:
        if not holds:
            self.wrong.append(words)


def account_for(
    database: Database, study_name: str, *, n_trials: int, metric: str, n_compared: int
) -> Account:
    """Check a search that has ended.

    Args:
        database: Where it is.
        study_name: Its name.
        n_trials: Its budget.
        metric: What it optimises.
        n_compared: How many trials, resumed ones first, are trained again in this process.
    """
    account = Account()
    with database.transaction() as connection:
        study_id = connection.scalar(sa.select(studies.c.id).where(studies.c.name == study_name))
        query = sa.select(slots).where(slots.c.study_id == study_id).order_by(slots.c.number)
        rows = [dict(row) for row in connection.execute(query).mappings()]
        kinds = connection.scalars(sa.select(events.c.kind).where(events.c.study_id == study_id))
        account.events = dict(Counter(kinds))
        kept = set(connection.scalars(sa.select(artifacts.c.path)))
    trials = optuna.load_study(study_name=study_name, storage=database.optuna).get_trials(
        deepcopy=False
    )
    curves = {row["id"]: curve_of_slot(database, row["id"]) for row in rows}
    _count_slots(account, rows, trials, n_trials)
    _compare_with_optuna(account, rows, trials, curves, metric)
    _read_curves(account, rows, curves)
    _train_again(account, rows, curves, n_compared)
    folder = database.files / "checkpoints" / study_name
    for path in sorted(folder.glob("**/*")):
        is_kept = str(path.relative_to(database.files)) in kept
        account.expect(path.is_dir() or is_kept, f"{_named(path)} was left behind.")
    return account


def _named(path: Path) -> str:
    return "/".join(path.parts[-3:])


def _count_slots(
    account: Account,
    rows: Sequence[Mapping[str, Any]],
    trials: Sequence[optuna.trial.FrozenTrial],
    n_trials: int,
) -> None:
    account.n_slots = len(rows)
    account.n_settled = sum(row["state"] == "done" and row["told"] == 1 for row in rows)
    account.outcomes = dict(
        Counter(
            f"failed: {row['failure']}" if row["outcome"] == "failed" else str(row["outcome"])
            for row in rows
        )
    )
    account.n_resumed = sum(row["fence"] > 1 for row in rows)
    ids = {trial._trial_id for trial in trials}
    of_slots = Counter(row["trial_id"] for row in rows)
    account.n_lost = sum(row["outcome"] is None or row["trial_id"] not in ids for row in rows)
    account.n_doubled = len(ids - set(of_slots)) + sum(n - 1 for n in of_slots.values())
    account.n_running = sum(not trial.state.is_finished() for trial in trials)
    account.expect(len(rows) == n_trials, f"{len(rows)} slots, expected {n_trials}.")
    account.expect(len(trials) == n_trials, f"{len(trials)} trials, expected {n_trials}.")
    account.expect(account.n_settled == n_trials, f"{account.n_settled} slots are settled.")
    account.expect(not account.n_lost, f"{account.n_lost} slots are lost.")
    account.expect(not account.n_doubled, f"{account.n_doubled} trials or slots are doubled.")
    account.expect(not account.n_running, f"{account.n_running} trials are not finished.")
    for row in rows:
        # The one failure that chaos may cause: three attempts, each lost.
        explained = row["outcome"] != "failed" or (row["failure"] == "lost" and row["reason"])
        account.expect(
            bool(explained), f"Slot {row['number']} failed: {row['failure']}: {row['reason']}"
        )


def _compare_with_optuna(
    account: Account,
    rows: Sequence[Mapping[str, Any]],
    trials: Sequence[optuna.trial.FrozenTrial],
    curves: Mapping[int, Sequence[Point]],
    metric: str,
) -> None:
    by_id = {trial._trial_id: trial for trial in trials}
    for row in rows:
        trial = by_id.get(row["trial_id"])
        if trial is None:
            continue
        named = f"Slot {row['number']}, trial {trial.number}"
        state = _STATES.get(row["outcome"])
        account.expect(trial.state == state, f"{named}: {row['outcome']}, but {trial.state.name}.")
        values = {point.epoch: point.metrics[metric] for point in curves[row["id"]]}
        reported = trial.intermediate_values
        # NaN is what Optuna keeps of an epoch that a trial which started over never came to.
        alike = all(
            values.get(epoch) == value or (epoch not in values and math.isnan(value))
            for epoch, value in reported.items()
        )
        if row["outcome"] == "complete":
            alike = alike and row["value"] == trial.value == min(values.values(), default=None)
            alike = alike and max(values) in reported
            alike = alike and values[row["best_epoch"]] == row["value"]
        account.n_unlike += not alike
        account.expect(alike, f"{named}: Optuna has {reported}, the curve {values}.")


def _read_curves(
    account: Account,
    rows: Sequence[Mapping[str, Any]],
    curves: Mapping[int, Sequence[Point]],
) -> None:
    for row in rows:
        epochs = [point.epoch for point in curves[row["id"]]]
        whole = epochs == list(range(1, len(epochs) + 1))
        if row["outcome"] == "complete":
            whole = whole and len(epochs) == Config.model_validate(row["config"]).training.epochs
        account.n_gaps += not whole
        account.expect(whole, f"Slot {row['number']} has the epochs {epochs}.")


def _train_again(
    account: Account,
    rows: Sequence[Mapping[str, Any]],
    curves: Mapping[int, Sequence[Point]],
    n_compared: int,
) -> None:
    """Train configs from start to end, and compare every metric of every epoch bit by bit."""
    if not n_compared:
        return
    from dlnn_search.training.runtime import import_tensorflow

    import_tensorflow()
    from dlnn_search import data
    from dlnn_search.training.fit import fit

    complete = [row for row in rows if row["outcome"] == "complete"]
    for row in sorted(complete, key=lambda row: -row["fence"])[:n_compared]:
        config = Config.model_validate(row["config"])
        images = data.load(config.data, config.training.curriculum)
        again = fit(config, images, threads=1).curve
        stored = curves[row["id"]]
        same = [(e.epoch, e.metrics) for e in again] == [(p.epoch, p.metrics) for p in stored]
        account.n_compared += 1
        account.n_different += not same
        account.expect(
            same,
            f"Slot {row['number']} (claimed {row['fence']} times) differs from an uninterrupted "
            f"training: {[p.metrics for p in stored]} and {[e.metrics for e in again]}.",
        )
