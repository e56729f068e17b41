"""Tables of studies, trials, openings and checks, as the command line prints them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dlnn_search.errors import StorageError
from dlnn_search.metrics import duration, metric_name, metric_value
from dlnn_search.pruners import CONVERGED
from dlnn_search.results.advice import mend_words
from dlnn_search.results.status import StudyStatus, TrialStatus, study_status
from dlnn_search.storage.budget import time_words
from dlnn_search.storage.curves import Point
from dlnn_search.storage.database import open_database
from dlnn_search.storage.ledger import Opening
from dlnn_search.storage.studies import StoredStudy, all_studies
from dlnn_search.study import Study
from dlnn_search.worker.verdict import REFUSES_ALL, USED_UP

if TYPE_CHECKING:
    from dlnn_search.commands.start import Detached

STYLES = {"complete": "green", "pruned": "yellow", "failed": "red", "running": "cyan"}
#: Longest reason in a table; the whole one stands in the trial's note.
REASON_CHARACTERS = 160


def print_studies(console: Console, studies: Sequence[Study], url: str) -> None:
    """Print each study with what this database knows of it and of its quick version."""
    searched = _searched(url)
    for study in studies:
        quick = "" if study.quick is None else f" (quick: {study.quick.trials})"
        _say(console, study.name, style="bold")
        print_indented(console, study.summary, "")
        print_indented(
            console, f"{study.trials} trials{quick}, {study.direction} {metric_name(study.metric)}"
        )
        known = [searched[name] for name in (study.name, f"{study.name}-quick") if name in searched]
        if known:
            print_indented(console, f"searched here: {'; '.join(known)}", "green")


def _searched(url: str) -> dict[str, str]:
    try:
        database = open_database(url, create=False, read_only=True)
    except StorageError:  # no database yet: nothing was searched
        return {}
    with database:
        return {
            study.name: _searched_words(study_status(database, study))
            for study in all_studies(database)
        }


def _searched_words(status: StudyStatus) -> str:
    quick = "quick: " if status.name.endswith("-quick") else ""
    best = ""
    if status.best is not None and status.best.value is not None:
        best = f", best {metric_value(status.metric, status.best.value)}"
    return f"{quick}{status.n_done}/{status.budget} trials{best}"


def print_trials(
    console: Console,
    trials: Sequence[TrialStatus],
    params: Mapping[int | None, Mapping[str, Any]],
    study: StoredStudy,
) -> None:
    """Print two lines a trial: what came of it, and its parameters, by Optuna's id of it."""
    head = f"{'trial':>5}  {'outcome':<11}  {metric_name(study.metric)}"
    console.print(f"{head}, best epoch, time", style="bold")
    for trial in trials:
        value = "-" if trial.value is None else metric_value(study.metric, trial.value)
        at = f"{trial.epochs_done} epochs"
        if trial.best_epoch is not None:
            at = f"epoch {trial.best_epoch} of {trial.epochs_done}"
        line = Text(f"{trial.number:>5}  ")
        line.append(f"{trial.outcome:<11}", style=STYLES.get(trial.outcome, ""))
        line.append(f"  {value}, {at}, {duration(trial.seconds)}")
        console.print(line)
        if trial.reason:
            print_indented(
                console, trial.reason.replace("\n", " ")[:REASON_CHARACTERS], "red", by=7
            )
        print_indented(console, params_words(params.get(trial.trial_id, {})), "dim", by=7)


def print_indented(console: Console, text: str, style: str = "dim", *, by: int = 2) -> None:
    """Print text below a row of a list, all of its lines `by` columns in."""
    # Wrapped by hand: a padding fills every line with blanks to the console's width.
    for line in Text(text, style=style).wrap(console, console.width - by) if text else ():
        line.rstrip()
        console.print(Text(" " * by) + line, soft_wrap=True)


