"""What Optuna is told of a trial's curve: some of its epochs, always equal to it.

A study's page in optuna-dashboard is sent whole at each refresh, and every suggestion reads the
reports of all trials. So Optuna gets about `MAX_REPORTS` epochs of a trial; our own tables have
them all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager

import optuna

from dlnn_search.metrics import DIRECTIONS
from dlnn_search.worker.optuna_study import storage_of

#: Reports of one trial: rungs, evenly spread epochs, the last and the best.
MAX_REPORTS = 20


def epochs_to_report(epochs: int, rungs: Sequence[int]) -> frozenset[int]:
    """Return which of a trial's epochs Optuna is told as they come: at most `MAX_REPORTS` - 1.

    The first, the rungs, evenly spread ones, the last; the best is known at the end alone.
    """
    wanted = {1, epochs, *rungs}
    spread = max(1, MAX_REPORTS - 1 - len(wanted))
    step = max(1, math.ceil(epochs / spread))
    return frozenset(wanted | set(range(step, epochs + 1, step)))


class Reports:
    """The reported values of one trial, held equal to its curve."""

    def __init__(
        self,
        optuna_study: optuna.Study,
        trial_id: int,
        *,
        metric: str,
        epochs: int,
        rungs: Sequence[int],
    ) -> None:
        self._storage = storage_of(optuna_study)
        self._trial_id = trial_id
        self._sign = 1 if DIRECTIONS[metric] == "minimize" else -1
        self._due = epochs_to_report(epochs, rungs)
        #: What Optuna has.
        self._told: dict[int, float] = {}
        self._is_new = True

    def begin(self, values: Mapping[int, float], *, is_new: bool) -> None:
        """Make Optuna's values those of the curve that the trial goes on from.

        Args:
            values: The metric by epoch; empty where the trial starts (over).
            is_new: Whether nobody can have reported anything of it yet.
        """
        self._look(is_new=is_new)
        self._write(values, self._due & set(values))

    def tell(self, values: Mapping[int, float]) -> None:
        """Report those of the epochs that are due.

        Args:
            values: The metric by epoch, of epochs that are stored in our own tables.
        """
        known = set(values)
        self._set({epoch: values[epoch] for epoch in known & (self._due | set(self._told))})

    def end(self, values: Mapping[int, float]) -> None:
        """Add the last and the best epoch, and mend what a former holder may have written.

        Args:
            values: The metric of all epochs.
        """
        if not values:
            return
        best = min(values, key=lambda epoch: (self._sign * values[epoch], epoch))
        self._look(is_new=self._is_new)
        self._write(values, (self._due & set(values)) | {best, max(values)})

    @contextmanager
    def as_a_whole(self) -> Iterator[None]:
        """Take what is written inside for not written where that fails."""
        told = dict(self._told)
        try:
            yield
        except BaseException:
            self._told = told
            raise

    def _look(self, *, is_new: bool) -> None:
        self._is_new = is_new
        if not is_new:
            self._told = dict(self._storage.get_trial(self._trial_id).intermediate_values)

    def _write(self, values: Mapping[int, float], wanted: Set[int]) -> None:
        # Optuna's interface takes no value back: NaN stands where an epoch is not (yet) again.
        self._set({epoch: values.get(epoch, math.nan) for epoch in {*self._told, *wanted}})

    def _set(self, values: Mapping[int, float]) -> None:
        new = {
            epoch: values[epoch]
            for epoch in sorted(values)
            if not _is_same(self._told.get(epoch), values[epoch])
        }
        if new:
            self._storage.set_trial_intermediate_values(self._trial_id, new)
            self._told |= new


def _is_same(known: float | None, value: float) -> bool:
    return known is not None and (known == value or (math.isnan(known) and math.isnan(value)))


def report_whole_curve(
    optuna_study: optuna.Study, trial_id: int, metric: str, values: Mapping[int, float]
) -> None:
    """Report a curve that another trial trained: this one has the same config.

    Args:
        optuna_study: The trial's study.
        trial_id: Optuna's id of it.
        metric: That the study optimises.
        values: The metric by epoch.
    """
    reports = Reports(optuna_study, trial_id, metric=metric, epochs=len(values), rungs=())
    reports.begin(values, is_new=False)
    reports.end(values)
