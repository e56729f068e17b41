"""The use cases `evaluate` and `crossvalidate`: train a config, say how good it is."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dlnn_search import data
from dlnn_search.commands.confirm import MAX_SEEDS
from dlnn_search.commands.export import write_whole
from dlnn_search.config import Clocks, Config
from dlnn_search.config.training import fresh_seeds
from dlnn_search.data.splits import Split
from dlnn_search.errors import StorageError, UsageError
from dlnn_search.metrics import count_words
from dlnn_search.report.evaluation import Tested, Validated
from dlnn_search.storage.budget import time_words
from dlnn_search.storage.checkpoints import CROSSVALIDATIONS, evaluation_folder, is_unfinished, mark
from dlnn_search.storage.database import Database
from dlnn_search.storage.ledger import LedgerEntry, Opening, earlier_tests, is_same
from dlnn_search.storage.studies import family_of, seeds_of
from dlnn_search.training.runtime import resolve_precision

if TYPE_CHECKING:  # what can be refused is refused before TensorFlow is imported
    from dlnn_search.training.fit import Decision, Epoch


def crossvalidate(
    config: Config,
    files: Path,
    output: Path | None,
    *,
    n_folds: int,
    on_epoch: Callable[[int, Epoch, int], None],
) -> list[Validated]:
    """Train a model a fold, and measure each on the fold that it was not trained on.

    What was interrupted goes on from its checkpoints.

    Args:
        config: What to train; its `validation` share plays no part.
        files: The folder under which checkpoints are kept.
        output: Receives the result as JSON.
        n_folds: At least 2.
        on_epoch: Told the fold, counted from 1, the epoch, and how many there are.

    Raises:
        UsageError: If `output` could not be written, before hours of training.
        DlnnSearchError: If data, disk or training fail.
    """
    check_output(output)
    from dlnn_search.training.fit import Decision, fit

    config = config.model_copy(update={"data": data.resolve(config.data)})
    folds = data.load_folds(config.data, n_folds, config.training.curriculum)
    config = resolve_precision(config, folds[0].train.image_shape)
    folder = files / CROSSVALIDATIONS / f"{config.fingerprint()}-{n_folds}-folds"
    validated = []
    for number, images in enumerate(folds, start=1):

        def told(epoch: Epoch, number: int = number) -> Decision:
            on_epoch(number, epoch, config.training.epochs)
            return Decision.GO_ON

        best = fit(config, images, folder=folder / str(number), on_epoch=told).best
        sizes = len(images.train), len(images.validation)
        validated.append(Validated(number, *sizes, best.epoch, best.metrics))
    if output is not None:
        _write_fold_summary(output, config, validated)
    return validated


def check_output(path: Path | None) -> None:
    """Refuse a file for the folds' results that cannot be written, without TensorFlow.

    Raises:
        UsageError: If it is a folder, or its folder does not exist.
    """
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"Expected a file to write, got the folder '{path}': -o {path}/folds.json")
    if not path.parent.is_dir():
        raise UsageError(f"There is no folder '{path.parent}' to write '{path.name}' into.")


def _write_fold_summary(path: Path, config: Config, validated: Sequence[Validated]) -> None:
    """Write the folds, and each metric's mean and standard deviation over them."""
    by_name = {name: [one.metrics[name] for one in validated] for name in validated[0].metrics}
    summary = {
        "config": config.model_dump(mode="json"),
        "fingerprint": config.fingerprint(),
        "folds": [
            {
                "fold": one.fold,
                "n_training": one.n_training,
                "n_validation": one.n_validation,
                "best_epoch": one.best_epoch,
                "validation": dict(one.metrics),
            }
            for one in validated
        ],
        "mean": {name: mean(values) for name, values in by_name.items()},
        "standard_deviation": {name: stdev(values) for name, values in by_name.items()},
    }
    write_whole(path, json.dumps(summary, indent=2) + "\n")


SUMMARY = "evaluation.json"
#: Of the evaluations before, in a message.
MAX_TOLD = 5


