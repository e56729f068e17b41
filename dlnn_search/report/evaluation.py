"""What `confirm`, `evaluate` and `crossvalidate` print, and their pictures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import Progress

from dlnn_search.config import ClassData, Config, Origin, title_of
from dlnn_search.data.catalog import class_names
from dlnn_search.data.splits import Split
from dlnn_search.metrics import (
    IN_MINUTES,
    common_sense_error,
    count_words,
    loss_sign,
    metric_name,
    metric_unit,
    metric_value,
)
from dlnn_search.report.pages import (
    BLUE,
    GREY,
    RED,
    Picture,
    axis_label,
    hover_value,
    page_of,
    plain_text,
)
from dlnn_search.report.tables import say, table_of
from dlnn_search.results.confirmation import (
    CONFIDENCE,
    Candidate,
    Confirmation,
    Rate,
    interval_words,
)
from dlnn_search.storage.studies import StoredStudy

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


#: More classes leave no room for numbers.
MAX_COUNTED_CLASSES = 16


def draw_confusion(
    true: NDArray[np.uint8], predicted: NDArray[np.generic], data: ClassData, path: Path
) -> None:
    """Draw which class was taken for which, as a page that needs nothing else."""
    names = [plain_text(name) for name in class_names(data)]
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (true.astype(np.int64), predicted.astype(np.int64)), 1)
    mistakes = counts.astype(float)
    np.fill_diagonal(mistakes, np.nan)  # the right ones would drown the colours of the wrong
    figure = go.Figure(
        go.Heatmap(
            z=mistakes.tolist(),
            x=names,
            y=names,
            text=counts.tolist(),
            texttemplate="%{text}" if len(names) <= MAX_COUNTED_CLASSES else None,
            colorscale=[[0.0, "rgba(209, 73, 91, 0.05)"], [1.0, "rgba(209, 73, 91, 1)"]],
            hovertemplate="%{y} read as %{x}: %{text}<extra></extra>",
            colorbar={"title": "mistakes", "thickness": 12},
        )
    )
    figure.update_layout(
        xaxis={"title": "read as", "type": "category", "showgrid": False},
        yaxis={"title": "truth", "type": "category", "autorange": "reversed", "showgrid": False},
        height=640,
    )
    right = np.trace(counts) / counts.sum()
    title = f"{title_of(data)}: {right:.2%} of {counts.sum():,} test images are right"
    note = "A number is a count of images. Colours show mistakes; the diagonal is right."
    path.write_text(page_of(title, [Picture(title, figure, note)]), encoding="utf-8")


def _clock(minutes: float) -> str:
    whole = round(float(minutes)) % 720
    return f"{whole // 60:02d}:{whole % 60:02d}"


@dataclass(frozen=True)
class Validated:
    """One fold's model, measured on that fold.

    Attributes:
        fold: Counted from 1.
        n_training: Pictures that it was trained on.
        n_validation: Pictures of the fold.
        metrics: Of the best epoch, which the fold itself chose.
    """

    fold: int
    n_training: int
    n_validation: int
    best_epoch: int
    metrics: Mapping[str, float]


def print_crossvalidation(console: Console, config: Config, validated: Sequence[Validated]) -> None:
    """Print a row a fold, and each metric's mean ± spread over them."""
    metric = config.metric
    title = f"\n{len(validated)}-fold cross-validation on {title_of(config.data)}"
    console.print(title, style="bold")
    table = table_of(("fold", "trained on", "validated on", "best epoch", metric_name(metric)))
    for one in validated:
        table.add_row(
            str(one.fold),
            f"{one.n_training:,}",
            f"{one.n_validation:,}",
            str(one.best_epoch),
            metric_value(metric, one.metrics[metric]),
        )
    console.print(table)
    console.print("\nOn the folds:")
    _print_spreads(console, metric, [one.metrics for one in validated], "fold")
    console.print(
        "Each fold chose its own best epoch, so these values are a little too good. The test "
        "split was not opened."
    )


if TYPE_CHECKING:
    from dlnn_search.training.checkpoint import Epoch

OnEpoch = Callable[[int, "Epoch", int], None]


@dataclass(frozen=True)
class Tested:
    """One seed's model, measured on the test split.

    Attributes:
        metrics: Of the test split.
        validation: The same metrics at the best epoch, on the validation split.
    """

    seed: int
    metrics: Mapping[str, float]
    validation: Mapping[str, float]
    best_epoch: int


