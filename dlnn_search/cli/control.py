"""Watch and steer a search from any machine: status, stop, pause, resume, logs."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlnn_search.cli.options import StorageOption, make_console, open_known, storage_words
from dlnn_search.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from dlnn_search.results.status import StudyStatus
    from dlnn_search.storage.database import Database
    from dlnn_search.storage.studies import StoredStudy
    from dlnn_search.storage.workers import Event

#: Events that `status` shows, and those that advice looks at.
N_EVENTS_SHOWN = 5
N_EVENTS_READ = 100
#: Between two drawings of `status --watch`; advice, which reads more, is thought over less often.
WATCH_SECONDS = 1.0
ADVICE_SECONDS = 15.0

StartedStudy = Annotated[
    str, typer.Argument(metavar="STUDY", help="The name (or file) of a study that was started.")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")]


def status(
    study: Annotated[
        str | None,
        typer.Argument(metavar="[STUDY]", help="One study closely; without it all in a table."),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Draw it anew each second, until the study ends.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="For programs; docs/status.md tells the fields.")
    ] = False,
    storage: StorageOption = None,
) -> None:
    """Show workers, budget, best trial and what is wrong, from any machine."""
    if watch and as_json:
        raise UsageError("Expected --watch or --json, got both: call --json again and again.")
    if watch and study is None:
        raise UsageError("Expected a study with --watch: dlnn-search status STUDY --watch")
    with open_known("status", storage) as database:
        if study is None:
            _show_all(database, as_json)
            return
        stored = _look_up(database, study)
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


def _show_all(database: Database, as_json: bool) -> None:
    from dlnn_search.results.status import study_status
    from dlnn_search.storage.halves import lost_words
    from dlnn_search.storage.studies import all_studies

    studies = all_studies(database)
    if as_json:
        import json

        from dlnn_search.report.live import status_json

        print(json.dumps([status_json(*_look(database, stored)) for stored in studies], indent=2))
        return
    from dlnn_search.report.live import studies_table

    console = make_console()
    console.print(studies_table([study_status(database, stored) for stored in studies]))
    for stored in studies:
        lost = lost_words(database, stored.id, stored.name)
        if lost is not None:
            console.print(f"\n{lost}", style="bold yellow", markup=False, soft_wrap=True)
    if studies:
        console.print("\nOne closely: dlnn-search status STUDY [--watch]", markup=False)


def _look(
    database: Database, stored: StoredStudy
) -> tuple[StudyStatus, Sequence[Event], list[str]]:
    from dlnn_search.results.advice import advice, facts_of
    from dlnn_search.results.status import study_status
    from dlnn_search.storage.halves import lost_words
    from dlnn_search.storage.workers import last_events

    found = study_status(database, stored)
    events = last_events(database, stored.id, N_EVENTS_READ)
    lost = lost_words(database, stored.id, stored.name)
    if lost is not None:  # what else could be done can not
        return found, events, [lost]
    return found, events, advice(facts_of(database, stored, found, events))


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
        bool, typer.Option("--now", help="Keep checkpoints and give the trials back, at once.")
    ] = False,
    storage: StorageOption = None,
) -> None:
    """Let the workers of a study, on all machines, finish their trials and end."""
    reason = f"'dlnn-search stop{' --now' if now else ''}' on {socket.gethostname()}."
    _ask(study, "stop_now" if now else "stop", reason, storage)


def pause(study: StartedStudy, storage: StorageOption = None) -> None:
    """Let the workers of a study, on all machines, keep their epochs and wait."""
    _ask(study, "pause", f"'dlnn-search pause' on {socket.gethostname()}.", storage)


def resume(study: StartedStudy, storage: StorageOption = None) -> None:
    """Let the workers of a paused or stopped study go on."""
    _ask(study, "run", None, storage)


def _ask(study: str, control: str, reason: str | None, storage: str | None) -> None:
    from typing import cast

    from dlnn_search.results.status import study_status
    from dlnn_search.storage.control import Control, set_control

    console = make_console()
    with open_known("stop", storage) as database:
        stored = _look_up(database, study)
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
        does = {"stop": "finish their trials and end", "pause": "keep their epoch and wait"}
        does |= {"stop_now": "keep their checkpoints and end", "run": "go on"}
    else:
        does = {"stop": "finishes its trial and ends", "pause": "keeps its epoch and waits"}
        does |= {"stop_now": "keeps its checkpoint and ends", "run": "goes on"}
    state = {"stop": "is stopped", "stop_now": "is stopped", "pause": "is paused", "run": "runs"}
    already = "" if changed else " already"
    lines = [
        f"{name} {state[control]}{already}"
        + (f": {who} {does[control]}." if n else "; no worker is at it.")
    ]
    if found.use.exhausted is not None:
        from dlnn_search.results.advice import extension

        lines.append(
            f"Nothing is left to do: the budget is {found.use.exhausted}.\n"
            f"Extend it: dlnn-search start {name} {extension(found.use)}{where}"
        )
    elif control in ("stop", "stop_now"):
        lines.append(f"Go on later: dlnn-search start {name}{where}")
    elif control == "pause":
        lines.append(f"Go on: dlnn-search resume {name}{where}")
    elif not n:
        lines.append(
            f"Start some: dlnn-search start {name} --workers 2{where}\n"
            f"or, on any machine: dlnn-search worker {name} --storage URL"
        )
    return lines


def logs(
    study: StartedStudy,
    worker: Annotated[
        str | None,
        typer.Option("--worker", metavar="NAME", help="One worker's, as status names it."),
    ] = None,
    n: Annotated[int, typer.Option("-n", "--lines", help="Last lines of each log.")] = 20,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is written, to the end.")
    ] = False,
    storage: StorageOption = None,
) -> None:
    """Show what a study's workers wrote on this machine, and where the others' logs are."""
    from dlnn_search.launch.detached import find_logs, last_lines
    from dlnn_search.launch.detached import follow as follow_logs
    from dlnn_search.results.status import study_status

    if n < 0:
        raise UsageError(f"Expected a number of lines from 0 on, got -n {n}.")
    with open_known("logs", storage) as database:
        stored = _look_up(database, study)
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
                f"No worker of {stored.name} has left a log here. Workers that "
                "'dlnn-search start' runs write one each; a lone 'worker' writes to its terminal."
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
    new_name: Annotated[str, typer.Argument(metavar="NEW", help="Its name from now on.")],
    yes: YesOption = False,
    storage: StorageOption = None,
) -> None:
    """Give a study another name; it goes on with the same trials and random numbers."""
    from dlnn_search.commands.confirm import check_new_name
    from dlnn_search.storage.halves import check_idle, rename_study

    with open_known("rename", storage) as database:
        stored = _look_up(database, study)
        check_new_name(database, stored, new_name)
        names = check_idle(database, stored.id, stored.name)
        _ask_first(f"Rename {' and '.join(names)} to {new_name} in {database.shown}?", yes)
        renamed = rename_study(database, stored.id, stored.name, new_name)
    print(f"Renamed: {', '.join(renamed)}.")
    print(f"Go on: dlnn-search start {new_name}{storage_words(storage)}")


def delete(study: StartedStudy, yes: YesOption = False, storage: StorageOption = None) -> None:
    """Delete a study with its trials, checkpoints and logs; the ledger stays."""
    from dlnn_search.results.status import study_status
    from dlnn_search.storage.halves import check_idle, delete_study

    with open_known("delete", storage) as database:
        stored = _look_up(database, study)
        names = check_idle(database, stored.id, stored.name)
        n_done = study_status(database, stored).n_done
        also = f", and {' and '.join(name for name in names if name != stored.name)}"
        _ask_first(
            f"Delete {stored.name} with its {n_done} finished trials, their checkpoints and logs"
            f"{also if len(names) > 1 else ''} from {database.shown}? A backup keeps it: "
            "dlnn-search storage backup.",
            yes,
        )
        deleted = delete_study(database, stored.id, stored.name)
    print(f"Deleted: {', '.join(deleted)}. The ledger keeps what was tested.")


def _ask_first(question: str, yes: bool) -> None:
    """Ask at a terminal, unless the answer was given.

    Raises:
        UsageError: If there is no terminal to ask at.
        Exit: If the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} Nobody can answer here: add --yes to do it.")
    if not typer.confirm(question):
        print("Nothing was changed.")
        raise typer.Exit(1)


def _look_up(database: Database, study: str) -> StoredStudy:
    from dlnn_search.storage.studies import look_up

    # A study's file is named as it, but for '-' and '_'.
    name = Path(study).stem.replace("_", "-").lower() if study.endswith(".py") else study
    return look_up(database, name)
