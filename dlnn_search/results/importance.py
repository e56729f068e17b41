"""Which parameters of a search mattered, by Optuna's evaluators."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass

import optuna
from optuna.importance import (
    FanovaImportanceEvaluator,
    PedAnovaImportanceEvaluator,
    get_param_importances,
)
from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table

from dlnn_search.errors import UsageError
from dlnn_search.samplers.observations import is_duplicate
from dlnn_search.storage.database import Database
from dlnn_search.storage.definitions import StoredStudy

#: Fewer trials show luck.
MIN_TRIALS = 10
#: PED-ANOVA compares the best trials with all; it "is preferable to include at least 5".
MIN_TOP = 5
TOP_SHARE = 0.1
BAR_COLUMNS = 30


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
    n_trials = len(optuna_study.trials)
    if n_trials < MIN_TRIALS:
        raise UsageError(
            f"Expected at least {MIN_TRIALS} complete trials to tell what mattered, "
            f"'{study.name}' has {n_trials}. Search on with 'dlnn-search start {study.name}'."
        )
    top_share = ped_anova_share(n_trials)
    ped = get_param_importances(
        optuna_study, evaluator=PedAnovaImportanceEvaluator(target_quantile=top_share)
    )
    fanova: dict[str, float] = {}
    has_fanova = importlib.util.find_spec("sklearn") is not None
    if has_fanova:
        fanova = get_param_importances(optuna_study, evaluator=FanovaImportanceEvaluator(seed=0))
    rows = tuple(Importance(name, share, fanova.get(name)) for name, share in ped.items())
    return Importances(rows, n_trials, top_share, has_fanova)


def ped_anova_share(n_trials: int) -> float:
    """Return which share of the trials counts as the best: a tenth, but five at least."""
    return min(0.5, max(TOP_SHARE, MIN_TOP / n_trials))


def searched_trials(database: Database, study: StoredStudy) -> optuna.Study:
    """Return a study in memory with the complete trials that have parameters of their own.

    Trials of given configs have none, and would leave no parameter that all trials have.
    """
    stored = optuna.load_study(study_name=study.name, storage=database.optuna)
    chosen = [
        trial
        for trial in stored.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if trial.params and not is_duplicate(trial)
    ]
    found = optuna.create_study(study_name=study.name, direction=stored.direction)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        found.add_trials(chosen)
        found.set_metric_names([study.metric.replace("_", " ")])
    return found


def print_importances(console: Console, study: StoredStudy, found: Importances) -> None:
    """Print a row a parameter, the most important first."""
    console.print(
        f"{study.name}: what mattered in {found.n_trials} complete trials, as shares\n",
        markup=False,
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("parameter", no_wrap=True)
    table.add_column(f"for the best {found.top_share:.0%}", justify="right", no_wrap=True)
    table.add_column("")
    if found.has_fanova:
        table.add_column("for the value", justify="right", no_wrap=True)
    for row in found.rows:
        cells = [row.name, f"{row.ped_anova:.3f}", "#" * round(BAR_COLUMNS * row.ped_anova)]
        if found.has_fanova:
            cells.append("-" if row.fanova is None else f"{row.fanova:.3f}")
        table.add_row(*cells)
    console.print(table)
    console.print(
        "\nFor the best: PED-ANOVA. "
        + (
            "For the value: fANOVA, of parameters that every trial has."
            if found.has_fanova
            else "With scikit-learn installed (pip install scikit-learn) fANOVA comes beside it."
        ),
        soft_wrap=True,
    )
