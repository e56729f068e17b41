"""Recorded trials of task1-fashion-mlp as a test problem: a config is worth what its nearest were.

The table is `record_trials.py`'s, of random configs, so that no sampler is at home in it.
"""

from __future__ import annotations

import csv
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray

from dlnn_search.study import Study
from dlnn_search.study.finding import load_study

TABLE = Path(__file__).parent / "data" / "fashion_mlp_trials.csv"

#: How much each parameter counts for the distance between configs: fitted by coordinate search so
#: that recorded trials are told best from the others, each left out in turn (`--replay-error`).
REPLAY_WEIGHTS: dict[str, float] = {
    "layers": 0.9,
    "units_first": 0.75,
    "taper": 0.02,
    "activation": 1.05,
    "batch_norm": 0.49,
    "dropout": 0.68,
    "l1": 0.18,
    "l2": 0.12,
    "optimizer": 0.26,
    "learning_rate": 1.27,
    "weight_decay": 0.13,
    "log2_batch_size": 2.25,
}
NEIGHBOURS = 3
ACTIVATIONS = ("relu", "tanh", "sigmoid", "silu")
OPTIMIZERS = ("adam", "adamw", "rmsprop")


@cache
def _recorded() -> tuple[list[dict[str, Any]], NDArray[np.float64], NDArray[np.float64]]:
    with TABLE.open() as file:
        rows = list(csv.DictReader(file))
    points = np.array([_point(_typed(row)) for row in rows])
    return [dict(row) for row in rows], points, np.array([float(row["accuracy"]) for row in rows])


def _typed(row: dict[str, str]) -> dict[str, Any]:
    texts = {"activation", "optimizer", "batch_norm"}
    return {
        name: value if name in texts else float(value)
        for name, value in row.items()
        if value != "" and not name.startswith(("accuracy", "epoch"))
    }


def _point(parameters: dict[str, Any]) -> list[float]:
    """Return a config as a point between which the weighted distances are taken."""

    def log(name: str, low: float, high: float) -> float:
        return math.log(parameters[name] / low) / math.log(high / low)

    places = {
        "layers": (parameters["layers"] - 1) / 3,
        "units_first": log("units_first", 128, 2048),
        "taper": (parameters["taper"] - 0.25) / 0.75,
        "dropout": parameters["dropout"] / 0.6,
        "l1": log("l1", 1e-8, 1e-4),
        "l2": log("l2", 1e-8, 1e-3),
        "learning_rate": log("learning_rate", 1e-5, 1e-2),
        "weight_decay": log("weight_decay", 1e-4, 0.1) if "weight_decay" in parameters else 0.5,
        "log2_batch_size": (parameters["log2_batch_size"] - 5) / 5,
    }
    point = [REPLAY_WEIGHTS[name] * place for name, place in places.items()]
    half = math.sqrt(0.5)
    point += [
        half * REPLAY_WEIGHTS["activation"] * (parameters["activation"] == a) for a in ACTIVATIONS
    ]
    point += [
        half * REPLAY_WEIGHTS["optimizer"] * (parameters["optimizer"] == o) for o in OPTIMIZERS
    ]
    return [*point, REPLAY_WEIGHTS["batch_norm"] * (str(parameters["batch_norm"]) == "True")]


@cache
def _study() -> Study:
    return load_study("task1-fashion-mlp")


def replayed(trial: optuna.Trial) -> float:
    """task1-fashion-mlp from its recorded trials: the mean error of the nearest ones."""
    _study().config(trial)
    return float(_replay(np.array(_point(trial.params))))


def best_recorded() -> float:
    """Return the lowest recorded error."""
    return 1 - float(_recorded()[2].max())


def _replay(point: NDArray[np.float64], leave_out: int | None = None) -> float:
    _, points, accuracies = _recorded()
    squares = np.sum((points - point) ** 2, axis=1)
    if leave_out is not None:
        squares[leave_out] = np.inf
    nearest = np.argpartition(squares, NEIGHBOURS)[:NEIGHBOURS]
    weights = 1 / (squares[nearest] + 1e-4)
    return 1 - float(weights @ accuracies[nearest] / weights.sum())


def replay_error() -> str:
    """Say how well a recorded trial is told from the others, each left out in turn."""
    _, points, accuracies = _recorded()
    told = np.array([1 - _replay(point, leave_out=i) for i, point in enumerate(points)])
    error, spread = np.abs(told - accuracies), np.abs(accuracies - np.median(accuracies))
    order = np.corrcoef(np.argsort(np.argsort(told)), np.argsort(np.argsort(accuracies)))[0, 1]
    return (
        f"{len(accuracies)} trials; error of the replayed accuracy, left out: median "
        f"{np.median(error):.4f} (of the median alone {np.median(spread):.4f}); "
        f"rank correlation {order:.3f}"
    )
