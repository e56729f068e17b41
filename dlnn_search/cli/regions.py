"""The command `regions`: how coarse-to-fine narrowed a study's space."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlnn_search.cli.options import StorageOption, StudyArgument, make_console, open_known


def regions(
    study: StudyArgument,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Draw it, too, as an HTML page."),
    ] = None,
    storage: StorageOption = None,
) -> None:
    """Show how the space narrowed, stage by stage."""
    import optuna

    from dlnn_search.errors import StorageError, UsageError
    from dlnn_search.report.regions import narrowing_figure, narrowing_of, print_narrowing
    from dlnn_search.storage.database import storage_errors
    from dlnn_search.storage.definitions import find

    if output is not None and output.suffix.lower() != ".html":
        raise UsageError(
            f"Expected the name of an HTML page for -o, such as regions.html, got '{output}'."
        )
    with open_known("regions", storage) as database:
        find(database, study)
        with storage_errors(database.url):
            optuna_study = optuna.load_study(study_name=study, storage=database.optuna)
            narrowing = narrowing_of(optuna_study)
    if not narrowing.trials:
        print(f"'{study}' has no finished trial yet.")
        return
    print_narrowing(make_console(), narrowing)
    if not narrowing.regions:
        print(
            "No stage but the first has begun, or another sampler than coarse-to-fine draws "
            "the trials: the whole space is open."
        )
    if output is not None:
        try:
            narrowing_figure(narrowing, f"How the space of {study} narrowed").write_html(
                output, include_plotlyjs=True
            )
        except OSError as error:
            raise StorageError(f"Cannot write '{output}': {error.strerror or error}.") from error
        print(f"\nDrawn in {output}")
