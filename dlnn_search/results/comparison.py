"""Several searches on the same axes, and which parameters mattered in one of them."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
import plotly.graph_objects as go
import sqlalchemy as sa
from optuna.importance import (
    FanovaImportanceEvaluator,
    PedAnovaImportanceEvaluator,
    get_param_importances,
)
from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table

from dlnn_search.errors import UsageError
from dlnn_search.metrics import duration, is_better, metric_name, metric_unit, metric_value
from dlnn_search.samplers.observations import is_duplicate
from dlnn_search.storage.database import Database
from dlnn_search.storage.duplicates import TRAINED_ITSELF
from dlnn_search.storage.schema import curves, slots
from dlnn_search.storage.studies import StoredStudy, all_studies, parent_of


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
    spent = (
        sa.select(curves.c.slot_id, sa.func.sum(curves.c.seconds).label("seconds"))
        .join(slots, slots.c.id == curves.c.slot_id)
        # A slot that has another's result cost nothing.
        .where(slots.c.study_id == study.id, TRAINED_ITSELF)
        .group_by(curves.c.slot_id)
        .subquery()
    )
    with database.transaction() as connection:
        rows = connection.execute(
            sa.select(slots.c.outcome, slots.c.value, spent.c.seconds)
            .outerjoin(spent, spent.c.slot_id == slots.c.id)
            .where(slots.c.study_id == study.id, slots.c.state == "done")
            .where(slots.c.trial_number.is_not(None))
            .order_by(slots.c.trial_number)
        ).all()
    total, best = 0.0, None
    seconds: list[float] = []
    bests: list[float | None] = []
    for row in rows:
        total += row.seconds or 0.0
        if row.outcome == "complete" and is_better(row.value, best, study.direction):
            best = row.value
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
                f"Search with 'dlnn-search start {progress.study.name}'."
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


def print_comparison(console: Console, found: Sequence[Progress]) -> None:
    """Print the best of each search, in all and at the budget that all of them had."""
    first = found[0].study
    n_common = min(len(one.best) for one in found)
    seconds = min(one.seconds[-1] for one in found)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("study", no_wrap=True)
    for title in (
        "trials",
        "training",
        "best",
        f"after {n_common} trial{'s' if n_common != 1 else ''}",
        f"after {duration(seconds)}",
    ):
        table.add_column(title, justify="right", no_wrap=True)
    for one in found:
        values = (
            one.best[-1],
            one.after_trials(n_common),
            one.after_seconds(seconds),
        )
        table.add_row(
            one.study.name,
            str(len(one.best)),
            duration(one.seconds[-1]),
            *("-" if value is None else metric_value(first.metric, value) for value in values),
        )
    console.print(
        f"Best {metric_name(first.metric)} on validation; the last columns at equal budgets\n",
        soft_wrap=True,
    )
    console.print(table)
    unfair = differences(found)
    if unfair:
        console.print(
            f"\nMind: their {' and '.join(unfair)} differ, so the values tell of that, too.",
            soft_wrap=True,
        )


def comparison_figures(found: Sequence[Progress]) -> list[tuple[str, go.Figure]]:
    """Draw the best so far against trials, and against the seconds of training."""
    by_trials, by_seconds = go.Figure(), go.Figure()
    for one in found:
        line: dict[str, Any] = {"mode": "lines", "line": {"shape": "hv"}, "name": one.study.name}
        by_trials.add_scatter(x=list(range(1, len(one.best) + 1)), y=one.best, **line)
        by_seconds.add_scatter(x=one.seconds, y=one.best, **line)
    metric = found[0].study.metric
    for figure, against in (
        (by_trials, "trials"),
        (by_seconds, "seconds of training, all workers"),
    ):
        figure.update_layout(
            xaxis_title=against,
            yaxis_title=f"best {metric_name(metric)}{metric_unit(metric)} so far, validation",
            template="plotly_white",
            showlegend=True,
        )
    return [
        ("Best so far, by trials", by_trials),
        ("Best so far, by training time", by_seconds),
    ]


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
