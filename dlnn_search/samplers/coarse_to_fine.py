"""Coarse to fine: an Optuna sampler that narrows the space in stages, as one does by hand."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from dlnn_search.optuna_version import storage_of, study_id_of
from dlnn_search.samplers.candidates import (
    N_AROUND,
    N_BESIDE,
    N_EVEN,
    N_PARENTS,
    N_PROMISING,
    REFINEMENTS,
    Activity,
    Contest,
    Drawer,
    draw_contest,
    own_scores,
    untried,
)
from dlnn_search.samplers.observations import Axis, Floats, Observations, Outcomes, fits
from dlnn_search.samplers.regions import REGION_ATTRIBUTE, Region, draw, narrowed, read_region

if TYPE_CHECKING:
    from dlnn_search.samplers.surrogate import Encoding, Kernel

#: An attribute of Optuna's study: the seed that all workers share.
SEED_ATTRIBUTE = "coarse_to_fine:seed"
STAGES = (10, 20, 30)
GLOBAL_SHARE = 0.3
#: So much of the global share asks no model.
BLIND_SHARE = 0.25
#: Fewer finished trials say too little to prefer one place to another.
MIN_TRIALS = 4
#: The model looks at so many trials at most, half of them the best, half the latest, so that a
#: draw costs the same after thousands of trials.
MAX_TRIALS = 120
#: Its kernel is fitted anew whenever there are so many times as many trials; the contests' one,
#: which few trials ask, half as often.
REFIT_FACTOR = 1.15
CONTEST_REFIT_FACTOR = 1.3
#: Trials that never end, of workers that died, must not pile up: the latest ones count.
MAX_RUNNING = 64
GOLDEN = 0.6180339887498949

FirstTrials = Callable[[], Sequence[Mapping[str, Any]]]


class CoarseToFine(BaseSampler):
    """An Optuna sampler: the whole space first, then ever finer regions around the best.

    Stage 1 draws over the whole space, each parameter on its own scale and evenly spread over the
    stage (a Latin hypercube), beginning with the middle of all ranges and each first choice: who
    declares a space puts what is likely there. When a later stage begins, its *region* is computed
    from the trials that had finished by then, and stored in the study: a range of each number, odds
    of each choice, never 0 (`dlnn_search.samplers.regions`). All trials of the stage fall into it,
    but for a share that is drawn from the whole space all the same, so that a wrong region is left
    again. Distributions stay as the space declares them.

    Within its region a trial takes the most promising of several hundred draws: a Gaussian process
    of all trials finished so far says what to expect of each, and the expected improvement
    decides. Where a choice has parameters of its own, the share from the whole space makes the
    best of one choice each, however poor it looks beside the others
    (`samplers.candidates`). So a region depends on what had finished when its stage began, and is
    the same for all workers from then on; a draw depends on seed, trial number, stored region, and
    on what has finished and what runs by the time of the draw. One worker draws the
    same trials again from the same seed; with several that holds as far as their trials finish in
    the same order.

    Failed trials count as bad, unless they failed by themselves (user attribute `failure` of
    `lost` or `bug`). Pruned ones count by their best intermediate value, but no better than the
    median of the complete ones. Any number of workers, threads or processes may share a study.

    Args:
        stages: Trials of each stage; the last number holds for all stages after it, too.
        global_share: Share of the later stages' trials that are drawn from the whole space.
        seed: The same for all workers of a study; None: drawn once, and stored in the study.
        first_trials: Returns the parameters of the first trials, one after the other, as far as
            stage 1 goes; what they lack, or what does not fit the space, is drawn. It must return
            the same for all workers.

    Raises:
        ValueError: If there is no stage, one without trials, a share outside of 0 to 1, or a
            negative seed.

    Source: the report's sections 2 to 4 search "coarse to fine" by hand. Regions that move with
    the best: Eriksson et al., Scalable Global Optimization via Local Bayesian Optimization
    (TuRBO), NeurIPS 2019. Stored elites that set the next draws: Rubinstein, The Cross-Entropy
    Method, 1999.
    """

    def __init__(
        self,
        stages: Sequence[int] = STAGES,
        *,
        global_share: float = GLOBAL_SHARE,
        seed: int | None = None,
        first_trials: FirstTrials | None = None,
    ) -> None:
        if not stages or any(length < 1 for length in stages):
            raise ValueError(f"Expected stages of at least 1 trial each, got stages={stages}.")
        if not 0 <= global_share <= 1:
            raise ValueError(f"Expected a share from 0 to 1, got global_share={global_share}.")
        if seed is not None and seed < 0:
            raise ValueError(f"Expected a seed of at least 0, got seed={seed}.")
        self.stages = tuple(int(length) for length in stages)
        self.global_share = global_share
        self.seed = seed
        self.first_trials = first_trials
        self._first: Sequence[Mapping[str, Any]] | None = None
        self._n_draws = 0
        self._lock = threading.RLock()
        self._memories: WeakKeyDictionary[Any, dict[int, _Memory]] = WeakKeyDictionary()

    def changed(self, **changes: Any) -> CoarseToFine:
        """Return a sampler like this one, but for some of its arguments."""
        return CoarseToFine(**{**self.__getstate__(), **changes})

    def drawing_again(self, n_draws: int) -> CoarseToFine:
        """Return a sampler that shares all with this one, but draws a trial anew.

        Args:
            n_draws: How many draws of that trial were refused. The same number draws the same.
        """
        if n_draws == self._n_draws:
            return self
        again = object.__new__(type(self))
        again.__dict__.update(self.__dict__, _n_draws=n_draws)
        return again

    def _random(self, *seed: int) -> np.random.Generator:
        """Return random numbers of their own for each draw; the first has the seed as it is."""
        return np.random.default_rng([*seed, self._n_draws] if self._n_draws else [*seed])

    def __getstate__(self) -> dict[str, Any]:
        # A copy in another process reads the storage anew.
        names = ("stages", "global_share", "seed", "first_trials")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"CoarseToFine(stages={self.stages}, global_share={self.global_share})"

    def stage_of(self, number: int) -> int:
        """Return the stage of a trial, from 1."""
        return self._stage(number)[0]

    def _stage(self, number: int) -> tuple[int, int]:
        first = 0
        for i, length in enumerate(self.stages):
            if number < first + length:
                return i + 1, first
            first += length
        last = self.stages[-1]
        more = (number - first) // last
        return len(self.stages) + 1 + more, first + more * last

    def is_global(self, number: int) -> bool:
        """Whether a trial is drawn from the whole space, whatever its stage."""
        return _even(number) < self.global_share

    def is_blind(self, number: int) -> bool:
        """Whether a global trial is drawn without asking the model, which may be wrong."""
        return _even(number) < self.global_share * BLIND_SHARE

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        self._raise_error_if_multi_objective(study)
        if self.stage_of(trial.number) == 1:
            return {}
        with self._lock:
            memory, _ = self._look(study)
            return {axis.name: axis.distribution for axis in memory.observations.axes}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        with self._lock:
            memory, trials = self._look(study)
            stage, first = self._stage(trial.number)
            region = memory.region(study, stage, first, trials)
            if self.is_global(trial.number):
                region = Region(stage, first, region.n_finished, {})
            rng = self._random(memory.seed, trial.number)
            running = [
                t
                for t in trials
                if t.state == TrialState.RUNNING and t.number != trial.number and t.params
            ]
            if self.is_blind(trial.number):
                place = memory.blind(region, rng)
            else:
                rows = memory.observations.rows(running[-MAX_RUNNING:])
                place = memory.choose(region, rows, rng, contest=self.is_global(trial.number))
            return {
                axis.name: axis.value(place[i])
                for i, axis in enumerate(memory.observations.axes)
                if axis.name in search_space and not np.isnan(place[i])
            }

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        self._raise_error_if_multi_objective(study)
        axis = Axis(param_name, param_distribution)
        with self._lock:
            stage, first = self._stage(trial.number)
            name = int.from_bytes(hashlib.sha256(param_name.encode()).digest()[:7], "big")
            memory = self._memory(study)
            own = self._random(memory.seed, name, trial.number)
            if stage == 1 and self._n_draws:
                uniform, region = own.random(), Region(1, 0, 0, {})
            elif stage == 1:
                given = self._given(trial.number)
                if param_name in given and fits(given[param_name], param_distribution):
                    return given[param_name]
                uniform = _in_hypercube(
                    trial.number, self.stages[0], axis, own, [memory.seed, name]
                )
                region = Region(1, 0, 0, {})
            else:
                uniform = own.random()
                memory, trials = self._look(study)
                region = memory.region(study, stage, first, trials)
                if self.is_global(trial.number):
                    region = Region(stage, first, 0, {})
        return axis.value(draw(axis, region.span(axis), np.array([uniform]))[0])

    def _given(self, number: int) -> Mapping[str, Any]:
        if self._first is None:
            self._first = () if self.first_trials is None else self.first_trials()
        return self._first[number] if number < len(self._first) else {}

    def _memory(self, study: optuna.Study) -> _Memory:
        studies = self._memories.setdefault(storage_of(study), {})
        study_id = study_id_of(study)
        if study_id not in studies:
            maximize = study.direction == optuna.study.StudyDirection.MAXIMIZE
            studies[study_id] = _Memory(maximize, self._seed_of(study))
        return studies[study_id]

    def _look(self, study: optuna.Study) -> tuple[_Memory, Sequence[FrozenTrial]]:
        """Read what happened since the last look."""
        trials = study.get_trials(deepcopy=False)
        memory = self._memory(study)
        if not memory.observations.is_of(trials):
            del self._memories[storage_of(study)][study_id_of(study)]
            memory = self._memory(study)
        memory.observations.read(trials)
        return memory, trials

    def _seed_of(self, study: optuna.Study) -> int:
        if self.seed is not None:
            return self.seed
        storage, study_id = storage_of(study), study_id_of(study)
        stored = storage.get_study_system_attrs(study_id)
        if SEED_ATTRIBUTE not in stored:
            storage.set_study_system_attr(study_id, SEED_ATTRIBUTE, secrets.randbits(31))
            stored = storage.get_study_system_attrs(study_id)
        return int(stored[SEED_ATTRIBUTE])


class _Memory:
    """What a sampler knows of one study; all of it can be had again from the storage."""

    def __init__(self, maximize: bool, seed: int) -> None:
        self.observations = Observations(maximize)
        self.seed = seed
        self._regions: dict[int, dict[str, Any]] = {}
        #: By the axis whose choices are judged each by its own standard; None: all by one.
        self._kernels: dict[int | None, tuple[object, Kernel]] = {}

    def region(
        self, study: optuna.Study, stage: int, first: int, trials: Sequence[FrozenTrial]
    ) -> Region:
        if first not in self._regions:
            key = f"{REGION_ATTRIBUTE}{first}"
            storage, study_id = storage_of(study), study_id_of(study)
            stored = storage.get_study_system_attrs(study_id)
            if key not in stored:
                opened = next(t for t in trials if t.number >= first and t.datetime_start)
                region = narrowed(stage, first, self.observations.outcomes(until=opened))
                storage.set_study_system_attr(study_id, key, region.as_json(self.observations.axes))
                stored = storage.get_study_system_attrs(study_id)
            self._regions[first] = stored[key]
        return read_region(self._regions[first], self.observations.axes)

    def blind(self, region: Region, rng: np.random.Generator) -> Floats:
        """Draw from a region, evenly."""
        observed = self.observations.outcomes()
        return np.asarray(Drawer(observed.axes, region, Activity(observed), rng).even(1)[0])

    def choose(
        self, region: Region, running: Floats, rng: np.random.Generator, contest: bool
    ) -> Floats:
        """Return the place of a region that promises most.

        Args:
            running: Places of the trials that run just now.
            contest: Make the best of one choice that others hang on, if there is one.
        """
        # Here and not above: SciPy takes a third of a second, and most commands draw nothing.
        from dlnn_search.samplers.surrogate import Encoding, Surrogate

        observed = self.observations.outcomes()
        activity = Activity(observed)
        observed = activity.filled(observed)
        held = draw_contest(observed, activity, rng) if contest else None
        rivals = np.isfinite(observed.losses)
        if held is not None:
            region = held.region(region, observed)
            rivals &= held.rivals(observed)
        drawer = Drawer(observed.axes, region, activity, rng)
        if np.isfinite(observed.losses).sum() < MIN_TRIALS or not rivals.any():
            return np.asarray(drawer.even(1)[0])
        targets = _targets(observed, held)
        encoding = Encoding(observed.axes)
        kernel = self._fitted(encoding, observed, held)
        parents = np.flatnonzero(rivals)[np.argsort(observed.losses[rivals], kind="stable")][
            :N_PARENTS
        ]
        rows = np.union1d(chosen(targets, MAX_TRIALS), parents)
        surrogate = Surrogate(
            encoding, kernel, observed.places[rows], targets[rows], rivals[rows], running
        )
        places = np.concatenate(
            [drawer.even(N_EVEN), drawer.beside(observed.places[parents], N_BESIDE, (0.02, 0.5))]
        )
        tried = np.concatenate([observed.places, running])
        promise = surrogate.log_improvement(places)
        for reach in REFINEMENTS:
            best = places[np.argsort(-promise)[:N_PROMISING]]
            around = drawer.beside(best, N_PROMISING * N_AROUND, (reach / 3, reach))
            places = np.concatenate([places, around])
            promise = np.concatenate([promise, surrogate.log_improvement(around)])
        order = np.argsort(-promise, kind="stable")
        fresh = untried(places[order[:200]], tried)
        return np.asarray(places[order[int(np.argmax(fresh))]])

    def _fitted(self, encoding: Encoding, observed: Outcomes, held: Contest | None) -> Kernel:
        from dlnn_search.samplers.surrogate import fit_kernel

        n = refit_size(len(observed), REFIT_FACTOR if held is None else CONTEST_REFIT_FACTOR)
        key = (n, observed.axes)
        judged = None if held is None else held.parent
        if judged not in self._kernels or self._kernels[judged][0] != key:
            until = observed.first(n)
            targets = _targets(until, held)
            rows = chosen(targets, MAX_TRIALS)
            self._kernels[judged] = key, fit_kernel(encoding, until.places[rows], targets[rows])
        return self._kernels[judged][1]


def _targets(observed: Outcomes, held: Contest | None) -> Floats:
    """Return trials' scores, in a contest each among those of its own choice."""
    from dlnn_search.samplers.surrogate import scores

    if held is None:
        return scores(observed.losses)
    return own_scores(observed.losses, observed.places[:, held.parent])


