"""The use case `validate`: find the config that cannot work before the search does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from math import prod
from typing import Any

import keras
import numpy as np
import optuna

from dlnn_search.config import Clocks, Config, OwnData, OwnModel
from dlnn_search.data import image_shape, load
from dlnn_search.errors import DlnnSearchError
from dlnn_search.models.build import build
from dlnn_search.models.heads import head_of
from dlnn_search.models.shapes import Shape, foreseen
from dlnn_search.report.tables import Checked
from dlnn_search.study import Study, UnstorableError
from dlnn_search.training.optimizer import make_optimizer
from dlnn_search.training.precision import with_precision
from dlnn_search.training.step import Steps, augmenter
from dlnn_search.worker.first_trials import corner_trials, example_config

N_RANDOM = 12
#: Images of an epoch where a config does not name their number: 85 % of 60,000.
DIGIT_IMAGES = 51_000
#: Weights, gradients and the two moments of Adam.
BYTES_PER_PARAMETER = 16
#: An activation and its gradient, in float32.
BYTES_PER_VALUE = 8
#: The first step compiles; of these the fastest counts.
N_TIMED_STEPS = 2


def validate(study: Study) -> Iterator[Checked]:
    """Build the corners of a study's space and some random configs, and train each a step.

    Raises:
        StudyError: If the space itself fails, or refuses all draws.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    drawn: Config | str | None = None  # a config, an error, or refused

    def ask(trial: optuna.Trial) -> None:
        nonlocal drawn
        try:
            drawn = study.config(trial)
        except optuna.TrialPruned:
            drawn = None
        except UnstorableError:
            raise  # no config is to blame, and all would say so
        except DlnnSearchError as error:
            drawn = str(error)

    n_feasible = 0
    for trial in corner_trials(ask, N_RANDOM):
        n_feasible += drawn is not None
        if drawn is None:
            yield Checked(dict(trial.params), None, is_refused=True)
        elif isinstance(drawn, str):
            yield Checked(dict(trial.params), drawn)
        else:
            yield check(dict(trial.params), drawn)
    if not n_feasible:
        yield check({}, example_config(study))


def check(params: dict[str, Any], config: Config) -> Checked:
    """Build a config and train it for a step on random pixels; opens no data set but an own one.

    Raises:
        DataError: If the study's own loader fails.
    """
    shape = image_shape(config.data)
    concrete = with_concrete_precision(config)
    try:
        model = build(concrete, shape)
        n_parameters = model.count_params()
        seconds_per_image = _time_step(concrete, model)
    except DlnnSearchError as error:
        return Checked(params, str(error))
    except Exception as error:  # Keras and TensorFlow raise whatever they like
        return Checked(params, f"{type(error).__name__}: {error}")
    values = config.training.batch_size * _values_per_image(config, shape, model)
    return Checked(
        params,
        None,
        n_parameters,
        n_parameters * BYTES_PER_PARAMETER + values * BYTES_PER_VALUE,
        seconds_per_image * n_images(config) * config.training.epochs,
    )


def with_concrete_precision(config: Config) -> Config:
    """Return the config in float32 where it says `auto`: the slower case, and no probing."""
    return with_precision(config, "float32") if config.training.precision == "auto" else config


def n_images(config: Config) -> int:
    """Return the number of training images of an epoch, opening none but own ones."""
    data = config.data
    if data.n_training is not None:
        return data.n_training
    if isinstance(data, Clocks):
        left = 720 * data.images_per_time * (1 - data.test)
        return round(left * (1 - data.validation))
    return len(load(data).train) if isinstance(data, OwnData) else DIGIT_IMAGES


def _values_per_image(config: Config, shape: Shape, model: keras.Model) -> int:
    """Return how many values the layers put out for an image."""
    if not isinstance(config.model, OwnModel):
        return sum(prod(layer.shape) for layer in foreseen(config, shape))
    outputs = keras.tree.flatten([getattr(layer, "output", []) for layer in model.layers])
    return sum(prod(edge or 1 for edge in output.shape[1:]) for output in outputs)


def _time_step(config: Config, model: keras.Model) -> float:
    """Return seconds an image, the first step left out."""
    head = head_of(config)
    optimizer = make_optimizer(config.training)
    steps = Steps(model, head, optimizer, alter=augmenter(config.training))
    size = config.training.batch_size
    pixels = np.random.default_rng(0)
    images = pixels.integers(0, 256, (size, *model.input_shape[1:]), np.uint8)
    n_classes = (12, 60) if isinstance(config.data, Clocks) else (config.data.n_classes,)
    labels = np.stack([pixels.integers(0, n, size) for n in n_classes], axis=1).astype(np.uint8)
    targets = head.targets(labels if len(n_classes) == 2 else labels[:, 0])
    fastest = np.inf
    for number in range(1 + N_TIMED_STEPS):
        began = time.perf_counter()
        loss = steps.train(images, targets, size)
        if not np.all(np.isfinite(loss)):
            raise ArithmeticError(f"the loss of the first steps is {loss[0]}")
        if number:
            fastest = min(fastest, time.perf_counter() - began)
    return float(fastest) / size
