"""What `validate` prints: each config that cannot work, then the range of those that can."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console

from dlnn_search.report.tables import params_words, print_indented
from dlnn_search.study import Study
from dlnn_search.words import duration

if TYPE_CHECKING:
    from dlnn_search.commands.validate import Checked

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
