"""What several commands share: their options, the database they name, how they print."""

from __future__ import annotations

import math
import re
import shlex
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from dlnn_search.errors import OutageError, StorageError, UsageError
from dlnn_search.files import shipped, study_files, study_name

if TYPE_CHECKING:
    from rich.console import Console

    from dlnn_search.storage.database import Database
    from dlnn_search.storage.studies import StoredStudy

PIPE_COLUMNS = 160
#: Other databases that are named where a study is not in this one.
MAX_OTHERS_SHOWN = 5
#: Longer names of options have their help below them.
MAX_FIRST_COLUMNS = 26
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d)")
MAX_SECONDS = 100 * 365.25 * 86_400
SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400}

#: The commands that only read: nothing is written, and the folder need not be writable. So do
#: `studies`, `doctor`, `lr-range` and `dashboard --read-only`, which work without a database, too.
ONLY_READ = frozenset(
    {
        *("status", "logs", "trials", "best", "regions", "ledger", "export"),
        *("importance", "compare", "plots", "storage info", "storage backup", "storage sweep"),
        "studies --all",
    }
)

#: Commands that are not whole with a study's name alone.
NEED_MORE = frozenset({"rename", "export", "plots"})

StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        help="Database: sqlite:///FILE or postgresql://USER@HOST/NAME. Defaults to "
        "$DLNN_SEARCH_STORAGE, then to storage/data/dlnn.db in this folder.",
    ),
]


def complete_studies(incomplete: str) -> list[str]:
    """Return the built-in studies that a name may become, for the shell."""
    return [name for name in study_files(shipped("studies")) if name.startswith(incomplete)]


StudyArgument = Annotated[
    str,
    typer.Argument(
        metavar="STUDY", help="Name of a study in the database.", autocompletion=complete_studies
    ),
]
StudyOrFile = Annotated[
    str,
    typer.Argument(
        metavar="STUDY|FILE",
        help="Name of a study, or its file (.py).",
        autocompletion=complete_studies,
    ),
]
ConfigArgument = Annotated[
    str,
    typer.Argument(
        metavar="FILE|NAME", help="A config file that 'export' wrote, or a built-in config."
    ),
]
WorkersOption = Annotated[
    int,
    typer.Option(
        "--workers", metavar="N", help="Number of workers. With 0, workers elsewhere do the work."
    ),
]
StudyOfConfigOption = Annotated[
    str | None,
    typer.Option(
        "--study",
        metavar="FILE",
        help="Study file with the config's own loader or model. Defaults to the file that the "
        "search was started from.",
    ),
]


