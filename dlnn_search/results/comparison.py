"""Several searches on the same axes; which parameters mattered in one, how its space narrowed."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.importance import (
    FanovaImportanceEvaluator,
    PedAnovaImportanceEvaluator,
    get_param_importances,
)
from optuna.trial import FrozenTrial, TrialState

from dlnn_search.errors import UsageError
from dlnn_search.metrics import is_better, metric_name
from dlnn_search.results.advice import next_words
from dlnn_search.results.status import study_status
from dlnn_search.samplers.observations import is_duplicate
from dlnn_search.samplers.regions import Edge, find_edges, stored_regions
from dlnn_search.storage.database import Database
from dlnn_search.storage.studies import StoredStudy, all_studies, parent_of
from dlnn_search.storage.trials import trials_of


@dataclass(frozen=True)
class Progress:
    """How a search got on, settled trial by settled trial.

    Attributes:
        study: Which.
        settings: Of its definition; a linked study trains what its parent's trials were.
        seconds: Of training until then, all workers' added up, pruned and failed trials' too.
        best: The best complete trial's value until then; None before the first one.
    """

    study: StoredStudy
    settings: Mapping[str, Any]
    seconds: tuple[float, ...]
    best: tuple[float | None, ...]

    def after_trials(self, n: int) -> float | None:
        """Return the best after so many trials."""
        return self.best[min(n, len(self.best)) - 1] if self.best and n else None

    def after_seconds(self, seconds: float) -> float | None:
        """Return the best after so much training."""
        n = sum(at <= seconds for at in self.seconds)
        return self.after_trials(n)


def progress_of(database: Database, study: StoredStudy) -> Progress:
    """Return how a search got on so far, in the order of its trials' numbers."""
    total, best = 0.0, None
    seconds: list[float] = []
    bests: list[float | None] = []
    for trial in trials_of(database, study):
        if not trial.is_settled:
            continue
        # One that has another's result cost nothing.
        total += trial.seconds if trial.reused_from is None else 0.0
        if trial.outcome == "complete" and is_better(trial.value or 0.0, best, study.direction):
            best = trial.value
        seconds.append(total)
        bests.append(best)
    return Progress(study, _settings_of(database, study), tuple(seconds), tuple(bests))


def _settings_of(database: Database, study: StoredStudy) -> Mapping[str, Any]:
    parent = parent_of(database, study.id)
    given_by = next((one for one in all_studies(database) if one.name == parent), study)
    settings: Mapping[str, Any] = given_by.definition["settings"]
    return settings


def compared(database: Database, studies: Sequence[StoredStudy]) -> list[Progress]:
    """Return the searches' progress, if they can be compared.

    Raises:
        UsageError: If they optimise different metrics, or one has no complete trial.
    """
    metrics = {study.metric for study in studies}
    if len(metrics) > 1:
        said = ", ".join(f"'{study.name}' {study.metric}" for study in studies)
        raise UsageError(f"Expected studies of one metric, got {said}.")
    if len({study.name for study in studies}) < len(studies) or len(studies) < 2:
        raise UsageError("Expected two or more different studies to compare.")
    found = [progress_of(database, study) for study in studies]
    for progress in found:
        if progress.after_trials(len(progress.best)) is None:
            raise UsageError(
                f"'{progress.study.name}' has no complete trial yet. "
                f"{next_words(study_status(database, progress.study))}"
            )
    return found


def differences(found: Sequence[Progress]) -> list[str]:
    """Return what makes the comparison unfair: other data or another number of epochs."""
    told = []
    for key in ("data", "epochs"):
        values = [one.settings.get(key) for one in found]
        if any(value != values[0] for value in values):
            told.append(key)
    return told


#: Fewer trials show luck.
MIN_TRIALS = 10
#: PED-ANOVA compares the best trials with all; it "is preferable to include at least 5".
MIN_TOP = 5
TOP_SHARE = 0.1


@dataclass(frozen=True)
class Importance:
    """One parameter's share of what mattered, in [0, 1].

    Attributes:
        name: Of the parameter.
        ped_anova: For being among the best trials.
        fanova: For the value, over the whole space; None for a parameter that not every trial
            has, or without scikit-learn.
    """

    name: str
    ped_anova: float
    fanova: float | None


@dataclass(frozen=True)
class Importances:
    """All parameters, the most important first.

    Attributes:
        rows: A parameter each.
        n_trials: Complete trials with parameters.
        top_share: Of them, those that count as the best.
        has_fanova: Whether scikit-learn is there for it.
    """

    rows: tuple[Importance, ...]
    n_trials: int
    top_share: float
    has_fanova: bool


