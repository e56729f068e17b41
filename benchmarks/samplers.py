"""Samplers side by side: regret on test problems after 30, 60, 100 and 200 trials.

    python benchmarks/samplers.py RESULTS.jsonl                # run what is missing, then report
    python benchmarks/samplers.py RESULTS.jsonl --report       # report only
    python benchmarks/samplers.py RESULTS.jsonl --again coarse-to-fine

Each run is one search of 200 trials with one seed, by one worker or by eight asynchronous ones,
simulated: a trial's value is known when its random duration (log-normal) is over, and the next
one is asked for then. Samplers are Optuna's own with their defaults, and `CoarseToFine` with its.

Regret is how much worse than the problem's optimum the best trial is, by its true value where
what is observed is noisy, over the same of a random config (the median of 500): 1 is no better
than one random draw, 0 the optimum. Means are over problems and seeds; intervals are 95 %, by
bootstrap over seeds (the problems are these ones, not a sample of all). Results are kept run by
run, so that it goes on where it was stopped.
"""

from __future__ import annotations

import os

# Before NumPy: matrices of a hundred rows are fastest on one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import heapq
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script it sees its own folder alone

from benchmarks.sampler_problems import (
    TUNING,
    FailedTrialError,
    Problem,
    problems,
)
from benchmarks.sampler_replay import replay_error
from dlnn_search import CoarseToFine

CHECKPOINTS = (30, 60, 100, 200)
N_TRIALS = 200
WORKERS = (1, 8)
#: Spread of the logarithm of a trial's duration.
DURATION_SPREAD = 0.6
N_REFERENCE = 500
N_BOOTSTRAP = 2000

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "coarse-to-fine": lambda seed: CoarseToFine(seed=seed),
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "cmaes": lambda seed: optuna.samplers.CmaEsSampler(seed=seed),
    "qmc": lambda seed: optuna.samplers.QMCSampler(seed=seed, scramble=True),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}

#: Problem, sampler, seed, workers.
Key = tuple[str, str, int, int]
Result = dict[str, Any]


def run(problem: Problem, sampler: BaseSampler, seed: int, n_trials: int, workers: int) -> Result:
    """Search once.

    Returns:
        `curve`: the true value of the trial that looked best, by number of finished trials;
        `seconds`: processor time in the sampler, of the whole search.
    """
    rng = np.random.default_rng(seed)
    study = optuna.create_study(sampler=sampler)
    running: list[tuple[float, int, optuna.Trial]] = []
    order = count()
    true_values: dict[int, float | None] = {}
    best_seen, best_true = np.inf, np.nan
    curve: list[float] = []
    clock, asked, seconds = 0.0, 0, 0.0
    while len(curve) < n_trials:
        while len(running) < workers and asked < n_trials:
            started = time.process_time()
            trial = study.ask()
            try:
                true_values[trial.number] = problem.value(trial)
            except FailedTrialError:
                true_values[trial.number] = None
            seconds += time.process_time() - started
            asked += 1
            ends = clock + float(rng.lognormal(0, DURATION_SPREAD))
            heapq.heappush(running, (ends, next(order), trial))
        clock, _, trial = heapq.heappop(running)
        true = true_values[trial.number]
        if true is None:
            study.tell(trial, state=TrialState.FAIL)
        else:
            seen = true + problem.noise * float(rng.standard_normal())
            study.tell(trial, seen)
            if seen < best_seen:
                best_seen, best_true = seen, true
        curve.append(float(best_true))
    return {"curve": {str(n): curve[n - 1] for n in CHECKPOINTS}, "seconds": seconds}


@cache
def reference(problem: Problem) -> float:
    """Return the median true value of random configs, which regret is measured by."""
    quiet()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=12345))
    values = []
    for _ in range(N_REFERENCE):
        try:
            values.append(problem.value(study.ask()))
        except FailedTrialError:
            continue
    return float(np.median(values))


def quiet() -> None:
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def do(key: Key) -> tuple[Key, Result]:
    quiet()
    name, sampler, seed, workers = key
    problem = next(problem for problem in problems() if problem.name == name)
    return key, run(problem, SAMPLERS[sampler](seed), seed, N_TRIALS, workers)


def read(path: Path, again: Iterable[str]) -> dict[Key, Result]:
    lines = path.read_text().splitlines() if path.exists() else []
    results: dict[Key, Result] = {}
    for line in lines:
        row = json.loads(line)
        name, sampler, seed, workers = row["key"]
        if sampler not in again:
            results[name, sampler, seed, workers] = row["result"]
    return results


