"""What `crossvalidate` prints: a row a fold, then mean and spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from dlnn_search.config import Config, title_of
from dlnn_search.report.evaluation import spread_words
from dlnn_search.words import metric_name, metric_value


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
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("fold", "trained on", "validated on", "best epoch", metric_name(metric)):
        table.add_column(name, justify="right")
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
    for name in validated[0].metrics:
        if name == "train_loss":
            continue
        words = spread_words(name, [one.metrics[name] for one in validated], "fold")
        style = "bold green" if name == metric else None
        console.print(f"  {metric_name(name)}: {words}", style=style)
    console.print(
        "Each fold chose its own best epoch, so these are a little too good; the test split "
        "stayed closed."
    )
