"""One search of one system, as its users write it, on a study's own space: run by peers.py.

    python benchmarks/peer_runs.py keras-tuner-random --study task1-fashion-mlp --folder out

Every system gets the same images (float32 in [0, 1] for the peers), the same split, the same
space and the same cores. A peer builds plain Keras layers from what the space suggests, trains
with `model.fit`, and does what its documentation shows. Each line of `trace.jsonl` is an epoch's
validation accuracy, and the weights of the best epoch so far lie beside it for the test.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from numpy.typing import NDArray

from dlnn_search import data
from dlnn_search.config import Config, Dense, Dropout
from dlnn_search.data.splits import Split
from dlnn_search.study import Study
from dlnn_search.study.finding import load_study
from dlnn_search.worker.first_trials import example_config

#: Ray runs so many trials side by side.
N_CORES = len(os.sched_getaffinity(0))


class Suggestions(Protocol):
    """What a space asks of a trial, whoever answers."""

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int: ...

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


class TunerSuggestions:
    """KerasTuner's hyperparameters behind Optuna's words."""

    def __init__(self, parameters: Any) -> None:
        self._parameters = parameters

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        scale = {"sampling": "log"} if log else {"step": step}
        return int(self._parameters.Int(name, low, high, **scale))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        scale = "log" if log else "linear"
        return float(self._parameters.Float(name, low, high, step=step, sampling=scale))

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self._parameters.Choice(name, list(choices))


Splits = tuple[tuple[NDArray[Any], NDArray[Any]], tuple[NDArray[Any], NDArray[Any]]]


def images(study: Study) -> Splits:
    """Return (images, labels) of the training and the validation split, as float32 arrays."""
    splits = data.load(example_config(study).data)
    train, validation = (
        (split.images[split.rows][..., None].astype(np.float32) / 255, split.labels)
        for split in (splits.train, splits.validation)
    )
    return train, validation


def pictures_mark(split: Split) -> str:
    """Return a hash of a split's images and labels, in order."""
    found = hashlib.sha256(np.ascontiguousarray(split.images[split.rows]).tobytes())
    found.update(np.ascontiguousarray(split.labels).tobytes())
    return found.hexdigest()[:16]


