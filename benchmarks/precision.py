"""Measure whether mixed_bfloat16 costs accuracy, and keep the result for `precision="auto"`.

    python benchmarks/precision.py path/to/mnist.npz

Trains `mnist_mlp` and `mnist_cnn` in both formats over the same seeds on the same images, and
writes each one's best validation accuracy to dlnn_search/training/precision_measured.json.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from dlnn_search.data.splits import Split, TrainingData
from dlnn_search.study.named_configs import NAMED
from dlnn_search.training.fit import fit
from dlnn_search.training.runtime import with_precision

KEPT = Path(__file__).parents[1] / "dlnn_search" / "training" / "precision_measured.json"
#: Config, images to train on, epochs: short, for a loss of accuracy shows early.
RUNS = {"mlp": ("mnist_mlp", 30_000, 5), "cnn": ("mnist_cnn", 6_000, 4)}
PRECISIONS = ("float32", "mixed_bfloat16")
N_VALIDATION = 9_000


def best_accuracy(name: str, data: TrainingData, epochs: int, seed: int, precision: str) -> float:
    """Return the best validation accuracy of one short training."""
    config = NAMED[name]()
    changes = {"epochs": epochs, "seed": seed}
    config = config.model_copy(update={"training": config.training.model_copy(update=changes)})
    fitted = fit(with_precision(config, precision), data)
    return fitted.best.metrics["accuracy"]


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mnist", type=Path, help="Keras's mnist.npz")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    with np.load(arguments.mnist) as file:
        images, labels = file["x_train"], file["y_train"]
    models: dict[str, dict[str, object]] = {}
    for kind, (name, n_images, epochs) in RUNS.items():
        train, held_out = np.arange(n_images), np.arange(len(images))[-N_VALIDATION:]
        data = TrainingData(
            Split(images, train, labels[train]), Split(images, held_out, labels[held_out])
        )
        found: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
        for seed in range(arguments.seeds):
            for precision in PRECISIONS:
                value = round(best_accuracy(name, data, epochs, seed, precision), 5)
                found[precision].append(value)
                print(name, precision, seed, value, flush=True)
        models[kind] = {"config": name, "n_training": n_images, "epochs": epochs, **found}
    kept = {
        "command": "python benchmarks/precision.py path/to/mnist.npz",
        "metric": "best validation accuracy on 9,000 images of MNIST's training split",
        "tensorflow": tf.__version__,
        "models": models,
    }
    KEPT.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
