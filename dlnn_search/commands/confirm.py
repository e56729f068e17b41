"""The use cases `confirm` and `retune`: train the best of a search again, in a linked study."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from dlnn_search.commands.export import config_of, searched_configs
from dlnn_search.config import Config
from dlnn_search.config.training import fresh_seeds, is_of
from dlnn_search.errors import DlnnSearchError, StorageError, StudyError, UsageError
from dlnn_search.metrics import loss_sign
from dlnn_search.results.advice import next_words
from dlnn_search.results.confirmation import confirmation
from dlnn_search.results.status import best_trials, study_status
from dlnn_search.storage.database import Database, open_database
from dlnn_search.storage.halves import Kind, is_linked_name, linked_name, parent_and_kind
from dlnn_search.storage.studies import (
    StoredStudy,
    add_given,
    all_studies,
    check_not_renamed,
    code_file,
    linked,
    parent_of,
    register,
    seeds_of,
    set_parent,
    short_hash,
)
from dlnn_search.storage.trials import trials_of
from dlnn_search.study import NAME_PATTERN, RandomSearch, Study
from dlnn_search.study.finding import bring_code, is_built_in, load_study
from dlnn_search.worker.optuna_study import open_optuna_study


def check_new_name(database: Database, stored: StoredStudy, name: str) -> None:
    """Check that a study may be given a name; whether it is free is another question.

    Raises:
        UsageError: If not.
    """
    parent = parent_of(database, stored.id)
    if parent is not None:
        raise UsageError(
            f"'{stored.name}' trains given configs of '{parent}' and is renamed with that study."
        )
    check_own_name(name, own=stored.lasting_name)


def check_own_name(name: str, own: str | None = None) -> None:
    """Check that a study of a user's own may have a name.

    Args:
        name: The wanted one.
        own: The study's first name, which is its own even if it is a built-in one's.

    Raises:
        UsageError: If not.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise UsageError(
            "Expected a name of at most 100 small letters, digits, '-' and '_', which begins with "
            f"a letter or digit, got '{name}'."
        )
    if is_linked_name(name):
        raise UsageError(f"Expected a name that does not end as a linked study's, got '{name}'.")
    if is_built_in(name) and name != own:
        raise UsageError(f"The name '{name}' is that of a built-in study. Choose another.")


def enqueue(
    database: Database,
    parent: StoredStudy,
    kind: Kind,
    configs: Sequence[Config],
    study_file: str | None,
) -> tuple[Study, int]:
    """Let a linked study train these configs, those that it has not trained yet.

    Returns:
        The study, and how many configs are new to it.

    Raises:
        UsageError: If the configs need own code, and neither `study_file` nor the file that the
            search was started from brings it.
        StorageError: If the database fails.
    """
    name = linked_name(parent.name, kind)
    code = code_file(database, configs[0], study_file)
    study = _study(name, parent.metric, parent.direction, configs[0], code)
    stored = register(database, study.name, study.definition())
    set_parent(database, stored.id, parent.name)
    open_optuna_study(study, database)
    n_new = add_given(
        database, stored.id, [config.model_dump(mode="json") for config in configs], identity
    )
    return dataclasses.replace(study, first_name=stored.lasting_name), n_new


