"""The commands that look into a search and prove its choice: lr-range, confirm, plots and more."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlnn_search.cli.options import (
    StorageOption,
    StudyArgument,
    StudyOfConfigOption,
    WorkersOption,
    complete_studies,
    database_url_of,
    make_console,
    open_known,
    open_study,
    storage_words,
)
from dlnn_search.errors import ExitCode, StorageError, UsageError

if TYPE_CHECKING:
    from dlnn_search.commands.confirm import Planned
    from dlnn_search.results.confirmation import Confirmation
    from dlnn_search.storage.database import Database
    from dlnn_search.storage.studies import StoredStudy


def regions(
    study: StudyArgument,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE.html", help="Also draw it as an HTML page."),
    ] = None,
    storage: StorageOption = None,
) -> None:
    """Show how the search narrowed, stage by stage."""
    import optuna

    from dlnn_search.report.figures import REGIONS_NOTE, region_figures
    from dlnn_search.report.pages import Picture, page_of, write_page
    from dlnn_search.report.tables import print_narrowing
    from dlnn_search.results.comparison import narrowing_of
    from dlnn_search.storage.database import storage_errors

    if output is not None and output.suffix.lower() != ".html":
        raise UsageError(
            f"Expected the name of an HTML page for -o, such as regions.html, got '{output}'."
        )
    opened = open_study("regions", study, storage)
    with opened as (database, stored), storage_errors(database.url):
        optuna_study = optuna.load_study(study_name=stored.name, storage=database.optuna)
        narrowing = narrowing_of(optuna_study)
    if not narrowing.trials:
        print(f"'{study}' has no finished trial yet.")
        return
    print_narrowing(make_console(), narrowing)
    if not narrowing.regions:
        print(
            "The search still draws from the whole space: only the first stage has begun, or the "
            "sampler is not coarse-to-fine."
        )
    if output is not None:
        title = f"How the space of {study} narrowed"
        picture = Picture(title, region_figures(narrowing), REGIONS_NOTE)
        write_page(output, page_of(title, [picture]))
        print(f"\nWrote {output}")


def lr_range(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG|STUDY",
            help="A config or a study, by name or file. A study is tested by its best trial, or by "
            "the middle of its space.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.html",
            help="The page to write; the numbers go beside it as JSON. Defaults to "
            "NAME-lr-range.html.",
        ),
    ] = None,
    low: Annotated[
        float, typer.Option("--low", metavar="RATE", help="Rate of the first batch.")
    ] = 1e-5,
    high: Annotated[
        float, typer.Option("--high", metavar="RATE", help="Rate of the last batch.")
    ] = 1.0,
    batches: Annotated[
        int, typer.Option("--batches", metavar="N", help="Number of batches.")
    ] = 300,
    quick: Annotated[bool, typer.Option("--quick", help="Test the study's small version.")] = False,
    study: StudyOfConfigOption = None,
    storage: StorageOption = None,
    keep: Annotated[bool, typer.Option("--keep", hidden=True)] = False,
) -> None:
    """Find learning rates that work (range test)."""
    from dlnn_search.commands.trying import check_range, make_test, subject_of, write_sweep
    from dlnn_search.report.figures import sweep_page
    from dlnn_search.report.tables import print_sweep
    from dlnn_search.training.runtime import import_tensorflow

    url = database_url_of(storage)
    check_range(low=low, high=high, n_batches=batches, output=output)
    subject = subject_of(config, url, quick=quick, study_file=study)
    import_tensorflow()

    def told(share: float) -> None:
        if sys.stderr.isatty():
            end = "\r" if share < 1 else "\r\x1b[K"
            print(f"{share:4.0%}", end=end, file=sys.stderr, flush=True)

    sweep = make_test(subject.config, low=low, high=high, n_batches=batches, on_progress=told)
    if keep:
        from dlnn_search.commands.trying import keep_measured

        keep_measured(subject.name, url, sweep)
    print_sweep(make_console(), sweep, f"{subject.words} of {subject.name}")
    page = output or Path(f"{subject.name}-lr-range.html")
    if not keep:
        for path in write_sweep(
            sweep, subject, sweep_page(sweep, subject.name, subject.words), page
        ):
            print(f"Wrote {path}")


def confirm(
    study: StudyArgument,
    top: Annotated[
        int, typer.Option("--top", metavar="N", help="Number of best trials to train again.")
    ] = 5,
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", help="Number of fresh seeds.")] = 5,
    workers: WorkersOption = 1,
    code: StudyOfConfigOption = None,
    storage: StorageOption = None,
) -> None:
    """Train the best trials again with fresh seeds.

    The mean over the seeds ranks them. The winner is what 'export' writes.
    """
    from dlnn_search.commands.confirm import plan_confirmation
    from dlnn_search.report.evaluation import confirmation_figure

    _check_workers(workers)
    url = database_url_of(storage)
    with open_study("confirm", study, storage) as (database, stored):
        planned = plan_confirmation(database, stored, top=top, seeds=seeds, study_file=code)
        ended = _train(planned, workers, code, url, storage_words(storage))
        result = _print_confirmation(database, stored)
        figure = confirmation_figure(stored, result)
        names = (stored.name, planned.study.name)
        _show_in_dashboard(url, [(name, figure, "winners-curse") for name in names])
        _print_export(stored, result, storage_words(storage))
    if not ended:
        raise typer.Exit(ExitCode.INTERRUPTED)


def retune(
    study: StudyArgument,
    steps: Annotated[
        int, typer.Option("--steps", metavar="N", help="Number of rates on either side.")
    ] = 3,
    factor: Annotated[
        float, typer.Option("--factor", metavar="X", help="Factor between two rates.")
    ] = 2.0,
    workers: WorkersOption = 1,
    code: StudyOfConfigOption = None,
    storage: StorageOption = None,
) -> None:
    """Train the best config at nearby learning rates."""
    from dlnn_search.commands.confirm import plan_retuning
    from dlnn_search.report.evaluation import print_retuning
    from dlnn_search.results.confirmation import retuning

    _check_workers(workers)
    console, url = make_console(), database_url_of(storage)
    with open_study("retune", study, storage) as (database, stored):
        planned = plan_retuning(database, stored, steps=steps, factor=factor, study_file=code)
        ended = _train(planned, workers, code, url, storage_words(storage))
        print()
        print_retuning(console, stored, retuning(database, stored), storage_words(storage))
    if not ended:
        raise typer.Exit(ExitCode.INTERRUPTED)


def print_linked(name: str, url: str, where: str) -> None:
    """Print what a linked study's trainings say of the study that their configs are from.

    Args:
        name: Of the linked study.
        url: Of the database.
        where: The option that names the database, if one was given.
    """
    from dlnn_search.report.evaluation import print_retuning
    from dlnn_search.results.confirmation import retuning
    from dlnn_search.storage.database import open_database
    from dlnn_search.storage.halves import parent_and_kind
    from dlnn_search.storage.studies import find

    parent, kind = parent_and_kind(name)
    with open_database(url, create=False) as database:
        stored = find(database, parent)
        print()
        if kind == "confirm":
            _print_export(stored, _print_confirmation(database, stored), where)
        else:
            print_retuning(make_console(), stored, retuning(database, stored), where)


def _print_confirmation(database: Database, stored: StoredStudy) -> Confirmation:
    from dlnn_search.report.evaluation import print_confirmation
    from dlnn_search.results.confirmation import confirmation

    result = confirmation(database, stored)
    assert result is not None  # it was planned
    print_confirmation(make_console(), stored, result)
    return result


def _print_export(stored: StoredStudy, result: Confirmation, where: str) -> None:
    if result.winner is not None:
        print(f"\nExport it: dlnn-search export {stored.name} -o best.json{where}")


def _check_workers(n_workers: int) -> None:
    if n_workers < 0:
        raise UsageError(f"Expected 0 workers or more, got --workers {n_workers}.")


def _train(planned: Planned, n_workers: int, code: str | None, url: str, where: str) -> bool:
    """Train a linked study's trials, and return whether that came to its end."""
    from dlnn_search.commands.start import Wishes, start
    from dlnn_search.report.live import LiveView

    console, name = make_console(), planned.study.name
    arguments = [name, *(["--study", code] if code else [])]
    if n_workers == 0:
        print(
            f"{planned.n_new} trials were added to {name}. Train them on any machine:\n"
            f"  dlnn-search worker {shlex.join(arguments)}{where}"
        )
        return True
    return start(
        planned.study,
        arguments,
        url,
        Wishes(n_workers=n_workers),
        view=lambda status: LiveView(console, status),
        say=lambda message: console.print(message, markup=False, soft_wrap=True),
    ).by_itself


