"""Watch and steer a search from any machine: status, stop, pause, resume, logs."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from dlnn_search.cli.options import (
    StorageOption,
    complete_studies,
    elsewhere_words,
    make_console,
    open_any,
    open_study,
    storage_words,
)
from dlnn_search.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from dlnn_search.results.status import StudyStatus
    from dlnn_search.storage.database import Database
    from dlnn_search.storage.studies import StoredStudy
    from dlnn_search.storage.workers import Event

#: Events that `status` shows.
N_EVENTS_SHOWN = 5
#: Between two drawings of `status --watch`; advice, which reads more, is thought over less often.
WATCH_SECONDS = 1.0
ADVICE_SECONDS = 15.0

StartedStudy = Annotated[
    str,
    typer.Argument(
        metavar="STUDY",
        help="Name (or file) of a study in the database.",
        autocompletion=complete_studies,
    ),
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]


def status(
    study: Annotated[
        str | None,
        typer.Argument(
            metavar="STUDY",
            help="Name (or file) of a study. Defaults to a table of all studies.",
            autocompletion=complete_studies,
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again every second until the study ends.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON. docs/status.md explains the fields.")
    ] = False,
    storage: StorageOption = None,
) -> None:
    """Show progress, workers, the best trial and advice."""
    if watch and as_json:
        raise UsageError("Expected --watch or --json, got both: call --json again and again.")
    if watch and study is None:
        raise UsageError("Expected a study with --watch: dlnn-search status STUDY --watch")
    if study is None:
        _show_all(as_json, storage)
        return
    with open_study("status", study, storage, whole=False) as (database, stored):
        if as_json:
            import json

            from dlnn_search.report.live import status_json

            print(json.dumps(status_json(*_look(database, stored)), indent=2))
            return
        from dlnn_search.report.live import picture

        console = make_console()
        if watch:
            _watch(console, database, stored)
            return
        found, events, sentences = _look(database, stored)
        shown = picture(found, console.width, events=events[-N_EVENTS_SHOWN:], advice=sentences)
        console.print(shown, markup=False)


def _show_all(as_json: bool, storage: str | None) -> None:
    from dlnn_search.results.status import study_status
    from dlnn_search.storage.halves import lost_words
    from dlnn_search.storage.studies import all_studies

    with open_any("status", storage) as database:
        studies = all_studies(database)
        if as_json:
            import json

            from dlnn_search.report.live import status_json

            looked = [status_json(*_look(database, stored)) for stored in studies]
            print(json.dumps(looked, indent=2))
            return
        from dlnn_search.report.live import studies_table

        console = make_console()
        console.print(studies_table([study_status(database, stored) for stored in studies]))
        for stored in studies:
            lost = lost_words(database, stored.id, stored.name)
            if lost is not None:
                console.print(f"\n{lost}", style="bold yellow", markup=False, soft_wrap=True)
    if studies:
        where = storage_words(storage)
        print(f"\nOne study in detail: dlnn-search status {studies[0].name}{where}")
    if others := elsewhere_words("status", storage):
        print(f"\n{others}")


def _look(
    database: Database, stored: StoredStudy
) -> tuple[StudyStatus, Sequence[Event], list[str]]:
    from dlnn_search.results.advice import look

    return look(database, stored)


def _watch(console: Console, database: Database, stored: StoredStudy) -> None:
    import time

    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from dlnn_search.errors import OutageError
    from dlnn_search.metrics import duration
    from dlnn_search.report.live import picture

    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    advised = away_since = float("-inf")
    looked: tuple[StudyStatus, Sequence[Event], list[str]] | None = None
    with live if live is not None else nullcontext():
        while True:
            now = time.monotonic()
            try:
                if looked is None or now - advised >= ADVICE_SECONDS:
                    looked, advised = _look(database, stored), now
                else:
                    from dlnn_search.results.status import study_status

                    looked = (study_status(database, stored), *looked[1:])
                away_since = float("-inf")
            except OutageError:
                if looked is None:
                    raise
                away_since = max(away_since, float("-inf")) if away_since > 0 else now
            found, events, sentences = looked
            shown = Group(
                picture(found, console.width, events=events[-N_EVENTS_SHOWN:], advice=sentences)
            )
            if away_since > 0:
                words = f"database away since {duration(now - away_since)}; workers train on"
                shown = Group(shown, Text(words, style="bold yellow"))
            if live is not None:
                live.update(shown, refresh=True)
            else:
                console.print(shown)
            if found.is_over:
                return
            time.sleep(WATCH_SECONDS if live is not None else ADVICE_SECONDS)


def stop(
    study: StartedStudy,
    now: Annotated[
        bool, typer.Option("--now", help="Stop at once. The trials continue at the next start.")
    ] = False,
    storage: StorageOption = None,
) -> None:
    """Stop all workers of a study when their trials end.

    It reaches the workers on all machines. 'start' continues the search.
    """
    reason = f"'dlnn-search stop{' --now' if now else ''}' on {socket.gethostname()}."
    _ask("stop", study, "stop_now" if now else "stop", reason, storage)


def pause(study: StartedStudy, storage: StorageOption = None) -> None:
    """Pause all workers of a study.

    They finish their current epoch and wait, on all machines. 'resume' lets them continue.
    """
    _ask("pause", study, "pause", f"'dlnn-search pause' on {socket.gethostname()}.", storage)


def resume(study: StartedStudy, storage: StorageOption = None) -> None:
    """Let a paused or stopped study continue."""
    _ask("resume", study, "run", None, storage)


def _ask(command: str, study: str, control: str, reason: str | None, storage: str | None) -> None:
    from typing import cast

    from dlnn_search.results.status import study_status
    from dlnn_search.storage.control import Control, set_control

    console = make_console()
    with open_study(command, study, storage, whole=False) as (database, stored):
        changed = set_control(database, stored.id, cast(Control, control), reason)
        found = study_status(database, stored)
    where = storage_words(storage)
    for line in _answer(found, control, changed, where):
        console.print(line, markup=False, soft_wrap=True)


def _answer(found: StudyStatus, control: str, changed: bool, where: str) -> list[str]:
    name, n = found.name, len(found.workers)
    hosts = ", ".join(sorted({worker.host for worker in found.workers}))
    who = f"its {n} workers (on {hosts})" if n > 1 else f"its worker (on {hosts})"
    if n > 1:
        does = {"stop": "finish their trials and end", "pause": "finish their epoch and wait"}
        does |= {"stop_now": "keep their checkpoints and end", "run": "continue"}
    else:
        does = {"stop": "finishes its trial and ends", "pause": "finishes its epoch and waits"}
        does |= {"stop_now": "keeps its checkpoint and ends", "run": "continues"}
    state = {"stop": "is stopped", "stop_now": "is stopped", "pause": "is paused", "run": "runs"}
    already = "" if changed else " already"
    lines = [
        f"{name} {state[control]}{already}"
        + (f": {who} {does[control]}." if n else "; it has no worker now.")
    ]
    if found.use.exhausted is not None:
        from dlnn_search.results.advice import extension

        lines.append(
            f"Nothing is left to do: the budget is {found.use.exhausted}.\n"
            f"Extend it: dlnn-search start {name} {extension(found.use)}{where}"
        )
    elif control in ("stop", "stop_now"):
        lines.append(f"Continue later: dlnn-search start {name}{where}")
    elif control == "pause":
        lines.append(f"Continue: dlnn-search resume {name}{where}")
    elif not n:
        lines.append(
            f"Start workers: dlnn-search start {name} --workers 2{where}\n"
            f"or, on another machine: dlnn-search worker {name} --storage URL"
        )
    return lines


def logs(
    study: StartedStudy,
    worker: Annotated[
        str | None,
        typer.Option(
            "--worker",
            metavar="NAME",
            help="Only this worker, as 'status' names it. Defaults to all workers.",
        ),
    ] = None,
    n: Annotated[
        int, typer.Option("-n", "--lines", metavar="N", help="Number of last lines of each log.")
    ] = 20,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show new lines until the search ends.")
    ] = False,
    storage: StorageOption = None,
) -> None:
    """Show what the workers wrote on this machine.

    It also says where the logs of workers on other machines are.
    """
    from dlnn_search.launch.detached import find_logs, last_lines
    from dlnn_search.launch.detached import follow as follow_logs
    from dlnn_search.results.status import study_status

    if n < 0:
        raise UsageError(f"Expected a number of lines from 0 on, got -n {n}.")
    with open_study("logs", study, storage, whole=False) as (database, stored):
        here, elsewhere = find_logs(database, stored, worker)
        for log in here:
            print(f"==> {log.about}: {log.path}")
            for line in last_lines(log, n):
                print(line)
        for entry in elsewhere:
            place = f"{entry.log}" if entry.log else "its terminal"
            print(f"==> {entry.worker}: on {entry.host}, {place}")
        if not here and not elsewhere:
            print(
                f"There is no log of {stored.name} on this machine. Each worker of "
                "'dlnn-search start' writes one; 'dlnn-search worker' writes to its terminal."
            )
        if not follow:
            return
        sys.stdout.flush()  # a pipe's reader must not wait for the next line to see these

        def has_ended() -> bool:
            return study_status(database, stored).is_over

        for log, line in follow_logs(lambda: find_logs(database, stored, worker)[0], has_ended):
            print(f"{log.about.rpartition('-')[2]}: {line}", flush=True)


def rename(
    study: StartedStudy,
    new_name: Annotated[str, typer.Argument(metavar="NEW", help="The new name.")],
    yes: YesOption = False,
    storage: StorageOption = None,
) -> None:
    """Rename a study. It keeps its trials."""
    from dlnn_search.commands.confirm import check_new_name
    from dlnn_search.storage.halves import check_idle, rename_study

    with open_study("rename", study, storage, whole=False) as (database, stored):
        check_new_name(database, stored, new_name)
        names = check_idle(database, stored.id, stored.name)
        _ask_first(f"Rename {' and '.join(names)} to {new_name} in {database.shown}?", yes)
        renamed = rename_study(database, stored.id, stored.name, new_name)
    print(f"Renamed: {', '.join(renamed)}.")
    print(f"Continue: dlnn-search start {new_name}{storage_words(storage)}")


def delete(study: StartedStudy, yes: YesOption = False, storage: StorageOption = None) -> None:
    """Delete a study with its trials and checkpoints.

    Its logs and its linked studies go, too. The ledger stays.
    """
    from dlnn_search.results.status import study_status
    from dlnn_search.storage.halves import check_idle, delete_study

    with open_study("delete", study, storage, whole=False) as (database, stored):
        names = check_idle(database, stored.id, stored.name)
        n_done = study_status(database, stored).n_done
        also = f", and {' and '.join(name for name in names if name != stored.name)}"
        _ask_first(
            f"Delete {stored.name} with its {n_done} finished trials, their checkpoints and logs"
            f"{also if len(names) > 1 else ''} from {database.shown}? This cannot be undone. "
            "'dlnn-search storage backup' keeps a copy.",
            yes,
        )
        deleted = delete_study(database, stored.id, stored.name)
    print(f"Deleted: {', '.join(deleted)}. The ledger still lists what was tested.")


def _ask_first(question: str, yes: bool) -> None:
    """Ask at a terminal, unless the answer was given.

    Raises:
        UsageError: If there is no terminal to ask at.
        Exit: If the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} There is no terminal to answer at: add --yes.")
    if not typer.confirm(question):
        print("Nothing was changed.")
        raise typer.Exit(1)
