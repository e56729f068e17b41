"""The commands of results: trials, best, export, evaluate, crossvalidate, predict, ledger."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlnn_search.cli.options import (
    ConfigArgument,
    StorageOption,
    StudyArgument,
    StudyOfConfigOption,
    database_url_of,
    make_console,
    open_any,
    open_study,
    storage_words,
)
from dlnn_search.errors import UsageError

if TYPE_CHECKING:
    from dlnn_search.commands.export import ExportedModel
    from dlnn_search.config import Config
    from dlnn_search.storage.database import Database
    from dlnn_search.storage.studies import StoredStudy

MAX_SEEDS = 100
MAX_FOLDS = 100


def _complete_states(incomplete: str) -> list[str]:
    states = ("complete", "pruned", "failed", "running", "waiting", "interrupted")
    return [state for state in states if state.startswith(incomplete)]


def trials(
    study: StudyArgument,
    top: Annotated[
        int | None,
        typer.Option(
            "--top",
            metavar="N",
            help="Only the first N trials; without --sort the N best. Defaults to all.",
        ),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            "--sort",
            metavar="COLUMN",
            help="Sort by value (best first), number, epochs, time or a parameter. Defaults to "
            "number.",
        ),
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(
            "--state",
            metavar="STATE",
            help="Only complete, pruned, failed, running, waiting or interrupted trials. Defaults "
            "to all.",
            autocompletion=_complete_states,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, one line per trial.")] = False,
    storage: StorageOption = None,
) -> None:
    """List trials with their values and parameters."""
    from dlnn_search.report.tables import print_trials, trial_row, trials_csv
    from dlnn_search.results.status import listed_trials

    if as_json and as_csv:
        raise UsageError("Expected --json or --csv, got both.")
    if top is not None and sort is None:
        sort = "value"
    with open_study("trials", study, storage) as (database, stored):
        found = listed_trials(database, stored, state=state, sort=sort, top=top)
    if as_json:
        about = {"study": stored.name, "metric": stored.metric, "direction": stored.direction}
        rows = [trial_row(one) for one in found.trials]
        print(json.dumps({"format": 1, **about, "trials": rows}, indent=2, allow_nan=False))
    elif as_csv:
        print(trials_csv(found), end="")
    elif not found.trials:
        print(f"'{study}' has no {'' if state is None else f'{state} '}trial yet.")
    else:
        print_trials(make_console(), found.trials, stored)


def best(study: StudyArgument, storage: StorageOption = None) -> None:
    """Show the best trial: value, parameters, metrics."""
    from dlnn_search.report.tables import print_best
    from dlnn_search.results.advice import next_words
    from dlnn_search.results.status import best_trials, params_by_number, study_status
    from dlnn_search.storage.trials import curve_of_slot

    with open_study("best", study, storage) as (database, stored):
        found = best_trials(database, stored, 1)
        if not found:
            raise UsageError(
                f"'{study}' has no complete trial yet. {next_words(study_status(database, stored))}"
            )
        points = curve_of_slot(database, found[0].slot_id)
        params = params_by_number(database, stored.name)[found[0].number]
        print_best(make_console(), stored, found[0], params, points, storage_words(storage))


def export(
    study: StudyArgument,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.json",
            help="Config file to write. Defaults to --model's name with .json.",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            metavar="FILE.keras",
            help="Also write the trained model of the best trial, from its checkpoint.",
        ),
    ] = None,
    top: Annotated[
        int,
        typer.Option(
            "--top", metavar="N", help="Number of best configs, into FILE, FILE-2 and so on."
        ),
    ] = 1,
    code: StudyOfConfigOption = None,
    storage: StorageOption = None,
) -> None:
    """Write the best config or its model to a file.

    After 'confirm' it is the confirmed winner, before that the search's own best trial.
    """
    if output is None and model is None:
        raise UsageError(
            "Expected something to write: the config with -o best.json, the trained model with "
            "--model best.keras, or both."
        )
    from dlnn_search.commands.export import check_wishes, export_best
    from dlnn_search.config import read_config
    from dlnn_search.storage.halves import lost_words
    from dlnn_search.storage.studies import code_file

    # A model's config stands beside it, as `predict` expects.
    output = output or Path(model or "").with_suffix(".json")
    check_wishes(top, output, model)
    with open_study("export", study, storage, whole=False) as (database, stored):
        # What is written is in our tables.
        if (lost := lost_words(database, stored.id, stored.name)) is not None:
            print(f"Warning: {lost}", file=sys.stderr)
        written = None if model is None else _write_model(database, stored, model, code)
        exported = export_best(database, stored, top, output)
        for path in exported.paths:
            print(f"Wrote {path}")
        if written is not None:
            print(f"Wrote {written.path}\n{written.words}")
        print(exported.words)
        written_config = read_config(output)
        needs_file = written_config.own_parts and code_file(database, written_config, code) is None
    with_code = f" --study {'FILE' if code is None else shlex.quote(code)}" if needs_file else ""
    tested = f"{shlex.quote(str(output))}{with_code}{storage_words(storage)}"
    print(f"\nTest it, once: dlnn-search evaluate {tested}")


def _write_model(
    database: Database, stored: StoredStudy, path: Path, code: str | None
) -> ExportedModel:
    import os

    from dlnn_search.commands.export import export_model, kept_model
    from dlnn_search.training.runtime import import_tensorflow

    kept = kept_model(database, stored, code)
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # it computes nothing, and workers may have the GPU
    import_tensorflow()
    return export_model(kept, path)


def _read(config: str, study: str | None, url: str) -> Config:
    """Return the config of a name or file, with its own code."""
    from dlnn_search.results.status import code_file_at
    from dlnn_search.study.finding import bring_code
    from dlnn_search.study.named_configs import find_config

    found = find_config(config)
    return bring_code(found, config, code_file_at(url, found, study))


def _import_to_train() -> None:
    """Import TensorFlow, set as a worker sets it that has this machine to itself."""
    import os

    from dlnn_search.machine import usable_cores, worker_environment
    from dlnn_search.training.runtime import import_tensorflow

    for name, value in worker_environment(usable_cores()).items():
        os.environ.setdefault(name, value)
    import_tensorflow()


def evaluate(
    config: ConfigArgument,
    seeds: Annotated[
        int, typer.Option("--seeds", metavar="N", help="Number of models to train, one per seed.")
    ] = 3,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Where models and results go. Defaults to the config's name with -test.",
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Test a config again that was tested before.")
    ] = False,
    study: StudyOfConfigOption = None,
    storage: StorageOption = None,
) -> None:
    """Train a config anew and test it once, on record.

    The ledger records that the test split was opened.
    """
    from dlnn_search.config import title_of
    from dlnn_search.storage.database import open_database
    from dlnn_search.storage.ledger import openings

    if not 1 <= seeds <= MAX_SEEDS:
        raise UsageError(f"Expected 1 to {MAX_SEEDS} seeds, got --seeds {seeds}.")
    url = database_url_of(storage)
    read = _read(config, study, url)
    default = Path(config).with_name(f"{Path(config).stem}-test")
    with open_database(url, create=True) as database:
        from dlnn_search.commands.evaluate import evaluate as run
        from dlnn_search.commands.evaluate import plan_evaluation
        from dlnn_search.report.evaluation import print_evaluation, progress

        planned = plan_evaluation(
            read, database, n_seeds=seeds, default=default, output=output, again=again
        )
        _import_to_train()
        with progress(read, planned.seeds) as on_epoch:
            tested = run(planned, database, on_epoch=on_epoch)
        n_openings = sum(one.data == title_of(read.data) for one in openings(database))
        print_evaluation(make_console(), read, tested, planned.output, n_openings)


def crossvalidate(
    config: ConfigArgument,
    folds: Annotated[
        int, typer.Option("--folds", metavar="N", help="Number of folds, from 2 to 100.")
    ] = 5,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.json", help="Also write the results as JSON."),
    ] = None,
    study: StudyOfConfigOption = None,
    storage: StorageOption = None,
) -> None:
    """Train a config once per fold (cross-validation)."""
    from dlnn_search.storage.database import files_folder

    if not 2 <= folds <= MAX_FOLDS:
        raise UsageError(f"Expected 2 to {MAX_FOLDS} folds, got --folds {folds}.")
    url = database_url_of(storage)
    read = _read(config, study, url)
    files = files_folder(url)
    from dlnn_search.commands.evaluate import check_output
    from dlnn_search.commands.evaluate import crossvalidate as run
    from dlnn_search.report.evaluation import print_crossvalidation, progress

    check_output(output)
    _import_to_train()
    with progress(read, range(1, folds + 1), "fold") as on_epoch:
        validated = run(read, files, output, n_folds=folds, on_epoch=on_epoch)
    print_crossvalidation(make_console(), read, validated)
    if output is not None:
        print(f"Wrote {output}")


def predict(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A model (.keras) with its config beside it.")
    ],
    pictures: Annotated[
        list[Path], typer.Argument(metavar="PICTURE...", help="PNG or JPEG files.")
    ],
    draw: Annotated[
        Path | None,
        typer.Option("--draw", metavar="FOLDER", help="Clocks: also draw the hands as read."),
    ] = None,
) -> None:
    """Read pictures with an exported model."""
    from dlnn_search.commands.predict import check_arguments
    from dlnn_search.commands.predict import predict as run
    from dlnn_search.training.runtime import import_tensorflow

    check_arguments(model, pictures, draw)
    import_tensorflow()
    for reading in run(model, pictures, draw):
        print(f"{reading.path}: {reading.words}", flush=True)


def ledger(storage: StorageOption = None) -> None:
    """List every use of a test split."""
    from dlnn_search.report.tables import ledger_table
    from dlnn_search.storage.ledger import openings

    with open_any("ledger", storage) as database:
        opened = openings(database)
        if not opened:
            print("No test split was opened yet.")
            return
        make_console().print(ledger_table(opened))
