"""A search in pictures, by Optuna's own functions where it has them; pages, and the dashboard."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import optuna
import plotly.graph_objects as go
from optuna import visualization
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from dlnn_search.results.confirmation import confirmation, confirmation_figure
from dlnn_search.results.importance import MIN_TRIALS, ped_anova_share, searched_trials
from dlnn_search.storage.database import Database
from dlnn_search.storage.definitions import StoredStudy
from dlnn_search.words import metric_name, metric_unit

#: A contour plot has a panel for each pair.
MAX_CONTOUR_PARAMETERS = 4
#: A parallel-coordinate plot with more axes cannot be read.
MAX_PARALLEL_PARAMETERS = 10

Figures = list[tuple[str, go.Figure | str]]


def study_figures(database: Database, study: StoredStudy) -> Figures:
    """Return every picture of a study with its title; words where there is too little to show."""
    # Here and not above: it brings the dashboard.
    from dlnn_search.dashboard.curves import learning_curves

    searched = searched_trials(database, study)
    label = metric_name(study.metric) + metric_unit(study.metric)
    n_trials = len(searched.trials)
    names = _by_importance(searched)
    figures: Figures = [
        ("History", visualization.plot_optimization_history(searched, target_name=label)),
        ("Learning curves", learning_curves(database, study)),
    ]

    def add(title: str, draw: Callable[[], go.Figure], least: int, n_parameters: int = 1) -> None:
        if n_trials < least:
            figures.append(
                (title, f"Needs {least} complete trials with parameters; there are {n_trials}.")
            )
        elif len(names) < n_parameters:
            figures.append((title, f"Needs {n_parameters} parameters; there are {len(names)}."))
        else:
            figures.append((title, draw()))

    add(
        "Importance",
        lambda: visualization.plot_param_importances(
            searched,
            evaluator=PedAnovaImportanceEvaluator(target_quantile=ped_anova_share(n_trials)),
            target_name=label,
        ),
        MIN_TRIALS,
    )
    add(
        "Parallel coordinates",
        lambda: visualization.plot_parallel_coordinate(
            searched, params=names[:MAX_PARALLEL_PARAMETERS], target_name=label
        ),
        2,
    )
    add("Slices", lambda: visualization.plot_slice(searched, params=names, target_name=label), 1)
    add("Contours", lambda: _contours(searched, names, label), 3, 2)
    confirmed = confirmation(database, study)
    if confirmed is not None:
        figures.append(("Confirmation", confirmation_figure(study, confirmed)))
    return figures


def put_into_dashboard(
    database: Database, study_name: str, figure: go.Figure, figure_id: str
) -> None:
    """Show a figure on a study's page in optuna-dashboard."""
    from optuna_dashboard import save_plotly_graph_object

    study = optuna.load_study(study_name=study_name, storage=database.optuna)
    save_plotly_graph_object(study, figure, graph_object_id=figure_id)


def _contours(searched: optuna.Study, names: list[str], label: str) -> go.Figure:
    chosen = names[:MAX_CONTOUR_PARAMETERS]
    figure = visualization.plot_contour(searched, params=chosen, target_name=label)
    if len(chosen) > 2:
        figure.update_layout(height=260 * len(chosen))
    return figure


def _by_importance(searched: optuna.Study) -> list[str]:
    """Return the parameters' names, the most important first, where that can be told."""
    seen = dict.fromkeys(name for trial in searched.trials for name in trial.params)
    if len(searched.trials) < MIN_TRIALS:
        return list(seen)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ranked = get_param_importances(
            searched,
            evaluator=PedAnovaImportanceEvaluator(
                target_quantile=ped_anova_share(len(searched.trials))
            ),
        )
    return [*ranked, *(name for name in seen if name not in ranked)]
