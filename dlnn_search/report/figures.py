"""A search in pictures: history, curves, importance, regions, range tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from math import log10
from typing import TYPE_CHECKING, Any

import optuna
import plotly.graph_objects as go
from optuna import visualization
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState
from plotly.subplots import make_subplots

from dlnn_search.metrics import count_words, loss_sign, metric_name, metric_value
from dlnn_search.report.evaluation import confirmation_figure
from dlnn_search.report.pages import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    Drawn,
    Picture,
    axis_label,
    hover_value,
    is_counted,
    log_marks,
    page_of,
    parameter_axis,
    placed,
    plain_text,
    round_marks,
    value_axis,
)
from dlnn_search.results.comparison import (
    MIN_TRIALS,
    Narrowing,
    Progress,
    by_importance,
    ped_anova_shares,
    searched_trials,
)
from dlnn_search.results.confirmation import confirmation
from dlnn_search.results.status import shown_curves
from dlnn_search.samplers.observations import Numeric
from dlnn_search.storage.database import Database
from dlnn_search.storage.studies import StoredStudy
from dlnn_search.storage.trials import Point, Trial

if TYPE_CHECKING:
    from dlnn_search.training.rate_range import Sweep

MAX_CURVE_POINTS = 60
MAX_TICKS = 12
#: Curves with a colour and a name; the rest stays in the background.
MAX_NAMED_CURVES = 6
#: The picture shows so many trials at most, evenly chosen: it is loaded at each refresh.
MAX_POINTS = 300
#: Parameters that the dashboard's picture shows at once: its place is 450 pixels high.
AT_ONCE = 4
PANEL_PX = 260
BAND = "rgba(59, 130, 196, {:.2f})"
REGIONS_NOTE = (
    "The most important parameters come first. A band shows the values from which a stage draws; "
    "for choices, a stronger band is a likelier choice. Dots are complete trials, open circles "
    "pruned ones, crosses failed ones. The star is the best trial."
)


def region_figures(narrowing: Narrowing) -> list[go.Figure]:
    """Draw each parameter over the trials: the stages' ranges, the trials, and the best."""
    figures = []
    shown = _evenly([t for t in narrowing.trials if t.params], MAX_POINTS)
    n_trials = max((trial.number for trial in narrowing.trials), default=0) + 1
    for name, distribution in narrowing.distributions.items():
        figure = go.Figure()
        _draw_bands(figure, name, distribution, narrowing.regions, n_trials)
        _draw_trials(figure, name, distribution, shown, narrowing.best)
        figure.update_layout(
            title_text=plain_text(name),
            xaxis={"title": "trial", "range": [-0.7, n_trials - 0.3], "rangemode": "nonnegative"},
            yaxis=parameter_axis(distribution) | {"zeroline": False},
            height=PANEL_PX,
            showlegend=False,
        )
        figures.append(figure)
    return figures


