"""Tables of studies, trials, openings, checks and comparisons, as the command line prints them."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dlnn_search.errors import one_line
from dlnn_search.metrics import count_words, duration, metric_name, metric_value
from dlnn_search.pruners import CONVERGED
from dlnn_search.results.advice import extension, mend_words
from dlnn_search.results.comparison import Importances, Narrowing, Progress, differences
from dlnn_search.results.status import ListedTrial, Listing, StudyStatus
from dlnn_search.samplers.observations import Numeric
from dlnn_search.storage.budget import time_words
from dlnn_search.storage.control import in_short
from dlnn_search.storage.halves import is_linked_name, parent_and_kind
from dlnn_search.storage.ledger import Opening
from dlnn_search.storage.studies import StoredStudy
from dlnn_search.storage.trials import Point, Trial
from dlnn_search.study import Study
from dlnn_search.worker.verdict import REFUSES_ALL, USED_UP

if TYPE_CHECKING:
    from dlnn_search.training.rate_range import Sweep

STYLES = {"complete": "green", "pruned": "yellow", "failed": "red", "running": "cyan"}
#: Of a table for programs, before the parameters.
TRIAL_COLUMNS = (
    *("number", "state", "value", "best_epoch", "epochs", "seconds", "duplicate_of", "reason"),
)
#: Longest reason in a table; the whole one stands in the trial's note.
REASON_CHARACTERS = 160


def table_of(names: Iterable[str], left: Collection[str] = ("",)) -> Table:
    """Return a table without lines, its columns to the right but for those named."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    return table


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print text as it is: commands must not be broken at column 80."""
    console.print(text, style=style, soft_wrap=True, markup=False)


def print_studies(
    console: Console, studies: Sequence[Study], searched: Mapping[str, StudyStatus]
) -> None:
    """Print each study with how it and its quick version stand here, by name."""
    for study in studies:
        quick = "" if study.quick is None else f" (quick: {study.quick.trials})"
        say(console, study.name, style="bold")
        print_indented(console, study.summary, "")
        print_indented(
            console, f"{study.trials} trials{quick}, {study.direction} {metric_name(study.metric)}"
        )
        names = (study.name, f"{study.name}-quick")
        known = [_searched_words(searched[name]) for name in names if name in searched]
        if known:
            print_indented(console, f"searched here: {'; '.join(known)}", "green")


def _searched_words(status: StudyStatus) -> str:
    quick = "quick: " if status.name.endswith("-quick") else ""
    best = ""
    if status.best is not None and status.best.value is not None:
        best = f", best {metric_value(status.metric, status.best.value)}"
    return f"{quick}{status.n_done}/{status.budget} trials{best}"


def print_trials(console: Console, trials: Sequence[ListedTrial], study: StoredStudy) -> None:
    """Print two lines a trial: what came of it, and its parameters."""
    head = f"{'trial':>5}  {'state':<11}  {metric_name(study.metric)}"
    console.print(f"{head}, best epoch, time", style="bold")
    for listed in trials:
        trial = listed.trial
        value = "-" if trial.value is None else metric_value(study.metric, trial.value)
        at = f"{trial.epochs_done} epochs"
        if trial.best_epoch is not None:
            at = f"epoch {trial.best_epoch} of {trial.epochs_done}"
        line = Text(f"{trial.number:>5}  ")
        line.append(f"{trial.outcome:<11}", style=STYLES.get(trial.outcome, ""))
        line.append(f"  {value}, {at}, {duration(trial.seconds)}")
        if listed.duplicate_of is not None:
            line.append(f"  = trial {listed.duplicate_of} (same config)", style="magenta")
        console.print(line)
        if trial.reason:
            print_indented(console, one_line(trial.reason)[:REASON_CHARACTERS], "red", by=7)
        print_indented(console, params_words(listed.params), "dim", by=7)


def trial_row(listed: ListedTrial) -> dict[str, Any]:
    """Return a trial as plain data for programs; its parameters are an object of their own."""
    trial = listed.trial
    return {
        "number": trial.number,
        "state": trial.outcome,
        "value": _finite(trial.value),
        "best_epoch": trial.best_epoch,
        "epochs": trial.epochs_done,
        "seconds": trial.seconds,
        "duplicate_of": listed.duplicate_of,
        "reason": trial.reason,
        "params": {name: _finite(value) for name, value in listed.params.items()},
    }


def _finite(value: Any) -> Any:
    """Return a value as JSON knows it: that has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def trials_csv(listing: Listing) -> str:
    """Return a line a trial; parameters are columns `params_NAME`, as in Optuna's data frames."""
    plain = [trial_row(listed) for listed in listing.trials]
    names = [*TRIAL_COLUMNS, *(f"params_{name}" for name in listing.parameters)]
    text = io.StringIO()
    table = csv.DictWriter(text, names, lineterminator="\n")
    table.writeheader()
    for row in plain:
        params = row.pop("params")
        table.writerow({**row, **{f"params_{name}": value for name, value in params.items()}})
    return text.getvalue()


