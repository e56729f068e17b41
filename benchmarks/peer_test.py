"""Test what a run of peers.py found: prints the accuracy of its best epoch on the test split.

python benchmarks/peer_test.py FOLDER
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from peer_runs import keras_model

from dlnn_search import data
from dlnn_search.config import Config


class BenchmarkOpening:
    """The benchmark's own runs are no evaluation: what opens the test split here is its output."""

    def record(self) -> None:
        print("The test split was opened by the benchmark.", file=sys.stderr)


def found_by_peer(folder: Path) -> tuple[Config, Any]:
    """Return the config and the model of the best epoch, as peer_runs.py kept it."""
    if not (folder / "best.json").exists():
        raise SystemExit("no epoch was trained")
    config = Config.model_validate_json(json.loads((folder / "best.json").read_text())["config"])
    model = keras_model(config)
    model.load_weights(folder / "best.weights.h5")
    return config, model


def found_by_ours(folder: Path) -> tuple[Config, Any]:
    """Return the config and the model of the best epoch that still has its checkpoint."""
    from dlnn_search.training.fit import best_model

    path = folder / "storage" / "data" / "dlnn.db"
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute(
            "SELECT s.number, s.config, max(json_extract(c.metrics, '$.accuracy')) AS value "
            "FROM dlnn_curves c JOIN dlnn_slots s ON s.id = c.slot_id "
            "GROUP BY s.id ORDER BY value DESC"
        ).fetchall()
    for number, config_text, _ in rows:
        config = Config.model_validate_json(config_text)
        kept = sorted((path.parent / "checkpoints").glob(f"*/{number}/**/last.npz"))
        if kept:
            return config, best_model(config, kept[-1].parent, (28, 28))
    raise SystemExit("no checkpoint is left of any trial")


def main() -> None:
    """Print the accuracy."""
    folder = Path(sys.argv[1])
    ours = (folder / "storage").exists()
    config, model = found_by_ours(folder) if ours else found_by_peer(folder)
    split = data.load_test(config.data, BenchmarkOpening())
    images = split.images[split.rows]
    given = images if ours else images[..., None].astype(np.float32) / 255
    predicted = np.argmax(np.asarray(model.predict(given, batch_size=256, verbose=0)), axis=-1)
    print(float(np.mean(predicted == split.labels)))


if __name__ == "__main__":
    main()
