"""The use case `crossvalidate`: train a config on all folds but one, validate on that, in turn.

A model's size or a rate can be judged so on every picture that a search may see (report, section
2.4.2), at the price of a training a fold. The test split stays closed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev

from dlnn_search import data
from dlnn_search.commands.export import write_whole
from dlnn_search.config import Config
from dlnn_search.errors import UsageError
from dlnn_search.report.crossvalidation import Validated
from dlnn_search.storage.checkpoints import CROSSVALIDATIONS
from dlnn_search.training.fit import Decision, Epoch, fit
from dlnn_search.training.precision import resolve_precision


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
    if output is not None:
        _check_output(output)
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
        _write_summary(output, config, validated)
    return validated


def _check_output(path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"Expected a file to write, got the folder '{path}': -o {path}/folds.json")
    if not path.parent.is_dir():
        raise UsageError(f"There is no folder '{path.parent}' to write '{path.name}' into.")


def _write_summary(path: Path, config: Config, validated: Sequence[Validated]) -> None:
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