@dataclass(frozen=True)
class Planned:
    """An evaluation that may be made.

    Attributes:
        config: What is trained.
        seeds: With which seeds: none that the search, its confirmation or its re-tuning used.
        checkpoints: The folder where they are kept until it is finished.
        output: The folder for models, predictions and pictures.
        tested: By seed, what this evaluation measured before it was interrupted.
    """

    config: Config
    seeds: tuple[int, ...]
    checkpoints: Path
    output: Path
    tested: Mapping[int, Opening]


def plan_evaluation(
    config: Config,
    database: Database,
    *,
    n_seeds: int,
    default: Path,
    output: Path | None = None,
    again: bool = False,
) -> Planned:
    """Choose the seeds that test a config, unless it was tested before.

    Args:
        config: What is to be tested.
        database: That holds the ledger.
        n_seeds: How many models.
        default: The folder for what comes out; one with a number at its end is taken where this
            one holds the results of another evaluation.
        output: The folder that was asked for instead.
        again: Test it once more although it was tested.

    Raises:
        UsageError: If the config was tested before, or `output` holds results.
        StorageError: If the database fails.
    """
    config = config.model_copy(update={"data": data.resolve(config.data)})
    study = config.origin.study if config.origin is not None else config.fingerprint()
    own = config.training.seed
    # An earlier version's `confirm` counted on from the search's own seed.
    used = {*range(own, own + MAX_SEEDS + 1), *seeds_of(database, family_of(database, study))}
    seeds = fresh_seeds(study, "test", n_seeds, used)
    checkpoints = evaluation_folder(database, config.fingerprint())
    before = earlier_tests(database, config)
    if before and not again and not is_unfinished(checkpoints):
        raise UsageError(_tested_words(before))
    tested: dict[int, Opening] = {}
    for opening in [] if again else chain(*before):
        tested.setdefault(opening.seed, opening)
    folder = output if output is not None else _first_free(default, config)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"Expected a folder for the results, got the file '{folder}': -o FOLDER")
    if not _is_free(folder, config):
        raise UsageError(
            f"'{folder}' holds the results of another evaluation. Name another folder with -o."
        )
    return Planned(config, tuple(seeds), checkpoints, folder, tested)


def evaluate(
    planned: Planned, database: Database, *, on_epoch: Callable[[int, Epoch, int], None]
) -> list[Tested]:
    """Train a config with fresh seeds, then open the test split for each model, and record it.

    An evaluation that was interrupted goes on from its checkpoints; the test split is opened
    when the last model is trained, not before, and not again for a seed that was measured.

    Args:
        planned: What `plan_evaluation` allowed.
        database: That holds the ledger.
        on_epoch: Told the seed, the epoch, and how many there are.

    Raises:
        UsageError: If the folder cannot be made.
        DlnnSearchError: If data, disk, database or training fail.
    """
    from dlnn_search.training.fit import Decision, fit

    config, folder = planned.config, planned.output
    images = data.load(config.data, config.training.curriculum)
    config = resolve_precision(config, images.train.image_shape)
    _make_folder(folder)
    _write_summary(folder, config, [], len(planned.seeds))
    mark(planned.checkpoints, finished=False)
    configs = [_with_seed(config, seed) for seed in planned.seeds]
    fitted = []
    for seeded in configs:
        seed, epochs = seeded.training.seed, seeded.training.epochs

        def told(epoch: Epoch, seed: int = seed, epochs: int = epochs) -> Decision:
            on_epoch(seed, epoch, epochs)
            return Decision.GO_ON

        place = planned.checkpoints / seeded.fingerprint()
        fitted.append(fit(seeded, images, folder=place, on_epoch=told))
    tested: list[Tested] = []
    for seeded, fit_result in zip(configs, fitted, strict=True):
        seed, best = seeded.training.seed, fit_result.best
        known = planned.tested.get(seed)
        if known is not None and _predictions(folder, seed).exists():
            metrics = known.metrics or {}
            tested.append(Tested(seed, metrics, best.metrics, best.epoch))
            continue
        entry = LedgerEntry(database, seeded)
        test = data.load_test(seeded.data, entry)
        metrics = _test_one(seeded, test, planned.checkpoints / seeded.fingerprint(), folder)
        tested.append(Tested(seed, metrics, best.metrics, best.epoch))
        entry.complete(metrics)
    _write_summary(folder, config, tested, len(tested))
    mark(planned.checkpoints, finished=True)
    return tested


