"""The corners of a space: the configs where a search breaks first, if it breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
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

from dlnn_search.config import Config
from dlnn_search.errors import StudyError
from dlnn_search.study import Study
from dlnn_search.worker.failures import MAX_DRAWS, REFUSES_ALL

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
