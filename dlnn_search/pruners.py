"""When to stop: a trial that falls behind (halving), and a search that has converged."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from dlnn_search.errors import StudyError
from dlnn_search.metrics import is_better, loss_sign
from dlnn_search.samplers.observations import is_duplicate


@dataclass(frozen=True, repr=False)
class Halving:
    """Asynchronous successive halving: at each rung the best 1/`factor` of the trials go on.

    A clock network sits at chance for several epochs whatever becomes of it later. Where that is
    so, begin after it (`first_rung`), or judge those alone that have left it (`better_than` with
    `until`), or judge by the training loss, which falls first (`judge`).

    Attributes:
        first_rung: Epoch of the first judgement.
        factor: Each rung's epoch is that many times the one before.
        better_than: Trials that are not better than that in the study's metric are not judged;
            `"chance"`: than guessing, by a tenth of the way to perfection.
        until: Epoch from which on they are judged all the same.
        judge: `"train_loss"`, to rank by it; None: by what the study optimises.

    Raises:
        StudyError: If these do not fit.

    Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020.
    """

    first_rung: int
    factor: int = 3
    better_than: float | Literal["chance"] | None = None
    until: int | None = None
    judge: Literal["train_loss"] | None = None

    def __post_init__(self) -> None:
        try:
            check_halving(self.first_rung, self.factor, self.better_than is not None, self.until)
        except ValueError as error:
            raise StudyError(str(error)) from error
        if self.better_than not in (None, "chance") and not isinstance(
            self.better_than, int | float
        ):
            raise StudyError(
                f"Expected better_than=... to be a number or 'chance', got {self.better_than!r}."
            )
        if self.judge not in (None, "train_loss"):
            raise StudyError(f"Expected judge=None or 'train_loss', got {self.judge!r}.")

    def __repr__(self) -> str:
        """As the definitions of running studies have it: what is default came later."""
        said: dict[str, object] = {"first_rung": self.first_rung, "factor": self.factor}
        later = {"better_than": self.better_than, "until": self.until, "judge": self.judge}
        said |= {name: value for name, value in later.items() if value is not None}
        return f"Halving({', '.join(f'{name}={value!r}' for name, value in said.items())})"


def check_halving(first_rung: int, factor: int, has_threshold: bool, until: int | None) -> None:
    """Check what a pruner and a study's description of one have in common.

    Raises:
        ValueError: If rungs cannot be, or trials at chance would never be judged.
    """
    if first_rung < 1:
        raise ValueError(f"Expected a first rung from 1, got first_rung={first_rung}.")
    if factor < 2:
        raise ValueError(f"Expected a factor of at least 2, got factor={factor}.")
    if has_threshold != (until is not None):
        raise ValueError(
            "Expected better_than=... and until=... together: without `until` a trial at chance "
            "would never be judged, without `better_than` it has no meaning."
        )
    if until is not None and until < first_rung:
        raise ValueError(
            f"Expected `until` at or after the first rung, got until={until} before "
            f"first_rung={first_rung}."
        )


@dataclass(frozen=True)
class Reached:
    """The best that a trial had reached by a step.

    Attributes:
        value: Of what the study optimises.
        judged: Of what the pruner ranks by; the same, unless it ranks by another metric.
    """

    value: float
    judged: float


class RungValues(Protocol):
    """Where a pruner reads what trials had reached."""

    def __call__(self, study: optuna.Study, step: int) -> Mapping[int, Reached]:
        """Return what each trial that got to `step` had reached by then, by trial number."""


def reported_values(study: optuna.Study, step: int) -> Mapping[int, Reached]:
    """Return the best value that each of Optuna's trials reported up to a step.

    A trial got there if its last report is of that step or a later one. A duplicate, whose reports
    are another's, is nobody's rival.
    """
    better = max if study.direction == optuna.study.StudyDirection.MAXIMIZE else min
    found = {}
    for trial in study.get_trials(deepcopy=False):
        if trial.last_step is None or trial.last_step < step or is_duplicate(trial):
            continue
        until = [value for at, value in trial.intermediate_values.items() if at <= step]
        if until:
            best = better(until)
            found[trial.number] = Reached(best, best)
    return found


class HalvingPruner(BasePruner):
    """Lets the best 1/`factor` of the trials pass each rung, without waiting for the others.

    For any Optuna study: give it as `optuna.create_study(pruner=...)`. A trial's value at a rung
    is the best that it has reported until there. What differs from Optuna's
    `SuccessiveHalvingPruner`:

    - The first trials at a rung pass for want of rivals, and are judged there again at their next
      rung, when rivals have come by; a trial must be among the best at all rungs behind it. At
      later rungs, whose values say more, the best alone of fewer than `factor` passes.
    - It looks at values *at the rung*, whatever was reported since, so that a decision depends on
      the curves alone: a resumed trial, asked again, gets the same answer.
    - A trial that is not `better_than` a value is not judged, since what it shows is luck; from
      step `until` on it is judged like any other. To the others it is a rival that they beat.

    Args:
        first_rung: Step of the first judgement, from 1.
        factor: Each rung's step is that many times the one before; 1/`factor` pass.
        better_than: Values that are not better say nothing yet; None: all values count.
        until: The step from which on every value counts; a rung of its own for trials that are
            not `better_than` by then. Needed with `better_than`, so that nothing goes on at
            chance forever.
        values: Where trials' values at a rung are read; Optuna's own reports, unless given.
        judge_direction: `minimize` or `maximize`, where `values` bring something else to rank by
            than what the study optimises.

    Raises:
        ValueError: If the arguments do not fit.

    Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020, in the
    stopping variant; the rest is our own.
    """

    def __init__(
        self,
        first_rung: int,
        factor: int = 3,
        *,
        better_than: float | None = None,
        until: int | None = None,
        values: RungValues = reported_values,
        judge_direction: str | None = None,
    ) -> None:
        check_halving(first_rung, factor, better_than is not None, until)
        self._first_rung = first_rung
        self._factor = factor
        self._better_than = better_than
        self._until = until
        self._values = values
        self._judge_direction = judge_direction

    def rungs(self, last_step: int) -> list[int]:
        """Return the steps at which trials are judged, up to `last_step`, in order."""
        found = set()
        step = self._first_rung
        while step <= last_step:
            found.add(step)
            step *= self._factor
        if self._until is not None and self._until <= last_step:
            found.add(self._until)
        return sorted(found)

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether the trial, which has just reported, falls behind at a rung."""
        if trial.last_step is None:
            return False
        rungs = self.rungs(trial.last_step)
        earlier = sorted(trial.intermediate_values)[:-1]
        if not rungs or (earlier and earlier[-1] >= rungs[-1]):
            return False  # no rung since its last report
        if math.isnan(trial.intermediate_values[trial.last_step]):
            return True
        return any(self._falls_behind(study, trial.number, rung) for rung in rungs)

    def _falls_behind(self, study: optuna.Study, number: int, rung: int) -> bool:
        reached = self._values(study, rung)
        mine = reached.get(number)
        if mine is None:
            return False
        direction = "maximize" if study.direction == StudyDirection.MAXIMIZE else "minimize"
        at_chance = self._better_than is not None and not is_better(
            mine.value, self._better_than, direction
        )
        if at_chance and self._until is not None and rung < self._until:
            return False
        if not at_chance and not self._is_regular(rung):
            return False  # `until` is a rung for those at chance alone
        return not _is_among_best(
            mine.judged,
            [one.judged for one in reached.values()],
            self._factor,
            self._judge_direction or direction,
            n_least=0 if rung == self._first_rung else 1,
        )

    def _is_regular(self, rung: int) -> bool:
        step = self._first_rung
        while step < rung:
            step *= self._factor
        return step == rung


