"""Ours against KerasTuner, a plain Optuna loop and Ray Tune: side by side in one run.

    pip install 'keras-tuner[bayesian]' 'ray[tune]' tensorboard 'optuna-integration[keras]'
    python benchmarks/peers.py --tasks mlp cnn --seconds 300 --seeds 0 1 2 -o peers.json

Every system searches the same study's space on the same images, split and cores for the same wall
time, its own start-up included, one after the other in turns; then it is ended. Best value: the
validation accuracy of the best epoch so far, of whichever trial. The test split is opened once a
run, with the best epoch's weights, after the time is up. Finished runs are kept in the output's
folder and not made again, so that a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
OURS = "dlnn-search"
PEERS = (
    "keras-tuner-random",
    "keras-tuner-hyperband",
    "keras-tuner-bayesian",
    "optuna",
    "ray-asha",
    "ray-optuna",
)
STUDIES = {"mlp": "task1-fashion-mlp", "cnn": "task1-fashion-cnn"}
POLL_SECONDS = 0.5
MEMORY_SECONDS = 2.0
GRACE_SECONDS = 30.0


@dataclass(frozen=True)
class Run:
    """One search: `trace` is (seconds since its command, best validation accuracy so far)."""

    system: str
    task: str
    seed: int
    trace: list[tuple[float, float]]
    epochs: int
    test: float | None
    peak_memory_mb: float

    @property
    def best(self) -> float:
        return self.trace[-1][1] if self.trace else 0.0

    def seconds_to(self, value: float) -> float | None:
        """Return when the search had that value; None: not in its time."""
        return next((at for at, best in self.trace if best >= value), None)


def run(system: str, task: str, seed: int, seconds: float, folder: Path) -> Run:
    """Search for that many seconds in a fresh process group, then test what was found."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if system == OURS:
        workers = str(len(os.sched_getaffinity(0)))
        command = [sys.executable, "-m", "dlnn_search", "start", study_file(task, seed, folder)]
        command += ["--workers", workers, "--trials", "10000"]
    else:
        command = [sys.executable, str(HERE / "peer_runs.py"), system, "--task", task]
        command += ["--seed", str(seed), "--folder", str(folder)]
    began = time.time()
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    seen: set[tuple[int, int]] = set()
    peak, next_look = 0.0, began
    while time.time() < began + seconds and process.poll() is None:
        if system == OURS:
            trace_ours(folder, seen)
        if time.time() >= next_look:
            peak = max(peak, memory_mb(process.pid))
            next_look = time.time() + MEMORY_SECONDS
        time.sleep(POLL_SECONDS)
    ended_early = process.poll() is not None
    end(process)
    if ended_early:
        tail = (folder / "log.txt").read_text(errors="replace")[-2_000:]
        raise SystemExit(f"{system} ended before its time:\n{tail}")
    points = best_so_far(folder / "trace.jsonl", began, seconds)
    tested = subprocess.run(
        [sys.executable, str(HERE / "peer_test.py"), str(folder)], capture_output=True, text=True
    )
    if tested.returncode:
        print(tested.stderr[-2_000:], file=sys.stderr)
    return Run(
        system,
        task,
        seed,
        points[0],
        points[1],
        float(tested.stdout) if tested.returncode == 0 else None,
        peak,
    )


def study_file(task: str, seed: int, folder: Path) -> str:
    """Return a copy of the built-in study: its name, and with it its draws, is the seed's."""
    from dlnn_search.study_files import built_in_studies

    path = folder / f"seed{seed}_{built_in_studies()[STUDIES[task]].name}"
    shutil.copy(built_in_studies()[STUDIES[task]], path)
    return str(path)


def trace_ours(folder: Path, seen: set[tuple[int, int]]) -> None:
    """Write the epochs that the database has since the last look, as peers write theirs."""
    path = folder / "storage" / "data" / "dlnn.db"
    if not path.exists():
        return
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(path, timeout=5)) as database:
        rows = database.execute("SELECT slot_id, epoch, metrics FROM dlnn_curves").fetchall()
        for slot, epoch, metrics in rows:
            if (slot, epoch) not in seen:
                seen.add((slot, epoch))
                value = json.loads(metrics)["accuracy"]
                line = {"at": time.time(), "value": value, "epoch": epoch, "trial": slot}
                with (folder / "trace.jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\n")


