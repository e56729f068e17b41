"""How coarse-to-fine narrowed a study's space: as a table and as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState
from plotly.subplots import make_subplots
from rich.console import Console
from rich.table import Table

from dlnn_search.samplers.axes import Numeric
from dlnn_search.samplers.edges import Edge, find_edges
from dlnn_search.samplers.regions import stored_regions

#: Columns that the parameters' names and one stage's ranges take in a table.
NAME_COLUMNS = 20
STAGE_COLUMNS = 24
#: The picture shows so many trials at most, evenly chosen: it is loaded at each refresh.
MAX_POINTS = 300
ROW_PX = 130
BAND = "rgba(38, 110, 200, {:.2f})"


@dataclass(frozen=True)
class Narrowing:
    """What there is to show of a study.

    Attributes:
        regions: As stored, by stage: `stage`, `first_trial`, `finished_trials`, `parameters`.
        distributions: By parameter, as declared; in the order in which they came up.
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
    maximize = study.direction == optuna.study.StudyDirection.MAXIMIZE
    complete = [t for t in trials if t.state == TrialState.COMPLETE and t.value is not None]
    complete.sort(key=lambda t: (-t.values[0] if maximize else t.values[0], t.number))
    edges = find_edges(complete, len(complete))
    best = complete[0] if complete else None
    return Narrowing(stored_regions(study), distributions, trials, best, edges)


def print_narrowing(console: Console, narrowing: Narrowing) -> None:
    """Print a row a parameter, a column a stage; then what lies on an edge."""
    regions = narrowing.regions
    at_once = max(1, (console.width - NAME_COLUMNS) // STAGE_COLUMNS - 2)
    blocks = [regions[i : i + at_once] for i in range(0, len(regions), at_once)] or [[]]
    for i, block in enumerate(blocks):
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        table.add_column("parameter", no_wrap=True)
        if i == 0:
            table.add_column("declared (stage 1)")
        for region in block:
            table.add_column(f"stage {region['stage']}\nfrom trial {region['first_trial']}")
        is_last = i == len(blocks) - 1
        if is_last and narrowing.best is not None:
            table.add_column(f"best\ntrial {narrowing.best.number}")
        for name, distribution in narrowing.distributions.items():
            cells = [declared_words(distribution)] if i == 0 else []
            cells += [part_words(region["parameters"].get(name)) for region in block]
            if is_last and narrowing.best is not None:
                cells.append(_short(narrowing.best.params.get(name, "-")))
            table.add_row(name, *cells)
        console.print(table)
    for edge in narrowing.edges:
        console.print(f"Warning: {edge.words()}", style="yellow", markup=False, soft_wrap=True)


def declared_words(distribution: BaseDistribution) -> str:
    """Return a distribution as a range with its scale, or as its choices."""
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(str, distribution.choices))
    assert isinstance(distribution, Numeric)
    words = f"{_short(distribution.low)} to {_short(distribution.high)}"
    if distribution.log:
        return f"{words}, log"
    is_plain = distribution.step is None or distribution.step == 1
    return words if is_plain else f"{words}, by {_short(distribution.step)}"


def part_words(part: dict[str, Any] | None) -> str:
    """Return a region's part of one parameter: a range, or each choice's odds."""
    if part is None:
        return "whole"
    if "odds" in part:
        both = sorted(zip(part["odds"], part["choices"], strict=True), key=lambda pair: -pair[0])
        return ", ".join(f"{choice} {odds:.0%}" for odds, choice in both)
    return f"{_short(part['low'])} to {_short(part['high'])}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


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
