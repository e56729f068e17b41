"""Ours against KerasTuner, a plain Optuna loop and Ray Tune: side by side in one run.

    pip install 'keras-tuner[bayesian]' tensorboard 'ray[tune]'
    pip install 'optuna-integration[keras]' matplotlib
    python benchmarks/peers.py --core 1 --clock processor
    python benchmarks/peers.py --core 1 --clock processor --work
    python benchmarks/peers.py --report --picture docs/images/peers.png

Every system searches the same study's space on the same images, split and core for the same time,
its own start-up included, one after the other in turns; then it is killed, and what is on the disk
counts. The time is the wall's (`--clock wall`), or what its processes got of the core: on a core
of its own that is the same, and on a machine that others use it alone can be compared. Best value:
the validation accuracy of the best epoch so far, of whichever trial. The test split is opened once
a run, with the best epoch's weights, after the time is up. `--work` counts how many trials of one
config a system trains instead. Finished runs are lines of the output and not made again, so that a
benchmark that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from peer_report import OURS, PEERS, Run, report

HERE = Path(__file__).resolve().parent
OUTPUT = HERE / "data" / "peers.jsonl"
STUDIES = {"mlp": "task1-fashion-mlp", "cnn": "task1-fashion-cnn"}
#: Seconds a search, on the chosen clock.
SECONDS = {"mlp": 120.0, "cnn": 180.0}
WORK_SECONDS = 60.0
#: A run that gets less than this share of its core says nothing: it is not kept.
LEAST_SHARE = 0.05
POLL_SECONDS = 0.25
MEMORY_SECONDS = 2.0
GRACE_SECONDS = 30.0


class Meter:
    """What a process and its descendants have used, the dead ones included."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._seconds: dict[tuple[int, float], float] = {}
        self.known: dict[tuple[int, float], psutil.Process] = {}
        self.samples: list[tuple[float, float]] = [(time.time(), 0.0)]
        self.peak_memory_mb = 0.0
        self._memory_at = 0.0

    def look(self) -> None:
        """Add a sample of the processor's time, and now and then one of the memory."""
        found = [self._root]
        with suppress(psutil.Error):
            found += self._root.children(recursive=True)
        for process in found:
            with suppress(psutil.Error):
                key = (process.pid, process.create_time())
                times = process.cpu_times()
                self.known[key] = process
                self._seconds[key] = times.user + times.system
        self.samples.append((time.time(), sum(self._seconds.values())))
        if time.time() > self._memory_at + MEMORY_SECONDS:
            self._memory_at = time.time()
            self.peak_memory_mb = max(self.peak_memory_mb, memory_mb(found))

    @property
    def used(self) -> float:
        """Seconds of the processor up to the last look."""
        return self.samples[-1][1]

    def processor_seconds(self, at: float) -> float:
        """Return what had been used by then."""
        times, used = zip(*self.samples, strict=True)
        return float(np.interp(at, times, used))


def memory_mb(processes: list[psutil.Process]) -> float:
    """Return what processes hold together, shared pages counted once."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total / 1e6


@dataclass(frozen=True)
class Plan:
    """A run to make."""

    kind: str
    system: str
    task: str
    seed: int
    seconds: float
    clock: str
    core: int
    images: int | None

    @property
    def key(self) -> tuple[str, str, str, int, float, str, int | None]:
        """As that of the run that comes of it."""
        return self.kind, self.system, self.task, self.seed, self.seconds, self.clock, self.images


def run(plan: Plan, folder: Path) -> Run | None:
    """Search for that many seconds in a fresh process group, then test what was found.

    Returns:
        None where the machine gave it no time.
    """
    system, seed = plan.system, plan.seed
    study = study_file(plan, folder)
    if system == OURS:
        command = [sys.executable, "-m", "dlnn_search", "start", study]
        command += ["--workers", "1", "--trials", "1000"]
    else:
        command = [sys.executable, str(HERE / "peer_runs.py"), system, "--study", study]
        command += ["--seed", str(seed), "--folder", str(folder)]
    began = time.time()
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            ["taskset", "-c", str(plan.core), *command],
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    meter = Meter(process.pid)
    seen: set[tuple[int, int]] = set()
    longest = plan.seconds / LEAST_SHARE
    try:
        while time.time() < began + longest and process.poll() is None:
            if system == OURS:
                trace_ours(folder, seen)
            meter.look()
            spent = meter.used if plan.clock == "processor" else time.time() - began
            if spent >= plan.seconds:
                break
            time.sleep(POLL_SECONDS)
        ended_early = process.poll() is not None
        ended = time.time()
    finally:  # interrupted, too
        kill(process, meter)
    if ended_early:
        tail = (folder / "log.txt").read_text(errors="replace")[-2_000:]
        raise SystemExit(f"{system} ended before its time:\n{tail}")
    if meter.used < LEAST_SHARE * (ended - began) or ended > began + longest:
        return None
    epochs = read_epochs(folder / "trace.jsonl", ended)
    tested = subprocess.run(
        [sys.executable, str(HERE / "peer_test.py"), str(folder)], capture_output=True, text=True
    )
    if tested.returncode and epochs:
        raise SystemExit(f"The test of {system} failed:\n{tested.stderr[-2_000:]}")
    found: dict[str, Any] = json.loads(tested.stdout) if epochs else {}
    return Run(
        kind=plan.kind,
        system=system,
        task=plan.task,
        seed=seed,
        seconds=plan.seconds,
        clock=plan.clock,
        wall_seconds=round(ended - began, 1),
        trace=best_so_far(epochs, began, meter),
        ends=ends_of_trials(epochs, began, meter),
        epochs=len(epochs),
        test=found.get("test"),
        tested_validation=found.get("validation"),
        pictures=found.get("pictures"),
        images=plan.images,
        peak_memory_mb=round(meter.peak_memory_mb, 1),
        processor_seconds=round(meter.used, 1),
        load=round(os.getloadavg()[1], 1),
        machine=machine(),
    )


def study_file(plan: Plan, folder: Path) -> str:
    """Return a copy of the study: its name, and with it our draws, is the seed's."""
    from dlnn_search.study.finding import built_in_studies

    source = built_in_studies()[STUDIES[plan.task]]
    if plan.kind == "work":
        source = HERE / f"peer_work_{plan.task}.py"
    text = source.read_text()
    if plan.images is not None:
        text += f"\nstudy = study.on(n_training={plan.images})\n"
    path = folder / f"seed{plan.seed}_{source.name}"
    path.write_text(text)
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
                line = {"at": time.time(), "value": value, "epoch": epoch}
                with (folder / "trace.jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\n")


