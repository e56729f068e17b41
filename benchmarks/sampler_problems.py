"""Test problems for samplers: what searches for hyperparameters look like, with known optima.

Each is a define-by-run space with the value of its config, lower is better, `Problem.best` the
best there is. Optima lie off the middle and off round numbers, so that no sampler finds them by
its manners. Those in `TUNING` may be looked at while a sampler is being made, the others tell
whether that carried over.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import optuna

from benchmarks.sampler_replay import TABLE, best_recorded, replayed


class FailedTrialError(Exception):
    """The config cannot be trained."""


@dataclass(frozen=True)
class Problem:
    """A space with its values.

    Attributes:
        value: Asks a trial for its parameters and returns the true value.
        noise: Standard deviation of what is observed; regret counts true values.
        best: The lowest true value.
        about: What it is like, for the table.
    """

    name: str
    about: str
    value: Callable[[optuna.Trial], float]
    noise: float = 0.0
    best: float = 0.0


def bowl(trial: optuna.Trial) -> float:
    """Rates and decays on log scales, each with a best decade; smooth."""
    targets = {"rate": -2.7, "decay": -4.4, "l2": -5.2, "epsilon": -7.1}
    loss = 0.0
    for (name, target), weight in zip(targets.items(), (1.0, 0.4, 0.2, 0.1), strict=True):
        loss += weight * (math.log10(trial.suggest_float(name, 1e-8, 1.0, log=True)) - target) ** 2
    return loss + 4 * (trial.suggest_float("momentum", 0.0, 1.0) - 0.83) ** 2


def valley(trial: optuna.Trial) -> float:
    """Rosenbrock's curved valley, five parameters: each depends on its neighbour."""
    x = np.array([trial.suggest_float(f"x{i}", -2.0, 2.3) for i in range(5)])
    return float(np.log1p(np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)))


def ripples(trial: optuna.Trial) -> float:
    """Rastrigin, four parameters: a bowl with many dents."""
    x = np.array([trial.suggest_float(f"x{i}", -4.0, 5.5) for i in range(4)]) - 0.37
    return float(np.sum(x * x + 6 * (1 - np.cos(2 * math.pi * x / 1.9))))


def optimizers(trial: optuna.Trial) -> float:
    """Each optimiser has a rate of its own and parameters of its own."""
    name = trial.suggest_categorical("optimizer", ["sgd", "adam", "rmsprop", "adamw"])
    base = {"sgd": 0.35, "adam": 0.1, "rmsprop": 0.2, "adamw": 0.0}[name]
    centre = {"sgd": -1.2, "adam": -3.1, "rmsprop": -3.4, "adamw": -2.8}[name]
    rate = trial.suggest_float("rate", 1e-6, 1.0, log=True)
    loss = base + 0.25 * min(abs(math.log10(rate) - centre), 2.0) ** 1.5
    if name == "sgd":
        loss += 0.5 * (trial.suggest_float("momentum", 0.0, 0.99) - 0.9) ** 2
        loss += 0.05 * (not trial.suggest_categorical("nesterov", [False, True]))
    if name == "adamw":
        decay = math.log10(trial.suggest_float("weight_decay", 1e-6, 1.0, log=True))
        loss += 0.06 * (decay + 2.2) ** 2
    dropout = trial.suggest_float("dropout", 0.0, 0.8)
    return float(loss + 0.8 * (dropout - 0.27) ** 2)


def layers(trial: optuna.Trial) -> float:
    """As many widths as there are layers; what counts is their sum and shape."""
    depth = trial.suggest_int("layers", 1, 5)
    widths = [trial.suggest_int(f"units_{i}", 16, 1024, log=True) for i in range(depth)]
    logs = np.log2(widths)
    loss = 0.15 * abs(depth - 3) + 0.08 * (logs[0] - 8.6) ** 2
    loss += 0.05 * float(np.sum((np.diff(logs) + 0.8) ** 2)) / depth
    rate = math.log10(trial.suggest_float("rate", 1e-5, 1e-1, log=True))
    loss += 0.3 * (rate + 2.4 + 0.2 * (depth - 3)) ** 2
    dropout = trial.suggest_float("dropout", 0.0, 0.7, step=0.05)
    return float(loss + 0.3 * (dropout - 0.25) ** 2)