def find_study(name_or_file: str, url: str, *, quick: bool, study_file: str | None) -> Study:
    """Return a study by its name, from its file, or as the database knows it.

    A study of the database is made from the file that it was started from, whatever it is called
    now; a linked one is made of its slots.

    Raises:
        UsageError: If there is no such study, or it needs own code.
        StudyError: If the file cannot be read or makes no study.
        StorageError: If the database of a linked or renamed study cannot be opened.
    """
    if not is_linked_name(name_or_file):
        if name_or_file.endswith(".py") or is_built_in(name_or_file):
            return load_study(name_or_file, quick=quick)
        known = _stored(name_or_file, url, quick=quick)
        if known is None:
            return load_study(name_or_file, quick=quick)
        return _from_its_file(known, study_file)
    with open_database(url, create=False) as database:
        for stored in all_studies(database):
            if stored.name == name_or_file and parent_of(database, stored.id) is not None:
                given = trials_of(database, stored, begun=False, limit=1)
                if given:
                    example = Config.model_validate(given[0].config)
                    code = code_file(database, example, study_file)
                    study = _study(stored.name, stored.metric, stored.direction, example, code)
                    return dataclasses.replace(study, first_name=stored.lasting_name)
    parent, kind = parent_and_kind(name_or_file)
    raise UsageError(
        f"The database has no study '{name_or_file}'. It is made by "
        f"'dlnn-search {kind} {parent}', once that study has complete trials."
    )


def _stored(name: str, url: str, *, quick: bool) -> StoredStudy | None:
    """Return a study that the database knows; None where it, or the database, is not there."""
    wanted = f"{name}-quick" if quick else name
    try:
        database = open_database(url, create=False)
    except StorageError:
        if url.startswith("sqlite"):
            return None
        raise
    with database:
        known = all_studies(database)
        check_not_renamed(wanted, known)
        return next((stored for stored in known if stored.name == wanted), None)


def _from_its_file(stored: StoredStudy, study_file: str | None) -> Study:
    """Return a stored study with the code that it was started with.

    Raises:
        UsageError: If its file is not on this machine.
        StudyError: If that cannot be read or makes no study.
    """
    if study_file is not None:
        loaded = load_study(study_file)
    elif is_built_in(stored.lasting_name):
        loaded = load_study(stored.lasting_name)
    elif stored.file is not None and Path(stored.file).is_file():
        loaded = load_study(stored.file)
    else:
        where = "a file" if stored.file is None else f"'{stored.file}', which is not here"
        raise UsageError(
            f"The study '{stored.name}' was started from {where}. Name its file: --study FILE.py"
        )
    versions = [loaded, *([] if loaded.quick is None else [loaded.quick_version()])]
    wanted = short_hash(stored.definition)
    study = next((one for one in versions if short_hash(one.definition()) == wanted), loaded)
    return dataclasses.replace(study, name=stored.name, first_name=stored.lasting_name)


def identity(config: dict[str, Any]) -> str:
    """Return what is equal for configs that train alike."""
    try:
        return Config.model_validate(config).fingerprint()
    except (DlnnSearchError, ValueError):
        return repr(config)


def _study(
    name: str, metric: str, direction: str, example: Config, study_file: str | None
) -> Study:
    def given(trial: optuna.Trial) -> Config:
        """Stand for the slots' configs, where one is looked at before a slot is claimed."""
        if trial.study.study_name == name:
            parent, kind = parent_and_kind(name)
            raise StudyError(
                f"'{name}' trains given configs and has no space to search. Extend it with "
                f"'dlnn-search {kind} {parent}'."
            )
        return example

    goal: dict[str, Any] = {"minimize": None, "maximize": None, direction: metric}
    if not example.own_parts:
        return Study(space=given, sampler=RandomSearch(), name=name, **goal)
    bring_code(example, name, study_file)
    assert study_file is not None  # else there was an error
    return dataclasses.replace(
        load_study(study_file),
        space=given,
        sampler=RandomSearch(),
        pruner=None,
        quick=None,
        range_test=None,
        trial_timeout_seconds=None,
        name=name,
        **goal,
    )


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
            f"Expected 2 to {MAX_SEEDS} seeds, got --seeds {seeds}. One seed shows no spread."
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
    sign = loss_sign(study.direction)
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
            f"'{study.name}' trains given configs of '{parent}'. Name '{parent}' instead."
        )
    if not best_trials(database, study, 1):
        raise UsageError(
            f"'{study.name}' has no complete trial yet. {next_words(study_status(database, study))}"
        )