def _in_hypercube(
    number: int, n: int, axis: Axis, own: np.random.Generator, seed: list[int]
) -> float:
    """Return a trial's uniform number for a parameter, one in each of n even strata of [0, 1).

    Trial 0 has the middle of a range, or the first choice.
    """
    order = np.random.default_rng(seed).permutation(n)
    wanted = 0 if axis.n_choices else n // 2
    held = int(np.flatnonzero(order == wanted)[0])
    order[[0, held]] = order[[held, 0]]
    if number == 0:
        return 0.0 if axis.n_choices else 0.5
    return float((order[number] + own.random()) / n)


def _even(number: int) -> float:
    """Return a number in [0, 1) that spreads evenly over any run of trials."""
    return number * GOLDEN % 1.0


def chosen(targets: Floats, n: int) -> np.ndarray:
    """Return the rows of the best half of n trials and of the latest ones."""
    if len(targets) <= n:
        return np.arange(len(targets))
    best = np.argsort(-targets, kind="stable")[: n // 2]
    rest = np.setdiff1d(np.arange(len(targets)), best)[-(n - n // 2) :]
    return np.sort(np.concatenate([best, rest]))


def refit_size(n: int, factor: float) -> int:
    """Return the largest size at most n at which the kernel is fitted."""
    size = MIN_TRIALS
    while (larger := max(size + 1, int(size * factor))) <= n:
        size = larger
    return size
