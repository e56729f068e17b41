"""What `lr-range` shows: a table in the terminal, and its picture as a page."""

from __future__ import annotations

import math
from math import log10

import plotly.graph_objects as go
from rich.console import Console
from rich.table import Table

from dlnn_search.report.pages import page_of
from dlnn_search.training.rate_range import Sweep

BAR_COLUMNS = 40
#: Rows a decade of rates.
ROWS_A_DECADE = 4

NOTHING_LEARNT = (
    "The loss never fell, so the test tells nothing: the network learns too slowly for it. Test "
    "with more --batches, or an easier start (a curriculum, less dropout)."
)


def print_sweep(console: Console, sweep: Sweep, words: str) -> None:
    """Print the smoothed loss against the rate, and what follows from it.

    Args:
        console: To print on.
        sweep: The test.
        words: What was tested.
    """
    console.print(
        f"{len(sweep.rates)} batches of {words}, from {sweep.low:g} up to {sweep.high:g}\n",
        markup=False,
        soft_wrap=True,
    )
    console.print(_table(sweep))
    console.print()
    if sweep.climbs_at is None or sweep.highest is None or sweep.half is None:
        console.print(NOTHING_LEARNT, soft_wrap=True)
        return
    limit = "highest rate that does not diverge"
    if not sweep.diverged:
        limit = "highest rate tried; none diverged, look further with --high"
    for name, value in (
        ("the loss starts to climb at", sweep.climbs_at),
        (limit, sweep.highest),
        ("half of it", sweep.half),
    ):
        console.print(f"  {value:<9.3g} {name}", markup=False, soft_wrap=True)


def _table(sweep: Sweep) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("rate", justify="right")
    table.add_column("loss", justify="right")
    table.add_column("")
    low, high = min(sweep.smoothed), max(sweep.smoothed)
    first, last = log10(sweep.low), log10(sweep.rates[-1])
    n_rows = max(2, math.ceil((last - first) * ROWS_A_DECADE) + 1)
    places = dict.fromkeys(
        round(row / (n_rows - 1) * (len(sweep.rates) - 1)) for row in range(n_rows)
    )
    for place in places:
        share = (sweep.smoothed[place] - low) / ((high - low) or 1.0)
        bar = "#" * max(1, round(share * BAR_COLUMNS))
        table.add_row(f"{sweep.rates[place]:.2g}", f"{sweep.smoothed[place]:.4g}", bar)
    return table


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
