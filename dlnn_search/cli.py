"""The command line. Imports only what parsing needs; each command imports its own work."""

from __future__ import annotations

import re
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from dlnn_search import __version__, cli_data
from dlnn_search.errors import DlnnSearchError, StudyError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from dlnn_search.storage.database import Database

EXIT_INTERRUPTED = 130
PIPE_COLUMNS = 160
MAX_SEEDS = 100
MAX_FOLDS = 100
#: An error of ours, not of the user (BSD's sysexits.h, EX_SOFTWARE).
EXIT_BUG = 70
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d)")
SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400}


class _Group(TyperGroup):
    """Turns errors into one message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DlnnSearchError as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            print(f"Error: {error}", file=sys.stderr)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt:
            print("Interrupted.", file=sys.stderr)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:  # `dlnn-search trials ... | head`
            sys.stderr.close()
            raise typer.Exit(0) from None
        except Exception as error:
            if _is_typers(error):
                raise
            what_to_do = "Run the command again with --debug for the traceback, and report it."
            if ctx.params.get("debug"):
                traceback.print_exc()
                what_to_do = "Report it with the traceback above."
            print(
                f"Error: this is a bug of dlnn-search: {type(error).__name__}: {error}\n"
                + what_to_do,
                file=sys.stderr,
            )
            raise typer.Exit(EXIT_BUG) from error


def _is_typers(error: Exception) -> bool:
    """Whether it is one of the parser's own, which it shows and exits with by itself."""
    return type(error).__module__.split(".")[0] in ("typer", "click")  # it vendors it or not


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Search hyperparameters of Keras models; every worker shares one study in a database.",
)
app.add_typer(cli_data.app, name="data", help="Data sets: list, prepare, import, preview.")

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
StudyOfConfigOption = Annotated[
    str | None,
    typer.Option(
        "--study",
        metavar="FILE",
        help="The study file that a config with a loader or builder of its own is from.",
        show_default=False,
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"dlnn-search {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Read the options before the command."""


@app.command()
def studies(storage: StorageOption = None) -> None:
    """List the studies that come with dlnn-search."""
    from dlnn_search.report.tables import print_studies
    from dlnn_search.study_files import built_in_studies, load_study

    print_studies(_console(), [load_study(name) for name in built_in_studies()], _url(storage))
    print("\nStart one: dlnn-search start NAME --workers 2 [--quick]")


@app.command()
def start(
    study: Annotated[
        str, typer.Argument(metavar="STUDY|FILE", help="A study's name, or a study file (.py).")
    ],
    workers: Annotated[int, typer.Option("--workers", help="Worker processes.")] = 1,
    trials: Annotated[
        int | None,
        typer.Option("--trials", help="Budget in all; else as before, at first the study's own."),
    ] = None,
    timeout: Annotated[
        str | None,
        typer.Option("--timeout", metavar="TIME", help="Stop after that, e.g. 45s, 30m, 2h, 1.5d."),
    ] = None,
    storage: StorageOption = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="The small version: minutes on two cores.")
    ] = False,
) -> None:
    """Search with worker processes; go on where a start stopped."""
    from dlnn_search.report.live import LiveView
    from dlnn_search.service.start import start as run
    from dlnn_search.study_files import load_study

    console = _console()
    seconds = None if timeout is None else parse_duration(timeout)
    loaded = load_study(study, quick=quick)
    started = run(
        loaded,
        [study, *(["--quick"] if quick else [])],
        _url(storage),
        n_workers=workers,
        n_trials=trials,
        timeout_seconds=seconds,
        view=lambda status: LiveView(console, status),
    )
    from dlnn_search.report.tables import print_end

    again = f"dlnn-search start {study}{' --quick' if quick else ''} --workers {workers}"
    code = f" --study {study}" if loaded.load or loaded.build else ""
    print_end(console, started.status, again, _storage_words(storage), code)
    if not started.ended_by_itself:
        raise typer.Exit(EXIT_INTERRUPTED)


@app.command()
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
) -> None:
    """Join a study with one worker, from any machine."""
    import logging

    from dlnn_search.service.worker import run_worker
    from dlnn_search.storage.database import open_database
    from dlnn_search.study_files import load_study
    from dlnn_search.training.quiet import import_tensorflow

    if threads is not None and threads < 1:
        raise UsageError(f"Expected at least 1 thread, got --threads {threads}.")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    loaded = load_study(study, quick=quick)
    database = open_database(_url(storage), create=False)
    import_tensorflow()
    try:
        code = run_worker(loaded, database, name=name, threads=threads)
    finally:
        database.close()
    raise typer.Exit(code)