def memory_mb(pid: int) -> float:
    """Return what a process and its descendants hold together, shared pages counted once."""
    total = 0
    with suppress(psutil.Error):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with suppress(psutil.Error):
                total += process.memory_full_info().pss
    return total / 1e6


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its descendants, Ray's own sessions included."""
    with suppress(psutil.Error):
        descendants = psutil.Process(process.pid).children(recursive=True)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        _, alive = psutil.wait_procs(descendants, timeout=GRACE_SECONDS)
        for one in alive:
            with suppress(psutil.Error):
                one.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def best_so_far(path: Path, began: float, seconds: float) -> tuple[list[tuple[float, float]], int]:
    """Return the steps of the best value, and how many epochs were trained in all."""
    lines = path.read_text().splitlines() if path.exists() else []
    epochs = sorted((json.loads(line) for line in lines), key=lambda epoch: epoch["at"])
    epochs = [epoch for epoch in epochs if epoch["at"] <= began + seconds]
    steps: list[tuple[float, float]] = []
    for epoch in epochs:
        if not steps or epoch["value"] > steps[-1][1]:
            steps.append((round(epoch["at"] - began, 1), epoch["value"]))
    return steps, len(epochs)


def tables(runs: list[Run], seconds: float) -> str:
    """Return the comparison as Markdown: one table a task, means over the seeds."""
    lines = []
    for task in sorted({one.task for one in runs}, reverse=True):
        lines += [
            f"\n**{STUDIES[task]}**, {seconds:.0f} s a run\n",
            "| system | best validation | test | epochs trained | peak memory, MB "
            "| its best after, s | ours has it after, s | times faster |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        ours = {one.seed: one for one in runs if one.task == task and one.system == OURS}
        for system in (OURS, *PEERS):
            of_system = [one for one in runs if one.task == task and one.system == system]
            if of_system:
                lines.append(row(system, of_system, ours))
    return "\n".join(lines)


def row(system: str, runs: list[Run], ours: dict[int, Run]) -> str:
    """Return a system's row; each of its seeds meets each of ours."""
    theirs = [one.trace[-1][0] for one in runs if one.trace]
    pairs = [(one, mine) for one in runs for mine in ours.values() if one.trace]
    reached = [mine.seconds_to(one.best) for one, mine in pairs]
    ratios = [
        one.trace[-1][0] / at for (one, _), at in zip(pairs, reached, strict=True) if at is not None
    ]
    missed = sum(at is None for at in reached)
    if system == OURS:
        ours_after, faster = "", ""
    else:
        known = [at for at in reached if at is not None]
        ours_after = f"{statistics.median(known):.0f}" if known else "not reached"
        ours_after += f" ({missed} of {len(pairs)} not reached)" if missed and known else ""
        faster = f"{statistics.median(ratios):.1f}" if ratios else ""
    tests = [one.test for one in runs if one.test is not None]
    return (
        f"| {system} | {spread([one.best for one in runs])} | {spread(tests)} "
        f"| {statistics.mean(one.epochs for one in runs):.0f} "
        f"| {max(one.peak_memory_mb for one in runs):,.0f} "
        f"| {statistics.median(theirs) if theirs else 0:.0f} | {ours_after} | {faster} |"
    )


def spread(values: list[float]) -> str:
    """Return mean and range."""
    if not values:
        return "-"
    return f"{statistics.mean(values):.4f} ({min(values):.4f}-{max(values):.4f})"


def main() -> None:
    """Run what is not there yet, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--systems", nargs="+", choices=(OURS, *PEERS), default=[OURS, *PEERS])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("-o", "--output", type=Path, default=Path("peers.json"))
    arguments = parser.parse_args()
    folder = arguments.output.resolve().with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    runs: list[Run] = []
    for task in arguments.tasks:
        for seed in arguments.seeds:
            for system in arguments.systems:
                kept = folder / f"{task}-{system}-{seed}-{arguments.seconds:.0f}.json"
                if not kept.exists():
                    made = run(system, task, seed, arguments.seconds, folder / "running")
                    kept.write_text(json.dumps(asdict(made)))
                    print(f"{task} {system} seed {seed}: {made.best:.4f}", file=sys.stderr)
                loaded: dict[str, Any] = json.loads(kept.read_text())
                loaded["trace"] = [(at, best) for at, best in loaded["trace"]]
                runs.append(Run(**loaded))
    arguments.output.write_text(json.dumps([asdict(one) for one in runs]))
    print(f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores")
    print(tables(runs, arguments.seconds))


if __name__ == "__main__":
    main()
