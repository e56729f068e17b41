"""Train random configs of task1-fashion-mlp briefly and keep what came of each, for replay.

    python benchmarks/record_trials.py FILE.jsonl --trials 1200 [--part 1/2]
    python benchmarks/record_trials.py FILE.jsonl --table benchmarks/data/fashion_mlp_trials.csv

Parameters come from the study's own space, each trial's by its number. To have hundreds of them
within an hour on one core, layers are a quarter as wide, and training is short: 15,000 images,
5 epochs. So the table says little about the study's best config, and much about how such a
space looks to a sampler: real scales, real interactions, real failures.

It goes on where it was stopped; `--part 1/2` and `2/2` share the work between two processes. The
table has a row a trial: its parameters (empty: not asked for) and the best validation accuracy,
then the accuracy after each epoch.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import optuna

from dlnn_search import data
from dlnn_search.config import Config, Dense, FashionMnist, Mlp
from dlnn_search.errors import TrainingError
from dlnn_search.study.finding import load_study

STUDY = "task1-fashion-mlp"
DATA = FashionMnist(n_training=15_000)
EPOCHS = 5
NARROWER = 4
#: What a network gets by guessing, and so one whose training diverged.
CHANCE = 0.1
#: A process grows with every model that TensorFlow traced: it starts itself anew after so many.
TRIALS_A_PROCESS = 60


def drawn(number: int) -> tuple[Config, dict[str, Any]]:
    """Return the config of a trial, narrowed and shortened, and its parameters."""
    sampler = optuna.samplers.RandomSampler(seed=number)
    trial = optuna.create_study(sampler=sampler).ask()
    config = load_study(STUDY).config(trial)
    assert isinstance(config.model, Mlp)
    blocks = tuple(
        block.model_copy(update={"units": max(8, block.units // NARROWER)})
        if isinstance(block, Dense)
        else block
        for block in config.model.blocks
    )
    update = {
        "model": config.model.model_copy(update={"blocks": blocks}),
        "training": config.training.model_copy(update={"epochs": EPOCHS}),
        "data": data.resolve(DATA),
    }
    return config.model_copy(update=update), trial.params


def record(path: Path, n_trials: int, part: int, n_parts: int) -> None:
    from dlnn_search.training.fit import fit
    from dlnn_search.training.runtime import with_precision

    lines = path.read_text().splitlines() if path.exists() else []
    done = {json.loads(line)["number"] for line in lines}
    images = data.load(DATA)
    missing = [n for n in range(part - 1, n_trials, n_parts) if n not in done]
    for number in missing[:TRIALS_A_PROCESS]:
        config, parameters = drawn(number)
        started = time.monotonic()
        try:
            fitted = fit(with_precision(config, "float32"), images, threads=1)
            curve = [epoch.metrics["accuracy"] for epoch in fitted.curve]
        except TrainingError:
            curve = [CHANCE] * EPOCHS
        seconds = time.monotonic() - started
        row = {"number": number, "parameters": parameters, "curve": curve, "seconds": seconds}
        with path.open("a") as file:  # one short write a line: two processes may share the file
            file.write(json.dumps(row) + "\n")
    if missing[TRIALS_A_PROCESS:]:
        os.execv(sys.executable, [sys.executable, *sys.argv])


def write_table(path: Path, table: Path) -> None:
    rows = sorted(map(json.loads, path.read_text().splitlines()), key=lambda row: row["number"])
    names = list(dict.fromkeys(name for row in rows for name in row["parameters"]))
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*names, "accuracy", *(f"epoch_{n + 1}" for n in range(EPOCHS))])
        for row in rows:
            values = [row["parameters"].get(name, "") for name in names]
            texts = [f"{v:.5g}" if isinstance(v, float) else v for v in values]
            curve = [f"{accuracy:.4f}" for accuracy in row["curve"]]
            writer.writerow([*texts, max(curve), *curve])
    print(f"{len(rows)} trials in {table}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="JSON lines, one a trial")
    parser.add_argument("--trials", type=int, default=1200)
    parser.add_argument("--part", default="1/1", metavar="I/N", help="take every N-th, from I on")
    parser.add_argument("--table", type=Path, help="write the table instead of training")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if options.table is not None:
        write_table(options.file, options.table)
        return
    part, n_parts = map(int, options.part.split("/"))
    record(options.file, options.trials, part, n_parts)


if __name__ == "__main__":
    main()