def print_indented(console: Console, text: str, style: str = "dim", *, by: int = 2) -> None:
    """Print text below a row of a list, all of its lines `by` columns in."""
    # Wrapped by hand: a padding fills every line with blanks to the console's width.
    for line in Text(text, style=style).wrap(console, console.width - by) if text else ():
        line.rstrip()
        console.print(Text(" " * by) + line, soft_wrap=True)


def params_words(params: Mapping[str, Any]) -> str:
    """Return `name=value` of each parameter, numbers to four digits."""
    return " ".join(f"{name}={short(value)}" for name, value in params.items())


def short(value: Any, digits: int = 4) -> str:
    """Return a parameter's value, a number to so many digits."""
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def print_best(
    console: Console,
    study: StoredStudy,
    trial: Trial,
    params: Mapping[str, Any],
    points: Sequence[Point],
    storage: str,
) -> None:
    """Print the best trial: value, parameters, the metrics at its best epoch."""
    assert trial.value is not None  # complete trials have one
    say(
        console,
        f"{study.name}: trial {trial.number}, "
        f"{metric_name(study.metric)} {metric_value(study.metric, trial.value)} on validation, "
        f"epoch {trial.best_epoch} of {trial.epochs_done}, {duration(trial.seconds)}\n",
        style="bold",
    )
    shown = {name: short(value) for name, value in params.items()}
    width = max(map(len, shown), default=0)
    for name, text in shown.items():
        say(console, f"  {name:<{width}}  {text}")
    best = next((point for point in points if point.epoch == trial.best_epoch), None)
    if best is not None:
        console.print(
            "\nAt that epoch: "
            + ", ".join(
                f"{metric_name(name)} {metric_value(name, value)}"
                for name, value in sorted(best.metrics.items())
            )
        )
    if is_linked_name(study.name):
        parent, _ = parent_and_kind(study.name)
        say(console, f"\nExport the winner: dlnn-search export {parent} -o best.json{storage}")
    else:
        say(
            console,
            "\nNext, let fresh seeds choose:\n"
            f"  dlnn-search confirm {study.name}{storage}\n"
            f"  dlnn-search export {study.name} -o best.json{storage}",
        )


def print_ready(console: Console, status: StudyStatus, join: str, storage: str) -> None:
    """Print that a search waits for workers, and the command by which they join.

    Args:
        console: To print on.
        status: Of the study.
        join: The command of a worker.
        storage: The option that names the database, if one was given.
    """
    say(
        console,
        f"{status.name} is ready: {status.n_done} of {status.budget} trials are done. "
        f"Join it from any machine:\n  {join}{storage}",
    )


