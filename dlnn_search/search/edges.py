"""Where the best lies on the edge of the declared space: something better may lie beyond it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from dlnn_search.search.axes import Axis, Numeric

#: The outermost part of a range, as a share of its scale, that counts as its end; a grid's last
#: value always does.
END_SHARE = 0.03
#: With enough trials one lucky one is no proof: the median of the elite must be this near, too.
ELITE_SHARE = 0.2
ENOUGH_TRIALS = 10
#: So much of the range is added beyond the end, on its scale.
WIDER_SHARE = 0.5


@dataclass(frozen=True)
class Edge:
    """A parameter whose best value is an end of its range.

    Attributes:
        side: `lower` or `upper`.
        value: The best trial's.
        low: The declared range, with `high`.
        wider: The range that would leave room on that side.
        natural: Whether there may be nothing beyond: less than 0, more than all.
    """

    parameter: str
    side: str
    value: float
    low: float
    high: float
    wider: tuple[float, float]
    natural: bool

    def words(self) -> str:
        """Return the finding and what to do, as one sentence."""
        low, high = self.wider
        end = f"{self.parameter}: the best value, {self.value:.3g}, lies at the {self.side} end of "
        end += f"its range, {self.low:g} to {self.high:g}"
        bound = self.low if self.side == "lower" else self.high
        if self.natural:
            return f"{end}. If values beyond {bound:g} make sense, widen it to {low:g} to {high:g}."
        return f"{end}. Something better may lie beyond: widen it to {low:g} to {high:g}."


def find_edges(trials: Sequence[FrozenTrial], *, maximize: bool) -> list[Edge]:
    """Return the parameters whose best value lies at an end of their declared range.

    Args:
        trials: A study's; complete ones count.
        maximize: Whether the highest value is the best.
    """
    complete = [t for t in trials if t.state == TrialState.COMPLETE and t.values]
    complete = [t for t in complete if math.isfinite(t.values[0])]
    if not complete:
        return []
    complete.sort(key=lambda t: -t.values[0] if maximize else t.values[0])
    elite = complete[: max(3, math.ceil(math.sqrt(len(complete))))]
    best = complete[0]
    edges = []
    for name, distribution in best.distributions.items():
        if not isinstance(distribution, Numeric) or distribution.single():
            continue
        axis = Axis(name, distribution)
        end = max(END_SHARE, 1 / axis.n_cells if axis.n_cells else 0.0)
        place = axis.place(best.params[name])
        middle = median(axis.place(t.params[name]) for t in elite if name in t.params)
        is_enough = len(complete) >= ENOUGH_TRIALS
        for side, distance, elites in (
            ("lower", place, middle),
            ("upper", 1 - place, 1 - middle),
        ):
            if distance < end and (not is_enough or elites < max(ELITE_SHARE, end)):
                edges.append(_edge(name, distribution, side, best.params[name]))
    return edges


def _edge(name: str, distribution: Numeric, side: str, value: float) -> Edge:
    low, high = float(distribution.low), float(distribution.high)
    if distribution.log:
        factor = (high / low) ** WIDER_SHARE
        wider = (low / factor, high) if side == "lower" else (low, high * factor)
    else:
        more = (high - low) * WIDER_SHARE
        wider = (low - more, high) if side == "lower" else (low, high + more)
    wider = _on_grid(distribution, wider[0], wider[1], side)
    is_count = isinstance(distribution, IntDistribution)
    if side == "lower":
        natural = not distribution.log and low in ((0.0, 1.0) if is_count else (0.0,))
        natural = natural or (is_count and low == 1)
    else:
        natural = not distribution.log and not is_count and high == 1 and low >= 0
    return Edge(name, side, float(value), low, high, wider, natural)


def _on_grid(distribution: Numeric, low: float, high: float, side: str) -> tuple[float, float]:
    """Round the moved end: to whole steps, or to two digits."""
    if isinstance(distribution, FloatDistribution) and distribution.step is None:
        return (float(f"{low:.2g}"), high) if side == "lower" else (low, float(f"{high:.2g}"))
    step = distribution.step or 1.0
    if side == "lower":
        steps = max(1, math.ceil((distribution.low - low) / step))
        low = distribution.low - steps * step
        if isinstance(distribution, IntDistribution) and distribution.log:
            low = max(1.0, low)
        return low, high
    return low, distribution.high + max(1, math.ceil((high - distribution.high) / step)) * step
