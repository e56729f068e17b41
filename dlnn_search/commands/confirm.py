"""The use cases `confirm` and `retune`: train the best of a search again, in a linked study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dlnn_search.commands.export import config_of, searched_configs
from dlnn_search.commands.linked import enqueue
from dlnn_search.config import Config
from dlnn_search.config.seeds import fresh_seeds, is_of
from dlnn_search.errors import UsageError
from dlnn_search.results.confirmation import confirmation
from dlnn_search.results.status import best_trials
from dlnn_search.storage.database import Database
from dlnn_search.storage.definitions import StoredStudy
from dlnn_search.storage.links import linked, parent_of, seeds_of
from dlnn_search.study import Study

MAX_SEEDS = 100
MAX_TOP = 100
#: Rates to either side of the selected one, each that many times the one before: to an eighth
#: and to eight times. The report's own grid had a step of 10.
RETUNE_STEPS = 3
RETUNE_FACTOR = 2.0


@dataclass(frozen=True)
class Planned:
    """What a linked study shall train.

    Attributes:
        study: The linked study.
        n_new: Trainings that it had not before.
    """

    study: Study
    n_new: int


def plan_confirmation(
    database: Database, study: StoredStudy, *, top: int, seeds: int, study_file: str | None
) -> Planned:
    """Give the best few trials of a study, and of its re-tuning, fresh seeds to be trained with.

    Asked again, only what is new is added: more seeds, more trials, or better ones.

    Args:
        database: Of the study.
        study: Whose trials are confirmed.
        top: How many of them; of equal configs the first.
        seeds: Fresh ones for each, other than the search's.
        study_file: Brings configs' own code.

    Raises:
        UsageError: If the study has no complete trial, or the numbers cannot be meant.
    """
    if not 1 <= top <= MAX_TOP:
        raise UsageError(f"Expected 1 to {MAX_TOP} trials to confirm, got --top {top}.")
    if not 2 <= seeds <= MAX_SEEDS:
        raise UsageError(
            f"Expected 2 to {MAX_SEEDS} seeds, since one tells nothing of the spread, "
            f"got --seeds {seeds}."
        )
    _check_searched(database, study)
    best = _best_configs(database, study, top)
    # Seed by seed, so that what is there at any moment can be compared.
    configs = [
        _with_training(config, seed=seed)
        for of_one_number in zip(*_fresh_seeds(database, study, best, seeds), strict=True)
        for config, seed in zip(best, of_one_number, strict=True)
    ]
    return Planned(*enqueue(database, study, "confirm", configs, study_file))


def plan_retuning(
    database: Database,
    study: StoredStudy,
    *,
    steps: int = RETUNE_STEPS,
    factor: float = RETUNE_FACTOR,
    study_file: str | None,
) -> Planned:
    """Let the selected config be trained at other learning rates around its own.

    "After changing the layers and parameters, we re-tune the learning rate." (report, section
    2.6)

    Args:
        database: Of the study.
        study: Whose confirmed winner, else its best trial, is selected.
        steps: Rates to either side.
        factor: Between two of them.
        study_file: Brings configs' own code.

    Raises:
        UsageError: If the study has no complete trial, or the numbers cannot be meant.
    """
    if not 1 <= steps <= 10:
        raise UsageError(f"Expected 1 to 10 rates to either side, got --steps {steps}.")
    if not 1.01 <= factor <= 100:
        raise UsageError(f"Expected a factor of 1.01 to 100, got --factor {factor:g}.")
    _check_searched(database, study)
    selected = _selected(database, study)
    rate = selected.training.learning_rate
    assert rate is not None  # a config always names its rate
    powers = [power for power in range(-steps, steps + 1) if power]
    # The nearest first: they are the likeliest to be better.
    configs = [
        _with_training(selected, learning_rate=float(f"{rate * factor**power:.6g}"))
        for power in sorted(powers, key=lambda power: (abs(power), power))
    ]
    return Planned(*enqueue(database, study, "retune", configs, study_file))


def _fresh_seeds(
    database: Database, study: StoredStudy, configs: Sequence[Config], n: int
) -> list[list[int]]:
    """Return n seeds for each config: the same for all, and those that it has already first."""
    begun = linked(database, study, "confirm")
    given = [] if begun is None else seeds_of(database, [begun.id])
    if any(not is_of("confirm", seed) for seed in given):
        # An earlier version began this confirmation, which counted on from the search's own seed.
        return [[config.training.seed + number for number in range(1, n + 1)] for config in configs]
    retuned = linked(database, study, "retune")
    searches = [study.id] if retuned is None else [study.id, retuned.id]
    used = {*given, *seeds_of(database, searches)}
    seeds = [*given, *fresh_seeds(study.name, "confirm", max(0, n - len(given)), used)][:n]
    return [seeds] * len(configs)


def _best_configs(database: Database, study: StoredStudy, top: int) -> list[Config]:
    found = searched_configs(database, study, top)
    retuned = linked(database, study, "retune")
    if retuned is not None:
        found += searched_configs(database, retuned, top)
    sign = 1 if study.direction == "minimize" else -1
    found.sort(key=lambda config: sign * (config.origin.value if config.origin else 0.0))
    distinct: dict[str, Config] = {}
    for config in found:
        distinct.setdefault(config.fingerprint(), config)
    return list(distinct.values())[:top]


def _selected(database: Database, study: StoredStudy) -> Config:
    confirmed = confirmation(database, study)
    if confirmed is not None and confirmed.winner is not None:
        return Config.model_validate(confirmed.winner.config)
    return config_of(study, best_trials(database, study, 1)[0])


def _with_training(config: Config, **changes: object) -> Config:
    # Through validation, which a copy would skip.
    plain = config.model_dump()
    return Config.model_validate({**plain, "training": {**plain["training"], **changes}})


def _check_searched(database: Database, study: StoredStudy) -> None:
    parent = parent_of(database, study.id)
    if parent is not None:
        raise UsageError(
            f"'{study.name}' trains given configs of '{parent}'; name that study instead."
        )
    if not best_trials(database, study, 1):
        raise UsageError(
            f"'{study.name}' has no complete trial yet. "
            f"Search with 'dlnn-search start {study.name}'."
        )
