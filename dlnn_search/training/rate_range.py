"""The learning-rate range test: which rates a network learns at, and which undo it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dlnn_search.config import Config
from dlnn_search.data.splits import Split, TrainingData

MIN_BATCHES = 50
#: Losses are averaged over a bell of this standard deviation, as a share of all batches: 300
#: batches over five decades are smoothed over a tenth of a decade, to both sides alike. (The
#: usual running average lags behind and would name rates that are twice too high.)
SMOOTHING = 0.02
#: Of the batches, the first ones, which tell what the loss is before anything is learnt.
START = 0.05
#: The loss has learnt something if it fell by that many standard errors of its smoothed curve.
SURE = 6.0
#: Diverged: that share of what was learnt is lost again.
LOST = 0.5
#: Losses beyond that many times the start's are all the same: without this cap the neighbours of
#: an explosion would be smoothed up with it.
CAP = 3.0


@dataclass(frozen=True)
class Sweep:
    """One range test.

    Attributes:
        low: Rate of the first batch.
        high: Rate of the last batch, had it come to that.
        n_batches: Planned.
        rates: Of each batch, shape (n,).
        losses: Training loss of each batch, shape (n,).
        smoothed: The same without most of its noise, shape (n,).
        climbs_at: The rate where the loss starts to climb: its lowest point. None where it never
            fell, so that nothing can be told.
        highest: The highest rate that does not diverge; None as above.
        diverged: Whether the test found where training diverges; if not, `highest` is the
            highest rate tried.
    """

    low: float
    high: float
    n_batches: int
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    climbs_at: float | None
    highest: float | None
    diverged: bool

    @property
    def half(self) -> float | None:
        """Half of the highest rate that does not diverge.

        Source: report, section 2.5 ("generally about half of the maximum learning rate").
        """
        return None if self.highest is None else self.highest / 2

    @property
    def suggested(self) -> float | None:
        """The smaller of both rules' rates: where the loss starts to climb, and `half`."""
        if self.half is None or self.climbs_at is None:
            return None
        return min(self.half, self.climbs_at)

    @classmethod
    def of(cls, low: float, high: float, n_batches: int, losses: Sequence[float]) -> Self:
        """Read the losses of a test; shorter than planned, they ended in one that is not finite."""
        rates = low * (high / low) ** (np.arange(n_batches) / (n_batches - 1))
        values = np.asarray(losses, np.float64)
        climbs_at, highest, diverged = None, None, False
        smoothed = _smooth(values, n_batches)
        if len(values) >= 2:
            found = _read(smoothed, values, n_batches)
            if found is not None:
                climbs_at, highest = (float(rates[place]) for place in found)
                diverged = found[1] + 1 < n_batches
        return cls(
            low,
            high,
            n_batches,
            tuple(map(float, rates[: len(values)])),
            tuple(map(float, values)),
            tuple(map(float, smoothed)),
            climbs_at,
            highest,
            diverged,
        )

    def plain(self) -> dict[str, Any]:
        """Return everything as plain data, the answers first."""
        answers = {
            "climbs_at": self.climbs_at,
            "highest": self.highest,
            "half_of_highest": self.half,
            "suggested": self.suggested,
        }
        return {**answers, **asdict(self)}


def _read(
    smoothed: NDArray[np.float64], losses: NDArray[np.float64], n_batches: int
) -> tuple[int, int] | None:
    """Return the places of the lowest loss and of the last one before divergence."""
    start = float(np.mean(losses[: max(2, round(START * n_batches))]))
    lowest = int(np.argmin(smoothed))
    fallen = start - smoothed[lowest]
    residual = np.median(np.abs(np.minimum(losses, CAP * abs(start)) - smoothed)) * 1.4826
    # A bell of standard deviation s averages over 2 s sqrt(pi) values.
    error = residual / np.sqrt(max(1.0, 2 * SMOOTHING * n_batches * np.sqrt(np.pi)))
    if fallen <= SURE * error:
        return None
    lost = np.flatnonzero(smoothed[lowest:] > smoothed[lowest] + LOST * fallen)
    last = lowest + int(lost[0]) - 1 if len(lost) else len(losses) - 1
    return lowest, last


def _smooth(losses: NDArray[np.float64], n_batches: int) -> NDArray[np.float64]:
    if not len(losses):
        return losses
    cap = CAP * abs(float(np.mean(losses[: max(2, round(START * n_batches))])))
    capped = np.minimum(losses, cap)
    width = SMOOTHING * n_batches
    reach = np.arange(-int(3 * width) - 1, int(3 * width) + 2)
    bell = np.exp(-0.5 * (reach / width) ** 2)
    weights = np.convolve(np.ones(len(capped)), bell, "same")
    if len(capped) < len(bell):  # "same" is as long as the longer of both
        weights = np.convolve(np.ones(len(capped)), bell, "full")[len(bell) // 2 :][: len(capped)]
        summed = np.convolve(capped, bell, "full")[len(bell) // 2 :][: len(capped)]
        return np.asarray(summed / weights)
    return np.asarray(np.convolve(capped, bell, "same") / weights)


#: Batches a call into TensorFlow: often enough to show progress and to stop at once.
BATCHES_A_CALL = 10


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
    from dlnn_search.models.build import build
    from dlnn_search.models.heads import head_of
    from dlnn_search.training.optimizer import Climb, make_optimizer
    from dlnn_search.training.runtime import resolve_precision, set_deterministic, set_threads
    from dlnn_search.training.step import Steps, augmenter

    set_threads(threads)
    set_deterministic(config.training.deterministic)
    split = data.curriculum[0] if data.curriculum else data.train
    config = resolve_precision(config, split.image_shape)
    head = head_of(config)
    model = build(config, split.image_shape)
    optimizer = make_optimizer(config.training, Climb(low, high, n_batches))
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
    from dlnn_search.training.step import epoch_order

    epochs = range(1, -(-n_images // len(split)) + 1)
    return np.concatenate([epoch_order(len(split), seed, epoch) for epoch in epochs])[:n_images]


def _finite(losses: Sequence[float]) -> list[float]:
    bad = np.flatnonzero(~np.isfinite(losses))
    return list(losses[: bad[0]] if len(bad) else losses)