def params_words(params: Mapping[str, Any]) -> str:
    """Return `name=value` of each parameter, numbers to four digits."""
    return " ".join(f"{name}={_short(value)}" for name, value in params.items())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_best(
    console: Console,
    study: StoredStudy,
    trial: TrialStatus,
    params: Mapping[int | None, Mapping[str, Any]],
    points: Sequence[Point],
    storage: str,
) -> None:
    """Print the best trial: value, parameters, the metrics at its best epoch."""
    assert trial.value is not None  # complete trials have one
    _say(
        console,
        f"{study.name}: trial {trial.number}, "
        f"{metric_name(study.metric)} {metric_value(study.metric, trial.value)} on validation, "
        f"epoch {trial.best_epoch} of {trial.epochs_done}, {duration(trial.seconds)}\n",
        style="bold",
    )
    shown = {name: _short(value) for name, value in params.get(trial.trial_id, {}).items()}
    width = max(map(len, shown), default=0)
    for name, text in shown.items():
        _say(console, f"  {name:<{width}}  {text}")
    best = next((point for point in points if point.epoch == trial.best_epoch), None)
    if best is not None:
        console.print(
            "\nAt that epoch: "
            + ", ".join(
                f"{metric_name(name)} {metric_value(name, value)}"
                for name, value in sorted(best.metrics.items())
            )
        )
    _say(console, f"\nExport it: dlnn-search export {study.name} -o best.json{storage}")


def print_ready(console: Console, status: StudyStatus, join: str, storage: str) -> None:
    """Print that a search waits for workers, and the command by which they join.

    Args:
        console: To print on.
        status: Of the study.
        join: The command of a worker.
        storage: The option that names the database, if one was given.
    """
    _say(
        console,
        f"{status.name} is ready: {status.n_done} of {status.budget} trials are done. "
        f"Workers join, from any machine, by:\n  {join}{storage}",
    )


def print_end(
    console: Console,
    status: StudyStatus,
    again: str,
    storage: str,
    code: str = "",
    *,
    is_linked: bool = False,
) -> None:
    """Print what a search came to, and the commands to go on with.

    Args:
        console: To print on.
        status: Of the study.
        again: The command that goes on with the search.
        storage: The option that names the database, if one was given.
        code: The option that brings a study's own code, if it has any.
        is_linked: Whether it trained given configs: its budget is another command's, and none of
            its trials is a winner by itself.
    """
    console.print()
    limit = status.use.exhausted_by
    reason = status.control_reason or ""
    if status.n_done < status.budget and status.control == "stop" and reason.startswith(CONVERGED):
        _say(
            console,
            f"{reason}\n{status.n_done} of {status.budget} trials are done, "
            f"{status.budget - status.n_done} were not needed. Search on all the same with:\n"
            f"  {again} --no-stop-when-converged{storage}",
        )
    elif status.n_done < status.budget and reason in (USED_UP, REFUSES_ALL):
        _say(
            console,
            f"{reason}\n{status.n_done} of {status.budget} trials are done; the rest of the budget "
            "is untouched.",
        )
    elif status.n_done < status.budget and limit is not None:
        option = {"wall time": "--wall-time", "worker-hours": "--worker-hours"}.get(limit)
        _say(
            console,
            f"The budget is {status.use.exhausted}; what was begun is kept. Extend it:\n"
            f"  {again} {option or '--deadline'} ...{storage}",
        )
    elif status.n_done < status.budget:
        _say(
            console,
            f"Stopped after {status.n_done} of {status.budget} trials; what was begun is kept. "
            f"Go on with:\n  {again}{storage}",
        )
        if status.control != "run" and status.control_reason:
            _say(console, f"Asked for by {status.control_reason}")
    else:
        _say(
            console,
            f"All {status.budget} trials of {status.name} are done: "
            + ", ".join(
                f"{status.counts.get(key, 0)} {key}" for key in ("complete", "pruned", "failed")
            )
            + (
                "."
                if is_linked or status.is_fruitless
                else f". More: {again} --trials {2 * status.budget}{storage}"
            ),
        )
    if status.best is None or status.best.value is None:
        if status.n_done:
            _say(
                console,
                f"No trial came to its end. See why: dlnn-search trials {status.name}{storage}",
            )
        if status.is_fruitless:
            _say(console, f"{mend_words(status)}\n  {again} --fresh{storage}")
        return
    if is_linked:
        return
    _say(
        console,
        f"Best: trial {status.best.number}, {metric_name(status.metric)} "
        f"{metric_value(status.metric, status.best.value)} on validation, "
        f"epoch {status.best.best_epoch} of {status.best.epochs_done}",
        style="bold green",
    )
    _say(
        console,
        "Next:\n"
        f"  dlnn-search trials {status.name}{storage}\n"
        f"  dlnn-search dashboard{storage}\n"
        f"  dlnn-search export {status.name} -o best.json{storage}\n"
        f"  dlnn-search evaluate best.json{code}{storage}",
    )