def _is_among_best(
    value: float, rivals: Collection[float], factor: int, direction: str, *, n_least: int
) -> bool:
    """Whether a value is among the best 1/`factor` of the rivals, itself one of them.

    Of fewer than `factor` the best `n_least` are; 0: they judge nothing.
    """
    n_passing = max(n_least, len(rivals) // factor)
    if n_passing == 0:
        return True
    return sum(is_better(rival, value, direction) for rival in rivals) < n_passing


def rungs_of(pruner: BasePruner, epochs: int) -> list[int]:
    """Return the epochs at which a trial is judged, in order, its last epoch left out.

    A trial in its last epoch is complete, whatever the pruner thinks of it: it has cost all.
    """
    return pruner.rungs(epochs - 1) if isinstance(pruner, HalvingPruner) else []


def falls_behind(optuna_study: optuna.Study, number: int, rung: int, value: float) -> bool:
    """Ask a study's pruner about a trial whose curve is stored up to a rung, or further.

    Args:
        optuna_study: Of which the pruner is.
        number: Optuna's number of the trial.
        rung: One of `rungs_of`.
        value: The trial's metric at that epoch.
    """
    trial = optuna.trial.create_trial(state=TrialState.RUNNING, intermediate_values={rung: value})
    trial.number = number
    return optuna_study.pruner.prune(optuna_study, trial)


#: How the reason of such a stop begins, in the study's row.
CONVERGED = "Converged: "

Values = NDArray[np.float64]

#: The gain is the largest that was expected after each of the last trials: one estimate may err.
PATIENCE = 5
#: Of the trials, the last ones, which tell what the next ones will be like: the first ones were
#: drawn before the sampler had learnt anything.
RECENT = 0.5
#: Of these, the best ones that the tail is fitted to, and at least so many.
TAIL, MIN_TAIL = 0.5, 5
#: The shape of a tail is uncertain with few values: beyond these its mean excess is not one.
SHAPES = (-0.5, 0.5)
#: Of a curve, the last epochs, which tell how much the metric wobbles.
LAST, MIN_EPOCHS = 0.5, 4


@dataclass(frozen=True)
class Converged:
    """Stops a study that has converged: `Study(stop_when_converged=Converged())`.

    Attributes:
        min_trials: Complete ones, before which it is not asked.
        noises: Stop when the expected gain is below so many times the noise.

    Raises:
        StudyError: If these cannot be meant.
    """

    min_trials: int = 20
    noises: float = 1.0

    def __post_init__(self) -> None:
        if self.min_trials < 10:
            raise StudyError(
                f"Expected at least 10 trials before a study may stop, got {self.min_trials}."
            )
        if not self.noises > 0:
            raise StudyError(f"Expected noises above 0, got {self.noises}.")


@dataclass(frozen=True)
class Outlook:
    """What more trials can be expected to gain, in the metric's unit.

    Attributes:
        gain: Of the best, by the next `n_next` trials.
        noise: Of one trial's value.
        n_next: As many again as there were.
    """

    gain: float
    noise: float
    n_next: int

    def is_converged(self, rule: Converged) -> bool:
        """Whether going on is expected to bring nothing that could be told from noise."""
        return self.gain < rule.noises * self.noise


def outlook(
    values: Sequence[float],
    direction: str,
    curves: Sequence[Sequence[float]],
    seed_values: Sequence[float] = (),
) -> Outlook | None:
    """Return what a search can still be expected to gain.

    The chance that the best of the next k trials beats the best of the n before is k / (n + k),
    if all are alike; by how much is the mean excess of the values' tail over the best.

    Args:
        values: Of the complete trials, in their order.
        direction: `minimize` or `maximize`.
        curves: The metric by epoch of the best few trials.
        seed_values: Of the best config with other seeds, if it was confirmed.

    Returns:
        The outlook; None where there are too few values to tell, or no noise is known.
    """
    noise = _noise(curves, seed_values)
    if noise is None:
        return None
    good = -loss_sign(direction) * np.asarray(values, np.float64)  # the higher the better
    if len(good) < 2 * MIN_TAIL + PATIENCE:
        return None
    gains = [_expected_gain(good[: len(good) - back]) for back in range(PATIENCE)]
    return Outlook(max(gains), noise, len(good))


def _expected_gain(good: Values) -> float:
    """Return what as many trials again can be expected to gain, the higher being the better."""
    n_recent = max(2 * MIN_TAIL, math.ceil(RECENT * len(good)))
    # Where the best is an older one, it is that one which has to be beaten.
    record = len(good) / (n_recent + len(good))
    return record * _mean_excess(good[-n_recent:], float(good.max()))


def _mean_excess(values: Values, best: float) -> float:
    """Return by how much a value that beats the best does, by a generalised Pareto tail."""
    n_tail = max(MIN_TAIL, math.ceil(TAIL * len(values)))
    ordered = np.sort(values)[::-1]
    limit = ordered[min(n_tail, len(ordered) - 1)]
    excess = np.sort(ordered[:n_tail] - limit)
    mean = float(excess.mean())
    if mean <= 0:
        return 0.0
    # Probability-weighted moments; the plotting positions are Hosking and Wallis's.
    position = (np.arange(1, n_tail + 1) - 0.35) / n_tail
    weighted = float(np.mean((1 - position) * excess))
    spread = mean - 2 * weighted
    shape = float(np.clip(2 - mean / spread, *SHAPES)) if spread > 0 else SHAPES[1]
    scale = mean * (1 - shape)
    over = float((scale + shape * (best - limit)) / (1 - shape))
    # A tail that ends below the best says that nothing can be gained; the distance between the
    # best two says that a little can.
    gap = float(ordered[0] - ordered[1])
    return max(over, gap / 2, 0.0)


def _noise(curves: Sequence[Sequence[float]], seed_values: Sequence[float]) -> float | None:
    """Return the spread over seeds, where that is known, else the median wobble of the curves."""
    if len(seed_values) > 2:
        return float(np.std(seed_values, ddof=1))
    wobbles = []
    for curve in curves:
        last = np.asarray(curve[-max(MIN_EPOCHS, math.ceil(LAST * len(curve))) :], np.float64)
        if len(last) >= MIN_EPOCHS:
            # Second differences: a curve that still falls evenly does not wobble. Of white noise
            # their variance is six times its own.
            wobbles.append(float(np.sqrt(np.mean(np.diff(last, 2) ** 2) / 6)))
    return float(np.median(wobbles)) if wobbles else None
