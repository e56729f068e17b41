"""How long optuna-dashboard takes to open a large study, and how much it is sent for that.

    python benchmarks/dashboard.py [--trials 2000] [--epochs 100] [--notes 100]

Makes a study in a new SQLite database as our workers leave it, opens it as the browser does, and
compares it with one whose trials report every epoch and one whose trials all have a note. Times
are the processor's. Making the studies through Optuna takes minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import get_storage
from optuna.trial import TrialState
from optuna_dashboard import save_note, wsgi

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script it sees its own folder alone

from benchmarks.overhead import Templates
from benchmarks.overhead_study import make_study as make_ours
from dlnn_search.results.status import study_status
from dlnn_search.storage.database import open_database
from dlnn_search.storage.studies import find
from dlnn_search.worker.reports import MAX_NOTED, epochs_to_report

N_TURNS = 5
SPACE: dict[str, Any] = {
    "learning_rate": FloatDistribution(1e-5, 1e-1, log=True),
    "batch_size": CategoricalDistribution([32, 64, 128, 256]),
    "optimizer": CategoricalDistribution(["adam", "sgd", "rmsprop"]),
    "layers": IntDistribution(1, 5),
} | {f"width_{number}": IntDistribution(16, 512) for number in range(6)}
NOTE = "**Complete**: loss 0.123 at epoch 87 of 100\n\n" + "| 1 | 0.1234 | 0.9876 | 31,234 |\n" * 14


def make_study(url: str, n_trials: int, epochs: int, reported: Iterable[int], n_notes: int) -> int:
    """Make a study of finished trials; return Optuna's id of it."""
    database = open_database(url, create=True)
    study = optuna.create_study(
        study_name="large", storage=database.optuna, sampler=optuna.samplers.RandomSampler(seed=0)
    )
    began = datetime.now() - timedelta(days=1)
    reported = sorted(reported)
    params = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for number in range(n_trials):
        values = {epoch: math.exp(-epoch / epochs) + 1 / (number + 7) for epoch in reported}
        frozen = optuna.trial.create_trial(
            state=TrialState.COMPLETE,
            params=params.ask(SPACE).params,
            distributions=SPACE,
            value=min(values.values()),
            intermediate_values=values,
            user_attrs={"slot": number},
        )
        frozen.datetime_start = began + timedelta(seconds=number)
        frozen.datetime_complete = began + timedelta(seconds=number + 1)
        study._storage.create_new_trial(study._study_id, template_trial=frozen)
    if n_notes:
        for trial in study.get_trials(deepcopy=False)[:n_notes]:
            save_note(optuna.Trial(study, trial._trial_id), NOTE)
    database.close()
    return study._study_id


def open_page(application: Any, study_id: int) -> tuple[float, int]:
    """Return the processor seconds and bytes of the answer that a study's page waits for."""
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    environ["PATH_INFO"] = f"/api/studies/{study_id}"
    statuses: list[str] = []

    def start_response(status: str, headers: object, exc_info: object = None) -> None:
        statuses.append(status)

    began = time.process_time()
    body = b"".join(application(environ, start_response))
    took = time.process_time() - began
    assert statuses[0].startswith("200"), statuses
    assert json.loads(body)["trials"]
    return took, len(body)


def status_seconds(kind: str, n_trials: int, epochs: int) -> tuple[float, float]:
    """Return the median seconds, by the clock and the processor, of one look at a study."""
    with tempfile.TemporaryDirectory() as folder:
        templates = Templates(kind, Path(folder))
        try:
            templates.make(n_trials, epochs)
            with templates.copy(n_trials) as url:
                database = open_database(url, create=False)
                stored = find(database, make_ours(epochs, "default").name)
                assert stored is not None
                taken = []
                for _ in range(4 * N_TURNS):
                    wall, processor = time.perf_counter(), time.process_time()
                    assert study_status(database, stored).n_done == n_trials
                    taken.append((time.perf_counter() - wall, time.process_time() - processor))
                database.close()
        finally:
            templates.close()
    walls, processors = zip(*taken, strict=True)
    return statistics.median(walls), statistics.median(processors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--status-only", action="store_true", help="not the dashboard")
    wanted = parser.parse_args()
    for kind in ("sqlite", "postgresql"):
        wall, processor = status_seconds(kind, wanted.trials, wanted.epochs)
        print(f"study_status, {kind}: {wall:.3f} s, of the processor {processor:.3f} s", flush=True)
    if wanted.status_only:
        return
    rungs = [5, 15, 45]
    ours = epochs_to_report(wanted.epochs, rungs)
    cases = [
        ("ours", ours, min(MAX_NOTED, wanted.trials)),
        ("every epoch reported", range(1, wanted.epochs + 1), min(MAX_NOTED, wanted.trials)),
        ("a note on every trial", ours, wanted.trials),
    ]
    print("| study | values a trial | notes | first opening, s | again, s (median) | sent, MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, reported, n_notes in cases:
        with tempfile.TemporaryDirectory() as folder:
            url = f"sqlite:///{Path(folder) / 'dlnn.db'}"
            study_id = make_study(url, wanted.trials, wanted.epochs, reported, n_notes)
            database = open_database(url, create=False)
            storage = get_storage(database.optuna)
            storage.get_all_trials(study_id, deepcopy=False)  # as `dashboard` does when it starts
            application = wsgi(storage)
            first, size = open_page(application, study_id)
            again = [open_page(application, study_id)[0] for _ in range(N_TURNS)]
            database.close()
        print(
            f"| {name} | {len(list(reported))} | {n_notes} | {first:.2f} | "
            f"{statistics.median(again):.2f} | {size / 1e6:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
