"""Warm start: the best configs of another search, and known good ones, are tried first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import RandomSampler
from optuna.trial import TrialState
from pydantic import ValidationError

from dlnn_search import data
from dlnn_search.commands.confirm import identity
from dlnn_search.config import Config, explain
from dlnn_search.errors import StudyError, UsageError
from dlnn_search.optuna_version import trial_id_of
from dlnn_search.results.status import best_trials
from dlnn_search.samplers.observations import fits
from dlnn_search.storage.database import Database, storage_errors
from dlnn_search.storage.studies import StoredStudy, find, give_first
from dlnn_search.study import Study
from dlnn_search.study.named_configs import NAMED, find_config
from dlnn_search.worker.verdict import MAX_DRAWS

#: `--enqueue known`: every named config of the study's kind of data and network.
KNOWN = "known"
MAX_TOP = 1_000


@dataclass(frozen=True)
class WarmStart:
    """What shall be tried first.

    Attributes:
        source: A study of the same database, whose best trials are tried; None for none.
        top: How many of them.
        names: Of configs, built-in ones or files; `known` for all that fit.
    """

    source: str | None = None
    top: int = 5
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.top <= MAX_TOP:
            raise UsageError(f"Expected 1 to {MAX_TOP} trials to start from, got --top {self.top}.")


def warm_start(
    study: Study,
    database: Database,
    stored: StoredStudy,
    optuna_study: optuna.Study,
    wanted: WarmStart,
    example: Config,
) -> list[str]:
    """Let the study's next slots try what is wanted; what they tried already is left out.

    Args:
        study: The one that starts.
        database: With its slots.
        stored: The same study, stored.
        optuna_study: The same, Optuna's.
        wanted: Another study's trials, named configs, or both.
        example: Some config of the study's space.

    Returns:
        A sentence for each trial and config, and for what could not be taken.

    Raises:
        UsageError: If there is no such study or config, or a config cannot be trained on the
            study's data.
    """
    said = _give(study, database, stored, wanted.names, example) if wanted.names else []
    if wanted.source is not None:
        said += _enqueue_trials(
            study, database, optuna_study, find(database, wanted.source), wanted
        )
    return said


def _enqueue_trials(
    study: Study,
    database: Database,
    optuna_study: optuna.Study,
    source: StoredStudy,
    wanted: WarmStart,
) -> list[str]:
    if source.name == study.name:
        raise UsageError(f"Expected another study to start from, got '{source.name}' itself.")
    best = best_trials(database, source, wanted.top)
    if not best:
        raise UsageError(f"'{source.name}' has no complete trial to start from.")
    with storage_errors(database.url):
        loaded = optuna.load_study(study_name=source.name, storage=database.optuna)
        params = {
            trial_id_of(loaded, trial): trial.params
            for trial in loaded.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        }
        tried = [
            trial.system_attrs.get("fixed_params", trial.params)
            for trial in optuna_study.get_trials(deepcopy=False)
        ]
        said = []
        for trial in best:
            name = f"Trial {trial.number} of {source.name}"
            given = params.get(trial.trial_id or -1, {})
            try:
                taken, left, new = agreeing(study, given)
            except optuna.TrialPruned:
                said.append(
                    f"{name}: this study's space refuses it (optuna.TrialPruned); left out."
                )
                continue
            if not taken:
                said.append(f"{name}: no parameter that this study's space has; left out.")
                continue
            if taken in tried:
                said.append(f"{name}: was enqueued already.")
                continue
            tried.append(taken)
            optuna_study.enqueue_trial(taken, user_attrs={"from": name})
            words = f"{name} is enqueued with {len(taken)} of its {len(given)} parameters."
            if left:
                words += f" Not taken: {', '.join(left)}."
            if new:
                words += f" Drawn anew: {', '.join(new)}."
            said.append(words)
    return said


def agreeing(study: Study, given: dict[str, Any]) -> tuple[dict[str, Any], list[str], list[str]]:
    """Return which of another study's parameters a study's space can take.

    Args:
        study: Its space is asked, beside the database.
        given: Values by name.

    Returns:
        The values that fit; the others, with why; the names of what the space asks besides.

    Raises:
        TrialPruned: If the space refuses the values, whatever is drawn besides.
    """
    asked: dict[str, BaseDistribution] = {}

    class _Given(RandomSampler):
        def sample_independent(
            self,
            study: optuna.Study,
            trial: optuna.trial.FrozenTrial,
            param_name: str,
            param_distribution: BaseDistribution,
        ) -> Any:
            asked[param_name] = param_distribution
            if param_name in given and fits(given[param_name], param_distribution):
                return given[param_name]
            return super().sample_independent(study, trial, param_name, param_distribution)

    search = optuna.create_study(sampler=_Given(seed=0))
    for n_left in reversed(range(MAX_DRAWS)):
        try:
            study.config(search.ask())
            break
        except optuna.TrialPruned:  # it may be for what was drawn beside
            if not n_left:
                raise
    taken, left = {}, []
    for name, value in given.items():
        shown = f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        if name not in asked:
            left.append(f"{shown} (not in this space)")
        elif fits(value, asked[name]):
            taken[name] = value
        else:
            left.append(f"{shown} ({_why_not(value, asked[name])})")
    return taken, left, [name for name in asked if name not in taken]


def _why_not(value: Any, distribution: BaseDistribution) -> str:
    """Return why a parameter cannot have a value."""
    step, low = getattr(distribution, "step", None), getattr(distribution, "low", None)
    is_number = isinstance(value, int | float) and low is not None
    if not is_number or not step or not low <= value <= getattr(distribution, "high", low):
        return f"outside of {_range_words(distribution)}"
    below = low + math.floor((value - low) / step) * step
    return f"off the grid: the nearest values are {below:.6g} and {below + step:.6g}"


def _range_words(distribution: BaseDistribution) -> str:
    choices = getattr(distribution, "choices", None)
    if choices is not None:
        return f"{', '.join(map(str, choices))}"
    return f"{getattr(distribution, 'low', '?')} to {getattr(distribution, 'high', '?')}"


def _give(
    study: Study,
    database: Database,
    stored: StoredStudy,
    names: Sequence[str],
    example: Config,
) -> list[str]:
    if KNOWN in names:
        names = [*(name for name in names if name != KNOWN), *_known(example)]
    configs = [_on_study(study, find_config(name), name, example) for name in names]
    if not configs:
        return ["No known config fits this study's data and kind of network."]
    plain = [config.model_dump(mode="json") for config in configs]
    n_given, n_left = give_first(database, stored.id, plain, identity)
    said = [f"{n_given} of {len(names)} configs are tried first: {', '.join(names)}."]
    if n_given + n_left < len(names):
        said.append(f"{len(names) - n_given - n_left} of them this study has already.")
    if n_left:
        said.append(
            f"{n_left} found no trial left that has not begun: raise the budget with --trials."
        )
    return said


def _known(example: Config) -> list[str]:
    """Return the named configs of an example's kind of network that are not another data set's."""
    found = []
    for name, make in NAMED.items():
        config = make()
        is_base = name in ("mnist_mlp", "mnist_cnn")  # the report's base models for both sets
        of_data = type(config.data) is type(example.data) or is_base
        if of_data and config.model.kind == example.model.kind and not name.startswith("permuted_"):
            found.append(name)
    return found


def _on_study(study: Study, config: Config, name: str, example: Config) -> Config:
    """Return a config as the study would train it: its data, its metric, not more epochs."""
    pictures = data.resolve(study.data or example.data)
    plain = config.model_dump()
    plain["data"] = pictures.model_dump()
    plain["training"]["monitor"] = study.metric
    plain["training"]["epochs"] = min(
        config.training.epochs, study.epochs or example.training.epochs
    )
    plain["origin"] = None
    try:
        return study.with_own_code(Config.model_validate(plain))
    except (ValidationError, StudyError) as error:
        why = explain(error) if isinstance(error, ValidationError) else str(error)
        raise UsageError(
            f"'{name}' cannot be trained in '{study.name}': {why.rstrip('.')}."
        ) from error
