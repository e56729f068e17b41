"""Statements and transactions of one trial that trains nothing: our worker and plain Optuna.

    python benchmarks/statements.py --callers

The same two loops as `overhead.py`, in this process; what each sends to the database is counted
from the middle of one trial to the middle of a later one.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script it sees its own folder alone

from benchmarks import overhead
from benchmarks.overhead_study import make_study
from dlnn_search.data import prepare_data

WARM_UP = 3


class _Enough(BaseException):
    """Ends a loop from within its trial; no handler of errors catches it."""


@dataclass
class Count:
    """What a side sent, in sum.

    Attributes:
        statements: All that is sent to be executed, by who sends it.
        transactions: Commits and rollbacks.
    """

    statements: Counter[str] = field(default_factory=Counter)
    transactions: int = 0


@contextmanager
def counted(count: Count) -> Iterator[None]:
    """Count what every engine of this process sends meanwhile."""

    def statement(*_: Any) -> None:
        count.statements[_caller(sys._getframe(1))] += 1

    def end(_: Any) -> None:
        count.transactions += 1

    events = {"before_cursor_execute": statement, "commit": end, "rollback": end}
    for name, heard in events.items():
        sa.event.listen(sa.Engine, name, heard)
    try:
        yield
    finally:
        for name, heard in events.items():
            sa.event.remove(sa.Engine, name, heard)


def _caller(frame: FrameType | None) -> str:
    """Name Optuna's or our function that sends a statement, and who of ours called that."""
    ours, optunas = [], None
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if "optuna" in path.parts and path.name == "storage.py":
            optunas = f"Optuna's {frame.f_code.co_name}"
        elif "dlnn_search" in path.parts and path.stem not in ("database", "retry", "sqlite"):
            ours.append(f"{path.stem}.{frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join([*([optunas] if optunas else []), *ours[:3]])


class Middle:
    """In the place of `overhead.Gate`: counts from one trial's middle to another's."""

    def __init__(self, n_trials: int, count: Count, profile: cProfile.Profile | None) -> None:
        self._left = WARM_UP + n_trials
        self._n_trials = n_trials
        self._counting = counted(count)
        self._profile = profile

    def __call__(self) -> None:
        if self._left == self._n_trials:
            self._counting.__enter__()
            if self._profile is not None:
                self._profile.enable()
        if self._left == 0:
            if self._profile is not None:
                self._profile.disable()
            self._counting.__exit__(None, None, None)
            raise _Enough
        self._left -= 1


def count_trials(
    side: str, url: str, sampler: str, n_trials: int, profile: cProfile.Profile | None = None
) -> Count:
    """Run one side's loop for a few trials.

    Args:
        side: `ours` or `plain`; both studies are in the database already.
        url: Of the database.
        sampler: `random` or `default`.
        n_trials: Of which each counts the same.
        profile: Notes what Python does meanwhile.
    """
    count = Count()
    middle = Middle(n_trials, count, profile)
    work = {"ours": overhead.run_ours, "plain": overhead.run_plain}[side]
    try:
        work(url, sampler, middle)
    except _Enough:
        return count
    raise AssertionError(f"The loop of '{side}' ended before {n_trials} trials.")


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--database", nargs="+", choices=("sqlite", "postgresql"), default=["sqlite", "postgresql"])
    add("--sampler", choices=("random", "default"), default="random")
    add("--before", type=int, default=200, help="trials in the study before")
    add("--trials", type=int, default=20)
    add("--callers", action="store_true", help="who sends what")
    add("--profile", action="store_true", help="what Python does meanwhile")
    options = parser.parse_args()
    data = make_study(overhead.EPOCHS, "random").data
    assert data is not None
    prepare_data(data)
    for kind in options.database:
        with tempfile.TemporaryDirectory(prefix="statements-") as folder:
            os.environ["DLNN_SEARCH_FILES"] = folder
            templates = overhead.Templates(kind, Path(folder))
            try:
                templates.make(options.before)
                for side in ("plain", "ours"):
                    with templates.copy(options.before) as url:
                        profile = cProfile.Profile() if options.profile else None
                        count = count_trials(side, url, options.sampler, options.trials, profile)
                    n = options.trials
                    statements = sum(count.statements.values()) / n
                    print(
                        f"{kind}, {side}: {statements:.1f} statements in "
                        f"{count.transactions / n:.1f} transactions a trial"
                    )
                    if options.callers:
                        for caller, times in count.statements.most_common():
                            print(f"  {times / n:6.2f} {caller}")
                    if profile is not None:
                        pstats.Stats(profile).sort_stats("tottime").print_stats(45)
            finally:
                templates.close()


if __name__ == "__main__":
    main()
