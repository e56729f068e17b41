"""A slot is claimed and its trial is made in one transaction: nobody sees one without the other.

With an Optuna that cannot join, its trial comes after the claim: `begin_trial` finds or makes it.
"""

from __future__ import annotations

from dataclasses import dataclass

import optuna

from dlnn_search.storage.database import Database, UndoneError
from dlnn_search.storage.slots import Slot, Slots, new_token
from dlnn_search.study import Sampler, Study
from dlnn_search.worker.optuna_study import chosen_sampler, has_enqueued, make_trial, storage_of


@dataclass(frozen=True)
class Claimed:
    """What a claim came to.

    Attributes:
        slot: None where none may be claimed.
        trial_id: Optuna's id of the trial that was made for it; None where the slot may have
            one, somebody enqueued one, or Optuna cannot make one in our transaction.
        sampler: Of the study at that moment.
        is_untold: Nothing was claimed, as Optuna does not have some outcomes yet: they come first.
    """

    slot: Slot | None
    trial_id: int | None
    sampler: Sampler
    is_untold: bool = False


class Claim:
    """One claim of a slot, to be called until it is answered."""

    def __init__(
        self,
        database: Database,
        slots: Slots,
        study: Study,
        optuna_study: optuna.Study,
        worker: str,
    ) -> None:
        """Name the study and the worker; nothing is claimed yet."""
        self._database = database
        self._slots = slots
        self._study = study
        self._optuna_study = optuna_study
        self._worker = worker
        self._token = new_token()
        self._n_tries = 0

    def __call__(self) -> Claimed:
        """Claim; after an outage, find what was claimed without an answer."""
        self._n_tries += 1
        try:
            with self._database.together():
                return self._claim()
        except BaseException as error:
            storage_of(self._optuna_study).forget_made()
            if isinstance(error, UndoneError) and error.__cause__ is not None:
                raise error.__cause__ from None
            raise

    def _claim(self) -> Claimed:
        study, slots = self._optuna_study, self._slots
        # What is only read comes first: a worker that starts reads all trials, and locks nothing.
        sampler = chosen_sampler(study, self._study)
        if slots.untold():
            return Claimed(None, None, sampler, is_untold=True)
        is_enqueued = has_enqueued(study)
        slot = slots.claim(self._worker, self._token, again=self._n_tries > 1)
        is_new = slot is not None and slot.fence == 1 and slot.trial_id is None
        if slot is None or not is_new or not self._database.joins:
            return Claimed(slot, None, sampler)
        if is_enqueued and slot.config is None:
            return Claimed(slot, None, sampler)
        trial_id = make_trial(study, slot)
        slots.begin(slot, trial_id, storage_of(study).get_trial_number_from_id(trial_id))
        return Claimed(slot, trial_id, sampler)
