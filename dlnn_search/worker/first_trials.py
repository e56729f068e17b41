"""How a search begins: with networks that are expected to learn soon; a space's corners."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial

from dlnn_search.config import Cnn, Config, Dropout, Mlp
from dlnn_search.data import image_shape
from dlnn_search.errors import DlnnSearchError, StudyError
from dlnn_search.models.shapes import Shape, seconds_an_image
from dlnn_search.samplers.coarse_to_fine import CoarseToFine
from dlnn_search.study import Study
from dlnn_search.worker.verdict import MAX_DRAWS, REFUSES_ALL

#: An integer of at most so many values counts something: layers, stages.
MAX_DEPTHS = 10

Choose = Callable[[str, BaseDistribution], Any]


class Chooser(BaseSampler):
    """Takes each value from a function of the parameter's name and distribution."""

    def __init__(self, choose: Choose) -> None:
        self._choose = choose

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._choose(param_name, param_distribution)


def corner_trials(ask: Callable[[optuna.Trial], object], n_random: int) -> Iterator[optuna.Trial]:
    """Ask a space at its corners, then at random, and yield each trial that was asked.

    Args:
        ask: The space; called with the trial before the trial is yielded, so that its
            parameters are known. What it raises passes through.
        n_random: Draws at random after the corners.

    Yields:
        Everything at its lower end; everything at its upper end; then, the rest in the middle,
        each parameter at either end and each choice once. Conditional parameters that a choice
        brings up take part as soon as they were seen. Trials with equal parameters come once.
    """
    seen: dict[str, tuple[BaseDistribution, dict[str, Any]]] = {}
    known: set[str] = set()

    def asked(sampler: BaseSampler) -> optuna.Trial:
        trial = optuna.create_study(sampler=sampler).ask()
        ask(trial)
        for name, distribution in trial.distributions.items():
            seen.setdefault(name, (distribution, trial.params))
        return trial

    def fresh(trial: optuna.Trial) -> bool:
        key = repr(sorted(trial.params.items()))
        is_new = key not in known
        known.add(key)
        return is_new

    for which in ("low", "high"):
        trial = asked(Chooser(_at_end(which)))
        if fresh(trial):
            yield trial
    visited: set[str] = set()
    while waiting := [name for name in seen if name not in visited]:
        name = waiting[0]
        visited.add(name)
        distribution, where = seen[name]
        # A conditional parameter is asked for only behind the choices that brought it up.
        choices = {other: where[other] for other in where if _is_choice(seen[other][0])}
        for value in extremes(distribution):
            trial = asked(Chooser(_fixing({**choices, name: value})))
            if fresh(trial):
                yield trial
    for seed in range(n_random):
        yield asked(RandomSampler(seed=seed))


def _at_end(which: str) -> Choose:
    return lambda _, distribution: ends(distribution)[which]


def _fixing(values: dict[str, Any]) -> Choose:
    def choose(name: str, distribution: BaseDistribution) -> Any:
        return values[name] if name in values else middle(distribution)

    return choose


def _is_choice(distribution: BaseDistribution) -> bool:
    """Whether a parameter may bring up others: choices, and small integers such as a depth."""
    if isinstance(distribution, IntDistribution):
        return distribution.high - distribution.low <= MAX_DEPTHS
    return isinstance(distribution, CategoricalDistribution)


def ends(distribution: BaseDistribution) -> dict[str, Any]:
    """Return the lower and the upper end; for choices the first and the last."""
    if isinstance(distribution, CategoricalDistribution):
        return {"low": distribution.choices[0], "high": distribution.choices[-1]}
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return {"low": distribution.low, "high": distribution.high}


def extremes(distribution: BaseDistribution) -> list[Any]:
    """Return both ends of a range, or every choice."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    return list(dict.fromkeys(ends(distribution).values()))


def middle(distribution: BaseDistribution) -> Any:
    """Return the middle of a range on its own scale, or the first choice."""
    return at_share(distribution, 0.5)


def at_share(distribution: BaseDistribution, share: float) -> Any:
    """Return what lies at a share, 0 to 1, of a range on its own scale; or the first choice."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    value = low * (high / low) ** share if distribution.log else low + (high - low) * share
    if distribution.step is not None and not distribution.log:
        value = low + round((value - low) / distribution.step) * distribution.step
    if isinstance(distribution, IntDistribution):
        return min(max(round(value), low), high)
    return min(max(value, low), high)


def middle_config(study: Study) -> Config:
    """Return the config in the middle of a study's space, or, if that is refused, some other.

    Raises:
        StudyError: If the space fails, makes an invalid config, or refuses `MAX_DRAWS` draws.
    """
    sampler = Chooser(lambda _, distribution: middle(distribution))
    with suppress(optuna.TrialPruned):
        return study.config(optuna.create_study(sampler=sampler).ask())
    return example_config(study)


def example_config(study: Study) -> Config:
    """Return some config of a study's space, drawn beside the database.

    Raises:
        StudyError: If the space fails, makes an invalid config, or refuses `MAX_DRAWS` draws.
    """
    search = optuna.create_study(sampler=RandomSampler(seed=0))
    for _ in range(MAX_DRAWS):
        with suppress(optuna.TrialPruned):
            return study.config(search.ask())
    raise StudyError(f"{study.name}: {REFUSES_ALL}")


#: Kinds of network.
KNOWN = Mlp | Cnn
#: Shares of a range that are looked at.
SHARES = (0.25, 0.5, 0.75)
#: A parameter leaves its middle, or its first choice, for no less.
LEAST_GAIN = 0.1
#: What a parameter is best at depends on others, such as a rate on its optimiser.
N_ROUNDS = 2

