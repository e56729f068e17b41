"""The use cases `new`, `validate` and `lr-range`: what is made and tried before a search."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna

from dlnn_search import data
from dlnn_search.commands.confirm import check_own_name
from dlnn_search.commands.export import config_of, write_whole
from dlnn_search.config import Clocks, Config, OwnData, OwnModel
from dlnn_search.data import image_shape, load
from dlnn_search.errors import DlnnSearchError, StorageError, UsageError, did_you_mean, one_line
from dlnn_search.files import is_users_code, study_name
from dlnn_search.models.shapes import Shape, foreseen
from dlnn_search.report.tables import Checked
from dlnn_search.results.status import best_trials, code_file_at
from dlnn_search.storage.control import keep_rate
from dlnn_search.storage.database import open_database
from dlnn_search.storage.studies import all_studies, find
from dlnn_search.study import Study, UnstorableError
from dlnn_search.study.finding import bring_code, built_in_studies, load_study
from dlnn_search.study.named_configs import NAMED, find_config
from dlnn_search.training.rate_range import MIN_BATCHES, Sweep, sweep_rates
from dlnn_search.training.runtime import with_precision
from dlnn_search.worker.first_trials import corner_trials, example_config, middle_config
from dlnn_search.worker.verdict import MAX_REASON

if TYPE_CHECKING:
    import keras

N_RANDOM = 12
#: Images of an epoch where a config does not name their number: 85 % of 60,000.
DIGIT_IMAGES = 51_000
#: Weights, gradients and the two moments of Adam.
BYTES_PER_PARAMETER = 16
#: An activation and its gradient, in float32.
BYTES_PER_VALUE = 8
#: The first step compiles; of these the fastest counts.
N_TIMED_STEPS = 2


@dataclass(frozen=True)
class Draw:
    """What a space made of some parameters: a config, an error in words, or neither.

    Attributes:
        config: None where the space failed, or refused the parameters.
        error: Why it failed.
    """

    params: dict[str, Any]
    config: Config | None
    error: str | None = None


def draws_of(study: Study) -> list[Draw]:
    """Draw the corners of a study's space and some random configs; builds none, so it is quick.

    Raises:
        StudyError: If the space refuses all draws, or a database would change its choices.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    drawn: list[Draw] = []

    def ask(trial: optuna.Trial) -> None:
        try:
            last[:] = [study.config(trial), None]
        except optuna.TrialPruned:
            last[:] = [None, None]
        except UnstorableError:
            raise  # no config is to blame, and all would say so
        except DlnnSearchError as error:
            last[:] = [None, str(error)]

    last: list[Any] = []
    for trial in corner_trials(ask, N_RANDOM):
        drawn.append(Draw(dict(trial.params), *last))
    if all(draw.config is None and draw.error is None for draw in drawn):
        drawn.append(Draw({}, example_config(study)))
    return drawn


def validate(draws: Iterable[Draw]) -> Iterator[Checked]:
    """Build each config that was drawn, and train it for a step.

    Raises:
        DataError: If the study's own loader fails.
    """
    for draw in draws:
        if draw.config is None:
            yield Checked(draw.params, draw.error, is_refused=draw.error is None)
            continue
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            checked = check(draw.params, draw.config)
        told = [
            f"{one_line(str(each.message))} ({each.filename}, line {each.lineno})"
            for each in caught
            if is_users_code(each.filename)
        ]
        yield replace(checked, warnings=tuple(dict.fromkeys(told)))


def check(params: dict[str, Any], config: Config) -> Checked:
    """Build a config and train it for a step on random pixels; opens no data set but an own one.

    Raises:
        DataError: If the study's own loader fails.
    """
    from dlnn_search.models.build import build

    shape = image_shape(config.data)
    concrete = with_concrete_precision(config)
    try:
        model = build(concrete, shape)
        n_parameters = model.count_params()
        seconds_per_image = _time_step(concrete, model)
    except DlnnSearchError as error:
        return Checked(params, str(error))
    except Exception as error:  # Keras and TensorFlow raise whatever they like
        reason = one_line(f"{type(error).__name__}: {error}")
        if len(reason) > MAX_REASON:  # with the whole graph
            reason = f"{reason[: MAX_REASON - 3]}..."
        return Checked(params, reason)
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
    import keras

    outputs = keras.tree.flatten([getattr(layer, "output", []) for layer in model.layers])
    return sum(prod(edge or 1 for edge in output.shape[1:]) for output in outputs)


def _time_step(config: Config, model: keras.Model) -> float:
    """Return seconds an image, the first step left out."""
    from dlnn_search.models.heads import head_of
    from dlnn_search.training.optimizer import make_optimizer
    from dlnn_search.training.step import Steps, augmenter

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


#: A study to begin with: small enough to read at a glance, and a search that works.
STARTER = '''\
"""Handwritten digits with one hidden layer."""

import optuna

from dlnn_search import Config, Dense, Mlp, Mnist, Study, Training


def space(trial: optuna.Trial) -> Config:
    units = trial.suggest_int("units", 32, 512, log=True)
    rate = trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
    return Config(model=Mlp(blocks=(Dense(units=units),)), training=Training(learning_rate=rate))


study = Study(space=space, data=Mnist(), maximize="accuracy", epochs=5, trials=20)
'''


