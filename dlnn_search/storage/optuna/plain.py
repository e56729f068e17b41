"""Optuna's side of a study as plain data, and back again, through Optuna's own API."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from dlnn_search.errors import StorageError
from dlnn_search.samplers.observations import fits
from dlnn_search.storage.optuna import remembering

#: On a study whose trials are still being written; who finds one cut off removes it.
UNFINISHED = "dlnn_search:being_written"

#: The dashboard keeps a trial's note and files with the study, by the trial's id.
_TRIAL_KEY = re.compile(r"(dashboard:(?:artifacts:)?)(#?)(\d+)(:.*)", re.DOTALL)

Plain = dict[str, Any]


def read_optuna_study(
    storage: BaseStorage, name: str
) -> tuple[Plain | None, list[Plain], dict[int, int]]:
    """Return a study and its trials by number, free of ids; None where Optuna has none.

    Returns:
        The study, its trials, and their numbers by Optuna's ids.
    """
    try:
        study_id = storage.get_study_id_from_name(name)
    except KeyError:
        return None, [], {}
    storage = remembering(storage)  # it has the trials' ids then, without a query for each
    trials = sorted(storage.get_all_trials(study_id, deepcopy=False), key=lambda each: each.number)
    system = storage.get_study_system_attrs(study_id)
    numbers = {
        storage.get_trial_id_from_study_id_trial_number(study_id, trial.number): trial.number
        for trial in trials
    }
    study = {
        "directions": [direction.name for direction in storage.get_study_directions(study_id)],
        "user_attrs": dict(storage.get_study_user_attrs(study_id)),
        "system_attrs": {
            key: value
            for key, value in ((_by_number(key, numbers), system[key]) for key in system)
            if key != UNFINISHED
        },
    }
    return study, [_plain_trial(trial) for trial in trials], numbers


def write_optuna_study(
    storage: BaseStorage, name: str, study: Plain, trials: Sequence[Plain]
) -> dict[int, int]:
    """Make a study with these trials; it stays marked as unfinished until `finish_optuna_study`.

    Returns:
        Optuna's new id of each trial, by its number.
    """
    directions = [StudyDirection[direction] for direction in study["directions"]]
    study_id = storage.create_new_study(directions, study_name=name)
    storage.set_study_system_attr(study_id, UNFINISHED, True)
    ids: dict[int, int] = {}
    for trial in trials:
        trial_id = storage.create_new_trial(study_id, template_trial=_frozen_trial(trial))
        ids[trial["number"]] = trial_id
        if storage.get_trial(trial_id).number != trial["number"]:
            raise StorageError(
                f"Trial {trial['number']} of '{name}' did not keep its number; another program "
                "writes into the same study. Stop it, then try again."
            )
    for key, value in study["user_attrs"].items():
        storage.set_study_user_attr(study_id, key, value)
    for key, value in study["system_attrs"].items():
        storage.set_study_system_attr(study_id, _by_id(key, ids), value)
    return ids


def finish_optuna_study(storage: BaseStorage, name: str) -> None:
    """Take the mark away: our rows stand beside the trials now."""
    storage.set_study_system_attr(storage.get_study_id_from_name(name), UNFINISHED, False)


def remove_unfinished(storage: BaseStorage, name: str) -> bool:
    """Remove a study whose writing was cut off; return whether another one has the name."""
    try:
        study_id = storage.get_study_id_from_name(name)
    except KeyError:
        return False
    if not storage.get_study_system_attrs(study_id).get(UNFINISHED):
        return True
    storage.delete_study(study_id)
    return False


def _plain_trial(trial: FrozenTrial) -> Plain:
    return {
        "number": trial.number,
        "state": trial.state.name,
        "values": trial.values,
        "start": _utc(trial.datetime_start),
        "complete": _utc(trial.datetime_complete),
        "params": {
            name: [
                distribution.to_internal_repr(trial.params[name]),
                distribution_to_json(distribution),
            ]
            for name, distribution in trial.distributions.items()
        },
        "user_attrs": dict(trial.user_attrs),
        "system_attrs": dict(trial.system_attrs),
        "steps": [[step, value] for step, value in sorted(trial.intermediate_values.items())],
    }


def _frozen_trial(trial: Plain) -> FrozenTrial:
    distributions = {
        name: json_to_distribution(text) for name, (_, text) in trial["params"].items()
    }
    return FrozenTrial(
        number=trial["number"],
        trial_id=-1,
        state=TrialState[trial["state"]],
        value=None,
        values=trial["values"],
        datetime_start=_local(trial["start"]),
        datetime_complete=_local(trial["complete"]),
        params={
            name: distributions[name].to_external_repr(internal)
            for name, (internal, _) in trial["params"].items()
        },
        distributions=distributions,
        user_attrs=trial["user_attrs"],
        system_attrs=trial["system_attrs"],
        intermediate_values=dict(trial["steps"]),
    )


def check_trial(trial: Plain) -> None:
    """Check a trial that a file brought.

    Raises:
        ValueError, KeyError, TypeError: If it is none.
    """
    if set(trial) != {
        "number",
        "state",
        "values",
        "start",
        "complete",
        "params",
        "user_attrs",
        "system_attrs",
        "steps",
    }:
        raise ValueError("unexpected fields")
    frozen = _frozen_trial(trial)
    for name, (internal, _) in trial["params"].items():
        value, distribution = frozen.params[name], frozen.distributions[name]
        if not fits(value, distribution) or distribution.to_internal_repr(value) != internal:
            raise ValueError(f"the parameter '{name}' lies outside of its range")
    for step, value in trial["steps"]:
        if type(step) is not int or not isinstance(value, (int, float)):
            raise ValueError("a step or its value is no number")
    if not isinstance(trial["user_attrs"], dict) or not isinstance(trial["system_attrs"], dict):
        raise ValueError("attributes are no mapping")
    if trial["values"] is not None:
        [float(value) for value in trial["values"]]


def _utc(local: datetime | None) -> str | None:
    """Optuna keeps UTC, but returns local time without a zone."""
    return None if local is None else local.astimezone(UTC).isoformat()


def _local(utc: str | None) -> datetime | None:
    return None if utc is None else datetime.fromisoformat(utc).astimezone().replace(tzinfo=None)


def _by_number(key: str, numbers: Mapping[int, int]) -> str:
    match = _TRIAL_KEY.fullmatch(key)
    if match is None or int(match[3]) not in numbers:
        return key
    return f"{match[1]}#{numbers[int(match[3])]}{match[4]}"


def _by_id(key: str, ids: Mapping[int, int]) -> str:
    match = _TRIAL_KEY.fullmatch(key)
    if match is None or not match[2] or int(match[3]) not in ids:
        return key
    return f"{match[1]}{ids[int(match[3])]}{match[4]}"
