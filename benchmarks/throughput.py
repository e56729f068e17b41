"""Training speed of `fit` against a bare `model.fit`, side by side in one run.

    python benchmarks/throughput.py --models mlp cnn clock

Both sides train the same network with the same optimiser and batch size on all of TensorFlow's
threads, epoch by epoch in turns, so that whatever else the machine does falls on both. The bare
side is what a script would do: Keras's own layers and optimiser, the images as one float32 array
in [0, 1], `model.fit`. The first turn of each side, which traces and compiles, is not counted.
Ratios are taken turn by turn; the table shows their median and range. Processor time counts all
threads and holds under other load; wall time is what one waits for.

The images are noise: speed does not depend on what they show.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from dlnn_search.config import Config, Conv, Dense, Dropout, Mlp, OwnModel, Pool, TwoSoftmax
from dlnn_search.data.splits import Split, TrainingData
from dlnn_search.study.named_configs import NAMED
from dlnn_search.training.fit import Decision, Epoch, fit
from dlnn_search.training.runtime import resolve_precision, with_precision

CONFIGS = {"mlp": "mnist_mlp", "cnn": "mnist_cnn", "clock": "report_clock"}
N_BATCHES = {"mlp": 320, "cnn": 40, "clock": 40}
OPTIMIZERS = {"rmsprop": keras.optimizers.RMSprop, "adam": keras.optimizers.Adam}


def bare_model(config: Config, edge: int) -> keras.Model:
    """Return the config's network as a script would write it, compiled."""

    def chain(blocks: Iterable[object], x: keras.KerasTensor) -> keras.KerasTensor:
        for block in blocks:
            x = bare_layer(block)(x)
        return x

    image = keras.Input((edge, edge, 1))
    model = config.model
    assert not isinstance(model, OwnModel)
    if isinstance(model, Mlp):
        x = chain(model.blocks, keras.layers.Flatten()(image))
    else:
        x = chain(model.dense, keras.layers.Flatten()(chain(model.blocks, image)))
    head = getattr(model, "head", None)
    if isinstance(head, TwoSoftmax):
        hour, minute = chain(head.hour, x), chain(head.minute, x)
        outputs = [softmax(12)(hour), softmax(60)(minute)]
        weights = [head.hour_weight, head.minute_weight]
    else:
        outputs, weights = [softmax(10)(x)], [1.0]
    bare = keras.Model(image, outputs)
    bare.compile(
        OPTIMIZERS[config.training.optimizer](config.training.learning_rate),
        loss=["sparse_categorical_crossentropy"] * len(outputs),
        loss_weights=weights,
        metrics=[["accuracy"]] * len(outputs),
    )
    return bare


def bare_layer(block: object) -> keras.layers.Layer:
    """Return a block of a named config as Keras's own layer."""
    match block:
        case Conv():
            return keras.layers.Conv2D(
                block.filters,
                block.kernel,
                strides=block.stride,
                padding=block.padding,
                activation=block.activation,
            )
        case Dense():
            return keras.layers.Dense(block.units, activation=block.activation)
        case Pool():
            return keras.layers.MaxPooling2D(block.size)
        case Dropout():
            return keras.layers.Dropout(block.rate)
    raise ValueError(f"No bare layer for {block!r}.")


def softmax(n_classes: int) -> keras.layers.Layer:
    """Return an output layer, float32 whatever the policy."""
    return keras.layers.Dense(n_classes, activation="softmax", dtype="float32")


@dataclass(frozen=True)
class Turn:
    """One epoch of one side: images a second of wall time and of processor time."""

    wall: float
    processor: float


def measure(name: str, n_turns: int, precision: str) -> tuple[str, list[Turn], list[Turn]]:
    """Return the precision of our side, and the turns of both."""
    config = NAMED[CONFIGS[name]]()
    edge = 150 if name == "clock" else 28
    n_images = N_BATCHES[name] * config.training.batch_size
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (n_images, edge, edge), dtype=np.uint8)
    columns = [12, 60] if name == "clock" else [10]
    labels = np.stack([random.integers(0, n, n_images, dtype=np.uint8) for n in columns], 1)
    label = labels if name == "clock" else labels[:, 0]
    few = slice(0, config.training.batch_size)
    data = TrainingData(
        train=Split(images, np.arange(n_images), label),
        validation=Split(images, np.arange(n_images)[few], label[few]),
    )
    floats = images[..., None].astype(np.float32) / 255
    targets = [labels[:, column] for column in range(len(columns))]
    bare = bare_model(config, edge)
    training = config.training.model_copy(update={"epochs": n_turns + 1})
    config = config.model_copy(update={"training": training})
    config = with_precision(config, precision)
    config = resolve_precision(config, (edge, edge))

    ours: list[Turn] = []
    theirs: list[Turn] = []
    processor = time.process_time()

    def on_epoch(epoch: Epoch) -> Decision:
        nonlocal processor
        spent = time.process_time() - processor
        ours.append(Turn(epoch.images_per_second, n_images / spent))
        processor, wall = time.process_time(), time.perf_counter()
        bare.fit(floats, targets, batch_size=config.training.batch_size, verbose=0)
        took, spent = time.perf_counter() - wall, time.process_time() - processor
        theirs.append(Turn(n_images / took, n_images / spent))
        processor = time.process_time()
        return Decision.GO_ON

    fit(config, data, on_epoch=on_epoch)
    return config.training.precision, ours[1:], theirs[1:]


def row(name: str, precision: str, ours: list[Turn], theirs: list[Turn]) -> str:
    """Return the table's row of one model."""
    wall = [mine.wall / other.wall for mine, other in zip(ours, theirs, strict=True)]
    processor = [mine.processor / other.processor for mine, other in zip(ours, theirs, strict=True)]
    return (
        f"| {CONFIGS[name]} | {precision} | {statistics.median(t.wall for t in theirs):,.0f} "
        f"| {statistics.median(t.wall for t in ours):,.0f} | {spread(wall)} "
        f"| {spread(processor)} |"
    )


def spread(ratios: list[float]) -> str:
    """Return the median and the range of ratios."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def hardware() -> str:
    """Return one line that says what this was measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(": ")[1] for line in lines if "model name" in line), cpu)
    gpus = [gpu.name for gpu in tf.config.list_physical_devices("GPU")]
    return (
        f"{cpu}, {os.cpu_count()} cores, {', '.join(gpus) or 'no GPU'}; TensorFlow "
        f"{tf.__version__}, Keras {keras.__version__}; load before the run "
        f"{os.getloadavg()[0]:.1f}"
    )


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--turns", type=int, default=7, help="epochs of each side (default 7)")
    parser.add_argument(
        "--precision", default="auto", choices=["auto", "float32", "mixed_bfloat16"]
    )
    arguments = parser.parse_args()
    print(hardware(), end="\n\n")
    print("| model | our precision | bare, images/s | ours, images/s | ratio | by processor time |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in arguments.models:
        print(row(name, *measure(name, arguments.turns, arguments.precision)), flush=True)


if __name__ == "__main__":
    main()
