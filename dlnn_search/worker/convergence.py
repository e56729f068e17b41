"""The early stop of a study that has converged, by whichever worker ends a trial."""

from __future__ import annotations

from dataclasses import asdict

from dlnn_search.metrics import IN_MINUTES
from dlnn_search.pruners.convergence import CONVERGED, Converged, Outlook, outlook
from dlnn_search.results.confirmation import confirmation
from dlnn_search.results.status import best_trials
from dlnn_search.storage.control import go_on, keep_stop_rule, kept_stop_rule, orders, set_control
from dlnn_search.storage.curves import curve_of_slot, values_of
from dlnn_search.storage.database import Database
from dlnn_search.storage.studies import StoredStudy
from dlnn_search.study import Study

#: Trials whose curves tell the noise.
N_CURVES = 5


def settle(database: Database, stored: StoredStudy, study: Study, asked: bool | None) -> str | None:
    """Keep for all workers whether the study stops when it has converged.

    A study that had stopped so goes on only if this start asks it not to.

    Args:
        database: Of the study.
        stored: The study, stored.
        study: With or without a rule of its own.
        asked: By this start; None: as an earlier start settled it, at first the study's own.

    Returns:
        Why there is nothing to do, where the study has converged.
    """
    settled, _ = kept_stop_rule(database, stored.id)
    if asked is not None or not settled:
        rule = study.stop_when_converged
        if asked is not None:
            rule = (rule or Converged()) if asked else None
        keep_stop_rule(database, stored.id, None if rule is None else asdict(rule))
    found = stop_if_converged(database, stored)
    if found is None and converged_words(database, stored.id) is not None:
        go_on(database, stored.id)
    return found


def stop_if_converged(
    database: Database, stored: StoredStudy, *, worker: str | None = None
) -> str | None:
    """Ask all workers to stop, if the study is to stop when converged, and has.

    Returns:
        Why, where it has; None where it goes on.
    """
    _, plain = kept_stop_rule(database, stored.id)
    if plain is None:
        return None
    rule = Converged(min_trials=int(plain["min_trials"]), noises=plain["noises"])
    found = study_outlook(database, stored, rule.min_trials)
    if found is None or not found.is_converged(rule):
        return None
    words = CONVERGED + _words(stored.metric, found, rule)
    set_control(database, stored.id, "stop", words, worker=worker)
    return words


def converged_words(database: Database, study_id: int) -> str | None:
    """Return why the study was stopped, where it has converged."""
    found = orders(database, study_id)
    if found.control == "stop" and found.reason and found.reason.startswith(CONVERGED):
        return found.reason
    return None


def study_outlook(database: Database, stored: StoredStudy, min_trials: int) -> Outlook | None:
    """Return what the study can still be expected to gain; None where that cannot be told yet."""
    values = values_of(database, stored.id)
    if len(values) < min_trials:
        return None
    best = best_trials(database, stored, N_CURVES)
    curves = [
        [point.metrics[stored.metric] for point in curve_of_slot(database, trial.slot_id)]
        for trial in best
    ]
    confirmed = confirmation(database, stored)
    seeds = confirmed.candidates[0].values if confirmed is not None else ()
    return outlook(values, stored.direction, curves, seeds)


def _words(metric: str, found: Outlook, rule: Converged) -> str:
    unit = " min" if metric in IN_MINUTES else ""
    times = "" if rule.noises == 1 else f"{rule.noises:g} times "
    return (
        f"{found.n_next} more trials can be expected to gain {found.gain:.2g}{unit}, less than "
        f"{times}the noise of one trial, {found.noise:.2g}{unit}."
    )
