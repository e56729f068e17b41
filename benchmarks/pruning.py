"""What pruning saves, and what it loses: real curves, replayed in many orders.

    python benchmarks/pruning.py record task1-fashion-mlp --trials 60 --epochs 12 -o FOLDER
    python benchmarks/pruning.py replay FOLDER --first-rung 2 --workers 2 --orders 200

`record` draws configs of a study at random and trains each to its last epoch, through the service:
the same command goes on where it stopped. `replay` lets simulated workers take these trials in many
random orders, each epoch costing the seconds that it took, and asks each pruner at each epoch. The
curves are those of real trainings; random search is what makes replaying exact, since no draw
depends on what was pruned before. Any database with such a study will do: `replay --storage URL
--study NAME`; and so will what `record_trials.py` keeps: `replay --lines FILE.jsonl`.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.trial import TrialState

from dlnn_search.metrics import DIRECTIONS, is_better
from dlnn_search.pruners import HalvingPruner, Reached
from dlnn_search.storage.database import open_database
from dlnn_search.storage.studies import all_studies
from dlnn_search.storage.trials import Point, curve_of_slot, trials_of
from dlnn_search.study import Halving
from dlnn_search.study.finding import load_study
from dlnn_search.worker.optuna_study import threshold

#: Shares of the time that all trials take without pruning, at which the best so far is compared.
MOMENTS = (0.1, 0.2, 0.3, 0.5, 1.0)
RECORDED = '''\
"""A study's space drawn at random, every trial trained to its end."""

import dataclasses

from dlnn_search import RandomSearch, load_study