def print_end(
    console: Console,
    status: StudyStatus,
    again: str,
    storage: str,
    *,
    is_linked: bool = False,
) -> None:
    """Print what a search came to, and the commands to go on with.

    Args:
        console: To print on.
        status: Of the study.
        again: The command that goes on with the search.
        storage: The option that names the database, if one was given.
        is_linked: Whether it trained given configs: its budget is another command's, and none of
            its trials is a winner by itself.
    """
    console.print()
    limit, reason = status.use.exhausted_by, status.control_reason or ""
    done = f"{status.n_done} of {status.budget} trials"
    if status.n_done >= status.budget:
        kinds = (f"{status.counts.get(key, 0)} {key}" for key in ("complete", "pruned", "failed"))
        words = f"All {status.budget} trials of {status.name} are done: {', '.join(kinds)}."
        if not (is_linked or status.is_fruitless):
            words += f" More: {again} --trials {2 * status.budget}{storage}"
    elif status.control == "stop" and reason.startswith(CONVERGED):
        words = (
            f"{reason}\n{done} are done, {status.budget - status.n_done} were not needed. "
            f"Search on anyway with:\n  {again} --no-stop-when-converged{storage}"
        )
    elif reason in (USED_UP, REFUSES_ALL):
        words = f"{reason}\n{done} are done; the rest of the budget is not used."
    elif limit is not None:
        words = (
            f"The budget is {status.use.exhausted}. All progress is kept. Extend it:\n"
            f"  {again} {extension(status.use)}{storage}"
        )
    else:
        words = f"Stopped after {done}; all progress is kept. Continue with:\n  {again}{storage}"
        if status.control != "run" and reason:
            words += f"\nAsked for by {in_short(reason)}"
    say(console, words)
    best = status.best
    if best is None or best.value is None:
        if status.n_done:
            look = f"dlnn-search trials {status.name}{storage}"
            say(console, f"No trial is complete. See why: {look}")
        if status.is_fruitless:
            say(console, mend_words(status, f"{again} --fresh{storage}"))
    elif not is_linked:
        say(
            console,
            f"Best: trial {best.number}, {metric_name(status.metric)} "
            f"{metric_value(status.metric, best.value)} on validation, "
            f"epoch {best.best_epoch} of {best.epochs_done}",
            style="bold green",
        )
        say(
            console,
            "Next, let fresh seeds choose, and test the winner once:\n"
            f"  dlnn-search confirm {status.name}{storage}\n"
            f"  dlnn-search export {status.name} -o best.json{storage}\n"
            f"  dlnn-search evaluate best.json{storage}\n"
            "Look at the trials:\n"
            f"  dlnn-search trials {status.name} --top 10{storage}\n"
            f"  dlnn-search dashboard --open{storage}",
        )


def print_detached(
    console: Console, study: str, pid: int, log: str, storage: str, *, already: bool
) -> None:
    """Print that a search runs in the background, and how to watch and stop it.

    Args:
        console: To print on.
        study: What is searched.
        pid: Of the process in the background.
        log: Where that writes.
        storage: The option that names the database, if one was given.
        already: Whether it ran before.
    """
    shared = " on this machine; its workers share what this start added to the budget"
    say(
        console,
        f"{study} runs in the background{' already' * already}, as process {pid}"
        f"{shared * already}.\n"
        f"Log:   {log}\n"
        f"Watch: dlnn-search status {study} --watch{storage}\n"
        f"       dlnn-search logs {study} --follow{storage}\n"
        f"Stop:  dlnn-search stop {study}{storage}   (--now: at once, progress is kept)",
    )


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


MEGABYTE = 1e6


@dataclass(frozen=True)
class Checked:
    """One config of a space that was built and trained for a step.

    Attributes:
        error: Why it cannot work; None if it does.
        memory_bytes: An estimate: weights, optimiser, and one batch's activations.
        trial_seconds: An estimate from one step, for all epochs on this machine, alone on it.
        is_refused: The space forbids these parameters, by `optuna.TrialPruned`: a search draws
            others, and nothing was built.
        warnings: What the study's own code warned of, each once.
    """

    params: dict[str, Any]
    error: str | None
    n_parameters: int = 0
    memory_bytes: int = 0
    trial_seconds: float = 0.0
    is_refused: bool = False
    warnings: tuple[str, ...] = ()


def print_checks(console: Console, study: Study, checks: Iterable[Checked]) -> int:
    """Print how many configs work, what a search of them takes, and each problem once.

    Returns:
        How many configs cannot work.
    """
    found = list(checks)
    good = [check for check in found if check.error is None and not check.is_refused]
    failures = _grouped((check.error, check) for check in found if check.error is not None)
    warned = _grouped((words, check) for check in found for words in check.warnings)
    n_bad = sum(map(len, failures.values()))
    n_refused = sum(check.is_refused for check in found)
    n_built = len(good) + n_bad
    console.print(
        f"{study.name}: built {count_words(n_built, 'config')} (the corners of the space, and "
        "random ones), and trained each for a step.",
        markup=False,
    )
    if good:
        _print_good(console, study, good)
    if n_refused:
        print_indented(
            console,
            f"{count_words(n_refused, 'draw')} {'is' if n_refused == 1 else 'are'} infeasible: the "
            "space refuses them (optuna.TrialPruned). A search draws others instead.",
            "",
        )
    for title, style, groups in (("WARNS", "yellow", warned), ("FAILS", "bold red", failures)):
        for words, checked in groups.items():
            console.print(f"\n{title} {count_words(len(checked), 'config')}", style=style)
            print_indented(console, words, "")
            example = params_words(checked[0].params)
            print_indented(console, f"for example {example}" if example else "", "dim")
    if n_bad:
        console.print(
            f"\n{n_bad} of {n_built} configs cannot work: narrow the space, or fix the study.",
            style="bold red",
        )
    return n_bad


