"""The commands of a search: studies, start, worker, validate, doctor, dashboard."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlnn_search.cli.options import (
    StorageOption,
    StudyOfConfigOption,
    StudyOrFile,
    complete_studies,
    database_url_of,
    elsewhere_words,
    limit_hours,
    limit_moment,
    limit_seconds,
    make_console,
    open_any,
    parse_duration,
    storage_words,
)
from dlnn_search.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from dlnn_search.report.tables import Checked


def studies(
    everything: Annotated[
        bool,
        typer.Option("--all", help="List all studies in the database, not the built-in ones."),
    ] = False,
    storage: StorageOption = None,
) -> None:
    """List the built-in studies, or all in the database."""
    if everything:
        _list_stored(storage)
        return
    from dlnn_search.report.tables import print_studies
    from dlnn_search.results.status import statuses_at
    from dlnn_search.study.finding import built_in_studies, load_study

    known = statuses_at(database_url_of(storage))
    print_studies(make_console(), [load_study(name) for name in built_in_studies()], known)
    where = storage_words(storage)
    print(f"\nStart one:              dlnn-search start NAME --workers 2 [--quick]{where}")
    print("Copy one, to edit it:   dlnn-search new my_study.py --from NAME")
    print(f"All in the database:    dlnn-search studies --all{where}")


def _list_stored(storage: str | None) -> None:
    from dlnn_search.report.live import print_stored
    from dlnn_search.results.status import study_status
    from dlnn_search.storage.studies import all_studies, parent_of

    with open_any("studies --all", storage) as database:
        print(f"In {database.shown}:\n")
        rows = []
        for stored in all_studies(database):
            parent = parent_of(database, stored.id)
            if parent is not None:
                origin = f"trains configs of {parent} again"
            elif stored.is_built_in:
                origin = "built-in"
            else:
                origin = stored.file or "its file is not known"
            if stored.earlier_names:
                origin += f"; it was called {', '.join(stored.earlier_names)} before"
            rows.append((stored, study_status(database, stored), origin))
        if rows:
            print_stored(make_console(), rows)
        else:
            print("No study yet. Start one: dlnn-search start NAME --workers 2")
    if others := elsewhere_words("studies --all", storage):
        print(f"\n{others}")


def new(
    file: Annotated[Path, typer.Argument(metavar="FILE.py", help="The study file to write.")],
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STUDY",
            help="Copy this built-in study. Defaults to a short study that works as it is.",
            autocompletion=complete_studies,
        ),
    ] = None,
) -> None:
    """Write a study file that you can edit."""
    from dlnn_search.commands.trying import write_study

    write_study(file, source)
    print(f"Wrote {file}. Edit it, then run:")
    named = shlex.quote(str(file))
    print(f"  dlnn-search validate {named}\n  dlnn-search start {named} --workers 2")


def start(
    study: StudyOrFile,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            metavar="N",
            help="Number of workers on this machine. Defaults to one per GPU, or one without a "
            "GPU. With 0, only prepare the study; 'worker' joins it.",
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(
            "--trials",
            metavar="N",
            help="Budget: number of trials in total. Defaults to the budget so far, at first the "
            "study's own.",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Search the study's small version (minutes).")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Search in the background and return at once.")
    ] = False,
    wall_time: Annotated[
        str | None,
        typer.Option(
            "--wall-time",
            metavar="TIME",
            help="Budget: time in which trials are trained, such as 8h or 'none'. Defaults to the "
            "budget so far, at first none.",
        ),
    ] = None,
    worker_hours: Annotated[
        str | None,
        typer.Option(
            "--worker-hours",
            metavar="HOURS",
            help="Budget: training time summed over all workers, such as 20 or 'none'. Defaults "
            "to the budget so far, at first none.",
        ),
    ] = None,
    deadline: Annotated[
        str | None,
        typer.Option(
            "--deadline",
            metavar="WHEN",
            help="Budget: end at this local time, such as 2026-12-01T08:00, or 'none'. Defaults "
            "to the budget so far, at first none.",
        ),
    ] = None,
    timeout: Annotated[
        str | None,
        typer.Option(
            "--timeout",
            metavar="TIME",
            help="Stop the workers of this start after this time, such as 30m. Defaults to no "
            "limit.",
        ),
    ] = None,
    trial_timeout: Annotated[
        str | None,
        typer.Option(
            "--trial-timeout",
            metavar="TIME",
            help="End a trial that trains for longer, such as 30m; 'none' removes the limit. "
            "Defaults to the present value, at first the study's own.",
        ),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(
            "--gpus",
            metavar="LIST",
            help="GPUs to train on, such as 0,1, or 'none'. Defaults to all GPUs.",
        ),
    ] = None,
    workers_per_gpu: Annotated[
        int | None,
        typer.Option(
            "--workers-per-gpu",
            metavar="N",
            help="Number of workers that share a GPU and its memory. Defaults to 1.",
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            "--sampler",
            metavar="NAME",
            help="Sampler for all workers from now on: coarse-to-fine, tpe, random, qmc, cmaes or "
            "gp. Defaults to the present one, at first the study's own.",
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STUDY",
            help="Try the best configs of this study first.",
            autocompletion=complete_studies,
        ),
    ] = None,
    top: Annotated[
        int, typer.Option("--top", metavar="N", help="With --from: number of its best configs.")
    ] = 5,
    enqueue: Annotated[
        list[str] | None,
        typer.Option(
            "--enqueue",
            metavar="CONFIG",
            help="Try this config first: a name, a file, or 'known' for all built-in ones that "
            "fit. You can give it several times.",
        ),
    ] = None,
    retrain: Annotated[
        bool | None,
        typer.Option(
            "--retrain/--reuse",
            help="When a config was trained already, train it again or reuse its result. Defaults "
            "to the present choice, at first --reuse.",
        ),
    ] = None,
    stop_when_converged: Annotated[
        bool | None,
        typer.Option(
            "--stop-when-converged/--no-stop-when-converged",
            help="Stop when more trials are expected to gain less than the noise of one trial. "
            "Defaults to the present choice, at first the study's own.",
        ),
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Begin again. The trials so far are kept under another name."),
    ] = False,
    on_end: Annotated[
        str | None,
        typer.Option(
            "--on-end",
            metavar="COMMAND",
            help="Run this shell command once when the search ends or fails.",
        ),
    ] = None,
    lease: Annotated[
        str | None,
        typer.Option(
            "--lease",
            metavar="TIME",
            help="A worker without progress for this time loses its trial. Defaults to the "
            "present value, at first 120s.",
        ),
    ] = None,
    code: StudyOfConfigOption = None,
    storage: StorageOption = None,
    in_background: Annotated[bool, typer.Option("--in-background", hidden=True)] = False,
) -> None:
    """Start or continue a search on this machine.

    Press Ctrl-C to stop: all progress is kept, and the same command continues.
    """
    from dlnn_search.commands.confirm import find_study
    from dlnn_search.commands.start import Detached, Wishes, start_detached
    from dlnn_search.commands.start import start as run
    from dlnn_search.commands.warm_start import WarmStart
    from dlnn_search.report.live import LiveView
    from dlnn_search.report.tables import print_detached, print_end, print_ready
    from dlnn_search.storage.budget import Budget
    from dlnn_search.storage.halves import is_linked_name, parent_and_kind

    console = make_console()
    if trials is not None and is_linked_name(study):
        parent, kind = parent_and_kind(study)
        raise UsageError(
            f"The budget of '{study}' is what 'dlnn-search {kind} {parent}' gives it: "
            "expected no --trials."
        )
    wishes = Wishes(
        n_workers=workers,
        gpus=gpus,
        workers_per_gpu=workers_per_gpu,
        budget=Budget(
            trials=trials,
            wall_seconds=limit_seconds(wall_time),
            worker_seconds=limit_hours(worker_hours),
            deadline_at=limit_moment(deadline),
        ),
        lease_seconds=None if lease is None else parse_duration(lease),
        trial_timeout_seconds=limit_seconds(trial_timeout),
        reuse=None if retrain is None else not retrain,
        sampler=sampler,
        warm=WarmStart(source, top, tuple(enqueue or ())) if source or enqueue else None,
        stop_when_converged=stop_when_converged,
        fresh=fresh,
        on_end=on_end,
        timeout_seconds=None if timeout is None else parse_duration(timeout),
    )
    given = {
        "--workers": workers,
        "--gpus": gpus,
        "--workers-per-gpu": workers_per_gpu,
        "--timeout": timeout,
    }
    options = [
        text for name, value in given.items() if value is not None for text in (name, str(value))
    ]
    url, where = database_url_of(storage), storage_words(storage)
    loaded = find_study(study, url, quick=quick, study_file=code)
    arguments = [
        study,
        *(["--quick"] if quick else []),
        *(["--study", code] if code else []),
    ]

    def say(message: str) -> None:
        console.print(message, markup=False, soft_wrap=True)

    if detach and not in_background:
        started = start_detached(loaded, arguments, options, url, wishes, say=say)
        if isinstance(started, Detached):
            background = started.background
            print_detached(
                console,
                loaded.name,
                background.pid,
                background.log,
                where,
                already=started.already,
            )
            return
    else:
        started = run(
            loaded,
            arguments,
            url,
            wishes,
            view=lambda status: LiveView(console, status, in_background=in_background),
            say=say,
            in_background=in_background,
        )
    if workers == 0 and started.status.n_done < started.status.budget:
        join = shlex.join(["dlnn-search", "worker", *arguments])
        print_ready(console, started.status, join, where)
        return
    keep = options[: options.index("--timeout")] if "--timeout" in options else options
    again = shlex.join(["dlnn-search", "start", *arguments, *keep])
    linked = is_linked_name(study)
    print_end(console, started.status, again, where, is_linked=linked)
    if linked:
        from dlnn_search.cli.insight import print_linked

        print_linked(study, url, where)
    if started.exit_code:
        raise typer.Exit(started.exit_code)


def worker(
    study: StudyOrFile,
    storage: StorageOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="Join the study's small version.")] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", metavar="N", help="TensorFlow's threads. Defaults to one per core."
        ),
    ] = None,
    gpu: Annotated[
        int | None,
        typer.Option(
            "--gpu",
            metavar="N",
            help="Number of the GPU to train on, as nvidia-smi shows it. Defaults to the first.",
        ),
    ] = None,
    gpu_memory: Annotated[
        int | None,
        typer.Option(
            "--gpu-memory",
            metavar="MIB",
            help="With --gpu: most GPU memory to use, in MiB. Defaults to all of it.",
        ),
    ] = None,
    code: StudyOfConfigOption = None,
    name: Annotated[str | None, typer.Option("--name", hidden=True)] = None,
    log: Annotated[str | None, typer.Option("--log", hidden=True)] = None,
    supervisor: Annotated[str | None, typer.Option("--supervisor", hidden=True)] = None,
    n_workers: Annotated[int, typer.Option("--n-workers", hidden=True)] = 1,
) -> None:
    """Join a search with one worker, from any machine."""
    import logging

    from dlnn_search.commands.confirm import find_study
    from dlnn_search.machine import gpu_environment, usable_cores, worker_environment
    from dlnn_search.secret import hide_in_logs
    from dlnn_search.storage.database import open_database
    from dlnn_search.storage.database.known import remember_database
    from dlnn_search.storage.database.outages import retry

    for option, value in (("--threads", threads), ("--gpu-memory", gpu_memory)):
        if value is not None and value < 1:
            raise UsageError(f"Expected at least 1, got {option} {value}.")
    if gpu is not None and gpu < 0:
        raise UsageError(f"Expected a GPU's number, from 0 on, got --gpu {gpu}.")
    if gpu_memory is not None and gpu is None:
        raise UsageError("Expected --gpu N with --gpu-memory: which GPU's?")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    if log is not None:  # a file, which `logs` shows; a terminal is told what is wrong only
        logging.getLogger("dlnn_search").setLevel(logging.INFO)
    hide_in_logs()
    url = database_url_of(storage)
    loaded = find_study(study, url, quick=quick, study_file=code)
    threads = threads or usable_cores()
    # Before TensorFlow is imported: later it heeds none of these.
    os.environ.update({**worker_environment(threads), **gpu_environment(gpu)})
    # A supervisor has used this database before: where it is away now, it will be back.
    patience = 0.0 if supervisor is None else None
    database = retry(lambda: open_database(url, create=False), seconds=patience)
    with database:
        remember_database(url)
        from dlnn_search.worker.interruption import MemoryWatch, share_bytes
        from dlnn_search.worker.worker import run_worker

        def prepare() -> None:
            from dlnn_search.training.runtime import import_tensorflow

            import_tensorflow()
            if gpu is not None:
                from dlnn_search.training.runtime import use_gpu

                use_gpu(gpu, gpu_memory)

        exit_code = run_worker(
            loaded,
            database,
            name=name,
            prepare=prepare,
            memory=MemoryWatch(share_bytes(n_workers)),
            gpu=None if gpu is None else str(gpu),
            threads=threads,
            log=log,
            supervisor=supervisor,
        )
    raise typer.Exit(exit_code)


def validate(
    study: StudyOrFile,
    quick: Annotated[
        bool, typer.Option("--quick", help="Check the study's small version.")
    ] = False,
    code: StudyOfConfigOption = None,
    storage: StorageOption = None,
) -> None:
    """Check a study: build and train some of its models."""
    from dlnn_search.commands.confirm import find_study
    from dlnn_search.commands.trying import draws_of
    from dlnn_search.commands.trying import validate as run
    from dlnn_search.report.tables import print_checks
    from dlnn_search.training.runtime import import_tensorflow

    loaded = find_study(study, database_url_of(storage), quick=quick, study_file=code)
    draws = draws_of(loaded)
    import_tensorflow()
    if print_checks(make_console(), loaded, _counted(run(draws), len(draws))):
        raise typer.Exit(ExitCode.STUDY)


def _counted(checks: Iterable[Checked], n: int) -> Iterator[Checked]:
    """Show at a terminal how far it is."""
    is_shown = sys.stderr.isatty()
    for number, check in enumerate(checks, start=1):
        if is_shown:
            print(f"\r{number} of {n} configs", end="", file=sys.stderr, flush=True)
        yield check
    if is_shown:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def doctor(storage: StorageOption = None) -> None:
    """Check what this machine can and cannot do."""
    from dlnn_search.commands.doctor import examine

    marks = {"good": ("ok", "green"), "note": ("note", "yellow"), "lacking": ("LACKS", "bold red")}
    console, lacking = make_console(), 0
    for finding in examine(storage):
        mark, style = marks[finding.verdict]
        console.print(f"{mark:>5}", style=style, end="  ")
        console.print(f"{finding.about}: {finding.words}", markup=False, soft_wrap=True)
        lacking += finding.verdict == "lacking"
    if lacking:
        raise typer.Exit(ExitCode.FAILED)


def dashboard(
    open_browser: Annotated[
        bool, typer.Option("--open", help="Open the page in the browser of this machine.")
    ] = False,
    host: Annotated[
        str, typer.Option("--host", metavar="HOST", help="Address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="N", help="Port to listen on. 0 takes a free one.")
    ] = 8080,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Let nobody change anything.")
    ] = False,
    behind_proxy: Annotated[
        bool,
        typer.Option(
            "--behind-proxy",
            help="Trust the X-Forwarded-For and X-Forwarded-Proto headers of a reverse proxy.",
        ),
    ] = False,
    storage: StorageOption = None,
) -> None:
    """Show trials and learning curves in the browser."""
    import logging

    from dlnn_search.dashboard import Serving, check_may_serve, open_sides, serve
    from dlnn_search.dashboard.access import Passwords
    from dlnn_search.secret import hide_in_logs

    if not 0 <= port <= 65_535:
        raise UsageError(f"Expected a port from 0 to 65535, got --port {port}.")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    hide_in_logs()
    serving = Serving(host, port, Passwords.from_environment(), read_only, behind_proxy)
    check_may_serve(serving)

    def ready(address: str) -> None:
        print(f"The dashboard is at {address} (Press Ctrl-C to stop it.)", flush=True)
        if open_browser:
            _open_browser(address)

    with open_sides(storage, serving) as (editor, viewer):
        serve(editor, viewer, serving, ready)


def _open_browser(address: str) -> None:
    """Open the dashboard's page in a window, where this machine has one.

    In a thread: some browsers come back only when they are closed.
    """
    import threading
    import webbrowser

    # What listens on every address is not reached by that address itself.
    page = address.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")

    def show() -> None:
        try:
            browser = webbrowser.get()
            # Of the terminal: it would take the terminal over. Who names it in BROWSER wants it.
            in_terminal = type(browser) is webbrowser.GenericBrowser and "BROWSER" not in os.environ
            opened = not in_terminal and browser.open(page)
        except (OSError, webbrowser.Error):
            opened = False
        if not opened:
            print(f"No browser was found here. Open {page} yourself.", file=sys.stderr, flush=True)

    threading.Thread(target=show, daemon=True).start()