def mixed(trial: optuna.Trial) -> float:
    """Choices that change which numbers are good."""
    activation = trial.suggest_categorical("activation", ["relu", "tanh", "sigmoid", "silu", "elu"])
    norm = trial.suggest_categorical("norm", [None, "batch", "layer"])
    init = trial.suggest_categorical("init", ["glorot", "he", "lecun", "normal"])
    batch = trial.suggest_int("log2_batch", 4, 11)
    rate = math.log10(trial.suggest_float("rate", 1e-5, 1.0, log=True))
    loss = {"relu": 0.1, "tanh": 0.3, "sigmoid": 0.6, "silu": 0.0, "elu": 0.15}[activation]
    loss += 0.0 if norm == "batch" else 0.1 if norm == "layer" else 0.25
    loss += {"glorot": 0.05, "he": 0.0, "lecun": 0.1, "normal": 0.5}[init] * (norm is None)
    best_rate = -2.3 + 0.25 * (batch - 7) + (0.5 if norm == "batch" else 0.0)
    loss += 0.2 * (rate - best_rate) ** 2 + 0.02 * (batch - 7) ** 2
    smoothing = trial.suggest_float("smoothing", 0.0, 0.3)
    return loss + 3 * (smoothing - 0.07) ** 2


def idle(trial: optuna.Trial) -> float:
    """Twelve parameters, of which two matter, together."""
    for i in range(6):
        trial.suggest_float(f"idle_{i}", 0.0, 1.0)
    rate = math.log10(trial.suggest_float("rate", 1e-6, 1.0, log=True))
    width = math.log2(trial.suggest_int("width", 8, 2048, log=True))
    for i in range(2):
        trial.suggest_categorical(f"idle_choice_{i}", ["a", "b", "c"])
        trial.suggest_int(f"idle_number_{i}", 1, 10)
    return 0.4 * (rate + 2.9 + 0.15 * (width - 8)) ** 2 + 0.05 * (width - 8.7) ** 2


_HARTMANN_A = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)
_HARTMANN_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def hartmann(trial: optuna.Trial) -> float:
    """Hartmann's function of six parameters: smooth, four basins."""
    x = np.array([trial.suggest_float(f"x{i}", 0.0, 1.0) for i in range(6)])
    weights = np.array([1.0, 1.2, 3.0, 3.2])
    basins = np.exp(-np.sum(_HARTMANN_A * (x - _HARTMANN_P) ** 2, axis=1))
    return 3.32237 - float(weights @ basins)


def ackley(trial: optuna.Trial) -> float:
    """Ackley, eight parameters, off the middle: rugged, and flat far away."""
    x = np.array([trial.suggest_float(f"x{i}", -10.0, 20.0) for i in range(8)]) - 2.9
    far = -20 * math.exp(-0.2 * math.sqrt(float(np.mean(x * x))))
    return far - math.exp(float(np.mean(np.cos(2 * math.pi * x)))) + 20 + math.e


def kernels(trial: optuna.Trial) -> float:
    """A support vector machine's shape: each kernel with parameters of its own, plateaus."""
    kernel = trial.suggest_categorical("kernel", ["linear", "poly", "rbf"])
    c = math.log10(trial.suggest_float("C", 1e-4, 1e4, log=True))
    if kernel == "linear":
        return 0.25 + 0.1 * min(abs(c + 1), 3)
    if kernel == "poly":
        degree = trial.suggest_int("degree", 2, 6)
        coef0 = trial.suggest_float("coef0", 0.0, 2.0)
        return 0.15 + 0.05 * abs(degree - 3) + 0.05 * (coef0 - 1.1) ** 2 + 0.08 * abs(c - 0.5)
    gamma = math.log10(trial.suggest_float("gamma", 1e-6, 1e2, log=True))
    shape = (c - 1.7) ** 2 / 4 + (gamma + 2.2) ** 2 / 1.5 + 0.5 * (c - 1.7) * (gamma + 2.2) / 2
    return 0.6 * (1 - math.exp(-shape / 3))


