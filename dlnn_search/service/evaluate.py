"""The use case `evaluate`: train a config, open the test split once, record what came out."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlnn_search import data
from dlnn_search.config import Clocks, Config
from dlnn_search.data.split import Split
from dlnn_search.errors import StorageError, UsageError
from dlnn_search.report.evaluation import Tested
from dlnn_search.storage.database import Database
from dlnn_search.storage.ledger import LedgerEntry
from dlnn_search.training.fit import Decision, Epoch, best_model, fit
from dlnn_search.training.precision import resolve_precision


def evaluate(
    config: Config,
    database: Database,
    folder: Path,
    *,
    n_seeds: int,
    on_epoch: Callable[[int, Epoch, int], None],
) -> list[Tested]:
    """Train a config with fresh seeds, then open the test split for each model, and record it.

    An evaluation that was interrupted goes on from its checkpoints; the test split is opened
    when the last model is trained, not before.

    Args:
        folder: Receives models, predictions and pictures.
        on_epoch: Told the seed, the epoch, and how many there are.

    Raises:
        UsageError: If the folder cannot be made.
        DlnnSearchError: If data, disk, database or training fail.
    """
    config = config.model_copy(update={"data": data.resolve(config.data)})
    images = data.load(config.data, config.training.curriculum)
    config = resolve_precision(config, images.train.image_shape)
    _make_folder(folder)
    first = config.training.seed
    configs = [_with_seed(config, seed) for seed in range(first, first + n_seeds)]
    fitted = []
    for seeded in configs:
        seed, epochs = seeded.training.seed, seeded.training.epochs

        def told(epoch: Epoch, seed: int = seed, epochs: int = epochs) -> Decision:
            on_epoch(seed, epoch, epochs)
            return Decision.GO_ON

        fitted.append(fit(seeded, images, folder=_checkpoints(database, seeded), on_epoch=told))
    tested = []
    for seeded, fit_result in zip(configs, fitted, strict=True):
        entry = LedgerEntry(database, seeded)
        test = data.load_test(seeded.data, entry)
        metrics = _test_one(seeded, test, database, folder)
        entry.complete(metrics)
        best = fit_result.best
        tested.append(Tested(seeded.training.seed, metrics, best.metrics, best.epoch))
    _write_summary(folder, config, tested)
    return tested


def _test_one(config: Config, test: Split, database: Database, folder: Path) -> Mapping[str, float]:
    """Measure one trained model on the test split, and keep model, predictions and picture."""
    from dlnn_search.models.heads import head_of
    from dlnn_search.report.mistakes import draw_confusion, draw_worst_clocks
    from dlnn_search.training.portable import save_portable
    from dlnn_search.training.predict import predict

    seed = config.training.seed
    model = best_model(config, _checkpoints(database, config), test.image_shape)
    head = head_of(config)
    outputs = predict(model, head, test)
    metrics = head.metrics(test.labels, outputs)
    predicted = head.decode(outputs)
    try:
        save_portable(config, model, folder, f"model-seed{seed}")
        _write_predictions(folder / f"predictions-seed{seed}.csv", config, test.labels, predicted)
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


def _checkpoints(database: Database, config: Config) -> Path:
    return database.files / "evaluations" / config.fingerprint()


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


def _write_summary(folder: Path, config: Config, tested: Sequence[Tested]) -> None:
    summary = {
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
    (folder / "evaluation.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