def _tested_words(before: Sequence[Sequence[Opening]]) -> str:
    when = [
        f"on {time_words(group[0].opened_at)} ({count_words(len(group), 'seed')})"
        for group in before
    ]
    if len(when) > MAX_TOLD:
        when = [*when[: MAX_TOLD - 1], "...", when[-1]]
    return (
        f"This config was tested {count_words(len(before), 'time')} before: {', '.join(when)}; "
        "'dlnn-search ledger' shows the results. A test split that is used again and again helps "
        "to choose the model, and is no test any more. To test once more, on record, add --again; "
        "earlier results stay."
    )


def _first_free(default: Path, config: Config) -> Path:
    folders = chain([default], (default.with_name(f"{default.name}-{n}") for n in count(2)))
    return next(folder for folder in folders if _is_free(folder, config))


def _is_free(folder: Path, config: Config) -> bool:
    """Whether a folder holds no results, or unfinished ones of this config."""
    try:
        said = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        return not said.get("complete", True) and is_same(
            config, said["config"], said["fingerprint"]
        )
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _predictions(folder: Path, seed: int) -> Path:
    return folder / f"predictions-seed{seed}.csv"


def _test_one(config: Config, test: Split, checkpoint: Path, folder: Path) -> Mapping[str, float]:
    """Measure one trained model on the test split, and keep model, predictions and picture."""
    from dlnn_search.models.heads import head_of
    from dlnn_search.report.evaluation import draw_confusion, draw_worst_clocks
    from dlnn_search.training.fit import best_model
    from dlnn_search.training.portable import save_portable
    from dlnn_search.training.step import predict

    seed = config.training.seed
    model = best_model(config, checkpoint, test.image_shape)
    head = head_of(config)
    outputs = predict(model, head, test)
    metrics = head.metrics(test.labels, outputs)
    predicted = head.decode(outputs)
    try:
        save_portable(config, model, folder, f"model-seed{seed}")
        _write_predictions(_predictions(folder, seed), config, test.labels, predicted)
        if isinstance(config.data, Clocks):
            draw_worst_clocks(test, predicted, folder / f"worst-seed{seed}.png")
        else:
            draw_confusion(
                test.labels, predicted, config.data, folder / f"confusion-seed{seed}.html"
            )
    except OSError as error:
        raise StorageError(f"Cannot write into '{folder}': {error.strerror or error}.") from error
    return metrics


def _with_seed(config: Config, seed: int) -> Config:
    training = config.training.model_copy(update={"seed": seed})
    return config.model_copy(update={"training": training})


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"Cannot make the folder '{folder}': {error.strerror}.") from error


def _write_predictions(
    path: Path, config: Config, labels: NDArray[np.uint8], predicted: NDArray[np.generic]
) -> None:
    """Write one line a test image: its place in the test split, the truth, what was read."""
    clocks = isinstance(config.data, Clocks)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "true", "predicted"])
        for number, (true, pred) in enumerate(zip(labels, predicted, strict=True)):
            if clocks:
                minutes = round(float(pred)) % 720
                row = [f"{true[0]:02d}:{true[1]:02d}", f"{minutes // 60:02d}:{minutes % 60:02d}"]
            else:
                row = [str(int(true)), str(int(pred))]
            writer.writerow([number, *row])


def _write_summary(folder: Path, config: Config, tested: Sequence[Tested], n_seeds: int) -> None:
    """Write what came out; before the end, whose evaluation the folder is for."""
    summary = {
        "complete": len(tested) == n_seeds,
        "config": config.model_dump(mode="json"),
        "fingerprint": config.fingerprint(),
        "seeds": [
            {
                "seed": one.seed,
                "best_epoch": one.best_epoch,
                "validation": dict(one.validation),
                "test": dict(one.metrics),
            }
            for one in tested
        ],
    }
    write_whole(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