def write_study(path: Path, source: str | None) -> None:
    """Write a study file to edit.

    Args:
        path: Of the new file; it names the study.
        source: The built-in study to copy; None: the starter.

    Raises:
        UsageError: If the name is no study's, or the file is there already, or there is no such
            built-in study.
        StorageError: If it cannot be written.
    """
    if path.suffix != ".py":
        raise UsageError(f"Expected a file that ends in .py, such as my_study.py, got '{path}'.")
    check_own_name(study_name(path))
    known = built_in_studies()
    if source is not None and source not in known:
        raise UsageError(
            f"Expected a built-in study, got --from '{source}'.{did_you_mean(source, known)}"
        )
    text = STARTER if source is None else known[source].read_text(encoding="utf-8")
    if path.exists():
        raise UsageError(f"'{path}' is there already: choose another name, or delete it first.")
    write_whole(path, text)


@dataclass(frozen=True)
class Subject:
    """What is tested.

    Attributes:
        words: What it is, for people.
        name: For the files that are written.
    """

    config: Config
    words: str
    name: str


def subject_of(name_or_file: str, url: str, *, quick: bool, study_file: str | None) -> Subject:
    """Return what a name or a file stands for.

    Args:
        name_or_file: A built-in config or study, a study in the database, a config's file, a
            study's file.
        url: Of the database, whose best trial is a study's config, if it has one.
        quick: Whether a study's small version is meant.
        study_file: The study that a config of own code is from.

    Raises:
        UsageError: If it stands for nothing.
        StudyError: If a study's file cannot be read or its space fails.
    """

    def with_code(found: Config) -> Config:
        return bring_code(found, name_or_file, code_file_at(url, found, study_file))

    studies = built_in_studies()
    is_study = name_or_file.endswith(".py") or name_or_file in studies
    is_study |= name_or_file.removesuffix("-quick") in studies
    if not is_study or name_or_file in NAMED:
        is_name = name_or_file not in NAMED and not Path(name_or_file).suffix
        searched = _best_of(name_or_file, url) if is_name else None
        if searched is not None:
            found, number = searched
            words = f"the best trial, {number},"
            return Subject(with_code(found), words, name_or_file)
        found = find_config(name_or_file)
        if quick:
            raise UsageError(f"--quick is for studies, got the config '{name_or_file}'.")
        return Subject(with_code(found), "the config", Path(name_or_file).stem)
    study = load_study(name_or_file, quick=quick)
    best = _best_of(study.name, url)
    if best is not None:
        return Subject(study.with_own_code(best[0]), f"the best trial, {best[1]},", study.name)
    return Subject(middle_config(study), "the middle of the space", study.name)


def _best_of(study: str, url: str) -> tuple[Config, int] | None:
    try:
        database = open_database(url, create=False, read_only=True)
    except StorageError:  # not searched yet
        return None
    with database:
        for stored in all_studies(database):
            if stored.name == study:
                best = best_trials(database, stored, 1)
                if best:
                    return config_of(stored, best[0]), best[0].number
        return None


def make_test(
    config: Config,
    *,
    low: float,
    high: float,
    n_batches: int,
    threads: int | None = None,
    on_progress: Callable[[float], None] = lambda _: None,
) -> Sweep:
    """Make the range test of a config. Neither validation nor test pictures are looked at.

    Raises:
        UsageError: If the rates or batches cannot be meant.
        DlnnSearchError: If data or model cannot be made.
    """
    check_range(low=low, high=high, n_batches=n_batches)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    config = config.model_copy(update={"data": data.resolve(config.data)})
    images = data.load(config.data, config.training.curriculum)
    return sweep_rates(
        config,
        images,
        low=low,
        high=high,
        n_batches=n_batches,
        threads=threads,
        on_progress=on_progress,
    )


def check_range(*, low: float, high: float, n_batches: int, output: Path | None = None) -> None:
    """Refuse what `make_test` and `write_sweep` would refuse, without TensorFlow.

    Raises:
        UsageError: If the rates or batches cannot be meant, or the picture cannot be written.
    """
    if output is not None:
        _check_page(output)
    if not 0 < low < high <= 100:
        raise UsageError(f"Expected rates 0 < --low < --high <= 100, got {low:g} and {high:g}.")
    if n_batches < MIN_BATCHES:
        raise UsageError(f"Expected at least {MIN_BATCHES} batches, got --batches {n_batches}.")


def _check_page(output: Path) -> None:
    if output.suffix.lower() != ".html":
        raise UsageError(f"Expected a page to write, -o NAME.html, got '{output}'.")
    if not output.parent.is_dir():
        raise UsageError(f"There is no folder '{output.parent}' to write '{output.name}' into.")


def write_sweep(sweep: Sweep, subject: Subject, picture: str, output: Path) -> list[Path]:
    """Write the picture (HTML) and, beside it, the numbers (JSON).

    Raises:
        UsageError: If the name is no page's, or its folder does not exist.
        StorageError: If a file cannot be written.
    """
    _check_page(output)
    numbers = output.with_suffix(".json")
    write_whole(output, picture)
    plain = {
        "subject": subject.name,
        "config": subject.config.model_dump(mode="json"),
        **sweep.plain(),
    }
    write_whole(numbers, json.dumps(plain, indent=1) + "\n")
    return [output, numbers]


def keep_measured(name: str, url: str, sweep: Sweep) -> None:
    """Keep what a test found with its study."""
    with open_database(url, create=False) as database:
        keep_rate(database, find(database, name).id, sweep.suggested)