@contextmanager
def progress(config: Config, numbers: Sequence[int], what: str = "seed") -> Iterator[OnEpoch]:
    """Show the training of several models: a bar in a terminal, a line an epoch elsewhere.

    Args:
        config: What is trained.
        numbers: One a model.
        what: They count.
    """
    metric = config.metric
    if not sys.stderr.isatty():

        def write_line(number: int, epoch: Epoch, epochs: int) -> None:
            value = metric_value(metric, epoch.metrics[metric])
            print(
                f"{what} {number}: epoch {epoch.epoch}/{epochs}, validation "
                f"{metric_name(metric)} {value}",
                file=sys.stderr,
                flush=True,
            )

        yield write_line
        return
    with Progress(console=Console(stderr=True)) as bar:
        tasks = {
            number: bar.add_task(f"training, {what} {number}", total=config.training.epochs)
            for number in numbers
        }

        def draw(number: int, epoch: Epoch, epochs: int) -> None:
            value = metric_value(metric, epoch.metrics[metric])
            bar.update(
                tasks[number],
                completed=epoch.epoch,
                description=f"training, {what} {number}: {value}",
            )

        yield draw


def search_words(origin: Origin) -> str:
    """Return what the search had for this config, and how far that is to be trusted."""
    best = metric_value(origin.metric, origin.value)
    if origin.confirmed_mean is None:
        return (
            f"In the search it had {best} on validation. That value is a little too good, because "
            "the search chose the trial by it."
        )
    mean = metric_value(origin.metric, origin.confirmed_mean)
    seeds = count_words(origin.confirmed_seeds or 0, "seed")
    return (
        f"In the search it had {best} on validation; {seeds} trained afresh have a mean of "
        f"{mean} there."
    )


def print_evaluation(
    console: Console, config: Config, tested: Sequence[Tested], folder: Path, n_openings: int
) -> None:
    """Print a row a seed, mean ± spread, where the files are, and the ledger's count."""
    origin = config.origin
    where = f"{origin.study}, trial {origin.trial}" if origin else "a config of its own"
    console.print(
        f"\nTest of {title_of(config.data)}: {where}, {count_words(len(tested), 'seed')}",
        style="bold",
    )
    metric = config.metric
    table = table_of(("seed", "best epoch", f"validation {metric_name(metric)}", "test"))
    for one in tested:
        table.add_row(
            str(one.seed),
            str(one.best_epoch),
            metric_value(metric, one.validation[metric]),
            metric_value(metric, one.metrics[metric]) if metric in one.metrics else "-",
        )
    console.print(table)
    console.print("\nOn the test split:")
    _print_spreads(console, metric, [one.metrics for one in tested], "seed")
    if origin is not None:
        console.print(search_words(origin))
    console.print(
        f"The ledger now holds {count_words(n_openings, 'opening')} of the test split of "
        f"{title_of(config.data)}: dlnn-search ledger"
    )
    console.print(f"Models, predictions and pictures are in {folder}/")


def _print_spreads(
    console: Console, metric: str, measured: Sequence[Mapping[str, float]], what: str
) -> None:
    for name in measured[0]:
        if name != "train_loss":
            words = spread_words(name, [one[name] for one in measured], what)
            style = "bold green" if name == metric else None
            console.print(f"  {metric_name(name)}: {words}", style=style)


def spread_words(name: str, values: Sequence[float], what: str) -> str:
    """Return `mean ± standard deviation (lowest to highest)`, or the one value there is."""
    if len(values) == 1:
        return f"{metric_value(name, values[0])} (one {what}: no spread)"
    unit = " min" if metric_value(name, 0.0).endswith("min") else ""
    digits = 2 if unit else 4
    return (
        f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}{unit} "
        f"({min(values):.{digits}f} to {max(values):.{digits}f}, {len(values)} {what}s)"
    )


def print_confirmation(console: Console, study: StoredStudy, result: Confirmation) -> None:
    """Print the candidates by their confirmed mean, beside what the search said of them."""
    metric = study.metric
    say(
        console,
        f"{study.name}: {metric_name(metric)}{metric_unit(metric)} on validation, with fresh "
        f"seeds ({CONFIDENCE:.0%} intervals of the mean)\n",
    )
    table = table_of(
        ("rank", "trial", "search said", "confirmed", "seeds", "change", "in the search")
    )
    for one in result.candidates:
        table.add_row(*_row(study, one))
    console.print(table)
    console.print()
    for line in _conclusions(study, result):
        say(console, line)


def _row(study: StoredStudy, one: Candidate) -> list[str]:
    metric = study.metric
    n_seeds = len(one.values) + one.n_failed + one.n_left
    seeds = f"{len(one.values)} of {n_seeds}" if one.n_left else str(n_seeds)
    if one.n_failed:
        seeds += f", {one.n_failed} failed"
    moved = one.search_rank - one.rank
    name = str(one.trial) if one.study == study.name else f"{one.trial} of {one.study}"
    return [
        str(one.rank),
        name,
        metric_value(metric, one.search_value),
        interval_words(metric, one),
        seeds,
        "" if one.mean is None else f"{one.mean - one.search_value:+.4g}",
        f"rank {one.search_rank}" + (f" ({moved:+d})" if moved else ""),
    ]


