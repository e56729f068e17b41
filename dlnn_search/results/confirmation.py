"""How a search's best fared with fresh seeds, and with learning rates around their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev
from typing import Any

import plotly.graph_objects as go
import sqlalchemy as sa
from rich.console import Console
from rich.table import Table

from dlnn_search.config.training import is_of
from dlnn_search.metrics import IN_MINUTES, loss_sign, metric_name, metric_unit, metric_value
from dlnn_search.storage.database import Database
from dlnn_search.storage.halves import is_linked_name
from dlnn_search.storage.schema import slots
from dlnn_search.storage.studies import StoredStudy, linked, seed_of_trial

#: Of the interval of a mean.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Candidate:
    """One config of a search, trained again with fresh seeds.

    Attributes:
        study: That it was found in.
        trial: Its number there.
        config: As trained there, with the seed that it had there.
        search_value: Its value there, on validation.
        values: Of the fresh seeds that are trained, on validation.
        numbers: Which fresh seed each value is of: the same seed has the same number with every
            candidate.
        n_failed: Fresh seeds whose training failed.
        n_left: Fresh seeds that are not trained yet.
        search_rank: Among these candidates by `search_value`, from 1.
        rank: Among these candidates by `mean`; those that failed with a seed come after all
            that never did, those without any value last.
    """

    study: str
    trial: int
    config: dict[str, Any]
    search_value: float
    values: tuple[float, ...]
    numbers: tuple[int, ...]
    n_failed: int
    n_left: int
    search_rank: int = 0
    rank: int = 0

    @property
    def mean(self) -> float | None:
        """Of the fresh seeds' values."""
        return mean(self.values) if self.values else None

    @property
    def half_interval(self) -> float | None:
        """Half the width of the mean's 95 % interval (Student's t); None for a single value."""
        return _half_interval(self.values)

    def differs_from(self, other: Candidate) -> bool:
        """Whether the two means differ by more than the interval of their difference.

        It is that of the differences seed by seed, since both were trained with the same seeds:
        what a seed does to both alike is no doubt about which one is better.
        """
        theirs = dict(zip(other.numbers, other.values, strict=True))
        pairs = zip(self.numbers, self.values, strict=True)
        apart = [value - theirs[number] for number, value in pairs if number in theirs]
        half = _half_interval(apart)
        return half is not None and abs(mean(apart)) > half


