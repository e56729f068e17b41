"""The commands of results: trials, best, export, evaluate, crossvalidate, predict, ledger."""

from __future__ import annotations

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
    open_known,
    open_study,
    params_by_trial,
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


def trials(study: StudyArgument, storage: StorageOption = None) -> None:
    """List a study's trials with their parameters."""
    from dlnn_search.report.tables import print_trials
    from dlnn_search.storage.trials import trials_of

    with open_study("trials", study, storage) as (database, stored):
        rows = trials_of(database, stored)
        if not rows:
            print(f"'{study}' has no trial yet.")
            return
        print_trials(make_console(), rows, params_by_trial(database, study), stored)


def best(study: StudyArgument, storage: StorageOption = None) -> None:
    """Show a study's best trial: value, parameters, metrics."""
    from dlnn_search.report.tables import print_best
    from dlnn_search.results.advice import next_words
    from dlnn_search.results.status import best_trials, study_status
    from dlnn_search.storage.trials import curve_of_slot

    with open_study("best", study, storage) as (database, stored):
        found = best_trials(database, stored, 1)
        if not found:
            raise UsageError(
                f"'{study}' has no complete trial yet. {next_words(study_status(database, stored))}"
            )
        points = curve_of_slot(database, found[0].slot_id)
        params = params_by_trial(database, study)
        print_best(make_console(), stored, found[0], params, points, storage_words(storage))


def export(
    study: StudyArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="JSON to write.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            metavar="FILE.keras",
            help="The best trial's trained model to write, too, from its kept checkpoint.",
        ),
    ] = None,
    top: Annotated[
        int, typer.Option("--top", help="The best K trials: FILE, FILE-2, ..., best first.")
    ] = 1,
    code: StudyOfConfigOption = None,
    storage: StorageOption = None,
) -> None:
    """Write the best trial as a config; the confirmed winner, if there is one."""
    if output is None and model is None:
        raise UsageError(
            "Expected something to write: the config with -o best.json, the trained model with "
            "--model best.keras, or both."
        )
    from dlnn_search.commands.export import check_wishes, export_best
    from dlnn_search.config import read_config
    from dlnn_search.storage.halves import lost_words
    from dlnn_search.storage.studies import look_up

    # A model's config stands beside it, as `predict` expects.
    output = output or Path(model or "").with_suffix(".json")
    check_wishes(top, output, model)
    with open_known("export", storage) as database:
        stored = look_up(database, study)
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
    own = any(part.study for part in read_config(output).own_parts)
    with_code = " --study FILE" if own else ""
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


def _read(config: str, study: str | None) -> Config:
    """Return the config of a name or file, with its own code."""
    from dlnn_search.study.finding import bring_code
    from dlnn_search.study.named_configs import find_config

    return bring_code(find_config(config), config, study)


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
    seeds: Annotated[int, typer.Option("--seeds", help="Models trained, a seed each.")] = 3,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Else the config's name, -test."),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Test a config that was tested before.")
    ] = False,
    study: StudyOfConfigOption = None,
    storage: StorageOption = None,
) -> None:
    """Train a config anew, and test it once, on record."""
    from dlnn_search.config import title_of
    from dlnn_search.storage.database import open_database
    from dlnn_search.storage.ledger import openings

    if not 1 <= seeds <= MAX_SEEDS:
        raise UsageError(f"Expected 1 to {MAX_SEEDS} seeds, got --seeds {seeds}.")
    read = _read(config, study)
    default = Path(config).with_name(f"{Path(config).stem}-test")
    with open_database(database_url_of(storage), create=True) as database:
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
    folds: Annotated[int, typer.Option("--folds", help="Models trained, one a fold.")] = 5,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="JSON to write.")
    ] = None,
    study: StudyOfConfigOption = None,
    storage: StorageOption = None,
) -> None:
    """Train a config once a fold (k-fold cross-validation)."""
    from dlnn_search.storage.database import files_folder

    if not 2 <= folds <= MAX_FOLDS:
        raise UsageError(f"Expected 2 to {MAX_FOLDS} folds, got --folds {folds}.")
    read = _read(config, study)
    files = files_folder(database_url_of(storage))
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
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A .keras file.")],
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE...", help="PNG or JPEG.")],
    draw: Annotated[
        Path | None,
        typer.Option("--draw", metavar="FOLDER", help="Clocks: draw the read hands beside each."),
    ] = None,
) -> None:
    """Read digits, garments or clocks from pictures of any size."""
    from dlnn_search.commands.predict import check_arguments
    from dlnn_search.commands.predict import predict as run
    from dlnn_search.training.runtime import import_tensorflow

    check_arguments(model, pictures, draw)
    import_tensorflow()
    for reading in run(model, pictures, draw):
        print(f"{reading.path}: {reading.words}", flush=True)


def ledger(storage: StorageOption = None) -> None:
    """List every time that a test split was opened."""
    from dlnn_search.report.tables import ledger_table
    from dlnn_search.storage.ledger import openings

    with open_known("ledger", storage) as database:
        opened = openings(database)
        if not opened:
            print("No test split was opened yet.")
            return
        make_console().print(ledger_table(opened))
