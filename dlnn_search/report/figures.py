"""A search in pictures and pages: Optuna's figures, regions, range tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from math import log10
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import plotly.graph_objects as go
import plotly.io as pio
from optuna import visualization
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState
from plotly.subplots import make_subplots

from dlnn_search.errors import StorageError, UsageError
from dlnn_search.metrics import metric_name, metric_unit
from dlnn_search.results.comparison import (
    MIN_TRIALS,
    Narrowing,
    Progress,
    ped_anova_share,
    ped_anova_shares,
    searched_trials,
)
from dlnn_search.results.confirmation import CONFIDENCE, Candidate, Confirmation, confirmation
from dlnn_search.results.status import shown_curves
from dlnn_search.samplers.observations import Numeric
from dlnn_search.storage.database import Database
from dlnn_search.storage.studies import StoredStudy
from dlnn_search.storage.trials import Point, Trial

if TYPE_CHECKING:
    from dlnn_search.training.rate_range import Sweep

STYLE = (
    "body{font:16px/1.45 system-ui,sans-serif;max-width:1100px;margin:24px auto;padding:0 16px;"
    "color:#222}h1{font-size:26px}h2{font-size:20px;margin-top:36px}p{color:#555}"
    "table{border-collapse:collapse}td,th{padding:4px 12px;text-align:right}"
    "th{border-bottom:1px solid #999}td:first-child,th:first-child{text-align:left}"
)


def page_of(
    title: str, figures: Sequence[tuple[str | None, go.Figure | str]], about: str = ""
) -> str:
    """Return a page of figures, one below the other.

    Args:
        title: Of the page.
        figures: Each with its heading; words in place of a figure say why there is none.
        about: A sentence below the title.
    """
    parts = [f"<h1>{escape(title)}</h1>"]
    if about:
        parts.append(f"<p>{escape(about)}</p>")
    has_library = False
    for heading, figure in figures:
        if heading:
            parts.append(f"<h2>{escape(heading)}</h2>")
        if isinstance(figure, str):
            parts.append(f"<p>{escape(figure)}</p>")
            continue
        parts.append(
            pio.to_html(figure, full_html=False, include_plotlyjs=not has_library, div_id=None)
        )
        has_library = True
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )


def write_page(path: Path, page: str) -> None:
    """Write a page.

    Raises:
        UsageError: If its name is no page's, or its folder does not exist.
        StorageError: If it cannot be written.
    """
    if path.suffix.lower() != ".html":
        raise UsageError(f"Expected a page to write, -o NAME.html, got '{path}'.")
    if not path.parent.is_dir():
        raise UsageError(f"There is no folder '{path.parent}' to write '{path.name}' into.")
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"Cannot write '{path}': {error.strerror or error}.") from error


def write_pages(
    output: Path, name: str, figures: Sequence[tuple[str | None, go.Figure | str]]
) -> list[Path]:
    """Write a study's figures: on one page, or into a folder, a page each.

    Args:
        output: A page's name, which ends in `.html`, or a folder's.
        name: The study's.
        figures: Each with its title.

    Raises:
        UsageError: If the page or folder cannot be meant.
        StorageError: If a file cannot be written.
    """
    if output.suffix.lower() == ".html":
        write_page(output, page_of(name, figures))
        return [output]
    if output.suffix or output.is_file():
        raise UsageError(f"Expected a page, -o NAME.html, or a folder, got '{output}'.")
    try:
        output.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"Cannot make the folder '{output}': {error.strerror or error}."
        ) from error
    paths = []
    for title, figure in figures:
        assert title is not None  # it is the file's name
        paths.append(output / f"{title.lower().replace(' ', '-')}.html")
        write_page(paths[-1], page_of(f"{name}: {title}", [(None, figure)]))
    return paths


MAX_CURVE_POINTS = 60
MAX_TICKS = 12
#: The picture shows so many trials at most, evenly chosen: it is loaded at each refresh.
MAX_POINTS = 300
ROW_PX = 130
BAND = "rgba(38, 110, 200, {:.2f})"


def narrowing_figure(narrowing: Narrowing, title: str) -> go.Figure:
    """Draw each parameter over the trials: the stages' ranges, the trials, and the best."""
    names = list(narrowing.distributions)
    figure = make_subplots(
        rows=max(1, len(names)),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.25 / max(4, len(names)),
    )
    shown = _evenly([t for t in narrowing.trials if t.params], MAX_POINTS)
    n_trials = max((trial.number for trial in narrowing.trials), default=0) + 1
    for row, name in enumerate(names, start=1):
        distribution = narrowing.distributions[name]
        _draw_bands(figure, row, name, distribution, narrowing.regions, n_trials)
        _draw_trials(figure, row, name, shown, narrowing.best)
        axis: dict[str, Any] = {"title": {"text": name, "font": {"size": 11}}}
        if isinstance(distribution, CategoricalDistribution):
            choices = [str(choice) for choice in distribution.choices]
            axis |= {"type": "category", "categoryorder": "array", "categoryarray": choices}
        else:
            assert isinstance(distribution, Numeric)
            if distribution.log:
                axis |= {"type": "log", "dtick": 1, "exponentformat": "power"}
        figure.update_yaxes(row=row, col=1, **axis)
    figure.update_xaxes(title_text="trial", row=max(1, len(names)), col=1)
    figure.update_layout(
        title=title, template="plotly_white", height=120 + ROW_PX * max(1, len(names))
    )
    return figure