def _print_good(console: Console, study: Study, good: Sequence[Checked]) -> None:
    """Print what the configs that work need, and what a search of such takes."""
    seconds = sorted(check.trial_seconds for check in good)
    sizes = [check.n_parameters for check in good]
    memory = max(check.memory_bytes for check in good) / MEGABYTE
    middle = seconds[len(seconds) // 2]
    for words in (
        f"{count_words(len(good), 'config')} work{'s' if len(good) == 1 else ''}: "
        f"{min(sizes):,} to {max(sizes):,} parameters, up to {memory:,.0f} MB of memory besides "
        "TensorFlow's own.",
        f"On this machine a trial takes {duration(seconds[0])} to {duration(seconds[-1])}. "
        f"{count_words(study.trials, 'trial')} take one worker about "
        f"{duration(middle * study.trials)}, if none is pruned.",
    ):
        print_indented(console, words, "")


def _grouped(told: Iterable[tuple[str, Checked]]) -> dict[str, list[Checked]]:
    """Return the configs of each message, the most frequent first; numbers make no other one."""
    groups: dict[str, tuple[str, list[Checked]]] = {}
    for words, check in told:
        groups.setdefault(re.sub(r"\d+", "#", words), (words, []))[1].append(check)
    return dict(sorted(groups.values(), key=lambda group: -len(group[1])))


#: Columns that the parameters' names and one stage's ranges take in a table.
NAME_COLUMNS = 20
STAGE_COLUMNS = 24
SHARE_COLUMNS = 30


def print_comparison(console: Console, found: Sequence[Progress]) -> None:
    """Print the best of each search, in all and at the budget that all of them had."""
    first = found[0].study
    n_common = min(len(one.best) for one in found)
    seconds = min(one.seconds[-1] for one in found)
    after = f"after {n_common} trial{'s' if n_common != 1 else ''}", f"after {duration(seconds)}"
    table = table_of(("study", "trials", "training", "best", *after), ["study"])
    for one in found:
        values = (
            one.best[-1],
            one.after_trials(n_common),
            one.after_seconds(seconds),
        )
        table.add_row(
            one.study.name,
            str(len(one.best)),
            duration(one.seconds[-1]),
            *("-" if value is None else metric_value(first.metric, value) for value in values),
        )
    console.print(
        f"Best {metric_name(first.metric)} on validation; the last columns at equal budgets\n",
        soft_wrap=True,
    )
    console.print(table)
    unfair = differences(found)
    if unfair:
        console.print(
            f"\nNote: their {' and '.join(unfair)} differ. This changes the values, too.",
            soft_wrap=True,
        )


def print_importances(console: Console, study: StoredStudy, found: Importances) -> None:
    """Print a row a parameter, the most important first."""
    say(
        console,
        f"{study.name}: what mattered in {found.n_trials} complete trials, as shares\n",
    )
    titles = ["parameter", f"for the best {found.top_share:.0%}", ""]
    table = table_of(titles + ["for the value"] * found.has_fanova, ["parameter", ""])
    for row in found.rows:
        cells = [row.name, f"{row.ped_anova:.3f}", "#" * round(SHARE_COLUMNS * row.ped_anova)]
        if found.has_fanova:
            cells.append("-" if row.fanova is None else f"{row.fanova:.3f}")
        table.add_row(*cells)
    console.print(table)
    console.print(
        "\nFor the best: PED-ANOVA. "
        + (
            "For the value: fANOVA, of parameters that every trial has."
            if found.has_fanova
            else "With scikit-learn installed (pip install scikit-learn) fANOVA comes beside it."
        ),
        soft_wrap=True,
    )


def print_narrowing(console: Console, narrowing: Narrowing) -> None:
    """Print a row a parameter, a column a stage; then what lies on an edge."""
    regions = narrowing.regions
    at_once = max(1, (console.width - NAME_COLUMNS) // STAGE_COLUMNS - 2)
    blocks = [regions[i : i + at_once] for i in range(0, len(regions), at_once)] or [[]]
    for i, block in enumerate(blocks):
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        table.add_column("parameter", no_wrap=True)
        if i == 0:
            table.add_column("declared (stage 1)")
        for region in block:
            table.add_column(f"stage {region['stage']}\nfrom trial {region['first_trial']}")
        is_last = i == len(blocks) - 1
        if is_last and narrowing.best is not None:
            table.add_column(f"best\ntrial {narrowing.best.number}")
        for name, distribution in narrowing.distributions.items():
            cells = [declared_words(distribution)] if i == 0 else []
            cells += [part_words(region["parameters"].get(name)) for region in block]
            if is_last and narrowing.best is not None:
                cells.append(short(narrowing.best.params.get(name, "-"), 3))
            table.add_row(name, *cells)
        console.print(table)
    for edge in narrowing.edges:
        console.print(f"Warning: {edge.words()}", style="yellow", markup=False, soft_wrap=True)


def declared_words(distribution: BaseDistribution) -> str:
    """Return a distribution as a range with its scale, or as its choices."""
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(str, distribution.choices))
    assert isinstance(distribution, Numeric)
    words = f"{short(distribution.low, 3)} to {short(distribution.high, 3)}"
    if distribution.log:
        return f"{words}, log"
    is_plain = distribution.step is None or distribution.step == 1
    return words if is_plain else f"{words}, by {short(distribution.step, 3)}"


def part_words(part: dict[str, Any] | None) -> str:
    """Return a region's part of one parameter: a range, or each choice's odds."""
    if part is None:
        return "whole"
    if "odds" in part:
        both = sorted(zip(part["odds"], part["choices"], strict=True), key=lambda pair: -pair[0])
        return ", ".join(f"{choice} {odds:.0%}" for odds, choice in both)
    return f"{short(part['low'], 3)} to {short(part['high'], 3)}"


BAR_COLUMNS = 40
#: Rows a decade of rates.
ROWS_A_DECADE = 4

NOTHING_LEARNT = (
    "The loss never fell, so the test tells nothing: the network learns too slowly for it. Test "
    "with more --batches, or an easier start (a curriculum, less dropout)."
)


def print_sweep(console: Console, sweep: Sweep, words: str) -> None:
    """Print the smoothed loss against the rate, and what follows from it.

    Args:
        console: To print on.
        sweep: The test.
        words: What was tested.
    """
    say(
        console,
        f"{len(sweep.rates)} batches of {words}, from {sweep.low:g} up to {sweep.high:g}\n",
    )
    console.print(_sweep_table(sweep))
    console.print()
    if sweep.climbs_at is None or sweep.highest is None or sweep.half is None:
        console.print(NOTHING_LEARNT, soft_wrap=True)
        return
    limit = "highest rate that does not diverge"
    if not sweep.diverged:
        limit = "highest rate tried; none diverged, look further with --high"
    for name, value in (
        ("the loss starts to climb at", sweep.climbs_at),
        (limit, sweep.highest),
        ("half of it", sweep.half),
    ):
        console.print(f"  {value:<9.3g} {name}", markup=False, soft_wrap=True)


def _sweep_table(sweep: Sweep) -> Table:
    table = table_of(("rate", "loss", ""))
    low, high = min(sweep.smoothed), max(sweep.smoothed)
    first, last = math.log10(sweep.low), math.log10(sweep.rates[-1])
    n_rows = max(2, math.ceil((last - first) * ROWS_A_DECADE) + 1)
    places = dict.fromkeys(
        round(row / (n_rows - 1) * (len(sweep.rates) - 1)) for row in range(n_rows)
    )
    for place in places:
        share = (sweep.smoothed[place] - low) / ((high - low) or 1.0)
        bar = "#" * max(1, round(share * BAR_COLUMNS))
        table.add_row(f"{sweep.rates[place]:.2g}", f"{sweep.smoothed[place]:.4g}", bar)
    return table