def kill(process: subprocess.Popen[bytes], meter: Meter) -> None:
    """End a process and its descendants at once, those that were orphaned and Ray's included."""
    for _ in range(3):  # some may start others meanwhile
        meter.look()
        for one in meter.known.values():
            with suppress(psutil.Error):
                one.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    psutil.wait_procs(list(meter.known.values()), timeout=GRACE_SECONDS)


def read_epochs(path: Path, until: float) -> list[dict[str, Any]]:
    """Return the epochs of all trials, in time's order."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = []
    for line in lines:
        with suppress(json.JSONDecodeError):  # the last one may be cut off
            found.append(json.loads(line))
    return sorted((one for one in found if one["at"] <= until), key=lambda one: one["at"])


def best_so_far(
    epochs: list[dict[str, Any]], began: float, meter: Meter
) -> list[tuple[float, float, float]]:
    """Return the steps of the best value: wall seconds, processor seconds, value."""
    steps: list[tuple[float, float, float]] = []
    for epoch in epochs:
        if not steps or epoch["value"] > steps[-1][2]:
            used = meter.processor_seconds(epoch["at"])
            steps.append((round(epoch["at"] - began, 1), round(used, 1), round(epoch["value"], 5)))
    return steps


def ends_of_trials(
    epochs: list[dict[str, Any]], began: float, meter: Meter
) -> list[tuple[float, float]]:
    """Return when trials reached the last epoch of all: wall and processor seconds."""
    last = max((epoch["epoch"] for epoch in epochs), default=0)
    return [
        (round(epoch["at"] - began, 2), round(meter.processor_seconds(epoch["at"]), 2))
        for epoch in epochs
        if epoch["epoch"] == last
    ]


def machine() -> str:
    """Return the processor's name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.machine()


def read_runs(path: Path) -> list[Run]:
    """Return the finished runs."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [Run.read(json.loads(line)) for line in lines]


def check_pictures(made: Run, runs: list[Run]) -> None:
    """Refuse a comparison on different validation splits."""
    for other in runs:
        same = (other.task, other.kind) == (made.task, made.kind)
        if same and made.pictures and other.pictures and other.pictures != made.pictures:
            raise SystemExit(
                f"{made.system} validated on other images ({made.pictures}) than {other.system} "
                f"({other.pictures})."
            )


def main() -> None:
    """Run what is not there yet, or report what is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--systems", nargs="+", choices=(OURS, *PEERS), default=[OURS, *PEERS])
    parser.add_argument("--seconds", type=float, help="Of a run; else each task's own.")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, help="Train on so many; else on all.")
    parser.add_argument("--core", type=int, default=0, help="The one that all systems run on.")
    parser.add_argument("--work", action="store_true", help="Count trials of one config instead.")
    parser.add_argument("--report", action="store_true", help="Print the tables; run nothing.")
    parser.add_argument("--picture", type=Path, help="With --report: draw the curves.")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    runs = read_runs(arguments.output)
    if arguments.report:
        print(report(runs, arguments.picture))
        return
    kind = "work" if arguments.work else "search"
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for task in arguments.tasks:
        default = WORK_SECONDS if arguments.work else SECONDS[task]
        seconds = arguments.seconds or default
        for seed in arguments.seeds:
            for system in arguments.systems:
                plan = Plan(
                    kind=kind,
                    system=system,
                    task=task,
                    seed=seed,
                    seconds=seconds,
                    clock=arguments.clock,
                    core=arguments.core,
                    images=arguments.images,
                )
                if any(one.key == plan.key for one in runs):
                    continue
                with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                    made = run(plan, Path(folder))
                if made is None:
                    print(f"{task} {system} seed {seed}: hardly ran, not kept", file=sys.stderr)
                    continue
                check_pictures(made, runs)
                runs.append(made)
                with arguments.output.open("a") as file:
                    file.write(json.dumps(asdict(made)) + "\n")
                found = f"{made.best:.4f}, tested {made.test}, {made.epochs} epochs"
                print(f"{task} {system} seed {seed}: {found}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