def _draw_bands(
    figure: go.Figure,
    row: int,
    name: str,
    distribution: BaseDistribution,
    regions: Sequence[dict[str, Any]],
    n_trials: int,
) -> None:
    """Draw what was open to each stage, from its first trial to the next stage's."""
    stages: list[tuple[int, dict[str, Any] | None]] = [(0, None)]
    stages += [(region["first_trial"], region["parameters"].get(name)) for region in regions]
    ends = [first for first, _ in stages[1:]] + [n_trials]
    for (first, part), end in zip(stages, ends, strict=True):
        left, right = first - 0.5, max(first, end - 1) + 0.5
        if isinstance(distribution, CategoricalDistribution):
            n = len(distribution.choices)
            odds = part["odds"] if part is not None and len(part["odds"]) == n else [1 / n] * n
            boxes = [(i - 0.4, i + 0.4, share) for i, share in enumerate(odds)]
        else:
            assert isinstance(distribution, Numeric)
            low, high = distribution.low, distribution.high
            if part is not None:
                low, high = part["low"], part["high"]
            boxes = [(low, high, 0.35)]
        for low, high, share in boxes:
            figure.add_scatter(
                x=[left, right, right, left],
                y=[low, low, high, high],
                fill="toself",
                mode="none",
                fillcolor=BAND.format(0.6 * share),
                hoverinfo="skip",
                showlegend=False,
                row=row,
                col=1,
            )


def _draw_trials(
    figure: go.Figure,
    row: int,
    name: str,
    shown: Sequence[FrozenTrial],
    best: FrozenTrial | None,
) -> None:
    looks = {
        TrialState.COMPLETE: ("complete", "rgb(40, 40, 40)", "circle"),
        TrialState.PRUNED: ("pruned", "rgb(230, 140, 20)", "circle-open"),
        TrialState.FAIL: ("failed", "rgb(200, 40, 40)", "x"),
    }
    for state, (label, color, symbol) in looks.items():
        trials = [t for t in shown if t.state == state and name in t.params]
        if trials:
            figure.add_scatter(
                x=[t.number for t in trials],
                y=[_drawn(t, name) for t in trials],
                mode="markers",
                name=label,
                legendgroup=label,
                showlegend=row == 1,
                marker={"color": color, "symbol": symbol, "size": 5},
                row=row,
                col=1,
            )
    if best is not None and name in best.params:
        figure.add_scatter(
            x=[best.number],
            y=[_drawn(best, name)],
            mode="markers",
            name="best",
            legendgroup="best",
            showlegend=row == 1,
            marker={"color": "rgb(20, 150, 60)", "symbol": "star", "size": 13},
            row=row,
            col=1,
        )


def _drawn(trial: FrozenTrial, name: str) -> Any:
    value = trial.params[name]
    return str(value) if isinstance(trial.distributions[name], CategoricalDistribution) else value


def _evenly(trials: Sequence[FrozenTrial], n: int) -> list[FrozenTrial]:
    step = math.ceil(len(trials) / n) if trials else 1
    return list(trials[::step])


def sweep_page(sweep: Sweep, name: str, words: str) -> str:
    """Return the picture of a test as a page of its own."""
    figure = go.Figure()
    figure.add_scatter(
        x=sweep.rates,
        y=sweep.losses,
        mode="markers",
        marker={"size": 3, "color": "#9bb"},
        name="a batch",
    )
    figure.add_scatter(
        x=sweep.rates, y=sweep.smoothed, mode="lines", line={"width": 3}, name="smoothed"
    )
    marks = (
        (sweep.climbs_at, "starts to climb", "#2a7", 1.0),
        (sweep.half, "half of the highest", "#a60", 0.94),
        (sweep.highest, "highest that does not diverge", "#c22", 0.88),
    )
    for value, text, color, height in marks:
        if value is not None:
            figure.add_vline(x=value, line={"dash": "dash", "color": color})
            figure.add_annotation(
                x=log10(value),
                y=height,
                yref="paper",
                text=f"{text}: {value:.2g}",
                font={"color": color},
                showarrow=False,
                xanchor="right",
                xshift=-4,
            )
    ceiling = max(sweep.smoothed) * 1.2
    figure.update_layout(
        title=f"Learning-rate range test of {name}: {words}",
        xaxis={
            "title": "learning rate",
            "type": "log",
            "dtick": 1,
            "exponentformat": "power",
            "range": [log10(sweep.low), log10(sweep.high)],
        },
        yaxis={"title": "training loss", "range": [min(0.0, min(sweep.smoothed)), ceiling]},
        template="plotly_white",
    )
    return page_of(f"Learning-rate range test of {name}", [(None, figure)])


