"""What `evaluate` prints: progress while it trains, then mean and spread on the test split."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from dlnn_search.config import Config, Origin, title_of
from dlnn_search.storage.database import Database
from dlnn_search.storage.ledger import openings
from dlnn_search.words import count_words, metric_name, metric_value

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
            f"The search's own figure was {best}, chosen on validation: expect it to be a little "
            "too good."
        )
    mean = metric_value(origin.metric, origin.confirmed_mean)
    seeds = count_words(origin.confirmed_seeds or 0, "seed")
    return (
        f"The search's own figure was {best}; {seeds} trained "
        f"afresh came to {mean} on average, on validation."
    )


def print_evaluation(
    console: Console, config: Config, tested: Sequence[Tested], folder: Path, database: Database
) -> None:
    """Print a row a seed, mean ± spread, where the files are, and the ledger's count."""
    origin = config.origin
    where = f"{origin.study}, trial {origin.trial}" if origin else "a config of its own"
    console.print(
        f"\nTest of {title_of(config.data)}: {where}, {count_words(len(tested), 'seed')}",
        style="bold",
    )
    metric = config.metric
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("seed", "best epoch", f"validation {metric_name(metric)}", "test"):
        table.add_column(name, justify="right")
    for one in tested:
        table.add_row(
            str(one.seed),
            str(one.best_epoch),
            metric_value(metric, one.validation[metric]),
            metric_value(metric, one.metrics[metric]) if metric in one.metrics else "-",
        )
    console.print(table)
    console.print("\nOn the test split:")
    for name in tested[0].metrics:
        console.print(
            f"  {metric_name(name)}: {spread_words(name, [one.metrics[name] for one in tested])}",
            style="bold green" if name == metric else None,
        )
    if origin is not None:
        console.print(search_words(origin))
    count = sum(opening.data == title_of(config.data) for opening in openings(database))
    console.print(
        f"The ledger now holds {count_words(count, 'opening')} of the test split of "
        f"{title_of(config.data)}: dlnn-search ledger"
    )
    console.print(f"Models, predictions and pictures are in {folder}/")


def spread_words(name: str, values: Sequence[float], what: str = "seed") -> str:
    """Return `mean ± standard deviation (lowest to highest)`, or the one value there is."""
    if len(values) == 1:
        return f"{metric_value(name, values[0])} (one {what}: no spread)"
    unit = " min" if metric_value(name, 0.0).endswith("min") else ""
    digits = 2 if unit else 4
    return (
        f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}{unit} "
        f"({min(values):.{digits}f} to {max(values):.{digits}f}, {len(values)} {what}s)"
    )
