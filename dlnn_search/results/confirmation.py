"""How a search's best fared with fresh seeds, and with learning rates around their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from statistics import mean, stdev
from typing import Any

from dlnn_search.config.training import is_of
from dlnn_search.metrics import bounds_of, loss_sign, metric_value
from dlnn_search.storage.database import Database
from dlnn_search.storage.halves import is_linked_name
from dlnn_search.storage.studies import StoredStudy, linked
from dlnn_search.storage.trials import trials_of

#: The study that a config is from, and the trial there.
Source = tuple[str, int]
TO_GO = "to go"
#: Of the interval of a mean.
CONFIDENCE = 0.95
#: Of two seeds it is nine standard deviations to either side, and says nothing.
MIN_SEEDS_FOR_INTERVAL = 3


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
        """Half the width of the mean's 95 % interval (Student's t); None below three values."""
        return _half_interval(self.values)

    def interval(self, metric: str) -> tuple[float, float] | None:
        """Return the mean's 95 % interval within what the metric can be; None as above."""
        half = self.half_interval
        if half is None or self.mean is None:
            return None
        lowest, highest = bounds_of(metric)
        return max(lowest, self.mean - half), min(highest, self.mean + half)

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
    if len(values) < MIN_SEEDS_FOR_INTERVAL:
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
    groups: dict[Source, list[_Training]] = {}
    for one in _trainings(database, study, confirming):
        groups.setdefault(one.of, []).append(one)
    if not groups:
        return None
    sign = loss_sign(study.direction)
    found = []
    for (of, number), group in groups.items():
        source = retuned if is_linked_name(of) and retuned is not None else study
        searched = trials_of(database, source, number=number)
        if not searched or searched[0].config is None:
            continue
        own = int(searched[0].config["training"]["seed"])
        complete = [one for one in group if one.value is not None]
        config = group[0].config
        found.append(
            Candidate(
                study=of,
                trial=number,
                config={**config, "training": {**config["training"], "seed": own}},
                search_value=float(config["origin"]["value"]),
                values=tuple(one.value for one in complete if one.value is not None),
                numbers=tuple(_number(one.config["training"]["seed"], own) for one in complete),
                n_failed=sum(one.state == "failed" for one in group),
                n_left=sum(one.state == TO_GO for one in group),
            )
        )
    found.sort(key=lambda one: sign * one.search_value)
    found = [replace(one, search_rank=place) for place, one in enumerate(found, start=1)]

    def standing(one: Candidate) -> tuple[bool, bool, float]:
        return one.mean is None, one.n_failed > 0, sign * (one.mean or 0.0)

    found.sort(key=standing)
    ranked = tuple(replace(one, rank=place) for place, one in enumerate(found, start=1))
    return Confirmation(study.metric, study.direction, ranked)


def _number(seed: int, own: int) -> int:
    """Return which fresh seed one is; an earlier version counted on from the search's own."""
    return seed if is_of("confirm", seed) else seed - own


def interval_words(metric: str, one: Candidate) -> str:
    """Return `mean ± half its interval`, or `mean (low to high)` where a bound cuts that."""
    if one.mean is None:
        return "-"
    interval, half, mean = one.interval(metric), one.half_interval, metric_value(metric, one.mean)
    if interval is None or half is None:
        return mean
    if (one.mean - half, one.mean + half) != interval:
        low, high = (metric_value(metric, end).removesuffix(" min") for end in interval)
        return f"{mean} ({low} to {high})"
    number, unit, _ = mean.partition(" min")
    return f"{number} ± {half:.2g}{unit}"


@dataclass(frozen=True)
class _Training:
    """A config that a linked study trains; `value` is None unless that is complete."""

    of: Source
    config: dict[str, Any]
    state: str
    value: float | None


def _trainings(database: Database, study: StoredStudy, linked: StoredStudy) -> list[_Training]:
    found = []
    for trial in trials_of(database, linked, begun=False):
        config = trial.config or {}
        origin = config.get("origin") or {}
        of = study.named_now(str(origin.get("study"))), int(origin.get("trial", -1))
        state = trial.outcome if trial.is_settled else TO_GO
        value = trial.value if state == "complete" else None
        found.append(_Training(of, config, state, value))
    return found


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
    of: Source
    is_own: bool = False


def retuning(database: Database, study: StoredStudy) -> list[Rate]:
    """Return the rates of the config that was re-tuned last, in order, its own among them."""
    retuned = linked(database, study, "retune")
    if retuned is None:
        return []
    trainings = _trainings(database, study, retuned)
    last = trainings[-1]
    found = [
        Rate(one.config["training"]["learning_rate"], one.value, one.state, one.of)
        for one in trainings
        if one.of == last.of
    ]
    for own in trials_of(database, study, number=last.of[1]) if last.of[0] == study.name else ():
        if own.config is not None:
            rate, value = own.config["training"]["learning_rate"], last.config["origin"]["value"]
            found.append(Rate(rate, value, "complete", last.of, is_own=True))
    return sorted(found, key=lambda one: one.rate)
