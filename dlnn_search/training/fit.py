"""Train one config: knows nothing of searches, trials or databases."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray

from dlnn_search.config import Config
from dlnn_search.data.splits import Split, TrainingData
from dlnn_search.errors import DivergedError, TrainingError
from dlnn_search.metrics import DIRECTIONS, loss_sign
from dlnn_search.models.build import build
from dlnn_search.models.heads import head_of
from dlnn_search.training.checkpoint import (
    SAVE_SECONDS,
    Arrays,
    Checkpoint,
    Epoch,
    Pace,
    State,
)
from dlnn_search.training.optimizer import Rate, make_optimizer, plateau_factor
from dlnn_search.training.runtime import (
    resolve_precision,
    set_deterministic,
    set_threads,
    with_precision,
)
from dlnn_search.training.step import Average, Prefetch, Steps, augmenter, epoch_order

__all__ = ["Decision", "Epoch", "Fitted", "best_model", "fit"]

#: A call into TensorFlow is sized to last this long: long enough that its start-up cost is
#: nothing, short enough that progress and an interrupt are seen at once.
EXECUTION_SECONDS = 0.25
#: Divergence: a loss so many times above that of guessing and that of the first batches. The
#: report's N(0, 1) weights legitimately start at thousands of times the loss of guessing.
DIVERGED_FACTOR = 1000.0
#: Images a prediction: bounds the memory that their feature maps take.
PREDICTION_BATCH = 256


class Decision(enum.Enum):
    """What shall happen after an epoch."""

    GO_ON = enum.auto()
    KEEP = enum.auto()
    """Go on, but write a checkpoint first."""
    STOP = enum.auto()
    """End here, pruned or interrupted; the checkpoint is kept either way."""


@dataclass(frozen=True)
class Fitted:
    """What a training came to.

    Attributes:
        curve: All epochs, those before a resume included.
        best: The best of them by the config's metric.
        finished: Whether all epochs of the config were trained.
    """

    curve: tuple[Epoch, ...]
    best: Epoch
    finished: bool


def _go_on(_: object) -> Decision:
    return Decision.GO_ON


def _ignore(_epoch: int, _share: float) -> None:
    pass


def fit(
    config: Config,
    data: TrainingData,
    *,
    folder: Path | None = None,
    generation: int = 0,
    save_seconds: float = SAVE_SECONDS,
    threads: int | None = None,
    resume: bool = True,
    on_begin: Callable[[tuple[Epoch, ...]], Decision] = _go_on,
    on_kept: Callable[[int], Decision] = _go_on,
    on_epoch: Callable[[Epoch], Decision] = _go_on,
    on_progress: Callable[[int, float], None] = _ignore,
) -> Fitted:
    """Train a config, from the start or from its checkpoint.

    Args:
        config: What to train. A curriculum's stages come first, each on its own pictures; the
            validation split is the data's own all along, so all epochs are comparable.
        data: The splits to train on and to choose by.
        folder: Where to keep the last and the best epoch; None keeps nothing.
        generation: Which holder of this training in this folder this is, from 1; see `Checkpoint`.
        save_seconds: The least time between two checkpoints. The last epoch of a call has one
            in any case.
        threads: TensorFlow's, if its runtime has not started yet; None leaves them alone.
        resume: Go on from the folder's checkpoint, else train from the start.
        on_begin: Called once, with the epochs that were found in the folder.
        on_kept: Called when a checkpoint is on disk, with the number of epochs it holds: what a
            kill from now on cannot take away. It may stop the training, too.
        on_epoch: Called after each epoch that is trained now, before its checkpoint, if it gets
            one.
        on_progress: Called several times a second with the epoch and the share of it that is
            done. It may raise to abort: the exception passes through, checkpoints stay valid.

    Returns:
        The curve with its best epoch.

    Raises:
        ModelError: If the config's network cannot be built.
        DivergedError: If a loss or metric is not finite or beyond all bounds.
        TrainingError: If the checkpoint belongs to another config.
        StorageError: If a checkpoint cannot be read or written.
    """
    set_threads(threads)
    set_deterministic(config.training.deterministic)
    checkpoint = None
    if folder is not None:
        checkpoint = Checkpoint(folder, config.fingerprint(), generation)
    if checkpoint is not None and not resume:
        checkpoint.clear()
    kept = checkpoint.load() if checkpoint is not None else None
    decision = on_begin(kept.curve if kept is not None else ())
    if kept is not None and decision is Decision.STOP:
        return _fitted(config, kept.curve)
    if kept is not None and len(kept.curve) >= config.training.epochs:
        return _fitted(config, kept.curve)
    if kept is not None:
        concrete = with_precision(config, kept.precision)
    else:
        concrete = resolve_precision(config, data.train.image_shape)
    run = _Run(concrete, data, on_progress)
    curve: tuple[Epoch, ...] = ()
    best: Arrays = ()
    if kept is not None:
        curve, best = kept.curve, kept.best
        run.restore(kept)
    pace = Pace(save_seconds)
    for number in range(len(curve) + 1, config.training.epochs + 1):
        run.set_rate(curve)
        epoch = run.epoch(number)
        curve = (*curve, epoch)
        if checkpoint is not None and _best(config, curve) is epoch:
            best = run.weights()
        decision = on_epoch(epoch)
        is_last = decision is Decision.STOP or number == config.training.epochs
        wanted = is_last or decision is Decision.KEEP or pace.is_due()
        if checkpoint is not None and wanted:
            began = time.monotonic()
            checkpoint.save(State(concrete.training.precision, curve, run.state(), best))
            pace.saved(time.monotonic() - began)
            is_last |= on_kept(number) is Decision.STOP
        if is_last:
            break
    return _fitted(config, curve)


def best_model(config: Config, folder: Path, image_shape: tuple[int, ...]) -> keras.Model:
    """Return the model of a config with the weights of its best epoch.

    Raises:
        TrainingError: If no epoch of this config was kept in the folder.
        StorageError: If the checkpoint cannot be read.
    """
    kept = Checkpoint(folder, config.fingerprint()).load()
    if kept is None:
        raise TrainingError(
            f"No checkpoint in '{folder}': expected the folder of a training that has finished "
            "an epoch."
        )
    model = build(with_precision(config, kept.precision), image_shape)
    model.set_weights(kept.best)
    return model


def _fitted(config: Config, curve: tuple[Epoch, ...]) -> Fitted:
    return Fitted(curve, _best(config, curve), len(curve) >= config.training.epochs)


def _best(config: Config, curve: tuple[Epoch, ...]) -> Epoch:
    """Return the best epoch, the earliest among equals."""
    sign = loss_sign(DIRECTIONS[config.metric])
    return min(curve, key=lambda epoch: sign * epoch.metrics[config.metric])


class _Run:
    """A model under training."""

    def __init__(
        self,
        config: Config,
        data: TrainingData,
        on_progress: Callable[[int, float], None],
    ) -> None:
        stages = config.training.curriculum
        if len(stages) != len(data.curriculum):
            raise TrainingError(
                f"Expected pictures for {len(stages)} stages of a curriculum, got "
                f"{len(data.curriculum)}. Load the data with this config's curriculum."
            )
        self._config = config
        self._data = data
        self._on_progress = on_progress
        self._head = head_of(config)
        self._model = build(config, data.train.image_shape)
        epochs = range(1, config.training.epochs + 1)
        size = config.training.batch_size
        self._rate = Rate(config.training, [ceil(len(self._split_of(n)) / size) for n in epochs])
        self._optimizer = make_optimizer(config.training, self._rate)
        decay = config.training.average
        self._average = None if decay is None else Average(self._model, decay)
        self._steps = Steps(
            self._model,
            self._head,
            self._optimizer,
            alter=augmenter(config.training),
            average=self._average,
        )
        self._bound: float | None = None
        self._n_steps = config.training.steps_per_execution or 1

    def set_rate(self, curve: Sequence[Epoch]) -> None:
        """Let the next epoch have the learning rate that the epochs so far leave it."""
        training, metric = self._config.training, self._config.metric
        if training.schedule == "plateau":
            values = [epoch.metrics[metric] for epoch in curve]
            patience = training.plateau_patience
            self._rate.factor.assign(plateau_factor(values, DIRECTIONS[metric], patience))

    def weights(self) -> Arrays:
        """Return what `best_model` needs."""
        with self._validated_weights():
            weights: Arrays = self._model.get_weights()
        return weights

    def state(self) -> Arrays:
        """Return weights, dropout's seeds, the optimiser's moments and steps, the average."""
        return [np.asarray(variable) for variable in self._variables()]

    def restore(self, kept: State) -> None:
        """Put the model and the optimiser back to a kept state."""
        variables = self._variables()
        shapes, found = [tuple(v.shape) for v in variables], [a.shape for a in kept.last]
        if shapes != found:
            raise TrainingError(
                f"The checkpoint's arrays do not fit the model: expected {shapes}, got {found}. "
                "Was its builder changed? Remove the folder to train from the start."
            )
        for variable, array in zip(variables, kept.last, strict=True):
            variable.assign(array)

    def epoch(self, number: int) -> Epoch:
        """Train one epoch and validate it."""
        began = time.perf_counter()
        split = self._split_of(number)
        train_loss = self._train(split, number)
        trained = time.perf_counter()
        with self._validated_weights():
            metrics = {"train_loss": train_loss, **self._validate(number)}
        return Epoch(
            epoch=number,
            metrics=metrics,
            seconds=time.perf_counter() - began,
            images_per_second=len(split) / (trained - began),
        )

    def _variables(self) -> list[keras.Variable]:
        averages = [] if self._average is None else self._average.variables
        return [*self._model.variables, *self._optimizer.variables, *averages]

    def _validated_weights(self) -> AbstractContextManager[None]:
        """Let the model have the weights that count: the average, where there is one."""
        return nullcontext() if self._average is None else self._average.in_place()

    def _split_of(self, number: int) -> Split:
        for stage, split in zip(
            self._config.training.curriculum, self._data.curriculum, strict=True
        ):
            if number <= stage.epochs:
                return split
            number -= stage.epochs
        return self._data.train

    def _train(self, split: Split, number: int) -> float:
        """Train on all images of a split once; return the mean loss of its batches' images."""
        size = self._config.training.batch_size
        targets = self._head.targets(split.labels)
        order = epoch_order(len(split), self._config.training.seed, number)
        losses = []
        with Prefetch(split, targets, order) as feed:
            start = 0
            while start < len(split):
                stop = min(start + self._n_steps * size, len(split))
                then = min(stop + self._n_steps * size, len(split))
                began = time.perf_counter()
                images, wanted = feed.piece(start, stop, then=then)
                losses.append(self._steps.train(images, wanted, size))
                self._check(losses[-1], number, start // size + 1)
                self._adapt(time.perf_counter() - began)
                start = stop
                self._on_progress(number, start / len(split))
        per_batch = np.concatenate(losses).astype(np.float64)
        sizes = np.full(len(per_batch), float(size))
        sizes[-1] = len(split) - size * (len(per_batch) - 1)
        return float(np.average(per_batch, weights=sizes))

    def _adapt(self, seconds: float) -> None:
        """Choose how many batches the next call trains, unless the config says."""
        if self._config.training.steps_per_execution is None:
            wanted = ceil(self._n_steps * EXECUTION_SECONDS / seconds)
            # Doubling at most: the first call of a process is slow and says little.
            self._n_steps = max(1, min(wanted, 2 * self._n_steps, 4_096))

    def _validate(self, number: int) -> dict[str, float]:
        split = self._data.validation
        targets = self._head.targets(split.labels)
        losses, outputs = [], []
        with Prefetch(split, targets, np.arange(len(split))) as feed:
            for start in range(0, len(split), PREDICTION_BATCH):
                stop = min(start + PREDICTION_BATCH, len(split))
                images, wanted = feed.piece(
                    start, stop, then=min(stop + PREDICTION_BATCH, len(split))
                )
                loss, output = self._steps.predict(images, wanted)
                losses.append(loss)
                outputs.append(output)
                self._on_progress(number, 1.0)
        joined = {name: np.concatenate([o[name] for o in outputs]) for name in self._head.names}
        metrics = {
            "loss": float(np.mean(np.concatenate(losses), dtype=np.float64)),
            **self._head.metrics(split.labels, joined),
        }
        for name, value in metrics.items():
            if not np.isfinite(value):
                raise DivergedError(self._diverged(f"validation {name} is {value}", number))
        return metrics

    def _check(self, losses: NDArray[np.float32], number: int, first_batch: int) -> None:
        bad = np.flatnonzero(~np.isfinite(losses))
        if not len(bad):
            if self._bound is None:
                self._bound = DIVERGED_FACTOR * max(float(losses[0]), self._head.guessing_loss)
            bad = np.flatnonzero(losses > self._bound)
        if len(bad):
            batches = f"batches {first_batch} to {first_batch + len(losses) - 1}"
            text = f"training loss became {losses[bad[0]]:g} in {batches}"
            raise DivergedError(self._diverged(text, number))

    def _diverged(self, what: str, number: int) -> str:
        training = self._config.training
        return (
            f"Diverged in epoch {number}: the {what}, with {training.optimizer} at "
            f"learning_rate={training.learning_rate:g} and {training.precision}. Expected finite "
            f"values below {DIVERGED_FACTOR:g} times where it began: lower the learning rate, or "
            "the scale of the initial weights."
        )
