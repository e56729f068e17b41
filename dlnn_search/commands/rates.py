"""The use case `lr-range`, and the range test that a study's first start makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import optuna

from dlnn_search import data
from dlnn_search.commands.export import config_of, write_whole
from dlnn_search.config import Config
from dlnn_search.errors import StorageError, TrainingError, UsageError
from dlnn_search.results.status import best_trials
from dlnn_search.storage.control import keep_rate, kept_rate
from dlnn_search.storage.database import Database, open_database
from dlnn_search.storage.studies import StoredStudy, all_studies, find
from dlnn_search.study import Study
from dlnn_search.study.finding import bring_code, built_in_studies, load_study
from dlnn_search.study.named_configs import NAMED, find_config
from dlnn_search.training.rate_range import MIN_BATCHES, Sweep
from dlnn_search.worker.first_trials import middle_config


@dataclass(frozen=True)
class Subject:
    """What is tested.

    Attributes:
        words: What it is, for people.
        name: For the files that are written.
    """

    config: Config
    words: str
    name: str


def subject_of(name_or_file: str, url: str, *, quick: bool, study_file: str | None) -> Subject:
    """Return what a name or a file stands for.

    Args:
        name_or_file: A built-in config or study, a study in the database, a config's file, a
            study's file.
        url: Of the database, whose best trial is a study's config, if it has one.
        quick: Whether a study's small version is meant.
        study_file: The study that a config of own code is from.

    Raises:
        UsageError: If it stands for nothing.
        StudyError: If a study's file cannot be read or its space fails.
    """
    studies = built_in_studies()
    is_study = name_or_file.endswith(".py") or name_or_file in studies
    is_study |= name_or_file.removesuffix("-quick") in studies
    if not is_study or name_or_file in NAMED:
        is_name = name_or_file not in NAMED and not Path(name_or_file).suffix
        searched = _best_of(name_or_file, url) if is_name else None
        if searched is not None:
            found, number = searched
            words = f"the best trial, {number},"
            return Subject(bring_code(found, name_or_file, study_file), words, name_or_file)
        found = find_config(name_or_file)
        if quick:
            raise UsageError(f"--quick is for studies, got the config '{name_or_file}'.")
        return Subject(
            bring_code(found, name_or_file, study_file), "the config", Path(name_or_file).stem
        )
    study = load_study(name_or_file, quick=quick)
    best = _best_of(study.name, url)
    if best is not None:
        return Subject(study.with_own_code(best[0]), f"the best trial, {best[1]},", study.name)
    return Subject(middle_config(study), "the middle of the space", study.name)


def _best_of(study: str, url: str) -> tuple[Config, int] | None:
    try:
        database = open_database(url, create=False, read_only=True)
    except StorageError:  # not searched yet
        return None
    with database:
        for stored in all_studies(database):
            if stored.name == study:
                best = best_trials(database, stored, 1)
                if best:
                    return config_of(stored, best[0]), best[0].number
        return None


def make_test(
    config: Config,
    *,
    low: float,
    high: float,
    n_batches: int,
    threads: int | None = None,
    on_progress: Callable[[float], None] = lambda _: None,
) -> Sweep:
    """Make the range test of a config. Neither validation nor test pictures are looked at.

    Raises:
        UsageError: If the rates or batches cannot be meant.
        DlnnSearchError: If data or model cannot be made.
    """
    if not 0 < low < high <= 100:
        raise UsageError(f"Expected rates 0 < --low < --high <= 100, got {low:g} and {high:g}.")
    if n_batches < MIN_BATCHES:
        raise UsageError(f"Expected at least {MIN_BATCHES} batches, got --batches {n_batches}.")
    from dlnn_search.training.rate_range import sweep_rates

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    config = config.model_copy(update={"data": data.resolve(config.data)})
    images = data.load(config.data, config.training.curriculum)
    return sweep_rates(
        config,
        images,
        low=low,
        high=high,
        n_batches=n_batches,
        threads=threads,
        on_progress=on_progress,
    )


def write_sweep(sweep: Sweep, subject: Subject, picture: str, output: Path) -> list[Path]:
    """Write the picture (HTML) and, beside it, the numbers (JSON).

    Raises:
        UsageError: If the name is no page's, or its folder does not exist.
        StorageError: If a file cannot be written.
    """
    if output.suffix.lower() != ".html":
        raise UsageError(f"Expected a page to write, -o NAME.html, got '{output}'.")
    if not output.parent.is_dir():
        raise UsageError(f"There is no folder '{output.parent}' to write '{output.name}' into.")
    numbers = output.with_suffix(".json")
    write_whole(output, picture)
    plain = {
        "subject": subject.name,
        "config": subject.config.model_dump(mode="json"),
        **sweep.plain(),
    }
    write_whole(numbers, json.dumps(plain, indent=1) + "\n")
    return [output, numbers]


def measure(
    study: Study,
    database: Database,
    stored: StoredStudy,
    arguments: list[str],
    say: Callable[[str], None],
) -> None:
    """Let a study that wants a learning-rate range test have one, unless it had.

    Args:
        study: With or without `range_test=RangeTest()`.
        database: Where what was measured is kept.
        stored: The same study, stored.
        arguments: The study's name or file and options, as a worker finds it again.
        say: Tells of the test.

    Raises:
        TrainingError: If the test fails.
    """
    if study.range_test is None:
        return
    kept = kept_rate(database, stored.id)
    if kept is None:
        say(f"Testing the learning rates of {study.name}, once ...")
        # TensorFlow stays out of the process that looks after workers.
        command = [sys.executable, "-m", "dlnn_search", "lr-range"]
        done = subprocess.run(
            [*command, *arguments, "--keep", "--batches", str(study.range_test.batches)],
            env={**os.environ, "DLNN_SEARCH_STORAGE": database.url},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise TrainingError(
                f"The range test of '{study.name}' failed: "
                f"{done.stderr.strip().removeprefix('Error: ') or 'without a word'}"
            )
        kept = kept_rate(database, stored.id)
    rate = None if kept is None else kept.rate
    say(
        "The range test could not tell a rate: the study's own range stays."
        if rate is None
        else f"Learning rates are searched around {rate:.3g}, as the range test found."
    )


def keep_measured(name: str, url: str, sweep: Sweep) -> None:
    """Keep what a test found with its study."""
    with open_database(url, create=False) as database:
        keep_rate(database, find(database, name).id, sweep.suggested)
