"""Pictures of what a model got wrong on the test split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dlnn_search.config import ClassData, title_of
from dlnn_search.data.names import class_names
from dlnn_search.data.split import Split
from dlnn_search.metrics import common_sense_error

N_CLOCKS = 24
COLUMNS = 6
TILE_PX = 150
CAPTION_PX = 40
GAP_PX = 8


def draw_worst_clocks(split: Split, predicted: NDArray[np.generic], path: Path) -> None:
    """Draw the clocks that were read most wrongly, worst first, as a PNG.

    Args:
        predicted: Minutes since 12:00, shape (n,).
    """
    times = split.labels[:, 0].astype(np.int64) * 60 + split.labels[:, 1]
    errors = common_sense_error(times, predicted)
    worst = np.argsort(-errors, kind="stable")[:N_CLOCKS]
    pictures = split.take(worst)
    rows = -(-len(worst) // COLUMNS)
    width = COLUMNS * (TILE_PX + GAP_PX) + GAP_PX
    sheet = Image.new("L", (width, rows * (TILE_PX + CAPTION_PX + GAP_PX) + GAP_PX), 255)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    for place, index in enumerate(worst):
        x = GAP_PX + place % COLUMNS * (TILE_PX + GAP_PX)
        y = GAP_PX + place // COLUMNS * (TILE_PX + CAPTION_PX + GAP_PX)
        tile = Image.fromarray(pictures[place]).resize((TILE_PX, TILE_PX), Image.Resampling.LANCZOS)
        sheet.paste(tile, (x, y))
        caption = (
            f"{_clock(times[index])} read as {_clock(predicted[index])}\n"
            f"{errors[index]:.0f} min wrong"
        )
        draw.multiline_text((x, y + TILE_PX + 3), caption, fill=0, font=font, spacing=2)
    sheet.save(path, format="PNG")


def draw_confusion(
    true: NDArray[np.uint8], predicted: NDArray[np.generic], data: ClassData, path: Path
) -> None:
    """Draw which class was taken for which as an HTML page that needs nothing else."""
    names = class_names(data)
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (true.astype(np.int64), predicted.astype(np.int64)), 1)
    mistakes = counts.astype(float)
    np.fill_diagonal(mistakes, np.nan)  # the right ones would drown the colours of the wrong
    figure = go.Figure(
        go.Heatmap(
            z=mistakes,
            x=names,
            y=names,
            text=counts,
            texttemplate="%{text}",
            colorscale="Reds",
            hovertemplate="%{y} taken for %{x}: %{text}<extra></extra>",
            colorbar={"title": "mistakes"},
        )
    )
    right = np.trace(counts) / counts.sum()
    figure.update_layout(
        title=f"{title_of(data)}: {right:.2%} of {counts.sum():,} test images right",
        xaxis={"title": "read as", "type": "category", "side": "bottom"},
        yaxis={"title": "truth", "type": "category", "autorange": "reversed"},
        width=820,
        height=720,
        template="plotly_white",
    )
    figure.write_html(path, include_plotlyjs=True)


def _clock(minutes: float) -> str:
    whole = round(float(minutes)) % 720
    return f"{whole // 60:02d}:{whole % 60:02d}"
