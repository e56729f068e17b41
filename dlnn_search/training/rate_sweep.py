"""The learning-rate range test: train while the rate climbs, and see where the loss follows.

Source: report, section 2.5 ("We started with a very low learning rate (e.g., 10^-5) and gradually
increasing it up to a very large value (e.g., 1)"); Smith, Cyclical Learning Rates for Training
Neural Networks, WACV 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dlnn_search.config import Config
from dlnn_search.data.split import Split, TrainingData
from dlnn_search.models.build import build
from dlnn_search.models.heads import head_of
from dlnn_search.training.augment import augmenter
from dlnn_search.training.feed import epoch_order
from dlnn_search.training.optimizer import make_optimizer
from dlnn_search.training.precision import resolve_precision
from dlnn_search.training.rate_range import Sweep
from dlnn_search.training.runtime import set_deterministic, set_threads
from dlnn_search.training.step import Steps

#: Batches a call into TensorFlow: often enough to show progress and to stop at once.
BATCHES_A_CALL = 10


class _Climb(keras.optimizers.schedules.LearningRateSchedule):
    """From `low` to `high` by the same factor each step."""

    def __init__(self, low: float, high: float, n_steps: int) -> None:
        self._low = low
        self._log_factor = np.log(high / low) / (n_steps - 1)

    def __call__(self, step: Any) -> Any:
        done = tf.cast(tf.convert_to_tensor(step), tf.float32)
        return self._low * tf.exp(self._log_factor * done)


def sweep_rates(
    config: Config,
    data: TrainingData,
    *,
    low: float,
    high: float,
    n_batches: int,
    threads: int | None = None,
    on_progress: Callable[[float], None] = lambda _: None,
) -> Sweep:
    """Train a fresh model once, the rate climbing exponentially from batch to batch.

    Optimiser, batch size, augmentation, precision and seed are the config's; its schedule and
    average are not, since the rate is what climbs. Of a curriculum the first stage's pictures
    are used: where training begins is where a rate that is too high shows. Validation pictures
    are not looked at.

    Args:
        config: What to train.
        data: Of the config, curriculum included.
        low: Rate of the first batch.
        high: Rate of the last batch.
        n_batches: In all; pictures come again, in another order, where there are fewer.
        threads: TensorFlow's, if its runtime has not started yet; None leaves them alone.
        on_progress: Called with the share that is done.

    Returns:
        Rates and losses up to the first loss that is not finite.

    Raises:
        ModelError: If the config's network cannot be built.
    """
    set_threads(threads)
    set_deterministic(config.training.deterministic)
    split = data.curriculum[0] if data.curriculum else data.train
    config = resolve_precision(config, split.image_shape)
    head = head_of(config)
    model = build(config, split.image_shape)
    optimizer = make_optimizer(config.training, _Climb(low, high, n_batches))
    steps = Steps(model, head, optimizer, alter=augmenter(config.training))
    size = config.training.batch_size
    targets = head.targets(split.labels)
    order = _order(split, config.training.seed, n_batches * size)
    losses: list[float] = []
    for first in range(0, n_batches, BATCHES_A_CALL):
        rows = order[first * size : min(first + BATCHES_A_CALL, n_batches) * size]
        losses += steps.train(split.batch(rows), targets[rows], size).tolist()
        on_progress(len(losses) / n_batches)
        if not np.all(np.isfinite(losses)):
            break
    return Sweep.of(low, high, n_batches, _finite(losses))


def _order(split: Split, seed: int, n_images: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    epochs = range(1, -(-n_images // len(split)) + 1)
    return np.concatenate([epoch_order(len(split), seed, epoch) for epoch in epochs])[:n_images]


def _finite(losses: Sequence[float]) -> list[float]:
    bad = np.flatnonzero(~np.isfinite(losses))
    return list(losses[: bad[0]] if len(bad) else losses)