def parity(trial: optuna.Trial) -> float:
    """Choices that are good only together, beside integers with steps."""
    first = trial.suggest_categorical("first", [0, 1, 2])
    second = trial.suggest_categorical("second", [0, 1, 2])
    third = trial.suggest_categorical("third", ["x", "y"])
    loss = 0.0 if (first + second) % 3 == 2 else 0.4
    loss += 0.2 * ((third == "x") != (first == 2))
    for name, best in (("a", 24), ("b", 72), ("c", 48)):
        loss += ((trial.suggest_int(name, 0, 96, step=8) - best) / 80) ** 2
    return loss


def cliff(trial: optuna.Trial) -> float:
    """The best is next to where training diverges: a third of the space fails."""
    rate = math.log10(trial.suggest_float("rate", 1e-6, 1e1, log=True))
    batch = trial.suggest_int("log2_batch", 3, 12)
    clip = trial.suggest_categorical("clip", [False, True])
    limit = -1.6 + 0.2 * (batch - 7) + (0.6 if clip else 0.0)
    if rate > limit:
        raise FailedTrialError("diverged")
    warmup = trial.suggest_float("warmup", 0.0, 10.0)
    beta = trial.suggest_float("beta", 0.5, 0.9999)
    loss = 0.25 * (limit - 0.3 - rate) ** 2 + 0.03 * (batch - 6) ** 2 + 0.1 * (not clip)
    return loss + 0.01 * (warmup - 3.3) ** 2 + 1.5 * (beta - 0.91) ** 2


def decoy(trial: optuna.Trial) -> float:
    """A wide basin that is not the best, and a narrow one that is."""
    x = np.array([trial.suggest_float(f"x{i}", 0.0, 1.0) for i in range(4)])
    wide = 0.3 + 1.2 * float(np.sum((x - [0.7, 0.3, 0.65, 0.6]) ** 2))
    narrow = 14.0 * float(np.sum((x - [0.22, 0.75, 0.2, 0.31]) ** 2))
    return min(wide, narrow)


def families(trial: optuna.Trial) -> float:
    """Four kinds of model with parameters of their own; the best one is poor until it is tuned."""
    family = trial.suggest_categorical("family", ["forest", "boosting", "machine", "network"])
    scaling = trial.suggest_categorical("scaling", ["none", "standard", "ranks"])
    if family == "forest":
        depth = trial.suggest_int("forest_depth", 2, 20)
        share = trial.suggest_float("forest_share", 0.1, 1.0)
        return 0.14 + 0.004 * abs(depth - 13) + 0.1 * (share - 0.42) ** 2
    if family == "boosting":
        rate = math.log10(trial.suggest_float("boosting_rate", 1e-3, 1.0, log=True))
        rounds = math.log10(trial.suggest_int("boosting_rounds", 10, 3000, log=True))
        depth = trial.suggest_int("boosting_depth", 1, 10)
        return 0.07 + 0.06 * (rate + rounds - 1.3) ** 2 + 0.005 * abs(depth - 4)
    unscaled = {"none": 0.15, "standard": 0.0, "ranks": 0.02}[scaling]
    if family == "machine":
        c = math.log10(trial.suggest_float("machine_c", 1e-3, 1e4, log=True))
        gamma = math.log10(trial.suggest_float("machine_gamma", 1e-5, 1e1, log=True))
        return 0.1 + unscaled + 0.35 * (1 - math.exp(-((c - 1.4) ** 2) / 6 - (gamma + 1.7) ** 2))
    rate = math.log10(trial.suggest_float("network_rate", 1e-5, 1.0, log=True))
    width = math.log2(trial.suggest_int("network_width", 8, 1024, log=True))
    dropout = trial.suggest_float("network_dropout", 0.0, 0.7)
    decay = math.log10(trial.suggest_float("network_decay", 1e-7, 1e-1, log=True))
    loss = unscaled + 0.4 * (1 - math.exp(-((rate + 2.6) ** 2) / 1.5))
    loss += 0.006 * (width - 7.7) ** 2 + 0.3 * (dropout - 0.34) ** 2
    return loss + 0.004 * (decay + 3.8) ** 2