def write(path: Path, results: dict[Key, Result]) -> None:
    lines = [json.dumps({"key": key, "result": result}) for key, result in results.items()]
    path.write_text("".join(line + "\n" for line in lines))


def regrets(
    results: dict[Key, Result], names: list[str], sampler: str, workers: int, n: int, n_seeds: int
) -> NDArray[np.float64]:
    """Return normalised regrets, shape (problems, seeds)."""
    by_name = {problem.name: problem for problem in problems()}
    rows = []
    for name in names:
        best, width = by_name[name].best, reference(by_name[name]) - by_name[name].best
        found = [results[name, sampler, seed, workers]["curve"][str(n)] for seed in range(n_seeds)]
        regret = np.maximum(0.0, (np.array(found) - best) / width)
        rows.append(np.where(np.isnan(regret), 1.0, regret))  # nothing but failures so far
    return np.array(rows)


def interval(table: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the mean of all, and its 95 % interval by bootstrap over seeds."""
    rng = np.random.default_rng(0)
    by_seed = table.mean(axis=0)
    draws = rng.choice(by_seed, size=(N_BOOTSTRAP, len(by_seed))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(table.mean()), float(low), float(high)


def report(results: dict[Key, Result], n_seeds: int) -> None:
    listed = [problem.name for problem in problems()]
    for workers in WORKERS:
        names = [
            name
            for name in listed
            if all(
                (name, sampler, seed, workers) in results
                for sampler in SAMPLERS
                for seed in range(n_seeds)
            )
        ]
        if not names:
            continue
        print(f"\n## {workers} worker{'s' * (workers > 1)}, {n_seeds} seeds\n")
        for title, group in (
            (f"all {len(names)} problems", names),
            ("problems not used for tuning", [name for name in names if name not in TUNING]),
        ):
            print(f"Mean normalised regret, {title}:\n")
            print("| after | " + " | ".join(SAMPLERS) + " | coarse-to-fine less TPE |")
            print("| --- |" + " --- |" * (len(SAMPLERS) + 1))
            for n in CHECKPOINTS:
                tables = {s: regrets(results, group, s, workers, n, n_seeds) for s in SAMPLERS}
                cells = [words(*interval(table)) for table in tables.values()]
                difference = words(*interval(tables["coarse-to-fine"] - tables["tpe"]))
                print(f"| {n} | " + " | ".join(cells) + f" | {difference} |")
            print()
        print("By problem, after 30 / 100 / 200 trials (* used for tuning):\n")
        print("| problem | " + " | ".join(SAMPLERS) + " |")
        print("| --- |" + " --- |" * len(SAMPLERS))
        for name in names:
            cells = []
            for sampler in SAMPLERS:
                means = [
                    regrets(results, [name], sampler, workers, n, n_seeds).mean()
                    for n in (30, 100, 200)
                ]
                cells.append(" / ".join(f"{mean:.3f}" for mean in means))
            print(f"| {name}{'*' * (name in TUNING)} | " + " | ".join(cells) + " |")
        spent = {
            sampler: np.mean(
                [results[n, sampler, s, workers]["seconds"] for n in names for s in range(n_seeds)]
            )
            for sampler in SAMPLERS
        }
        shown = ", ".join(f"{s} {1000 * t / N_TRIALS:.1f}" for s, t in spent.items())
        print(f"\nProcessor time of a trial's suggestions, ms: {shown}")


def words(mean: float, low: float, high: float) -> str:
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="JSON lines, one a run")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--again", nargs="+", default=[], metavar="SAMPLER", help="forget its runs")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--replay-error", action="store_true", help="of the recorded trials")
    options = parser.parse_args()
    quiet()
    if options.replay_error:
        print(replay_error())
        return
    results = read(options.results, options.again)
    if options.again:
        write(options.results, results)
    keys = [
        (problem.name, sampler, seed, workers)
        for seed in range(options.seeds)
        for workers in WORKERS
        for problem in problems()
        for sampler in SAMPLERS
    ]
    missing = [key for key in keys if key not in results]
    if missing and not options.report:
        with ProcessPoolExecutor(options.processes) as pool, options.results.open("a") as file:
            for key, result in pool.map(do, missing):
                results[key] = result
                file.write(json.dumps({"key": key, "result": result}) + "\n")
                file.flush()
    report(results, options.seeds)


if __name__ == "__main__":
    main()
