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

from dlnn_search.config import Config
from dlnn_search.report.words import metric_name, metric_value
from dlnn_search.storage.database import Database
from dlnn_search.storage.ledger import openings

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
def progress(config: Config, n_seeds: int) -> Iterator[OnEpoch]:
    """Show each seed's training: a bar in a terminal, a line an epoch elsewhere."""
    metric = config.metric
    if not sys.stderr.isatty():

        def write_line(seed: int, epoch: Epoch, epochs: int) -> None:
            value = metric_value(metric, epoch.metrics[metric])
            print(
                f"seed {seed}: epoch {epoch.epoch}/{epochs}, validation "
                f"{metric_name(metric)} {value}",
                file=sys.stderr,
                flush=True,
            )

        yield write_line
        return
    with Progress(console=Console(stderr=True)) as bar:
        tasks = {
            seed: bar.add_task(f"training, seed {seed}", total=config.training.epochs)
            for seed in range(config.training.seed, config.training.seed + n_seeds)
        }

        def draw(seed: int, epoch: Epoch, epochs: int) -> None:
            value = metric_value(metric, epoch.metrics[metric])
            bar.update(
                tasks[seed], completed=epoch.epoch, description=f"training, seed {seed}: {value}"
            )

        yield draw


def print_evaluation(
    console: Console, config: Config, tested: Sequence[Tested], folder: Path, database: Database
) -> None:
    """Print a row a seed, mean ± spread, where the files are, and the ledger's count."""
    origin = config.origin
    where = f"{origin.study}, trial {origin.trial}" if origin else "a config of its own"
    console.print(f"\nTest of {config.data.name}: {where}, {len(tested)} seeds", style="bold")
    names = list(tested[0].metrics)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("seed", justify="right")
    table.add_column("best epoch", justify="right")
    table.add_column(f"validation {metric_name(config.metric)}", justify="right")
    for name in names:
        table.add_column(f"test {metric_name(name)}", justify="right")
    for one in tested:
        table.add_row(
            str(one.seed),
            str(one.best_epoch),
            metric_value(config.metric, one.validation[config.metric]),
            *(metric_value(name, one.metrics[name]) for name in names),
        )
    console.print(table)
    for name in names:
        console.print(
            f"{metric_name(name)}: {spread_words(name, [one.metrics[name] for one in tested])}",
            style="bold green" if name == config.metric else None,
        )
    if origin is not None:
        console.print(
            f"The search's own figure was {metric_value(origin.metric, origin.value)}, chosen on "
            "validation: expect it to be a little too good."
        )
    count = sum(opening.data == config.data.name for opening in openings(database))
    console.print(
        f"The ledger now holds {count} opening{'s' if count != 1 else ''} of the test split of "
        f"{config.data.name}: dlnn-search ledger"
    )
    console.print(f"Models, predictions and pictures are in {folder}/")


def spread_words(name: str, values: Sequence[float]) -> str:
    """Return `mean ± standard deviation (lowest to highest)`, or the one value there is."""
    if len(values) == 1:
        return f"{metric_value(name, values[0])} (one seed: no spread)"
    unit = " min" if metric_value(name, 0.0).endswith("min") else ""
    digits = 2 if unit else 4
    return (
        f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}{unit} "
        f"({min(values):.{digits}f} to {max(values):.{digits}f}, {len(values)} seeds)"
    )