def memory(trial: optuna.Trial) -> float:
    """Larger is better until it does not fit any more, where trials fail."""
    width = math.log2(trial.suggest_int("width", 16, 2048, log=True))
    depth = trial.suggest_int("depth", 1, 12)
    batch = trial.suggest_int("log2_batch", 4, 11)
    if width + math.log2(depth) + 0.5 * batch > 14.2:
        raise FailedTrialError("out of memory")
    rate = math.log10(trial.suggest_float("rate", 1e-5, 1e0, log=True))
    activation = trial.suggest_categorical("activation", ["relu", "gelu", "tanh"])
    loss = 0.05 * (11.0 - width) + 0.015 * (depth - 5) ** 2 + 0.02 * (batch - 5.5) ** 2
    loss += 0.15 * (rate + 2.7 - 0.2 * (batch - 6) + 0.1 * (depth - 5)) ** 2
    return loss + {"relu": 0.02, "gelu": 0.0, "tanh": 0.12}[activation]


def jump(trial: optuna.Trial) -> float:
    """At chance in nearly all of the space: training gets going in a corner of it."""
    rate = math.log10(trial.suggest_float("rate", 1e-5, 1e0, log=True))
    batch = trial.suggest_int("log2_batch", 4, 10)
    norm = trial.suggest_categorical("norm", [False, True])
    depth = trial.suggest_int("blocks", 2, 6)
    filters = math.log2(trial.suggest_int("filters", 8, 128, log=True))
    dropout = trial.suggest_float("dropout", 0.0, 0.6)
    smoothing = trial.suggest_float("smoothing", 0.0, 2.0)
    pace = -((rate + 2.8 - 0.3 * (batch - 6) - 0.4 * norm) ** 2) + 0.8 * norm - 4 * dropout**2
    under_way = 1 / (1 + math.exp(-4 * (pace + 0.3 * (depth - 4) - 0.1)))
    reached = 0.9 - 0.08 * abs(depth - 5) - 0.05 * (filters - 6.1) ** 2 / 4
    reached -= 0.12 * (smoothing - 0.7) ** 2 + 0.3 * (dropout - 0.12) ** 2
    return 0.9 - under_way * reached


def flags(trial: optuna.Trial) -> float:
    """Eight switches that help or harm, some of them only together, and how strongly."""
    on = [trial.suggest_categorical(f"flag_{i}", [False, True]) for i in range(8)]
    loss = 0.12 * (not on[0]) + 0.1 * on[1] + 0.06 * (not on[2]) + 0.04 * on[3]
    loss += 0.08 * (on[4] != on[5]) + 0.05 * (on[4] and not on[2]) + 0.02 * (not on[4])
    if on[0]:
        loss += 0.5 * (trial.suggest_float("degrees", 0.0, 1.0) - 0.23) ** 2
    if on[2]:
        loss += 0.4 * (trial.suggest_float("shift", 0.0, 1.0) - 0.61) ** 2
    rate = math.log10(trial.suggest_float("rate", 1e-5, 1e0, log=True))
    return loss + 0.08 * (rate + 2.9 - 0.3 * on[4]) ** 2


def problems() -> list[Problem]:
    """Return every problem, the tuning half first."""
    listed = [
        Problem("bowl", "smooth, log scales", bowl),
        Problem("valley", "correlated", valley),
        Problem("ripples", "rugged", ripples),
        Problem("optimizers", "conditional", optimizers),
        Problem("mixed", "mixed categorical", mixed),
        Problem("idle", "irrelevant parameters", idle),
        Problem("noisy-bowl", "noisy", bowl, noise=0.5),
        Problem("hartmann", "smooth, several basins", hartmann),
        Problem("ackley", "rugged, 8 parameters", ackley),
        Problem("layers", "conditional, integers", layers),
        Problem("kernels", "conditional, plateaus", kernels),
        Problem("parity", "categorical, interacting", parity),
        Problem("cliff", "failing trials", cliff),
        Problem("decoy", "a narrow optimum", decoy),
        Problem("noisy-mixed", "noisy, mixed", mixed, noise=0.1),
        Problem("families", "conditional, noisy", families, noise=0.005),
        Problem("memory", "failing trials, integers", memory, best=0.085064),
        Problem("jump", "chance in most of it, noisy", jump, noise=0.01, best=0.018184),
        Problem("flags", "switches, interacting", flags),
    ]
    if TABLE.exists():
        listed.append(Problem("fashion-mlp", "recorded trials", replayed, best=best_recorded()))
    return listed


TUNING = {
    "bowl",
    "valley",
    "ripples",
    "optimizers",
    "mixed",
    "idle",
    "noisy-bowl",
    "kernels",
    "cliff",
}