def _show_in_dashboard(url: str, figures: Iterable[tuple[str, Any, str]]) -> bool:
    """Put figures beside studies, where this user may write; return whether they are there.

    Args:
        url: Of the database.
        figures: Of each its study, itself, and its name there.
    """
    from dlnn_search.report.pages import put_into_dashboard
    from dlnn_search.storage.database import open_database, storage_errors

    try:
        with open_database(url, create=False) as database, storage_errors(url):
            for study, figure, figure_id in figures:
                put_into_dashboard(database, study, figure, figure_id)
    except StorageError as error:  # someone who may only read has the printed answer
        print(f"The figures are not in the dashboard: {error}", file=sys.stderr)
        return False
    return True


def importance(study: StudyArgument, storage: StorageOption = None) -> None:
    """Show which parameters matter most."""
    from dlnn_search.report.tables import print_importances
    from dlnn_search.results.comparison import importances

    with open_study("importance", study, storage) as (database, stored):
        print_importances(make_console(), stored, importances(database, stored))


def compare(
    studies: Annotated[
        list[str],
        typer.Argument(
            metavar="STUDY...",
            help="Two or more studies with the same metric.",
            autocompletion=complete_studies,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.html", help="Also draw the curves in a page."),
    ] = None,
    storage: StorageOption = None,
) -> None:
    """Compare studies at equal budgets."""
    from dlnn_search.report.figures import comparison_figures
    from dlnn_search.report.pages import page_of, write_page
    from dlnn_search.report.tables import print_comparison
    from dlnn_search.results.comparison import compared
    from dlnn_search.storage.studies import find

    with open_known("compare", storage) as database:
        found = compared(database, [find(database, name) for name in studies])
        print_comparison(make_console(), found)
        pictures = comparison_figures(found)
    shown = [
        (one.study.name, picture.drawn, f"comparison-{number}")
        for one in found
        for number, picture in enumerate(pictures)
    ]
    is_shown = _show_in_dashboard(database.url, shown)
    if output is not None:
        title = " and ".join(one.study.name for one in found)
        write_page(output, page_of(f"Comparison: {title}", pictures))
        print(f"\nWrote {output}")
    if is_shown:
        print("The dashboard shows the curves on each study's page.")


def plots(
    study: StudyArgument,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.html|FOLDER",
            help="One page, or a folder with one page per picture.",
        ),
    ],
    storage: StorageOption = None,
) -> None:
    """Draw history, curves, importance and more (HTML)."""
    from dlnn_search.report.figures import study_figures
    from dlnn_search.report.pages import write_pages

    with open_study("plots", study, storage) as (database, stored):
        figures = study_figures(database, stored)
    for path in write_pages(output, study, figures):
        print(f"Wrote {path}")