def _half_interval(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    # Here and not above: its import takes most of a second, and `export` mostly needs none.
    from scipy.stats import t as student

    quantile = float(student.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return quantile * stdev(values) / sqrt(len(values))


@dataclass(frozen=True)
class Confirmation:
    """All candidates, best first by their confirmed mean."""

    metric: str
    direction: str
    candidates: tuple[Candidate, ...]

    @property
    def n_left(self) -> int:
        return sum(candidate.n_left for candidate in self.candidates)

    @property
    def ranked(self) -> list[Candidate]:
        """Those that are confirmed: all seeds trained, at least two of them to the end."""
        return [one for one in self.candidates if not one.n_left and len(one.values) > 1]

    @property
    def winner(self) -> Candidate | None:
        """The best confirmed one, once every candidate's seeds are trained."""
        return self.ranked[0] if self.ranked and not self.n_left else None

    @property
    def curse(self) -> float | None:
        """By how much the search flattered its candidates, on average; above 0 where it did."""
        sign = loss_sign(self.direction)
        told = [
            sign * (one.mean - one.search_value) for one in self.candidates if one.mean is not None
        ]
        return mean(told) if told else None


def confirmation(database: Database, study: StoredStudy) -> Confirmation | None:
    """Return what the study's confirmation has come to; None where there is none."""
    confirming, retuned = linked(database, study, "confirm"), linked(database, study, "retune")
    if confirming is None:
        return None
    with database.transaction() as connection:
        rows = connection.execute(
            sa.select(slots.c.config, slots.c.state, slots.c.outcome, slots.c.value)
            .where(slots.c.study_id == confirming.id, slots.c.config.is_not(None))
            .order_by(slots.c.number)
        ).all()
    groups: dict[tuple[str, int], list[Any]] = {}
    for row in rows:
        origin = row.config.get("origin") or {}
        of = study.named_now(str(origin.get("study")))
        groups.setdefault((of, int(origin.get("trial", -1))), []).append(row)
    if not groups:
        return None
    sign = loss_sign(study.direction)
    found = []
    for (of, number), group in groups.items():
        is_retuned = is_linked_name(of) and retuned is not None
        own = seed_of_trial(database, retuned.id if is_retuned and retuned else study.id, number)
        if own is None:
            continue
        complete = [row for row in group if row.outcome == "complete"]
        training = group[0].config["training"]
        found.append(
            Candidate(
                study=of,
                trial=number,
                config={**group[0].config, "training": {**training, "seed": own}},
                search_value=float(group[0].config["origin"]["value"]),
                values=tuple(row.value for row in complete),
                numbers=tuple(_number(row.config["training"]["seed"], own) for row in complete),
                n_failed=sum(row.outcome == "failed" for row in group),
                n_left=sum(row.state != "done" for row in group),
            )
        )
    found.sort(key=lambda one: sign * one.search_value)
    found = [_with(one, search_rank=place) for place, one in enumerate(found, start=1)]

    def standing(one: Candidate) -> tuple[bool, bool, float]:
        return one.mean is None, one.n_failed > 0, sign * (one.mean or 0.0)

    found.sort(key=standing)
    ranked = tuple(_with(one, rank=place) for place, one in enumerate(found, start=1))
    return Confirmation(study.metric, study.direction, ranked)


def _number(seed: int, own: int) -> int:
    """Return which fresh seed one is; an earlier version counted on from the search's own."""
    return seed if is_of("confirm", seed) else seed - own


def print_confirmation(console: Console, study: StoredStudy, result: Confirmation) -> None:
    """Print the candidates by their confirmed mean, beside what the search said of them."""
    metric = study.metric
    console.print(
        f"{study.name}: {metric_name(metric)}{metric_unit(metric)} on validation, with fresh "
        f"seeds ({CONFIDENCE:.0%} intervals of the mean)\n",
        markup=False,
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("rank", "trial", "search said", "confirmed", "seeds", "change", "in the search"):
        table.add_column(title, justify="right", no_wrap=True)
    for one in result.candidates:
        table.add_row(*_row(study, one))
    console.print(table)
    console.print()
    for line in _conclusions(study, result):
        console.print(line, markup=False, soft_wrap=True)


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


def interval_words(metric: str, one: Candidate) -> str:
    """Return `mean ± half its interval`."""
    if one.mean is None:
        return "-"
    half = "" if one.half_interval is None else f" ± {one.half_interval:.2g}"
    return metric_value(metric, one.mean).replace(" min", f"{half} min") + (
        half if " min" not in metric_value(metric, one.mean) else ""
    )


def _conclusions(study: StoredStudy, result: Confirmation) -> list[str]:
    lines = []
    if result.n_left:
        lines.append(f"{result.n_left} trainings are left; the ranks are provisional.")
    if result.curse is not None:
        size = f"{abs(result.curse):.2g}{' min' if study.metric in IN_MINUTES else ''}"
        word = "better" if result.curse > 0 else "worse"
        lines.append(
            f"The search showed these {len(result.candidates)} trials {size} {word} than they "
            "are, on average" + (" (the winner's curse)." if result.curse > 0 else ".")
        )
    winner = result.winner
    if winner is None:
        return lines
    first = next(one for one in result.candidates if one.search_rank == 1)
    if first is winner:
        lines.append(f"Trial {winner.trial} stays the best.")
    else:
        lines.append(
            f"Trial {winner.trial} is the best now; the search's winner, trial {first.trial}, "
            f"comes out at rank {first.rank}."
        )
    rivals = [one.trial for one in result.ranked[1:] if not winner.differs_from(one)]
    if rivals:
        names = ", ".join(map(str, rivals))
        lines.append(
            f"Not told apart from it, seed by seed: trial{'s' if len(rivals) > 1 else ''} {names}. "
            "More --seeds may do so."
        )
    return lines


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


def _with(one: Candidate, **changes: Any) -> Candidate:
    return Candidate(**{**one.__dict__, **changes})


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
    sign = loss_sign(study.direction)
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
