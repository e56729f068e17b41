"""What several commands share: their options, the database they name, how they print."""

from __future__ import annotations

import math
import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlnn_search.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from dlnn_search.storage.database import Database
    from dlnn_search.storage.studies import StoredStudy

PIPE_COLUMNS = 160
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d)")
MAX_SECONDS = 100 * 365.25 * 86_400
SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400}

#: The commands that only read: nothing is written, and the folder need not be writable. So do
#: `studies`, `doctor`, `lr-range` and `dashboard --read-only`, which work without a database, too.
ONLY_READ = frozenset(
    {
        *("status", "logs", "trials", "best", "regions", "ledger", "export"),
        *("importance", "compare", "plots", "storage info", "storage backup", "storage sweep"),
    }
)

StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        help="Database, sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME; else "
        "DLNN_SEARCH_STORAGE, else storage/data/dlnn.db in this folder.",
        show_default=False,
    ),
]
StudyArgument = Annotated[
    str, typer.Argument(metavar="STUDY", help="A study's name, as 'dlnn-search studies' lists it.")
]
ConfigArgument = Annotated[
    str,
    typer.Argument(
        metavar="FILE|NAME", help="A config, as export writes it, or the name of a built-in one."
    ),
]
WorkersOption = Annotated[
    int, typer.Option("--workers", help="Worker processes; 0: leave it to workers elsewhere.")
]
StudyOfConfigOption = Annotated[
    str | None,
    typer.Option(
        "--study",
        metavar="FILE",
        help="The study file that a config with a loader or builder of its own is from.",
        show_default=False,
    ),
]


def parse_duration(text: str) -> float:
    """Return seconds of `45s`, `30m`, `2h`, `1.5d`, `1h30m`.

    Raises:
        UsageError: If it is no such time, or none at all.
    """
    compact = text.strip().lower().replace(" ", "")
    parts = DURATION.findall(compact)
    if not parts or "".join(number + unit for number, unit in parts) != compact:
        raise UsageError(f"Expected a time such as 45s, 30m, 2h or 1.5d, got '{text}'.")
    seconds = sum(float(number) * SECONDS[unit] for number, unit in parts)
    if seconds <= 0:
        raise UsageError(f"Expected a time above 0, got '{text}'.")
    if seconds > MAX_SECONDS:
        raise UsageError(f"Expected a time of at most 100 years, got '{text}'.")
    return seconds


def limit_seconds(text: str | None) -> float | None:
    """Return a limit of time in seconds; infinite for `none`, None where it is not given."""
    if text is None or _is_none(text):
        return None if text is None else math.inf
    return parse_duration(text)


def limit_hours(text: str | None) -> float | None:
    """Return a limit in seconds of `20`, `1.5` or `90m`; infinite for `none`.

    Raises:
        UsageError: If it is no number of hours above 0.
    """
    if text is None or _is_none(text):
        return None if text is None else math.inf
    try:
        hours = float(text)
    except ValueError:
        return parse_duration(text)
    if not 0 < hours <= MAX_SECONDS / SECONDS["h"]:
        raise UsageError(
            f"Expected a number of hours above 0, such as 20, and below 100 years, got '{text}'."
        )
    return hours * SECONDS["h"]


def limit_moment(text: str | None) -> float | None:
    """Return the seconds since 1970 of a moment by this machine's clock; infinite for `none`.

    Raises:
        UsageError: If it is no date and time, or over.
    """
    if text is None or _is_none(text):
        return None if text is None else math.inf
    try:
        moment = datetime.fromisoformat(text.strip()).timestamp()  # without a zone: local time
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f"Expected a date and time such as 2026-12-01T08:00 (of this machine's clock), "
            f"got '{text}'."
        ) from None
    if moment <= time.time():
        from dlnn_search.storage.budget import time_words

        now = time_words(time.time())
        raise UsageError(f"Expected a moment to come; '{text}' is over, it is {now} now.")
    return moment


def _is_none(text: str) -> bool:
    return text.strip().lower() == "none"


def database_url_of(storage: str | None) -> str:
    """Return the database's address: as given, from the environment, or in this folder."""
    from dlnn_search.storage.database import database_url

    return database_url(storage)


@contextmanager
def open_study(
    command: str, study: str, storage: str | None
) -> Iterator[tuple[Database, StoredStudy]]:
    """Open the database that holds a study, for a command, and find it."""
    from dlnn_search.storage.studies import find

    with open_known(command, storage) as database:
        yield database, find(database, study)


def open_known(command: str, storage: str | None, *, writes: bool = False) -> Database:
    """Open a database that holds studies already, for a command.

    `ONLY_READ` says how; `writes` is for a command that only reads unless an option says otherwise.
    """
    from dlnn_search.storage.database import open_database

    read_only = command in ONLY_READ and not writes
    return open_database(database_url_of(storage), create=False, read_only=read_only)


def params_by_trial(database: Database, study: str) -> dict[int | None, dict[str, Any]]:
    """Return each trial's parameters by Optuna's id of it."""
    import optuna

    from dlnn_search.optuna_version import trial_id_of

    loaded = optuna.load_study(study_name=study, storage=database.optuna)
    return {trial_id_of(loaded, each): each.params for each in loaded.get_trials(deepcopy=False)}


def storage_words(storage: str | None) -> str:
    """Return ` --storage …` for the next command, if one was given; never with its password."""
    from dlnn_search.storage.database import shown

    if storage is None:
        return ""
    given = storage if storage.startswith("sqlite:") else shown(storage)
    return f" --storage {shlex.quote(given)}"


def make_console() -> Console:
    """Return where tables are printed."""
    from rich.console import Console

    # A pipe or a file has no width: the tables need not break there.
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_COLUMNS)