def keras_model(config: Config) -> Any:
    """Return the config's network in Keras's own layers, compiled."""
    import keras

    from dlnn_search.config import Activation, BatchNorm, Cnn, Conv, Mlp, Pool

    def penalty(block: Any) -> Any:
        return keras.regularizers.L1L2(block.l1, block.l2) if block.l1 or block.l2 else None

    def layer(block: object) -> Any:
        match block:
            case Dense():
                return keras.layers.Dense(
                    block.units, block.activation, kernel_regularizer=penalty(block)
                )
            case Conv():
                return keras.layers.Conv2D(
                    block.filters,
                    block.kernel,
                    padding=block.padding,
                    activation=block.activation,
                    kernel_regularizer=penalty(block),
                )
            case Pool():
                return keras.layers.MaxPooling2D(block.size)
            case BatchNorm():
                return keras.layers.BatchNormalization(momentum=block.momentum)
            case Activation():
                return keras.layers.Activation(block.function)
            case Dropout():
                return keras.layers.Dropout(block.rate)
        raise ValueError(f"No layer for {block!r}.")

    model = config.model
    assert isinstance(model, Mlp | Cnn)
    joins = {"flatten": keras.layers.Flatten, "average": keras.layers.GlobalAveragePooling2D}
    if isinstance(model, Mlp):
        layers = [keras.layers.Flatten(), *map(layer, model.blocks)]
    else:
        layers = [*map(layer, model.blocks), joins[model.join](), *map(layer, model.dense)]
    made = keras.Sequential(
        [keras.Input((28, 28, 1)), *layers, keras.layers.Dense(10, activation="softmax")]
    )
    training = config.training
    kinds = {
        "adam": keras.optimizers.Adam,
        "adamw": keras.optimizers.AdamW,
        "rmsprop": keras.optimizers.RMSprop,
    }
    decay = {"weight_decay": training.weight_decay} if training.optimizer == "adamw" else {}
    made.compile(
        kinds[training.optimizer](training.learning_rate, **decay),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return made


def tracer(folder: Path, config: Config) -> Any:
    """Return a callback that writes the trace and keeps the best epoch's weights."""
    import keras

    class Tracer(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            value = (logs or {})["val_accuracy"]
            best = folder / "best.json"
            known = json.loads(best.read_text()) if best.exists() else None
            if known is None or value > known["value"]:
                # Renamed when whole, since the run is killed at its time.
                weights = f"best-{os.getpid()}-{time.time_ns()}.weights.h5"
                self.model.save_weights(folder / weights)
                found = {"value": value, "config": config.to_json(), "weights": weights}
                partial = folder / f"best-{os.getpid()}.json"
                partial.write_text(json.dumps(found))
                partial.replace(best)
                if known is not None:
                    (folder / known["weights"]).unlink()
            note(folder, value, epoch + 1)

    return Tracer()


def note(folder: Path, value: float, epoch: int) -> None:
    """Add an epoch to the trace; `at` is on the clock that all processes of a machine share."""
    line = json.dumps({"at": time.time(), "value": value, "epoch": epoch})
    with (folder / "trace.jsonl").open("a") as file:
        file.write(line + "\n")


def train(config: Config, splits: Splits, folder: Path, callbacks: list[Any]) -> float:
    """Train as a script does, and return the best validation accuracy."""
    (x, y), validation = splits
    history = keras_model(config).fit(
        x,
        y,
        batch_size=config.training.batch_size,
        epochs=config.training.epochs,
        validation_data=validation,
        callbacks=[tracer(folder, config), *callbacks],
        verbose=0,
    )
    return float(max(history.history["val_accuracy"]))


def keras_tuner(kind: str, study: Study, seed: int, folder: Path) -> None:
    """KerasTuner: a HyperModel whose `fit` tunes the batch size, as its guide shows."""
    import keras_tuner as kt

    class Network(kt.HyperModel):  # type: ignore[misc]
        def build(self, hp: Any) -> Any:
            return keras_model(study.config(TunerSuggestions(hp)))  # type: ignore[arg-type]

        def fit(self, hp: Any, model: Any, x: Any, y: Any, **kwargs: Any) -> Any:
            config = study.config(TunerSuggestions(hp))  # type: ignore[arg-type]
            kwargs["callbacks"] = [*kwargs.get("callbacks", []), tracer(folder, config)]
            return model.fit(x, y, batch_size=config.training.batch_size, **kwargs)

    epochs = study.epochs or 10
    common: dict[str, Any] = {
        "hypermodel": Network(),
        "objective": "val_accuracy",
        "seed": seed,
        "directory": folder / "tuner",
        "max_consecutive_failed_trials": 50,
    }
    tuner = {
        "random": lambda: kt.RandomSearch(max_trials=10_000, **common),
        "hyperband": lambda: kt.Hyperband(
            max_epochs=epochs, factor=3, hyperband_iterations=1_000, **common
        ),
        "bayesian": lambda: kt.BayesianOptimization(max_trials=10_000, **common),
    }[kind]()
    (x, y), validation = images(study)
    tuner.search(x, y, epochs=epochs, validation_data=validation, verbose=0)


def plain_optuna(study: Study, seed: int, folder: Path) -> None:
    """The usual loop: TPE, median pruner, Optuna's own Keras callback."""
    import optuna
    from optuna_integration import KerasPruningCallback

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    splits = images(study)

    def objective(trial: optuna.Trial) -> float:
        prune = KerasPruningCallback(trial, "val_accuracy")
        return train(study.config(trial), splits, folder, [prune])

    optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.MedianPruner(),
    ).optimize(objective)


class Space:
    """A study's space as Ray's Optuna search takes it; Ray keeps copies of it in files."""

    def __init__(self, study: str) -> None:
        self.study = study

    def __call__(self, trial: Any) -> None:
        study_of(self.study).config(trial)


@functools.cache
def study_of(name: str) -> Study:
    """Load a study once a process."""
    return load_study(name)


def ray_tune(study: str, seed: int, folder: Path) -> None:
    """Ray Tune: its Optuna search, ASHA as the scheduler, one core a trial."""
    import optuna
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    def trainable(parameters: dict[str, Any], splits: Splits) -> None:
        import keras

        trial: Any = optuna.trial.FixedTrial(parameters)
        config = study_of(study).config(trial)

        class Report(keras.callbacks.Callback):  # type: ignore[misc]
            def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
                tune.report({"val_accuracy": (logs or {})["val_accuracy"]})

        train(config, splits, folder, [Report()])

    # Ray lets other programs of the machine go before its own trials: here it is one among others.
    os.environ.update({"RAY_worker_niceness": "0"})
    ray.init(num_cpus=N_CORES, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with_data = tune.with_parameters(trainable, splits=images(study_of(study)))
    tune.Tuner(
        tune.with_resources(with_data, {"cpu": 1}),
        tune_config=tune.TuneConfig(
            num_samples=10_000,
            scheduler=ASHAScheduler(
                metric="val_accuracy", mode="max", max_t=study_of(study).epochs or 10
            ),
            search_alg=OptunaSearch(
                space=Space(study), metric="val_accuracy", mode="max", seed=seed
            ),
        ),
        run_config=tune.RunConfig(
            storage_path=str(folder / "ray"),
            verbose=0,
            # Nobody would see that no trial works.
            failure_config=tune.FailureConfig(fail_fast=True),
        ),
    ).fit()


SYSTEMS: dict[str, Callable[[str, int, Path], None]] = {
    "keras-tuner-random": lambda study, *given: keras_tuner("random", study_of(study), *given),
    "keras-tuner-hyperband": lambda study, *given: keras_tuner(
        "hyperband", study_of(study), *given
    ),
    "keras-tuner-bayesian": lambda study, *given: keras_tuner("bayesian", study_of(study), *given),
    "optuna": lambda study, *given: plain_optuna(study_of(study), *given),
    "ray": ray_tune,
}


def main() -> None:
    """Search until somebody ends it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("--study", required=True, help="A name or a file.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    SYSTEMS[arguments.system](arguments.study, arguments.seed, folder)


if __name__ == "__main__":
    # Ray's processes find by its name what is of a module, and not what is of a script.
    import peer_runs

    peer_runs.main()