def _argument_words(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _usage_pieces(command: Any) -> list[str]:
    pieces = [command.options_metavar]
    for argument in command.params:
        if argument.param_type_name == "argument":
            words = (
                f"{_argument_words(argument).removesuffix('...')}{'...' * (argument.nargs != 1)}"
            )
            pieces.append(words if argument.required else f"[{words}]")
    return pieces


def _option_row(option: Any) -> tuple[str, str]:
    names = ", ".join(sorted(option.opts, key=len))
    if option.secondary_opts:
        names += f" / {', '.join(option.secondary_opts)}"
    if not option.is_flag:
        names += f" {option.metavar}"
    words = option.help or ""
    if isinstance(option.default, str | int | float) and not isinstance(option.default, bool):
        words += f" Defaults to {option.default}."
    return names, words


def _write_parameters(command: Any, ctx: Any, formatter: Any) -> None:
    parameters = [each for each in command.get_params(ctx) if not getattr(each, "hidden", False)]
    rows = [
        (_argument_words(each), each.help or "")
        for each in parameters
        if each.param_type_name == "argument"
    ]
    if rows:
        _write_rows(formatter, "Arguments", rows)
    rows = [_option_row(each) for each in parameters if each.param_type_name == "option"]
    _write_rows(formatter, "Options", rows)


def _write_rows(
    formatter: Any, heading: str, rows: Iterable[tuple[str, str]], first_columns: int | None = None
) -> None:
    """Write a list under a heading: no word of it is cut, whatever the width."""
    rows = list(rows)
    widest = max(len(first) for first, _ in rows)
    first_columns = first_columns or min(widest, MAX_FIRST_COLUMNS, formatter.width // 3)
    indent = " " * (first_columns + 4)
    formatter.write(f"\n{heading}:\n")
    for first, words in rows:
        lines = textwrap.wrap(words, max(formatter.width - len(indent), 20), break_on_hyphens=False)
        if len(first) > first_columns:
            formatter.write(f"  {first}\n")
        elif lines:
            formatter.write(f"  {first:<{first_columns}}  {lines.pop(0)}\n")
        for line in lines:
            formatter.write(f"{indent}{line}\n")


class HelpCommand(TyperCommand):
    """A command whose help is plain text: the terminal's width, no Python types, nothing cut."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return _usage_pieces(self)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_parameters(self, ctx, formatter)


class HelpGroup(TyperGroup):
    """A group of commands with such a help; it lists its commands by their panels."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [*_usage_pieces(self), self.subcommand_metavar]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in _commands_of(self):
            panel = getattr(command, "rich_help_panel", None) or "Commands"
            inner = _commands_of(command) if isinstance(command, HelpGroup) else None
            rows = [(name, command)] if inner is None else [(f"{name} {n}", c) for n, c in inner]
            panels.setdefault(str(panel), []).extend((n, _summary(c)) for n, c in rows)
        widest = max(len(name) for rows in panels.values() for name, _ in rows)
        for panel, rows_of_panel in panels.items():
            _write_rows(formatter, panel, rows_of_panel, min(widest, formatter.width // 3))
        _write_parameters(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        if self.epilog:
            formatter.write(f"\n{self.epilog}\n")


def _commands_of(group: HelpGroup) -> list[tuple[str, Any]]:
    return [(name, each) for name, each in group.commands.items() if not each.hidden]


def _summary(command: Any) -> str:
    return str(command.help or "").partition("\n")[0]


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
    command: str, study: str, storage: str | None, *, whole: bool = True
) -> Iterator[tuple[Database, StoredStudy]]:
    """Open the database that holds a study, for a command, and find it.

    Args:
        command: Its name; `ONLY_READ` says how the database is opened.
        study: The study's name, or its file.
        storage: As given to `--storage`.
        whole: Whether both halves of the study are needed.
    """
    from dlnn_search.storage.studies import find, look_up

    name = study_name(Path(study)) if study.endswith(".py") else study
    with ExitStack() as opened:
        with _looked_for_elsewhere(command, name, storage):
            database = opened.enter_context(open_known(command, storage))
            stored = (find if whole else look_up)(database, name)
        yield database, stored


@contextmanager
def _looked_for_elsewhere(command: str, study: str, storage: str | None) -> Iterator[None]:
    """Where a study is not found, say which other database has it."""
    try:
        yield
    except OutageError:
        raise
    except (UsageError, StorageError) as error:
        from dlnn_search.results.status import databases_with

        addresses = databases_with(study, but=database_url_of(storage))
        if not addresses:
            raise
        command = "status" if command in NEED_MORE else command
        raise type(error)(
            f"{error} Another database that you used has it: "
            f"dlnn-search {command} {study}{storage_words(addresses[0])}"
        ) from error


def elsewhere_words(command: str, storage: str | None) -> str:
    """Return which other databases this user has searched in; nothing where none is known."""
    from dlnn_search.storage.database.known import known_databases

    others = known_databases(but=database_url_of(storage))
    if not others:
        return ""
    lines = [
        f"  dlnn-search {command}{storage_words(address)}" for address in others[:MAX_OTHERS_SHOWN]
    ]
    if len(others) > MAX_OTHERS_SHOWN:
        lines.append(f"  and {len(others) - MAX_OTHERS_SHOWN} more")
    return "\n".join(("Other databases that you used:", *lines))


def open_known(command: str, storage: str | None, *, writes: bool = False) -> Database:
    """Open a database that holds studies already, for a command.

    `ONLY_READ` says how; `writes` is for a command that only reads unless an option says otherwise.
    """
    from dlnn_search.storage.database import open_database

    read_only = command in ONLY_READ and not writes
    return open_database(database_url_of(storage), create=False, read_only=read_only)


@contextmanager
def open_any(command: str, storage: str | None) -> Iterator[Database]:
    """Do the same; where there is no database, say which one was used last."""
    with ExitStack() as opened:
        try:
            database = opened.enter_context(open_known(command, storage))
        except OutageError:
            raise
        except StorageError as error:
            from dlnn_search.storage.database.known import known_databases

            others = known_databases(but=database_url_of(storage))
            if not others:
                raise
            raise type(error)(
                f"{error} The last one that you used: "
                f"dlnn-search {command}{storage_words(others[0])}"
            ) from error
        yield database


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