#: Half of the logarithm of the work: a wider network needs fewer pictures, a deeper one does not.
WORK_WEIGHT = 0.5
#: Half of that of the batch: twice the batch is worth less than twice the steps.
BATCH_WEIGHT = 0.5
#: A layer that drops a quarter (0.29) learns from 1.4 times as many pictures.
DROPOUT_WEIGHT = 1.25
#: A tenth of the best rate takes three times as many; half or twice of it makes no difference.
RATE_WEIGHT = 0.75
RATE_TOLERANCE = math.log(2)
#: Of a batch of 64, a little above Keras's defaults: soon, not in the end, the best.
SOON_RATES = {"adam": 1.5e-3, "adamw": 1.5e-3, "rmsprop": 1e-3, "sgd": 0.1, "adadelta": 1.0}
USUAL_BATCH = 64
#: "SGD did not converge as quickly and stably", nor did Adadelta (report, section 2.2): twice.
SLOW = {"sgd": 0.7, "adadelta": 0.7}


def first_trials(study: Study, sampler: CoarseToFine) -> list[dict[str, Any]]:
    """Return what the trials of stage 1 take, those first that are expected to learn soon.

    The first one is half way to where learning is easy. Then come the sampler's own draws, the
    middle of the space among them, but for the one that would take the longest.

    Args:
        study: Its space is asked, beside the database.
        sampler: With a seed, and no first trials of its own.

    Returns:
        Parameters by name, trial by trial; none where nothing is known of the kind of network:
        own models, clocks.
    """
    space = _Space(study)
    try:
        example = middle_config(study)
        if not isinstance(example.model, KNOWN):
            return []
        space.shape = image_shape(example.data)
        first = _half_way_to_easy(space)
    except (DlnnSearchError, optuna.TrialPruned):
        return []
    search = optuna.create_study(sampler=sampler, direction=study.direction)
    draws = [space.ask(search) for _ in range(sampler.stages[0])]
    draws.sort(key=lambda asked: asked.effort)
    others = [asked.params for asked in draws if asked.params != first.params]
    return [first.params, *others][: sampler.stages[0]]


def _half_way_to_easy(space: _Space) -> _Asked:
    """Go from the middle of a space half way to where learning is easy.

    From the middle of all ranges, and each first choice, each parameter in turn goes to the
    quarter of its range, or the choice, with which learning is expected to be easiest, if that
    matters at all. Numbers come first, so that a choice is not left for another one whose own
    numbers happen to begin better; what a choice brings up takes part in the next round.
    """
    moved: dict[str, Any] = {}
    best = space.ask(_middle_but(moved))
    for _ in range(N_ROUNDS):
        asked = sorted(
            best.distributions.items(),
            key=lambda item: isinstance(item[1], CategoricalDistribution),
        )
        for name, distribution in asked:
            for value in _values(distribution):
                found = space.ask(_middle_but({**moved, name: value}))
                least = LEAST_GAIN if name not in moved else 0.0
                if found.effort < best.effort - least:
                    best, moved[name] = found, value
    return best


@dataclass(frozen=True)
class _Asked:
    """What a space made of a sampler's values.

    Attributes:
        effort: Infinite where it made no network.
    """

    effort: float
    params: dict[str, Any]
    distributions: dict[str, BaseDistribution]


@dataclass
class _Space:
    """A study's space, asked without the database."""

    study: Study
    shape: Shape = ()

    def ask(self, search: optuna.Study) -> _Asked:
        """Ask for the next trial of a search of its own."""
        trial = search.ask()
        try:
            needed = effort(self.study.config(trial), self.shape)
        except (DlnnSearchError, optuna.TrialPruned):
            needed = math.inf
        return _Asked(needed, trial.params, trial.distributions)


def _middle_but(moved: dict[str, Any]) -> optuna.Study:
    """Return a search whose trials have the middle of all, but for what was moved from it."""

    def choose(name: str, distribution: BaseDistribution) -> Any:
        return moved.get(name, middle(distribution))

    return optuna.create_study(sampler=Chooser(choose))


def _values(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    return list(dict.fromkeys(at_share(distribution, share) for share in SHARES))


def effort(config: Config, shape: Shape) -> float:
    """Return the logarithm of the time until a network has learnt something, up to a constant.

    It knows of a network's work, its dropout, its batch and its rate, each by one weight, and of
    nothing else. Infinite for networks of other kinds than perceptrons and convolutional ones: a
    clock's first difficulty is to leave chance, which is another matter.

    Raises:
        ModelError: If there is no such network.
    """
    model, training = config.model, config.training
    if not isinstance(model, KNOWN):
        return math.inf
    blocks = (*model.blocks, *(model.dense if isinstance(model, Cnn) else ()))
    dropped = sum(-math.log1p(-block.rate) for block in blocks if isinstance(block, Dropout))
    assert training.learning_rate is not None  # a config always names it
    rate = training.learning_rate
    if training.optimizer == "sgd":
        rate /= 1 - training.momentum
    soon = SOON_RATES[training.optimizer] * math.sqrt(training.batch_size / USUAL_BATCH)
    return (
        WORK_WEIGHT * math.log(seconds_an_image(config, shape))
        + BATCH_WEIGHT * math.log(training.batch_size)
        + DROPOUT_WEIGHT * dropped
        + RATE_WEIGHT * max(0.0, abs(math.log(rate / soon)) - RATE_TOLERANCE)
        + SLOW.get(training.optimizer, 0.0)
    )
