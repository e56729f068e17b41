"""A study's range test: made by its first start, in a process of its own, and kept."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable

from dlnn_search.errors import StudyError, TrainingError
from dlnn_search.storage.database import Database, open_database
from dlnn_search.storage.definitions import StoredStudy, find
from dlnn_search.storage.kept import keep_rate, kept_rate
from dlnn_search.study import Study
from dlnn_search.training.rate_range import Sweep


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


def with_kept_rate(study: Study, database: Database, stored: StoredStudy) -> Study:
    """Return the study with the rate that was kept, for a worker.

    Raises:
        StudyError: If the study wants a test and had none.
    """
    if study.range_test is None:
        return study
    kept = kept_rate(database, stored.id)
    if kept is None:
        raise StudyError(
            f"The study '{study.name}' has no range test yet, which its first start makes: "
            f"dlnn-search start {study.name}"
        )
    return dataclasses.replace(study, measured_rate=kept.rate)


def keep_measured(name: str, url: str, sweep: Sweep) -> None:
    """Keep what a test found with its study."""
    with open_database(url, create=False) as database:
        keep_rate(database, find(database, name).id, sweep.suggested)