def _conclusions(study: StoredStudy, result: Confirmation) -> list[str]:
    lines = []
    if result.n_left:
        lines.append(f"{count_words(result.n_left, 'training')} to go: the ranks may change.")
    if result.curse is not None:
        size = f"{abs(result.curse):.2g}{' min' if study.metric in IN_MINUTES else ''}"
        word = "better" if result.curse > 0 else "worse"
        lines.append(
            f"On average, the search showed these {len(result.candidates)} trials {size} {word} "
            "than they are" + (" (the winner's curse)." if result.curse > 0 else ".")
        )
    winner = result.winner
    if winner is None:
        return lines
    first = next(one for one in result.candidates if one.search_rank == 1)
    if first is winner:
        lines.append(f"Trial {winner.trial} is still the best.")
    else:
        lines.append(
            f"Trial {winner.trial} is the best now. The best of the search, trial {first.trial}, "
            f"has rank {first.rank}."
        )
    rivals = [one.trial for one in result.ranked[1:] if not winner.differs_from(one)]
    if rivals:
        names = ", ".join(map(str, rivals))
        lines.append(
            f"These seeds cannot tell it from trial{'s' if len(rivals) > 1 else ''} {names}. "
            "More --seeds may."
        )
    return lines


def confirmation_figure(study: StoredStudy, result: Confirmation) -> go.Figure:
    """Draw each candidate's value in the search beside its seeds and their mean."""
    order: Sequence[Candidate] = sorted(result.candidates, key=lambda one: one.search_rank)
    names = [
        f"trial {one.trial}" if one.study == study.name else f"trial {one.trial} of {one.study}"
        for one in order
    ]
    names = [plain_text(name) for name in names]
    hover = "%{x}, %{fullData.name}: " + hover_value(study.metric) + "<extra></extra>"
    figure = go.Figure()
    figure.add_scatter(
        x=[name for name, one in zip(names, order, strict=True) for _ in one.values],
        y=[value for one in order for value in one.values],
        mode="markers",
        marker={"color": GREY, "size": 7},
        name="a fresh seed",
        hovertemplate=hover,
    )
    means = [one.mean or 0.0 for one in order]
    intervals = [
        one.interval(study.metric) or (mean, mean) for one, mean in zip(order, means, strict=True)
    ]
    figure.add_scatter(
        x=names,
        y=[one.mean for one in order],
        error_y={
            "type": "data",
            "array": [high - mean for mean, (_, high) in zip(means, intervals, strict=True)],
            "arrayminus": [mean - low for mean, (low, _) in zip(means, intervals, strict=True)],
        },
        mode="markers",
        marker={"color": BLUE, "size": 12, "symbol": "diamond"},
        name="mean of the seeds"
        + (f", {CONFIDENCE:.0%} interval" if any(low < high for low, high in intervals) else ""),
        hovertemplate=hover,
    )
    figure.add_scatter(
        x=names,
        y=[one.search_value for one in order],
        mode="markers",
        marker={"color": RED, "size": 11, "symbol": "x"},
        name="in the search",
        hovertemplate=hover,
    )
    figure.update_layout(
        title=f"The best trials of {plain_text(study.name)} with fresh seeds",
        xaxis_title="best in the search first",
        yaxis_title=f"{axis_label(study.metric)}, validation",
    )
    return figure


def print_retuning(console: Console, study: StoredStudy, rates: list[Rate], storage: str) -> None:
    """Print a row a rate, the best one marked, and what to do next.

    Args:
        console: To print on.
        study: That the config is from.
        rates: As `retuning` returns them, at least one.
        storage: The option that names the database, if one was given.
    """
    number = rates[0].of[1]
    say(
        console,
        f"Trial {number} of {study.name} at other learning rates: "
        f"{metric_name(study.metric)}{metric_unit(study.metric)} on validation, one seed each\n",
    )
    sign = loss_sign(study.direction)
    told = [one for one in rates if one.value is not None]
    best = min(told, key=lambda one: sign * (one.value or 0.0)) if told else None
    table = table_of(("learning rate", metric_name(study.metric), ""))
    for one in rates:
        value = one.state if one.value is None else metric_value(study.metric, one.value)
        remarks = ["the search's own"] * one.is_own + ["best"] * (one is best)
        table.add_row(f"{one.rate:.4g}", value, ", ".join(remarks))
    console.print(table)
    if best is not None and not best.is_own:
        say(
            console,
            "\nEach rate was trained with one seed. Fresh seeds decide between these and the "
            "search's trials:\n"
            f"  dlnn-search confirm {study.name}{storage}",
        )