def print_detached(console: Console, study: str, started: Detached, storage: str) -> None:
    """Print that a search runs in the background, and how to watch and stop it."""
    background = started.background
    if started.already:
        _say(
            console,
            f"{study} is searched in the background already, by process {background.pid} on this "
            "machine; its workers share what this start added to the budget.",
        )
    else:
        _say(console, f"{study} is searched in the background, by process {background.pid}.")
    _say(
        console,
        f"Log:   {background.log}\n"
        f"Watch: dlnn-search status {study} --watch{storage}\n"
        f"       dlnn-search logs {study} --follow{storage}\n"
        f"Stop:  dlnn-search stop {study}{storage}   (--now keeps checkpoints and ends at once)",
    )


def _say(console: Console, text: str, style: str | None = None) -> None:
    """Print text as it is: commands must not be broken at column 80."""
    console.print(text, style=style, soft_wrap=True, markup=False)


def ledger_table(openings: Iterable[Opening]) -> Table:
    """Return a table with one row for each time that a test split was opened."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("opened", "data", "config", "from", "seed", "by", "measured"):
        table.add_column(name, no_wrap=name in ("data", "config"))
    for opening in openings:
        origin = "-" if opening.study is None else f"{opening.study} trial {opening.trial}"
        table.add_row(
            time_words(opening.opened_at),
            opening.data,
            opening.fingerprint,
            origin,
            str(opening.seed),
            f"{opening.user}@{opening.host}",
            metrics_words(opening.metrics) if opening.metrics else "not completed",
        )
    return table


def metrics_words(metrics: Mapping[str, float]) -> str:
    """Return `name value` of each metric."""
    return ", ".join(
        f"{metric_name(name)} {metric_value(name, value)}" for name, value in metrics.items()
    )


if TYPE_CHECKING:
    from dlnn_search.commands.trying import Checked

MEGABYTE = 1e6


def print_checks(console: Console, study: Study, checks: Iterable[Checked]) -> int:
    """Print a line a config, and what the search will take; return how many cannot work."""
    good: list[Checked] = []
    n_bad = n_refused = 0
    for check in checks:
        if check.is_refused:
            n_refused += 1
            continue
        if check.error is not None:
            n_bad += 1
            console.print("FAILS ", style="bold red", end="")
            console.print(check.error, markup=False, soft_wrap=True)
        else:
            good.append(check)
            console.print("   ok ", style="green", end="")
            console.print(
                f"{check.n_parameters:,} parameters, {check.memory_bytes / MEGABYTE:,.0f} MB, "
                f"about {duration(check.trial_seconds)} a trial",
                markup=False,
            )
        print_indented(console, params_words(check.params), "dim", by=6)
    console.print()
    if good:
        seconds = sorted(check.trial_seconds for check in good)
        middle = seconds[len(seconds) // 2]
        console.print(
            f"{len(good)} configs work: {min(c.n_parameters for c in good):,} to "
            f"{max(c.n_parameters for c in good):,} parameters, up to "
            f"{max(c.memory_bytes for c in good) / MEGABYTE:,.0f} MB beside TensorFlow's own. "
            f"A trial takes {duration(seconds[0])} to {duration(seconds[-1])} here, {study.trials} "
            f"trials about {duration(middle * study.trials)} of one worker's time, unpruned.",
            soft_wrap=True,
        )
    if n_refused:
        console.print(
            f"{n_refused} draws are infeasible: the space refuses them (optuna.TrialPruned). A "
            "search draws others instead.",
            soft_wrap=True,
        )
    if n_bad:
        console.print(
            f"{n_bad} configs cannot work: narrow the space, or mend the study.", style="bold red"
        )
    return n_bad
