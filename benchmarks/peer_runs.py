"""One search of one system, as its users write it, on a study's own space: run by peers.py.

    python benchmarks/peer_runs.py keras-tuner-random --task mlp --seed 0 --folder out

Every system gets the same images (float32 in [0, 1] for the peers), the same split, the same
space and the same cores. A peer builds plain Keras layers from what the space suggests, trains
with `model.fit`, and does what its documentation shows. Each line of `trace.jsonl` is an epoch's
validation accuracy, and the weights of the best epoch so far lie beside it for the test.
"""

from __future__ import annotations

import argparse
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
from dlnn_search.config import Config, Dense, Dropout, OwnModel
from dlnn_search.study import Study
from dlnn_search.study_files import load_study

TASKS = {"mlp": "task1-fashion-mlp", "cnn": "task1-fashion-cnn"}
#: Peers that run trials side by side get one core each, as ours does.
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


def images(config: Config) -> tuple[tuple[NDArray[Any], NDArray[Any]], ...]:
    """Return (images, labels) of the training and the validation split, as float32 arrays."""
    splits = data.load(config.data)
    return tuple(
        (split.images[split.rows][..., None].astype(np.float32) / 255, split.labels)
        for split in (splits.train, splits.validation)
    )


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
    assert isinstance(model, Mlp | Cnn) and not isinstance(model, OwnModel)
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
                self.model.save_weights(folder / "best.weights.h5")
                best.write_text(json.dumps({"value": value, "config": config.to_json()}))
            note(folder, value, epoch + 1)

    return Tracer()


def note(folder: Path, value: float, epoch: int, trial: int | None = None) -> None:
    """Add an epoch to the trace; `at` is on the clock that all processes of a machine share."""
    line = json.dumps({"at": time.time(), "value": value, "epoch": epoch, "trial": trial})
    with (folder / "trace.jsonl").open("a") as file:
        file.write(line + "\n")


def train(config: Config, folder: Path, callbacks: list[Any], epochs: int | None = None) -> float:
    """Train as a script does, and return the best validation accuracy."""
    (x, y), validation = images(config)
    history = keras_model(config).fit(
        x,
        y,
        batch_size=config.training.batch_size,
        epochs=epochs or config.training.epochs,
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
    from dlnn_search.search.optuna_study import example_config

    (x, y), validation = images(example_config(study))
    tuner.search(x, y, epochs=epochs, validation_data=validation, verbose=0)


def plain_optuna(study: Study, seed: int, folder: Path) -> None:
    """The usual loop: TPE, median pruner, Optuna's own Keras callback."""
    import optuna
    from optuna_integration import KerasPruningCallback

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial: optuna.Trial) -> float:
        return train(study.config(trial), folder, [KerasPruningCallback(trial, "val_accuracy")])

    optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.MedianPruner(),
    ).optimize(objective)


def ray_tune(kind: str, study: Study, seed: int, folder: Path) -> None:
    """Ray Tune: a trial a core; ASHA over random draws, or its Optuna search with ASHA."""
    import optuna
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    epochs = study.epochs or 10
    name = study.name

    def trainable(parameters: dict[str, Any]) -> None:
        import keras
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        drawn = parameters.get("drawn", parameters)
        config = load_study(name).config(optuna.trial.FixedTrial(drawn))  # type: ignore[arg-type]

        class Report(keras.callbacks.Callback):  # type: ignore[misc]
            def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
                tune.report({"accuracy": (logs or {})["val_accuracy"]})

        train(config, folder, [Report()])

    def space(trial: optuna.Trial) -> None:
        study.config(trial)

    draws = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))

    def draw(_: Any = None) -> dict[str, Any]:
        trial = draws.ask()
        study.config(trial)
        return trial.params

    ray.init(num_cpus=N_CORES, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    search = (
        {"search_alg": OptunaSearch(space=space, metric="accuracy", mode="max", seed=seed)}
        if kind == "optuna"
        else {}
    )
    tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space={} if kind == "optuna" else {"drawn": tune.sample_from(draw)},
        tune_config=tune.TuneConfig(
            num_samples=10_000,
            metric=None if kind == "optuna" else "accuracy",
            mode=None if kind == "optuna" else "max",
            scheduler=ASHAScheduler(
                grace_period=4,
                reduction_factor=3,
                max_t=epochs,
                **({"metric": "accuracy", "mode": "max"} if kind == "optuna" else {}),
            ),
            **search,
        ),
        run_config=tune.RunConfig(storage_path=str((folder / "ray").resolve()), verbose=0),
    ).fit()


SYSTEMS: dict[str, Callable[[Study, int, Path], None]] = {
    "keras-tuner-random": lambda *given: keras_tuner("random", *given),
    "keras-tuner-hyperband": lambda *given: keras_tuner("hyperband", *given),
    "keras-tuner-bayesian": lambda *given: keras_tuner("bayesian", *given),
    "optuna": plain_optuna,
    "ray-asha": lambda *given: ray_tune("asha", *given),
    "ray-optuna": lambda *given: ray_tune("optuna", *given),
}


def main() -> None:
    """Search until somebody ends it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("--task", choices=TASKS, default="mlp")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    SYSTEMS[arguments.system](load_study(TASKS[arguments.task]), arguments.seed, folder)


if __name__ == "__main__":
    main()
