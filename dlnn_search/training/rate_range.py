"""What a learning-rate range test says: which rates a network learns at, and which undo it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

LOW, HIGH, N_BATCHES = 1e-5, 1.0, 300
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
