"""The commands of a search: studies, start, worker, validate, doctor, dashboard."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from dlnn_search.cli.options import (
    StorageOption,
    StudyOfConfigOption,
    database_url_of,
    limit_hours,
    limit_moment,
    limit_seconds,
    make_console,
    parse_duration,
    storage_words,
)
from dlnn_search.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from dlnn_search.report.tables import Checked

StudyOrFile = Annotated[
    str, typer.Argument(metavar="STUDY|FILE", help="A study's name, or a study file (.py).")
]


def studies(storage: StorageOption = None) -> None:
    """List the studies that come with dlnn-search."""
    from dlnn_search.report.tables import print_studies
    from dlnn_search.results.status import statuses_at
    from dlnn_search.study.finding import built_in_studies, load_study

    known = statuses_at(database_url_of(storage))
    print_studies(make_console(), [load_study(name) for name in built_in_studies()], known)
    print("\nStart one: dlnn-search start NAME --workers 2 [--quick]")


def start(
    study: StudyOrFile,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            help="Worker processes; else one a GPU, or one. 0: others join by 'worker'.",
        ),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option("--gpus", metavar="0,1", help="GPUs to train on, or 'none'; else all."),
    ] = None,
    workers_per_gpu: Annotated[
        int | None,
        typer.Option("--workers-per-gpu", help="Workers that share each GPU and its memory."),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option("--trials", help="Budget in all; else as before, at first the study's own."),
    ] = None,
    wall_time: Annotated[
        str | None,
        typer.Option(
            "--wall-time",
            metavar="TIME",
            help="Budget of time in which trials are trained, e.g. 8h; 'none' takes it away.",
        ),
    ] = None,
    worker_hours: Annotated[
        str | None,
        typer.Option(
            "--worker-hours", metavar="HOURS", help="The same, added up over workers, e.g. 20."
        ),
    ] = None,
    deadline: Annotated[
        str | None,
        typer.Option(
            "--deadline", metavar="WHEN", help="Budget until then, e.g. 2026-12-01T08:00, here."
        ),
    ] = None,
    timeout: Annotated[
        str | None,
        typer.Option("--timeout", metavar="TIME", help="Stop this start's workers after that."),
    ] = None,
    lease: Annotated[
        str | None,
        typer.Option(
            "--lease", metavar="TIME", help="A worker without progress loses its trial; else 120s."
        ),
    ] = None,
    retrain: Annotated[
        bool | None,
        typer.Option(
            "--retrain/--reuse",
            help="Train a config again that was trained already, or reuse its result (default).",
            show_default=False,
        ),
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
    detach: Annotated[
        bool, typer.Option("--detach", help="Search in the background, and return.")
    ] = False,
    code: StudyOfConfigOption = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="STUDY", help="Try that study's best configs first."),
    ] = None,
    top: Annotated[int, typer.Option("--top", help="With --from: how many of them.")] = 5,
    enqueue: Annotated[
        list[str] | None,
        typer.Option(
            "--enqueue",
            metavar="CONFIG",
            help="Try this config first (a name or a file; 'known': all named ones that fit). "
            "May be given more than once.",
        ),
    ] = None,
    stop_when_converged: Annotated[
        bool | None,
        typer.Option(
            "--stop-when-converged/--no-stop-when-converged",
            help="Stop when more trials are expected to gain less than the noise of one; "
            "else as before, at first the study's own.",
            show_default=False,
        ),
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Begin anew; the trials so far stay under another name."),
    ] = False,
    in_background: Annotated[bool, typer.Option("--in-background", hidden=True)] = False,
) -> None:
    """Search with worker processes; go on where a start stopped."""
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
        reuse=None if retrain is None else not retrain,
        sampler=sampler,
        warm=WarmStart(source, top, tuple(enqueue or ())) if source or enqueue else None,
        stop_when_converged=stop_when_converged,
        fresh=fresh,
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
    file = loaded.file if loaded.first_name else study
    with_code = f" --study {shlex.quote(code or file)}" if loaded.load or loaded.build else ""
    linked = is_linked_name(study)
    print_end(console, started.status, again, where, with_code, is_linked=linked)
    if linked:
        from dlnn_search.cli.insight import print_linked

        print_linked(study, url, where)
    if not started.by_itself:
        raise typer.Exit(ExitCode.INTERRUPTED)
    if started.status.is_fruitless:
        raise typer.Exit(ExitCode.STUDY)


def worker(
    study: StudyOrFile,
    storage: StorageOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="The study's small version.")] = False,
    threads: Annotated[
        int | None, typer.Option("--threads", help="TensorFlow's threads; else all cores.")
    ] = None,
    gpu: Annotated[
        int | None,
        typer.Option("--gpu", help="The GPU to train on, as nvidia-smi counts; else the first."),
    ] = None,
    gpu_memory: Annotated[
        int | None,
        typer.Option("--gpu-memory", metavar="MIB", help="The most to take of the GPU's memory."),
    ] = None,
    code: StudyOfConfigOption = None,
    name: Annotated[str | None, typer.Option("--name", hidden=True)] = None,
    log: Annotated[str | None, typer.Option("--log", hidden=True)] = None,
    supervisor: Annotated[str | None, typer.Option("--supervisor", hidden=True)] = None,
    n_workers: Annotated[int, typer.Option("--n-workers", hidden=True)] = 1,
) -> None:
    """Join a study with one worker, from any machine."""
    import logging
    import os

    from dlnn_search.commands.confirm import find_study
    from dlnn_search.machine import gpu_environment, usable_cores, worker_environment
    from dlnn_search.secret import hide_in_logs
    from dlnn_search.storage.database import open_database
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
    study: Annotated[str, typer.Argument(metavar="STUDY|FILE", help="A study's name or file.")],
    quick: Annotated[bool, typer.Option("--quick", help="The small version.")] = False,
    code: StudyOfConfigOption = None,
    storage: StorageOption = None,
) -> None:
    """Build the corners of a study's space, and train each a step."""
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
    """Say what this machine offers a search, and what it lacks."""
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
        print(f"The dashboard is at {address} (Ctrl-C ends it)", flush=True)

    with open_sides(storage, serving) as (editor, viewer):
        serve(editor, viewer, serving, ready)