study = dataclasses.replace(
    load_study({name!r}){version},
    sampler=RandomSearch(),
    pruner=None,
    quick=None,
    epochs={epochs!r},
)
'''


@dataclass(frozen=True)
class Recording:
    """Curves of trials that nothing pruned.

    Attributes:
        curves: A trial's epochs each.
    """

    name: str
    metric: str
    curves: Sequence[Sequence[Point]]

    def value(self, trial: int) -> float:
        values = [point.metrics[self.metric] for point in self.curves[trial]]
        return min(values) if DIRECTIONS[self.metric] == "minimize" else max(values)

    @property
    def best(self) -> float:
        values = [self.value(trial) for trial in range(len(self.curves))]
        return min(values) if DIRECTIONS[self.metric] == "minimize" else max(values)

    @property
    def seconds(self) -> float:
        return sum(point.seconds for curve in self.curves for point in curve)


@dataclass(frozen=True)
class Run:
    """One simulated search: when trials were completed, and with what value."""

    completed: Sequence[tuple[float, float]]
    seconds: float
    n_pruned: int

    def best_at(self, seconds: float, direction: str) -> float | None:
        best = None
        for at, value in self.completed:
            if at <= seconds and is_better(value, best, direction):
                best = value
        return best


def record(
    name: str,
    folder: Path,
    n_trials: int,
    epochs: int | None,
    n_images: int | None,
    workers: int,
    *,
    quick: bool,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    study = load_study(name)
    file = folder / f"{name.replace('-', '_')}_recorded.py"
    version = "" if n_images is None else f".on(n_training={n_images})"
    if quick:
        study, version = study.quick_version(), f"{version}.quick_version()"
    text = RECORDED.format(name=name, version=version, epochs=epochs or study.epochs)
    file.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "dlnn_search", "start", file.name, "--trials", str(n_trials)]
    environment = {**os.environ, "DLNN_SEARCH_STORAGE": f"sqlite:///{folder.resolve()}/dlnn.db"}
    done = subprocess.run(
        [*command, "--workers", str(workers)], cwd=folder, env=environment, check=False
    )
    raise SystemExit(done.returncode)


def read(url: str, name: str | None) -> Recording:
    database = open_database(url, create=False)
    try:
        known = {study.name: study for study in all_studies(database)}
        stored = known[name] if name else next(iter(known.values()))
        curves = [
            curve_of_slot(database, trial.slot_id)
            for trial in trials_of(database, stored)
            if trial.outcome == "complete"
        ]
    finally:
        database.close()
    return Recording(stored.name, stored.metric, curves)


def read_lines(path: Path) -> Recording:
    """Return the curves that `record_trials.py` keeps: validation accuracy by epoch."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    curves = [
        [
            Point(epoch, {"accuracy": accuracy}, row["seconds"] / len(row["curve"]), 1.0)
            for epoch, accuracy in enumerate(row["curve"], start=1)
        ]
        for row in rows
    ]
    return Recording(path.stem, "accuracy", curves)


def simulate(
    recording: Recording, order: Sequence[int], n_workers: int, make: Callable[[Curves], BasePruner]
) -> Run:
    """Let workers take the trials in this order, asking the pruner after each epoch."""
    direction = DIRECTIONS[recording.metric]
    seen = Curves(recording, {})
    pruner = make(seen)
    study = optuna.create_study(direction=direction)  # type: ignore[arg-type]
    waiting = list(order)[::-1]
    completed: list[tuple[float, float]] = []
    n_pruned, now = 0, 0.0
    # When its epoch ends, which worker, its trial's number there, and which recorded trial.
    events: list[tuple[float, int, int, int]] = []

    def begin(at: float, worker: int) -> None:
        if waiting:
            which = waiting.pop()
            trial = study.ask()
            seen.epochs[trial.number] = (which, 0)
            heapq.heappush(
                events, (at + recording.curves[which][0].seconds, worker, trial.number, which)
            )

    for worker in range(n_workers):
        begin(0.0, worker)
    while events:
        now, worker, number, which = heapq.heappop(events)
        curve = recording.curves[which]
        epoch = seen.epochs[number][1] + 1
        seen.epochs[number] = (which, epoch)
        trial_id = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
        study._storage.set_trial_intermediate_value(
            trial_id, epoch, curve[epoch - 1].metrics[recording.metric]
        )
        if epoch == len(curve):
            completed.append((now, recording.value(which)))
            study.tell(number, recording.value(which))
            begin(now, worker)
        elif pruner.prune(study, study._storage.get_trial(trial_id)):
            n_pruned += 1
            study.tell(number, state=TrialState.PRUNED)
            begin(now, worker)
        else:
            heapq.heappush(events, (now + curve[epoch].seconds, worker, number, which))
    return Run(completed, now, n_pruned)


@dataclass
class Curves:
    """What the simulated trials have shown so far, as a pruner reads it.

    Attributes:
        epochs: By trial number: which recorded trial, and how many of its epochs.
        judge: The metric to rank by.
    """

    recording: Recording
    epochs: dict[int, tuple[int, int]]
    judge: str = ""

    def __call__(self, study: optuna.Study, step: int) -> Mapping[int, Reached]:
        metric, found = self.recording.metric, {}
        for number, (which, done) in self.epochs.items():
            if done >= step:
                points = self.recording.curves[which][:step]
                found[number] = Reached(
                    self._best(points, metric), self._best(points, self.judge or metric)
                )
        return found

    @staticmethod
    def _best(points: Sequence[Point], metric: str) -> float:
        better = max if DIRECTIONS.get(metric) == "maximize" else min
        return better(point.metrics[metric] for point in points)


def pruners(
    recording: Recording, first: int, factor: int, until: int, better_than: float | None
) -> dict[str, Callable[[Curves], BasePruner]]:
    def by_loss(seen: Curves) -> BasePruner:
        seen.judge = "train_loss"
        return HalvingPruner(first, factor, values=seen, judge_direction="minimize")

    found: dict[str, Callable[[Curves], BasePruner]] = {
        "none": lambda seen: NopPruner(),
        "Optuna's halving": lambda seen: SuccessiveHalvingPruner(
            min_resource=first, reduction_factor=factor
        ),
        "Optuna's median": lambda seen: optuna.pruners.MedianPruner(
            n_startup_trials=5, n_warmup_steps=first
        ),
        "ours": lambda seen: HalvingPruner(first, factor, values=seen),
    }
    if all("train_loss" in point.metrics for curve in recording.curves for point in curve):
        found["ours, by training loss"] = by_loss
    if better_than is not None:
        found["ours, beyond chance"] = lambda seen: HalvingPruner(
            first, factor, better_than=better_than, until=until, values=seen
        )
    return found


def replay(recording: Recording, options: argparse.Namespace) -> dict[str, object]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    direction = DIRECTIONS[recording.metric]
    n_epochs = max(len(curve) for curve in recording.curves)
    better_than = options.better_than
    if better_than is None and options.of:
        halving = Halving(1, better_than="chance", until=n_epochs)
        better_than = threshold(dataclasses.replace(load_study(options.of), pruner=halving))
    until = options.until or max(options.first_rung, n_epochs // 2)
    random = np.random.default_rng(options.seed)
    orders = [random.permutation(len(recording.curves)).tolist() for _ in range(options.orders)]
    made = pruners(recording, options.first_rung, options.factor, until, better_than)
    runs = {
        name: [simulate(recording, order, options.workers, make) for order in orders]
        for name, make in made.items()
    }
    whole = [run.seconds for run in runs["none"]]
    rows = []
    for name, of_pruner in runs.items():
        shares = [run.seconds / full for run, full in zip(of_pruner, whole, strict=True)]
        regrets = {
            moment: [
                _regret(run.best_at(moment * full, direction), recording)
                for run, full in zip(of_pruner, whole, strict=True)
            ]
            for moment in MOMENTS
        }
        rows.append(
            {
                "pruner": name,
                "time": _mean(shares),
                "pruned": _mean([run.n_pruned / len(recording.curves) for run in of_pruner]),
                "kept_best": _mean(
                    [
                        float(any(value == recording.best for _, value in run.completed))
                        for run in of_pruner
                    ]
                ),
                "regret": {str(moment): _mean(values) for moment, values in regrets.items()},
            }
        )
    return {
        "study": recording.name,
        "metric": recording.metric,
        "n_trials": len(recording.curves),
        "n_epochs": n_epochs,
        "training_seconds": recording.seconds,
        "best": recording.best,
        "first_rung": options.first_rung,
        "factor": options.factor,
        "until": until,
        "better_than": better_than,
        "workers": options.workers,
        "orders": options.orders,
        "rows": rows,
    }


def _regret(best: float | None, recording: Recording) -> float:
    """Return how far a value is from the best of all; nothing at all counts as the worst trial."""
    if best is None:
        values = [recording.value(trial) for trial in range(len(recording.curves))]
        best = max(values) if DIRECTIONS[recording.metric] == "minimize" else min(values)
    return abs(best - recording.best)


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half its 95 % interval."""
    return statistics.mean(values), 1.96 * statistics.stdev(values) / len(values) ** 0.5


def show(result: dict[str, object]) -> None:
    rows = result["rows"]
    assert isinstance(rows, list)
    print(
        f"{result['study']}: {result['n_trials']} trials of {result['n_epochs']} epochs, "
        f"{result['training_seconds']:.0f} s of training, best {result['metric']} "
        f"{result['best']:.4f}; {result['orders']} orders, {result['workers']} workers, "
        f"rungs from {result['first_rung']} by {result['factor']}\n"
    )
    moments = " | ".join(f"regret at {moment:.0%}" for moment in MOMENTS)
    print(f"| pruner | time | pruned | best one kept | {moments} |")
    print("| --- " * (4 + len(MOMENTS)) + "|")
    for row in rows:
        regrets = " | ".join(
            f"{row['regret'][str(moment)][0]:.4g} ± {row['regret'][str(moment)][1]:.1g}"
            for moment in MOMENTS
        )
        print(
            f"| {row['pruner']} | {row['time'][0]:.0%} | {row['pruned'][0]:.0%} | "
            f"{row['kept_best'][0]:.0%} | {regrets} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    recorder = commands.add_parser("record")
    recorder.add_argument("study")
    recorder.add_argument("-o", dest="folder", type=Path, required=True)
    recorder.add_argument("--trials", type=int, default=60)
    recorder.add_argument("--epochs", type=int)
    recorder.add_argument("--images", type=int, help="fewer training pictures")
    recorder.add_argument("--quick", action="store_true", help="the study's quick version")
    recorder.add_argument("--workers", type=int, default=2)
    replayer = commands.add_parser("replay")
    replayer.add_argument("folder", type=Path, nargs="?")
    replayer.add_argument("--storage", help="a database, in place of a folder of `record`")
    replayer.add_argument("--lines", type=Path, help="a file of record_trials.py, likewise")
    replayer.add_argument("--study", help="its name there; else the first")
    replayer.add_argument("--of", help="the study that says what chance is, by name")
    replayer.add_argument("--first-rung", type=int, default=2)
    replayer.add_argument("--factor", type=int, default=3)
    replayer.add_argument("--until", type=int)
    replayer.add_argument("--better-than", type=float)
    replayer.add_argument("--workers", type=int, default=2)
    replayer.add_argument("--orders", type=int, default=100)
    replayer.add_argument("--seed", type=int, default=0)
    replayer.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.command == "record":
        record(
            options.study,
            options.folder,
            options.trials,
            options.epochs,
            options.images,
            options.workers,
            quick=options.quick,
        )
    if options.lines is not None:
        recording = read_lines(options.lines)
    else:
        url = options.storage or f"sqlite:///{(options.folder / 'dlnn.db').resolve()}"
        recording = read(url, options.study)
    result = replay(recording, options)
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