def narrowing_figure(narrowing: Narrowing, title: str) -> go.Figure:
    """Draw the parameters in one figure, four at once, with a menu that leads to the others."""
    panels = region_figures(narrowing)
    figure = make_subplots(rows=2, cols=2, horizontal_spacing=0.14, vertical_spacing=0.16)
    owners = []
    for number, panel in enumerate(panels):
        row, column = divmod(number % AT_ONCE, 2)
        for trace in panel.data:
            is_first = trace.name is not None and number % AT_ONCE == 0
            trace.update(visible=number < AT_ONCE, showlegend=is_first)
            figure.add_trace(trace, row=row + 1, col=column + 1)
            owners.append(number // AT_ONCE)
    pages = [panels[i : i + AT_ONCE] for i in range(0, len(panels), AT_ONCE)]
    buttons = []
    for page, shown in enumerate(pages):
        axes: dict[str, Any] = {}
        for place in range(AT_ONCE):
            end = str(place + 1) if place else ""
            is_there = place < len(shown)
            axes |= {f"xaxis{end}.visible": is_there, f"yaxis{end}.visible": is_there}
            if is_there:
                scale = shown[place].layout.yaxis
                for key in ("type", "range", "tickvals", "ticktext"):
                    axes[f"yaxis{end}.{key}"] = scale[key]
                axes[f"yaxis{end}.title.text"] = shown[place].layout.title.text
        if page == 0:
            figure.update_layout({key.replace(".", "_"): value for key, value in axes.items()})
        first = page * AT_ONCE + 1
        label = f"Parameters {first} to {first + len(shown) - 1} of {len(panels)}"
        args = [{"visible": [owner == page for owner in owners]}, axes]
        buttons.append({"label": label, "method": "update", "args": args})
    if panels:
        figure.update_xaxes(range=panels[0].layout.xaxis.range, title_font_size=11)
        figure.update_xaxes(title_text="trial", row=2)
    figure.update_yaxes(zeroline=False, title_font_size=12, title_standoff=4, automargin=True)
    figure.update_layout(
        title=plain_text(title),
        legend={"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom"},
        margin={"l": 60, "r": 20, "t": 104, "b": 44},
    )
    if len(pages) > 1:
        menu = {"buttons": buttons, "x": 1, "xanchor": "right", "y": 1.03, "yanchor": "bottom"}
        figure.update_layout(updatemenus=[menu | {"pad": {"t": 0, "b": 0}, "font": {"size": 11}}])
    return figure


def _draw_bands(
    figure: go.Figure,
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
            if is_counted(distribution):
                low, high = low - 0.4, high + 0.4
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
            )


def _draw_trials(
    figure: go.Figure,
    name: str,
    distribution: BaseDistribution,
    shown: Sequence[FrozenTrial],
    best: FrozenTrial | None,
) -> None:
    groups = [
        ("complete", TrialState.COMPLETE, {"color": "#52606d", "symbol": "circle", "size": 5}),
        ("pruned", TrialState.PRUNED, {"color": ORANGE, "symbol": "circle-open", "size": 5}),
        ("failed", TrialState.FAIL, {"color": RED, "symbol": "x", "size": 6}),
        ("best", None, {"color": GREEN, "symbol": "star", "size": 13}),
    ]
    for label, state, marker in groups:
        of_state = [t for t in shown if t.state == state]
        trials = of_state if state is not None else [best] if best is not None else []
        # A space that was edited may have had other choices: such a value has no place here.
        known = [t for t in trials if t.distributions.get(name) == distribution]
        if known:
            figure.add_scatter(
                x=[t.number for t in known],
                y=[placed(distribution, t.params[name]) for t in known],
                text=[_short(t.params[name]) for t in known],
                hovertemplate=f"trial %{{x}}, {label}: %{{text}}<extra></extra>",
                mode="markers",
                name=label,
                legendgroup=label,
                marker=marker,
            )


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else plain_text(value)


def _evenly(trials: Sequence[FrozenTrial], n: int) -> list[FrozenTrial]:
    step = math.ceil(len(trials) / n) if trials else 1
    return list(trials[::step])


def sweep_page(sweep: Sweep, name: str, words: str) -> str:
    """Return the picture of a range test as a page of its own."""
    ceiling, floor = max(sweep.smoothed) * 1.2, min(0.0, min(sweep.smoothed))
    hover = "rate %{x:.3g}: loss %{y:.4g}<extra></extra>"
    figure = go.Figure()
    figure.add_scatter(
        x=sweep.rates,
        y=sweep.losses,
        mode="markers",
        marker={"size": 3, "color": GREY},
        name="one batch",
        hovertemplate=hover,
    )
    figure.add_scatter(
        x=sweep.rates,
        y=sweep.smoothed,
        mode="lines",
        line={"width": 3, "color": BLUE},
        name="smoothed",
        hovertemplate=hover,
    )
    marks = (
        (sweep.climbs_at, "lowest loss", GREEN),
        (sweep.half, "half of the highest rate", ORANGE),
        (sweep.highest, "highest rate that does not diverge", RED),
    )
    for value, text, color in marks:
        if value is not None:
            figure.add_scatter(
                x=[value, value],
                y=[floor, ceiling],
                mode="lines",
                line={"dash": "dash", "color": color},
                name=f"{text}: {value:.2g}",
                hoverinfo="skip",
            )
    marks_of_x = log_marks(sweep.low, sweep.high)
    figure.update_layout(
        xaxis={
            "title": "learning rate",
            "type": "log",
            "tickvals": marks_of_x,
            "ticktext": [f"{mark:g}" for mark in marks_of_x],
            "range": [log10(sweep.low), log10(sweep.high)],
        },
        yaxis={"title": "training loss", "range": [floor - 0.03 * ceiling, ceiling]},
        height=480,
    )
    title = f"Learning-rate range test of {name}"
    note = (
        f"{len(sweep.rates)} batches of {words.rstrip(',')}. The learning rate rises from batch to "
        "batch, until the loss climbs again."
    )
    return page_of(title, [Picture(title, figure, note)])


def learning_curves(
    study: StoredStudy, shown: Sequence[tuple[Trial, Sequence[Point]]]
) -> go.Figure:
    """Draw the study's metric by epoch, of the trials that `shown_curves` returns.

    The best trials and those under way have colours and names; the others stay in the background.
    """
    best = next((trial for trial, _ in shown if trial.outcome == "complete"), None)
    metric, figure = study.metric, go.Figure()
    named = [trial for trial, _ in shown if trial.outcome != "pruned"][:MAX_NAMED_CURVES]
    for trial, points in sorted(shown, key=lambda pair: (pair[0] in named, pair[0].number)):
        line = _thinned([point for point in points if metric in point.metrics])
        if line:
            outcome = "best" if trial is best else trial.outcome
            name = f"trial {trial.number}" + f", {outcome}" * (outcome != "complete")
            look: dict[str, Any] = {"width": 4 if trial is best else 2}
            if trial not in named:
                look = {"width": 1, "color": GREY}
            elif trial is best:
                look["color"] = GREEN
            figure.add_scatter(
                x=[point.epoch for point in line],
                y=[float(f"{point.metrics[metric]:.5g}") for point in line],
                mode="lines+markers",
                name=name,
                showlegend=trial in named,
                line=look | {"dash": "dot" if outcome == "pruned" else "solid"},
                marker={"size": 6 if trial in named else 3},
                hovertemplate=f"{name}, epoch %{{x}}: {hover_value(metric)}<extra></extra>",
            )
    n_epochs = max((len(points) for _, points in shown), default=1)
    scale = value_axis(metric, (value for line in figure.data for value in line.y))
    figure.update_layout(
        title=f"Learning curves of {plain_text(study.name)}, validation",
        # No half epochs on the axis.
        xaxis={"title": "epoch", "dtick": 1 if n_epochs <= MAX_TICKS else None},
        yaxis=scale | {"title": axis_label(metric)},
        showlegend=True,
    )
    return figure


def _thinned(line: Sequence[Point]) -> Sequence[Point]:
    step = -(-len(line) // MAX_CURVE_POINTS) if line else 1
    return line if step == 1 else [*line[:-1:step], line[-1]]


def comparison_figures(found: Sequence[Progress]) -> list[Picture]:
    """Draw the best so far against trials, and against the seconds of training."""
    metric = found[0].study.metric
    scale = value_axis(metric, (value for one in found for value in one.best))
    pictures = []
    for title, against, unit in (
        ("Best so far, by trials", "finished trials", "trials"),
        ("Best so far, by training time", "training time of all workers (s)", "s"),
    ):
        figure = go.Figure()
        for one in found:
            name = plain_text(one.study.name)
            figure.add_scatter(
                x=list(range(1, len(one.best) + 1)) if unit == "trials" else one.seconds,
                y=one.best,
                mode="lines",
                line={"shape": "hv", "width": 3},
                name=name,
                hovertemplate=f"{name}, %{{x:.0f}} {unit}: {hover_value(metric)}<extra></extra>",
            )
        figure.update_layout(
            title=title,
            xaxis_title=against,
            yaxis=scale | {"title": f"best {axis_label(metric)}, validation"},
            showlegend=True,
        )
        pictures.append(Picture(title, figure))
    return pictures


#: A contour plot has a panel for each pair.
MAX_CONTOUR_PARAMETERS = 4
#: A parallel-coordinate plot with more axes cannot be read.
MAX_PARALLEL_PARAMETERS = 10
#: From an early trial to a late one; both can be told from a light and from a dark page.
EARLY_TO_LATE = [[0.0, "#a9bccd"], [1.0, ORANGE]]


def study_figures(database: Database, study: StoredStudy) -> list[Picture]:
    """Return every picture of a study; words where there is too little to show."""
    searched = searched_trials(database, study)
    trials, metric = searched.get_trials(deepcopy=False), study.metric
    n_trials, scale = len(trials), value_axis(metric, [trial.value for trial in trials])
    sign = loss_sign(study.direction)
    best_first = sorted(trials, key=lambda trial: sign * (trial.value or 0.0))
    names = by_importance(searched)
    better = "Lower" if study.direction == "minimize" else "Higher"
    pictures: list[Picture] = []

    def add(
        title: str, draw: Callable[[], Drawn], least: int, note: str, n_parameters: int = 1
    ) -> None:
        drawn: Drawn
        if n_trials < least:
            drawn, note = f"Needs {count_words(least, 'complete trial')}; there are {n_trials}.", ""
        elif len(names) < n_parameters:
            drawn, note = f"Needs {n_parameters} parameters; there are {len(names)}.", ""
        else:
            drawn = draw()
        pictures.append(Picture(title, drawn, note))

    add("History", lambda: _history(searched, metric, scale), 1, f"{better} is better.")
    curves = learning_curves(study, shown_curves(database, study))
    note = "On validation. The best trials have a name; point at a grey line for its trial."
    none_yet = Picture("Learning curves", "No trial has finished an epoch yet.")
    pictures.append(Picture("Learning curves", curves, note) if curves.data else none_yet)
    add(
        "Importance",
        lambda: _importances(searched),
        MIN_TRIALS,
        "How much each parameter decides whether a trial is among the best (PED-ANOVA).",
    )
    add(
        "Parallel coordinates",
        lambda: _parallel(best_first, names, metric),
        2,
        "A line is a trial: green is the best one, orange the best tenth. The most important "
        "parameters come first.",
    )
    add(
        "Slices",
        lambda: [_slice(trials, name, metric, scale) for name in names],
        1,
        f"A dot is a trial: grey is early, orange is late. {better} is better. The most "
        "important parameters come first.",
    )
    add(
        "Contours",
        lambda: _contours(searched, names[:MAX_CONTOUR_PARAMETERS], metric, scale),
        3,
        f"The {metric_name(metric)} over two parameters, of the {MAX_CONTOUR_PARAMETERS} most "
        "important ones: darker is better. Between the trials it is interpolated.",
        2,
    )
    confirmed = confirmation(database, study)
    if confirmed is not None:
        note = f"{better} is better. The best values of a search are partly luck."
        figure = confirmation_figure(study, confirmed)
        pictures.append(Picture("Confirmation", figure, note))
    return pictures


def _history(searched: optuna.Study, metric: str, scale: dict[str, Any]) -> go.Figure:
    figure = visualization.plot_optimization_history(searched, target_name=axis_label(metric))
    for trace, name in zip(figure.data, ("a trial", "best so far"), strict=False):
        trace.update(name=name, hovertemplate=f"trial %{{x}}: {hover_value(metric)}<extra></extra>")
    figure.update_traces(line_shape="hv", selector={"mode": "lines"})
    figure.update_layout(
        xaxis_title="trial", yaxis=scale | {"title": f"{axis_label(metric)}, validation"}
    )
    return figure


def _importances(searched: optuna.Study) -> go.Figure:
    shares = ped_anova_shares(searched)
    names = [plain_text(name) for name in shares]
    figure = go.Figure()
    figure.add_bar(
        x=list(shares.values()),
        y=names,
        orientation="h",
        text=[f"{share:.0%}" if share >= 0.01 else "< 1%" for share in shares.values()],
        textposition="outside",
        cliponaxis=False,
        marker={"color": BLUE},
        hovertemplate="%{y}: %{x:.1%}<extra></extra>",
    )
    figure.update_layout(
        xaxis={"title": "share of importance", "tickformat": ".0%", "rangemode": "tozero"},
        yaxis={"autorange": "reversed", "type": "category", "dtick": 1},
        height=90 + 22 * len(names),
        margin={"r": 44},
        meta={"tall": True},
    )
    return figure


def _parallel(ranked: Sequence[FrozenTrial], names: Sequence[str], metric: str) -> go.Figure:
    """Draw a line a trial, the best first: over the most important parameters, after its value."""
    values = [trial.value or 0.0 for trial in ranked]
    ends = min(values), max(values)
    marks = round_marks(*ends, False)
    linear = {"range": ends, "tickvals": marks, "ticktext": [f"{mark:.6g}" for mark in marks]}
    axes: list[tuple[str, dict[str, Any], list[Any]]] = [
        (axis_label(metric), value_axis(metric, values) or linear, values)
    ]
    for name in names[:MAX_PARALLEL_PARAMETERS]:
        distribution = next(t.distributions[name] for t in ranked if name in t.params)
        places = [
            placed(distribution, trial.params[name])
            if trial.distributions.get(name) == distribution
            else None
            for trial in ranked
        ]
        axes.append((plain_text(name), parameter_axis(distribution), places))

    def height(scale: dict[str, Any], place: float | None) -> float | None:
        if place is None:
            return None
        start, end = scale["range"]
        place = log10(place) if scale.get("type") == "log" else place
        return float((place - start) / ((end - start) or 1))

    figure, n_top = go.Figure(), max(1, len(ranked) // 10)
    for rank in reversed(range(0, len(ranked), math.ceil(len(ranked) / MAX_POINTS))):
        color = GREEN if rank == 0 else ORANGE if rank < n_top else GREY
        label = f"trial {ranked[rank].number}: {metric_value(metric, values[rank])}"
        figure.add_scatter(
            y=[height(scale, places[rank]) for _, scale, places in axes],
            mode="lines",
            line={"color": color, "width": 3 if rank == 0 else 1.5},
            opacity=1.0 if rank < n_top else 0.4,
            hovertemplate=f"{label}<extra></extra>",
        )
    for place, (_, scale, _) in enumerate(axes):
        figure.add_vline(place, line={"color": GREY, "width": 1}, layer="below")
        for mark, text in zip(scale["tickvals"], scale["ticktext"], strict=True):
            figure.add_annotation(
                x=place,
                y=height(scale, mark),
                text=text,
                showarrow=False,
                xanchor="right",
                xshift=-3,
            )
    figure.update_layout(
        xaxis={
            "tickvals": list(range(len(axes))),
            "ticktext": [name for name, _, _ in axes],
            "range": [-0.6, len(axes) - 0.4],
            "side": "top",
            "showgrid": False,
            "zeroline": False,
            "tickangle": -30,
        },
        yaxis={"range": [-0.02, 1.02], "visible": False},
        showlegend=False,
        height=520,
        meta={"axes": len(axes)},
    )
    return figure


def _slice(
    trials: Sequence[FrozenTrial], name: str, metric: str, scale: dict[str, Any]
) -> go.Figure:
    trials = [trial for trial in trials if name in trial.params]
    distribution = trials[-1].distributions[name]
    trials = [trial for trial in trials if trial.distributions[name] == distribution]
    figure = go.Figure()
    figure.add_scatter(
        x=[placed(distribution, trial.params[name]) for trial in trials],
        y=[trial.value for trial in trials],
        mode="markers",
        marker={
            "color": [trial.number for trial in trials],
            "colorscale": EARLY_TO_LATE,
            "size": 7,
            "line": {"width": 0.5, "color": GREY},
        },
        customdata=[[trial.number, _short(trial.params[name])] for trial in trials],
        hovertemplate="trial %{customdata[0]}, %{customdata[1]}: "
        + hover_value(metric)
        + "<extra></extra>",
    )
    figure.update_layout(
        title=plain_text(name),
        xaxis=parameter_axis(distribution) | {"zeroline": False},
        yaxis=scale | {"title": axis_label(metric)},
        height=PANEL_PX,
    )
    return figure


def _contours(
    searched: optuna.Study, names: Sequence[str], metric: str, scale: dict[str, Any]
) -> Drawn:
    drawn = [_contour(searched, list(pair), metric, scale) for pair in combinations(names, 2)]
    # Optuna leaves a figure empty whose trials have only one value of a parameter.
    filled = [figure for figure in drawn if figure.data[0].x is not None]
    return filled or "Needs two parameters of which different values were tried."


def _contour(
    searched: optuna.Study, pair: list[str], metric: str, scale: dict[str, Any]
) -> go.Figure:
    bar: dict[str, Any] = {"thickness": 10, "title": None}
    target = None
    if scale:  # Optuna has no logarithmic colours
        bar |= {"tickvals": [log10(mark) for mark in scale["tickvals"]]}
        bar |= {"ticktext": scale["ticktext"]}

        def target(trial: FrozenTrial) -> float:
            return log10(trial.value or 1.0)

    label = axis_label(metric)
    figure = visualization.plot_contour(searched, params=pair, target=target, target_name=label)
    figure.update_traces(colorbar=bar, hoverinfo="skip", selector={"type": "contour"})
    for axis in (figure.layout.xaxis, figure.layout.yaxis):
        if axis.type == "log":
            marks = log_marks(*(10.0**end for end in axis.range))
            axis.update(tickvals=marks, ticktext=[f"{mark:.6g}" for mark in marks])
    first, second = map(plain_text, pair)
    figure.update_layout(title=f"{first}, {second}", height=320)
    return figure
