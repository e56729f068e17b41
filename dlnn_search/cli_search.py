"""The commands of a search: studies, start, worker, validate, doctor, dashboard."""

from __future__ import annotations

from typing import Annotated

import typer

from dlnn_search.cli_options import (
    StorageOption,
    StudyOfConfigOption,
    database_url_of,
    make_console,
    parse_duration,
    storage_words,
)
from dlnn_search.errors import StudyError, UsageError

EXIT_INTERRUPTED = 130


def studies(storage: StorageOption = None) -> None:
    """List the studies that come with dlnn-search."""
    from dlnn_search.report.tables import print_studies
    from dlnn_search.study_files import built_in_studies, load_study

    print_studies(
        make_console(), [load_study(name) for name in built_in_studies()], database_url_of(storage)
    )
    print("\nStart one: dlnn-search start NAME --workers 2 [--quick]")


def start(
    study: Annotated[
        str, typer.Argument(metavar="STUDY|FILE", help="A study's name, or a study file (.py).")
    ],
    workers: Annotated[
        int, typer.Option("--workers", help="Worker processes; 0: others join by 'worker'.")
    ] = 1,
    trials: Annotated[
        int | None,
        typer.Option("--trials", help="Budget in all; else as before, at first the study's own."),
    ] = None,
    timeout: Annotated[
        str | None,
        typer.Option("--timeout", metavar="TIME", help="Stop after that, e.g. 45s, 30m, 2h, 1.5d."),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            "--sampler",
            metavar="NAME",
            help="coarse-to-fine, tpe, random, qmc, cmaes or gp, for all workers from now on; "
            "else as before, at first the study's own.",
        ),
    ] = None,
    storage: StorageOption = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="The small version: minutes on two cores.")
    ] = False,
    code: StudyOfConfigOption = None,
) -> None:
    """Search with worker processes; go on where a start stopped."""
    from dlnn_search.report.live import LiveView
    from dlnn_search.service.linked import find_study, is_linked_name
    from dlnn_search.service.start import start as run

    console = make_console()
    seconds = None if timeout is None else parse_duration(timeout)
    url = database_url_of(storage)
    loaded = find_study(study, url, quick=quick, study_file=code)
    if trials is not None and is_linked_name(study):
        parent, _, kind = study.rpartition("-")
        raise UsageError(
            f"The budget of '{study}' is what 'dlnn-search {kind} {parent}' gives it: "
            "expected no --trials."
        )
    started = run(
        loaded,
        [study, *(["--quick"] if quick else []), *(["--study", code] if code else [])],
        url,
        n_workers=workers,
        n_trials=trials,
        timeout_seconds=seconds,
        sampler=sampler,
        view=lambda status: LiveView(console, status),
    )
    from dlnn_search.report.tables import print_end, print_ready

    if workers == 0 and started.status.n_done < started.status.budget:
        joined = f"dlnn-search worker {study}{' --quick' if quick else ''}"
        print_ready(console, started.status, joined, storage_words(storage))
        return
    again = f"dlnn-search start {study}{' --quick' if quick else ''} --workers {workers}"
    with_code = f" --study {code or study}" if loaded.load or loaded.build else ""
    print_end(console, started.status, again, storage_words(storage), with_code)
    if not started.ended_by_itself:
        raise typer.Exit(EXIT_INTERRUPTED)


def worker(
    study: Annotated[
        str, typer.Argument(metavar="STUDY|FILE", help="A study's name, or a study file (.py).")
    ],
    storage: StorageOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="The study's small version.")] = False,
    name: Annotated[str | None, typer.Option("--name", hidden=True)] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", help="TensorFlow's threads; else all cores.")
    ] = None,
    code: StudyOfConfigOption = None,
) -> None:
    """Join a study with one worker, from any machine."""
    import logging

    from dlnn_search.secret import hide_in_logs
    from dlnn_search.service.linked import find_study
    from dlnn_search.service.worker import run_worker
    from dlnn_search.storage.database import open_database
    from dlnn_search.training.quiet import import_tensorflow

    if threads is not None and threads < 1:
        raise UsageError(f"Expected at least 1 thread, got --threads {threads}.")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    hide_in_logs()
    url = database_url_of(storage)
    loaded = find_study(study, url, quick=quick, study_file=code)
    database = open_database(url, create=False)
    import_tensorflow()
    try:
        exit_code = run_worker(loaded, database, name=name, threads=threads)
    finally:
        database.close()
    raise typer.Exit(exit_code)


def validate(
    study: Annotated[str, typer.Argument(metavar="STUDY|FILE", help="A study's name or file.")],
    quick: Annotated[bool, typer.Option("--quick", help="The small version.")] = False,
) -> None:
    """Build the corners of a study's space, and train each a step."""
    from dlnn_search.study_files import load_study
    from dlnn_search.training.quiet import import_tensorflow

    loaded = load_study(study, quick=quick)
    import_tensorflow()
    from dlnn_search.report.checks import print_checks
    from dlnn_search.service.validate import validate as run

    if print_checks(make_console(), loaded, run(loaded)):
        raise typer.Exit(StudyError.exit_code)


def doctor(storage: StorageOption = None) -> None:
    """Say what this machine offers a search, and what it lacks."""
    from dlnn_search.service.doctor import examine

    marks = {"good": ("ok", "green"), "note": ("note", "yellow"), "lacking": ("LACKS", "bold red")}
    console, lacking = make_console(), 0
    for finding in examine(storage):
        mark, style = marks[finding.verdict]
        console.print(f"{mark:>5}", style=style, end="  ")
        console.print(f"{finding.about}: {finding.words}", markup=False, soft_wrap=True)
        lacking += finding.verdict == "lacking"
    if lacking:
        raise typer.Exit(1)


def dashboard(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0: any free one.")] = 8080,
    storage: StorageOption = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Nobody may change anything.")
    ] = False,
    behind_proxy: Annotated[
        bool,
        typer.Option("--behind-proxy", help="Trust X-Forwarded-For and -Proto of a proxy before."),
    ] = False,
) -> None:
    """Show trials and curves in the browser (optuna-dashboard)."""
    import logging

    from dlnn_search.dashboard import Serving, check_may_serve, serve
    from dlnn_search.dashboard_access import Passwords
    from dlnn_search.dashboard_storage import open_sides
    from dlnn_search.secret import hide_in_logs

    if not 0 <= port <= 65_535:
        raise UsageError(f"Expected a port from 0 to 65535, got --port {port}.")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    hide_in_logs()
    serving = Serving(host, port, Passwords.from_environment(), read_only, behind_proxy)
    check_may_serve(serving)

    def ready(address: str) -> None:
        print(f"The dashboard is at {address} (Ctrl-C ends it)", flush=True)

    with open_sides(storage, serving) as (editor, viewer):
        serve(editor, viewer, serving, ready)