@app.command()
def trials(study: StudyArgument, storage: StorageOption = None) -> None:
    """List a study's trials with their parameters."""
    from dlnn_search.report.status import all_trials
    from dlnn_search.report.tables import print_trials
    from dlnn_search.storage.definitions import find

    database = _open(storage)
    try:
        stored = find(database, study)
        rows = all_trials(database, stored)
        if not rows:
            print(f"'{study}' has no trial yet.")
            return
        print_trials(_console(), rows, _params(database, study), stored)
    finally:
        database.close()


@app.command()
def best(study: StudyArgument, storage: StorageOption = None) -> None:
    """Show a study's best trial: value, parameters, metrics."""
    from dlnn_search.report.status import best_trials
    from dlnn_search.report.tables import print_best
    from dlnn_search.storage.curves import curve_of_slot
    from dlnn_search.storage.definitions import find

    database = _open(storage)
    try:
        stored = find(database, study)
        found = best_trials(database, stored, 1)
        if not found:
            raise UsageError(
                f"'{study}' has no complete trial yet. Search with 'dlnn-search start {study}'."
            )
        points = curve_of_slot(database, found[0].slot_id)
        params = _params(database, study)
        print_best(_console(), stored, found[0], params, points, _storage_words(storage))
    finally:
        database.close()


@app.command()
def export(
    study: StudyArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="JSON to write.")],
    top: Annotated[
        int, typer.Option("--top", help="The best K trials: FILE, FILE-2, ..., best first.")
    ] = 1,
    storage: StorageOption = None,
) -> None:
    """Write the best trial as a config."""
    from dlnn_search.config import read_config
    from dlnn_search.service.export import export_best
    from dlnn_search.storage.definitions import find

    database = _open(storage)
    try:
        for path in export_best(database, find(database, study), top, output):
            print(f"Wrote {path}")
    finally:
        database.close()
    own = any(part.study for part in read_config(output).own_parts)
    with_code = " --study FILE" if own else ""
    print(f"\nTest it, once: dlnn-search evaluate {output}{with_code}{_storage_words(storage)}")


@app.command()
def evaluate(
    config: ConfigArgument,
    seeds: Annotated[int, typer.Option("--seeds", help="Models trained, a seed each.")] = 3,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Else the config's name, -test."),
    ] = None,
    study: StudyOfConfigOption = None,
    storage: StorageOption = None,
) -> None:
    """Train a config anew, and test it once, on record."""
    import os

    from dlnn_search.named_configs import find_config
    from dlnn_search.service.supervisor import threads_per_worker, worker_environment
    from dlnn_search.storage.database import open_database
    from dlnn_search.study_files import bring_code
    from dlnn_search.training.quiet import import_tensorflow

    if not 1 <= seeds <= MAX_SEEDS:
        raise UsageError(f"Expected 1 to {MAX_SEEDS} seeds, got --seeds {seeds}.")
    read = bring_code(find_config(config), config, study)
    folder = output or Path(config).with_name(f"{Path(config).stem}-test")
    for name, value in worker_environment(threads_per_worker(1)).items():
        os.environ.setdefault(name, value)
    database = open_database(_url(storage), create=True)
    try:
        import_tensorflow()
        from dlnn_search.report.evaluation import print_evaluation, progress
        from dlnn_search.service.evaluate import evaluate as run

        first = read.training.seed
        with progress(read, range(first, first + seeds)) as on_epoch:
            tested = run(read, database, folder, n_seeds=seeds, on_epoch=on_epoch)
        print_evaluation(_console(), read, tested, folder, database)
    finally:
        database.close()


@app.command()
def crossvalidate(
    config: ConfigArgument,
    folds: Annotated[int, typer.Option("--folds", help="Models trained, one a fold.")] = 5,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="JSON to write.")
    ] = None,
    study: StudyOfConfigOption = None,
    storage: StorageOption = None,
) -> None:
    """Train a config once a fold, validated on that fold; the test split stays closed."""
    import os

    from dlnn_search.named_configs import find_config
    from dlnn_search.service.supervisor import threads_per_worker, worker_environment
    from dlnn_search.storage.database import files_folder
    from dlnn_search.study_files import bring_code
    from dlnn_search.training.quiet import import_tensorflow

    if not 2 <= folds <= MAX_FOLDS:
        raise UsageError(f"Expected 2 to {MAX_FOLDS} folds, got --folds {folds}.")
    read = bring_code(find_config(config), config, study)
    files = files_folder(_url(storage))
    for name, value in worker_environment(threads_per_worker(1)).items():
        os.environ.setdefault(name, value)
    import_tensorflow()
    from dlnn_search.report.crossvalidation import print_crossvalidation
    from dlnn_search.report.evaluation import progress
    from dlnn_search.service.crossvalidate import crossvalidate as run

    with progress(read, range(1, folds + 1), "fold") as on_epoch:
        validated = run(read, files, output, n_folds=folds, on_epoch=on_epoch)
    print_crossvalidation(_console(), read, validated)
    if output is not None:
        print(f"Wrote {output}")


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A .keras file of evaluate's.")],
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE...", help="PNG or JPEG.")],
    draw: Annotated[
        Path | None,
        typer.Option("--draw", metavar="FOLDER", help="Clocks: draw the read hands beside each."),
    ] = None,
) -> None:
    """Read digits, garments or clocks from pictures of any size."""
    from dlnn_search.training.quiet import import_tensorflow

    import_tensorflow()
    from dlnn_search.service.predict import predict as run

    for reading in run(model, pictures, draw):
        print(f"{reading.path}: {reading.words}", flush=True)