def learning_curves(
    study: StoredStudy, shown: Sequence[tuple[Trial, Sequence[Point]]]
) -> go.Figure:
    """Draw the study's metric by epoch, of the trials that `shown_curves` returns."""
    best = next((trial for trial, _ in shown if trial.outcome == "complete"), None)
    figure = go.Figure()
    for trial, points in sorted(shown, key=lambda pair: pair[0].number):
        line = _thinned([point for point in points if study.metric in point.metrics])
        if line:
            outcome = "best" if trial is best else trial.outcome
            figure.add_scatter(
                x=[point.epoch for point in line],
                y=[float(f"{point.metrics[study.metric]:.5g}") for point in line],
                mode="lines+markers",
                name=f"trial {trial.number}" + f", {outcome}" * (outcome != "complete"),
                line={
                    "dash": "dot" if outcome == "pruned" else "solid",
                    "width": 4 if trial is best else 2,
                },
            )
    n_epochs = max((len(points) for _, points in shown), default=1)
    figure.update_layout(
        title=f"Learning curves of {study.name}, validation",
        # No half epochs on the axis.
        xaxis={"title": "epoch", "dtick": 1 if n_epochs <= MAX_TICKS else None},
        yaxis_title=metric_name(study.metric) + metric_unit(study.metric),
        template="plotly_white",
    )
    return figure


def _thinned(line: Sequence[Point]) -> Sequence[Point]:
    step = -(-len(line) // MAX_CURVE_POINTS) if line else 1
    return line if step == 1 else [*line[:-1:step], line[-1]]


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


def confirmation_figure(study: StoredStudy, result: Confirmation) -> go.Figure:
    """Draw each candidate's value in the search beside its seeds and their mean."""
    order: Sequence[Candidate] = sorted(result.candidates, key=lambda one: one.search_rank)
    names = [
        f"trial {one.trial}" if one.study == study.name else f"trial {one.trial} of {one.study}"
        for one in order
    ]
    figure = go.Figure()
    figure.add_scatter(
        x=[name for name, one in zip(names, order, strict=True) for _ in one.values],
        y=[value for one in order for value in one.values],
        mode="markers",
        marker={"color": "#9bb", "size": 7},
        name="a fresh seed",
    )
    figure.add_scatter(
        x=names,
        y=[one.mean for one in order],
        error_y={"type": "data", "array": [one.half_interval or 0.0 for one in order]},
        mode="markers",
        marker={"color": "#27a", "size": 12, "symbol": "diamond"},
        name=f"their mean, {CONFIDENCE:.0%} interval",
    )
    figure.add_scatter(
        x=names,
        y=[one.search_value for one in order],
        mode="markers",
        marker={"color": "#c22", "size": 12, "symbol": "x"},
        name="in the search",
    )
    figure.update_layout(
        title=f"The winner's curse: the best of {study.name} with fresh seeds",
        xaxis_title="in the order of the search",
        yaxis_title=metric_name(study.metric) + metric_unit(study.metric),
        template="plotly_white",
    )
    return figure


#: A contour plot has a panel for each pair.
MAX_CONTOUR_PARAMETERS = 4
#: A parallel-coordinate plot with more axes cannot be read.
MAX_PARALLEL_PARAMETERS = 10

Figures = list[tuple[str, go.Figure | str]]


def study_figures(database: Database, study: StoredStudy) -> Figures:
    """Return every picture of a study with its title; words where there is too little to show."""
    searched = searched_trials(database, study)
    label = metric_name(study.metric) + metric_unit(study.metric)
    n_trials = len(searched.trials)
    names = _by_importance(searched)
    figures: Figures = [
        ("History", visualization.plot_optimization_history(searched, target_name=label)),
        ("Learning curves", learning_curves(study, shown_curves(database, study))),
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
    ranked = ped_anova_shares(searched)
    return [*ranked, *(name for name in seen if name not in ranked)]
