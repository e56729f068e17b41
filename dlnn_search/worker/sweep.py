"""Trials that nobody runs: told what became of them, put back in the queue, or ended.

Workers are killed between any two rows. Whoever works on a study next, or starts it, brings
Optuna's trials in line with the slots, which are the truth.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import optuna
from optuna.trial import FrozenTrial, TrialState

from dlnn_search.optuna_version import trial_id_of
from dlnn_search.storage.slots import LEASE_SECONDS, Fate, Slots
from dlnn_search.worker.optuna_study import SLOT_ATTRIBUTE, put_back, take_up, tell


def sweep(optuna_study: optuna.Study, slots: Slots) -> None:
    """Open slots whose lease ran out, and let no trial stay RUNNING that nobody runs."""
    slots.open_expired()
    tell_what_is_untold(optuna_study, slots)
    trials = [
        trial
        for trial in optuna_study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if trial.user_attrs.get(SLOT_ATTRIBUTE) is not None or _was_taken_long_ago(trial)
    ]
    numbers = [number for trial in trials if (number := _slot_of(trial)) is not None]
    fates = slots.fates(numbers)
    for trial in trials:
        number = _slot_of(trial)
        if number is None:
            # Enqueued in the dashboard; its taker was killed before it wrote its slot's number.
            put_back(optuna_study, trial_id_of(optuna_study, trial))
        elif number in fates:
            _sweep_one(optuna_study, trial, fates[number], slots)


def tell_what_is_untold(optuna_study: optuna.Study, slots: Slots) -> None:
    """Finish the trials whose worker settled its slot and vanished right after."""
    for settled in slots.untold():
        # Here and not above: most who sweep find nothing untold.
        from dlnn_search.worker.note import mend_note

        mend_note(optuna_study, settled, slots)
        tell(
            optuna_study,
            settled.trial_id,
            settled.outcome,
            settled.value,
            failure=settled.failure,
            reason=settled.reason,
            duplicate_of=settled.duplicate_of,
        )
        slots.mark_told(settled.slot_id)


def _sweep_one(optuna_study: optuna.Study, trial: FrozenTrial, fate: Fate, slots: Slots) -> None:
    trial_id = trial_id_of(optuna_study, trial)
    is_its_own = fate.trial_id in (None, trial_id)
    if not is_its_own:
        reason = f"Begun by a worker that had lost slot {fate.number}, which has another trial."
        tell(
            optuna_study,
            trial_id,
            "failed",
            None,
            failure="lost",
            reason=reason,
        )
    elif fate.outcome is not None:
        tell(
            optuna_study,
            trial_id,
            fate.outcome,
            fate.value,
            failure=fate.failure,
            reason=fate.reason,
            duplicate_of=fate.duplicate_of,
        )
    elif fate.state in ("open", "waiting"):
        put_back(optuna_study, trial_id)
        if slots.fates([fate.number])[fate.number].state == "held":  # claimed in this moment
            take_up(optuna_study, trial_id)


def _slot_of(trial: FrozenTrial) -> int | None:
    number = trial.user_attrs.get(SLOT_ATTRIBUTE)
    return number if isinstance(number, int) else None


def _was_taken_long_ago(trial: FrozenTrial) -> bool:
    long_ago = datetime.now() - timedelta(seconds=LEASE_SECONDS)
    began = trial.datetime_start
    return "fixed_params" in trial.system_attrs and began is not None and began < long_ago
