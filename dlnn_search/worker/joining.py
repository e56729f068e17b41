"""What the workers of one study have in common: its definition, its pictures, when to stop."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import asdict

from dlnn_search.config import OwnData
from dlnn_search.data.loading import identity_of
from dlnn_search.errors import StudyError
from dlnn_search.metrics import IN_MINUTES
from dlnn_search.pruners import CONVERGED, Converged, Outlook, outlook
from dlnn_search.results.confirmation import confirmation
from dlnn_search.results.status import best_trials
from dlnn_search.storage.control import (
    go_on,
    keep_stop_rule,
    kept_rate,
    kept_stop_rule,
    orders,
    set_control,
)
from dlnn_search.storage.database import Database
from dlnn_search.storage.studies import (
    StoredStudy,
    all_studies,
    check_data,
    is_same,
    join,
    parent_of,
)
from dlnn_search.storage.trials import curve_of_slot, values_of
from dlnn_search.study import Study
from dlnn_search.study.finding import earlier_version, is_built_in, register
from dlnn_search.worker.first_trials import example_config


def as_stored(study: Study, database: Database) -> Study:
    """Return a study as its search began, where this version of the program still has that.

    That is a built-in study's earlier file; or, of a study whose helper modules an earlier version
    found by `PYTHONPATH` and did not count in, the study without them.
    """
    stored = next((known for known in all_studies(database) if known.name == study.name), None)
    if stored is None or is_same(stored, study.definition()):
        return study
    former = dataclasses.replace(study, helpers=())
    for candidate in (earlier_version(study, stored.definition["code"]), former):
        if candidate is not None and is_same(stored, candidate.definition()):
            study = candidate
            break
    register(study.own_code())
    return study


def join_study(study: Study, database: Database) -> StoredStudy:
    """Return the study as it was started, for a worker that brings its own copy of it.

    Raises:
        UsageError: If it was never started.
        StudyError: If the copy, or this machine's pictures, differ: with what differs.
        DataError: If this machine cannot have the pictures.
    """
    start_as = None
    if study.file and not is_built_in(study.name):  # a name alone means nothing before the start
        start_as = shlex.quote(study.file) + " --quick" * study.name.endswith("-quick")
    stored = database.retrying(
        lambda: join(database, study.name, study.definition(), start_as=start_as)
    )
    check_pictures(study, database, stored)
    return stored


def check_pictures(study: Study, database: Database, stored: StoredStudy) -> None:
    """Note at first which pictures a study learns from; later, check that they are the same.

    Raises:
        StudyError: If they are others.
        DataError: If this machine cannot have them.
    """
    if parent_of(database, stored.id) is not None:
        return  # it trains given configs, each of which says what from
    # A space may name its own data; and only a config says whose code an `OwnData` needs.
    data = study.data
    if data is None or isinstance(data, OwnData):
        data = example_config(study).data
    identity = identity_of(data)
    database.retrying(lambda: check_data(database, stored, identity))


def with_kept_rate(study: Study, database: Database, stored: StoredStudy) -> Study:
    """Return the study with the rate that was kept, for a worker.

    Raises:
        StudyError: If the study wants a test and had none.
    """
    if study.range_test is None:
        return study
    kept = kept_rate(database, stored.id)
    if kept is None:
        raise StudyError(
            f"The study '{study.name}' has no range test yet, which its first start makes. "
            f"Start it with 'dlnn-search start {study.name}'."
        )
    return dataclasses.replace(study, measured_rate=kept.rate)


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
