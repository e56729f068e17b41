"""What `retune` shows: the selected config at learning rates around its own."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from rich.console import Console
from rich.table import Table

from dlnn_search.storage.database import Database
from dlnn_search.storage.definitions import StoredStudy
from dlnn_search.storage.links import linked
from dlnn_search.storage.schema import slots
from dlnn_search.words import metric_name, metric_unit, metric_value


@dataclass(frozen=True)
class Rate:
    """One learning rate of a selected config.

    Attributes:
        rate: The learning rate.
        value: On validation; None where it is not trained yet, or failed.
        state: `complete`, `failed`, or `to go`.
        of: The study and the trial that the config is from.
        is_own: Whether it is the rate that the search found.
    """

    rate: float
    value: float | None
    state: str
    of: tuple[str, int]
    is_own: bool = False


def retuning(database: Database, study: StoredStudy) -> list[Rate]:
    """Return the rates of the config that was re-tuned last, in order, its own among them."""
    retuned = linked(database, study, "retune")
    if retuned is None:
        return []
    with database.transaction() as connection:
        rows = connection.execute(
            sa.select(slots.c.config, slots.c.state, slots.c.outcome, slots.c.value)
            .where(slots.c.study_id == retuned.id, slots.c.config.is_not(None))
            .order_by(slots.c.number)
        ).all()
        origins = [
            (study.named_now(row.config["origin"]["study"]), row.config["origin"]["trial"])
            for row in rows
        ]
        own = connection.scalar(
            sa.select(slots.c.config).where(
                slots.c.study_id == study.id, slots.c.trial_number == origins[-1][1]
            )
        )
    found = [
        Rate(
            row.config["training"]["learning_rate"],
            row.value if row.outcome == "complete" else None,
            row.outcome if row.state == "done" else "to go",
            of,
        )
        for row, of in zip(rows, origins, strict=True)
        if of == origins[-1]
    ]
    if own is not None and origins[-1][0] == study.name:
        value = rows[-1].config["origin"]["value"]
        rate = own["training"]["learning_rate"]
        found.append(Rate(rate, value, "complete", origins[-1], is_own=True))
    return sorted(found, key=lambda one: one.rate)


def print_retuning(console: Console, study: StoredStudy, rates: list[Rate], storage: str) -> None:
    """Print a row a rate, the best one marked, and what to do next.

    Args:
        console: To print on.
        study: That the config is from.
        rates: As `retuning` returns them, at least one.
        storage: The option that names the database, if one was given.
    """
    number = rates[0].of[1]
    console.print(
        f"Trial {number} of {study.name} at other learning rates: "
        f"{metric_name(study.metric)}{metric_unit(study.metric)} on validation, one seed each\n",
        markup=False,
        soft_wrap=True,
    )
    sign = 1 if study.direction == "minimize" else -1
    told = [one for one in rates if one.value is not None]
    best = min(told, key=lambda one: sign * (one.value or 0.0)) if told else None
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("learning rate", justify="right")
    table.add_column(metric_name(study.metric), justify="right")
    table.add_column("")
    for one in rates:
        value = one.state if one.value is None else metric_value(study.metric, one.value)
        remarks = ["the search's own"] * one.is_own + ["best"] * (one is best)
        table.add_row(f"{one.rate:.4g}", value, ", ".join(remarks))
    console.print(table)
    if best is not None and not best.is_own:
        console.print(
            "\nOne seed each: let fresh seeds decide between the search's trials and these.\n"
            f"  dlnn-search confirm {study.name}{storage}",
            markup=False,
            soft_wrap=True,
        )