def importances(database: Database, study: StoredStudy) -> Importances:
    """Return how much each parameter mattered.

    Raises:
        UsageError: If there are too few complete trials.

    Source: Watanabe et al., PED-ANOVA, IJCAI 2023; Hutter et al., An Efficient Approach for
    Assessing Hyperparameter Importance, ICML 2014.
    """
    optuna_study = searched_trials(database, study)
    n_trials = len(optuna_study.get_trials(deepcopy=False))
    if n_trials < MIN_TRIALS:
        raise UsageError(
            f"Expected at least {MIN_TRIALS} complete trials to tell what mattered, "
            f"'{study.name}' has {n_trials}. {next_words(study_status(database, study))}"
        )
    top_share, ped = ped_anova_share(n_trials), ped_anova_shares(optuna_study)
    fanova: dict[str, float] = {}
    has_fanova = importlib.util.find_spec("sklearn") is not None
    if has_fanova:
        fanova = get_param_importances(optuna_study, evaluator=FanovaImportanceEvaluator(seed=0))
    rows = tuple(Importance(name, share, fanova.get(name)) for name, share in ped.items())
    return Importances(rows, n_trials, top_share, has_fanova)


def ped_anova_share(n_trials: int) -> float:
    """Return which share of the trials counts as the best: a tenth, but five at least."""
    return min(0.5, max(TOP_SHARE, MIN_TOP / n_trials))


def ped_anova_shares(searched: optuna.Study) -> dict[str, float]:
    """Return each parameter's share of what made the best trials, the most important first."""
    top_share = ped_anova_share(len(searched.get_trials(deepcopy=False)))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=top_share)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_param_importances(searched, evaluator=evaluator)


def by_importance(searched: optuna.Study) -> list[str]:
    """Return the parameters' names, the most important first.

    With fewer than `MIN_TRIALS` trials, and for parameters that not every trial has, the order
    is that of the space.
    """
    trials = searched.get_trials(deepcopy=False)
    seen = dict.fromkeys(name for trial in trials for name in trial.params)
    ranked = ped_anova_shares(searched) if len(trials) >= MIN_TRIALS else {}
    return [*ranked, *(name for name in seen if name not in ranked)]


def searched_trials(database: Database, study: StoredStudy) -> optuna.Study:
    """Return a study in memory with the complete trials that have parameters of their own.

    Trials of given configs have none, and would leave no parameter that all trials have.
    """
    stored = optuna.load_study(study_name=study.name, storage=database.optuna)
    found = _in_memory(stored, stored.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        found.set_metric_names([metric_name(study.metric)])
    return found


def _in_memory(stored: optuna.Study, complete: Sequence[FrozenTrial]) -> optuna.Study:
    found = optuna.create_study(study_name=stored.study_name, direction=stored.direction)
    found.add_trials([t for t in complete if t.params and not is_duplicate(t)])
    return found


@dataclass(frozen=True)
class Narrowing:
    """What there is to show of a study.

    Attributes:
        regions: As stored, by stage: `stage`, `first_trial`, `finished_trials`, `parameters`.
        distributions: By parameter, as declared; the most important parameter first.
        trials: Finished ones.
        best: The best complete one.
        edges: Parameters whose best value lies at an end of the declared range.
    """

    regions: list[dict[str, Any]]
    distributions: dict[str, BaseDistribution]
    trials: list[FrozenTrial]
    best: FrozenTrial | None
    edges: list[Edge]


def narrowing_of(study: optuna.Study) -> Narrowing:
    """Read what a study's trials and stored regions tell."""
    trials = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished()]
    distributions: dict[str, BaseDistribution] = {}
    for trial in trials:
        for name, distribution in trial.distributions.items():
            distributions.setdefault(name, distribution)
    by_number = [t for t in trials if t.state == TrialState.COMPLETE]
    order = dict.fromkeys([*by_importance(_in_memory(study, by_number)), *distributions])
    distributions = {name: distributions[name] for name in order}
    maximize = study.direction == optuna.study.StudyDirection.MAXIMIZE
    complete = [t for t in trials if t.state == TrialState.COMPLETE and t.value is not None]
    complete.sort(key=lambda t: (-t.values[0] if maximize else t.values[0], t.number))
    edges = find_edges(complete, len(complete))
    best = complete[0] if complete else None
    return Narrowing(stored_regions(study), distributions, trials, best, edges)