@app.command()
def ledger(storage: StorageOption = None) -> None:
    """List every time that a test split was opened."""
    from dlnn_search.report.tables import ledger_table
    from dlnn_search.storage.ledger import openings

    database = _open(storage)
    try:
        opened = openings(database)
        if not opened:
            print("No test split was opened yet.")
            return
        _console().print(ledger_table(opened))
    finally:
        database.close()


@app.command()
def dashboard(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0: any free one.")] = 8080,
    storage: StorageOption = None,
) -> None:
    """Show trials and curves in the browser (optuna-dashboard)."""
    from dlnn_search.dashboard import serve

    if not 0 <= port <= 65_535:
        raise UsageError(f"Expected a port from 0 to 65535, got --port {port}.")
    database = _open(storage)

    def ready(address: str) -> None:
        print(f"The dashboard is at {address} (Ctrl-C ends it)", flush=True)
        if host not in ("127.0.0.1", "localhost", "::1"):
            print(
                "Warning: it has no log-in; whoever reaches this address can change the trials.",
                file=sys.stderr,
            )

    try:
        serve(database, host, port, ready)
    finally:
        database.close()


@app.command()
def validate(
    study: Annotated[str, typer.Argument(metavar="STUDY|FILE", help="A study's name or file.")],
    quick: Annotated[bool, typer.Option("--quick", help="The small version.")] = False,
) -> None:
    """Build the corners of a study's space and random configs, and train each for a step."""
    from dlnn_search.study_files import load_study
    from dlnn_search.training.quiet import import_tensorflow

    loaded = load_study(study, quick=quick)
    import_tensorflow()
    from dlnn_search.report.checks import print_checks
    from dlnn_search.service.validate import validate as run

    if print_checks(_console(), loaded, run(loaded)):
        raise typer.Exit(StudyError.exit_code)


@app.command()
def doctor(storage: StorageOption = None) -> None:
    """Say what this machine offers a search, and what it lacks."""
    from dlnn_search.service.doctor import examine

    marks = {"good": ("ok", "green"), "note": ("note", "yellow"), "lacking": ("LACKS", "bold red")}
    console, lacking = _console(), 0
    for finding in examine(storage):
        mark, style = marks[finding.verdict]
        console.print(f"{mark:>5}", style=style, end="  ")
        console.print(f"{finding.about}: {finding.words}", markup=False, soft_wrap=True)
        lacking += finding.verdict == "lacking"
    if lacking:
        raise typer.Exit(1)


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
    return seconds


def _url(storage: str | None) -> str:
    from dlnn_search.storage.database import database_url

    return database_url(storage)


def _open(storage: str | None) -> Database:
    from dlnn_search.storage.database import open_database

    return open_database(_url(storage), create=False)


def _params(database: Database, study: str) -> dict[int, dict[str, Any]]:
    """Return each trial's parameters by its number."""
    import optuna

    loaded = optuna.load_study(study_name=study, storage=database.optuna)
    return {trial.number: trial.params for trial in loaded.get_trials(deepcopy=False)}


def _storage_words(storage: str | None) -> str:
    """Return ` --storage …` for the next command, if one was given; never with its password."""
    from dlnn_search.storage.database import shown

    return "" if storage is None else f" --storage {shown(storage)}"


def _console() -> Console:
    from rich.console import Console

    # A pipe or a file has no width: the tables need not break there.
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_COLUMNS)


def main() -> None:
    """Run the command line; `--debug` may stand anywhere."""
    others = [argument for argument in sys.argv[1:] if argument != "--debug"]
    if len(others) < len(sys.argv) - 1:
        sys.argv[1:] = ["--debug", *others]
    app(prog_name="dlnn-search")
