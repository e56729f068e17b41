"""A trial's end: slot settled, note written, Optuna told, checkpoint kept or removed."""

from __future__ import annotations

from collections.abc import Callable

import optuna

from dlnn_search.optuna_version import trial_id_of
from dlnn_search.storage.checkpoints import Standing, settle_checkpoint, standing_of
from dlnn_search.storage.control import kept_stop_rule
from dlnn_search.storage.database import Database
from dlnn_search.storage.slots import Slot, Slots
from dlnn_search.study import Study
from dlnn_search.worker.note import write_note
from dlnn_search.worker.objective import Verdict
from dlnn_search.worker.optuna_study import storage_of, tell


class Ending:
    """The end of one trial, in one transaction and one look at the files.

    Where Optuna refuses its part (somebody ended the trial in the dashboard), the parts are done
    one after the other, and whoever comes next would tell Optuna what a kill in between left.
    """

    def __init__(
        self,
        database: Database,
        slots: Slots,
        study: Study,
        study_id: int,
        slot: Slot,
        trial: optuna.Trial,
        verdict: Verdict,
    ) -> None:
        """Name what ends; nothing is written yet."""
        self._database = database
        self._slots = slots
        self._study = study
        self._study_id = study_id
        self._slot = slot
        self._trial = trial
        self._verdict = verdict
        self._standing: Standing | None = None
        #: Whether the study is to stop when it has converged, as of this end.
        self.may_converge = False

    def write(self, *settle: Callable[[], object]) -> None:
        """Settle the slot by `settle`, and let Optuna have what it has; safe to repeat."""
        metric = self._study.metric
        self._database.at_once(
            *settle,
            lambda: write_note(self._trial, self._slot.id, self._verdict, self._database, metric),
            self._tell,
            lambda: self._slots.mark_told(self._slot.id),
            self._look,
        )

    def keep_checkpoint(self) -> None:
        """Keep the trial's checkpoint if it is among the study's best; safe to repeat."""
        keep = self._study.keep_checkpoints
        settle_checkpoint(self._database, self._slot.id, keep, self._standing)

    def _tell(self) -> None:
        verdict = self._verdict
        assert verdict.outcome is not None
        tell(
            self._trial.study,
            trial_id_of(self._trial.study, self._trial),
            verdict.outcome,
            verdict.value,
            failure=verdict.failure,
            reason=verdict.reason,
            duplicate_of=None if verdict.duplicate is None else verdict.duplicate.trial_number,
            known=storage_of(self._trial.study).known(self._trial),
        )

    def _look(self) -> None:
        keep = self._study.keep_checkpoints
        self._standing = standing_of(self._database, self._slot.id, keep)
        _, rule = kept_stop_rule(self._database, self._study_id)
        self.may_converge = rule is not None
