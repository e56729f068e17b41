"""Test what a run of peers.py found: the accuracy of its best epoch on the test split, as JSON.

    python benchmarks/peer_test.py FOLDER

Ours is tested as `evaluate` does it, with an entry in the ledger of the run's own database.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import sqlalchemy as sa
from peer_runs import keras_model, pictures_mark

from dlnn_search import data
from dlnn_search.config import Config
from dlnn_search.data.splits import Split
from dlnn_search.storage.database import open_database
from dlnn_search.storage.ledger import LedgerEntry
from dlnn_search.storage.schema import curves, slots


class BenchmarkOpening:
    """A peer has no ledger: this benchmark's output is the record."""

    def record(self) -> None:
        print("The test split was opened by the benchmark.", file=sys.stderr)


def test_peer(folder: Path) -> dict[str, Any]:
    """Test the model of the best epoch, as peer_runs.py kept it."""
    best = json.loads((folder / "best.json").read_text())
    config = Config.model_validate_json(best["config"])
    model = keras_model(config)
    model.load_weights(folder / best["weights"])
    split = data.load_test(config.data, BenchmarkOpening())
    given = split.images[split.rows][..., None].astype(np.float32) / 255
    return {
        "test": accuracy(model, given, split),
        "validation": best["value"],
        "pictures": pictures_mark(data.load(config.data).validation),
    }


def test_ours(folder: Path) -> dict[str, Any]:
    """Test the model of the best epoch whose weights are on the disk."""
    from dlnn_search.training.checkpoint import Checkpoint
    from dlnn_search.training.fit import best_model

    files = folder / "storage" / "data"
    database = open_database(f"sqlite:///{files / 'dlnn.db'}", create=False)
    with database.transaction() as connection:
        rows = connection.execute(
            sa.select(slots.c.number, slots.c.config)
            .where(slots.c.id.in_(sa.select(curves.c.slot_id)))
            .order_by(slots.c.number)
        ).all()
    found: list[tuple[float, Config, Path]] = []
    for number, given in rows:
        config = Config.model_validate(given)
        for place in (files / "checkpoints").glob(f"*/{number}"):
            kept = Checkpoint(place, config.fingerprint()).load()
            if kept is not None:
                value = max(epoch.metrics["accuracy"] for epoch in kept.curve)
                found.append((value, config, place))
    if not found:
        raise SystemExit("no epoch's weights are on the disk")
    value, config, place = max(found, key=lambda one: one[0])
    entry = LedgerEntry(database, config)
    split = data.load_test(config.data, entry)
    model = best_model(config, place, split.image_shape)
    measured = accuracy(model, split.images[split.rows], split)
    entry.complete({"accuracy": measured})
    return {
        "test": measured,
        "validation": value,
        "pictures": pictures_mark(data.load(config.data).validation),
    }


def accuracy(model: Any, images: Any, split: Split) -> float:
    """Return the share of a split's images that a model gets right."""
    predicted = np.argmax(np.asarray(model.predict(images, batch_size=256, verbose=0)), axis=-1)
    return float(np.mean(predicted == split.labels))


def main() -> None:
    """Print test accuracy, validation accuracy, and which images were validated on."""
    folder = Path(sys.argv[1])
    ours = (folder / "storage").exists()
    print(json.dumps(test_ours(folder) if ours else test_peer(folder)))


if __name__ == "__main__":
    main()
