"""The way to Optuna's storage: for workers, trial by trial; for copies, a study as plain data.

This is the documented way, which any Optuna 5 has: each value is a call and a transaction of its
own, and whoever comes next heals what a kill leaves between two. `private` does the same with
fewer and larger transactions where Optuna's version is one that it was tested with.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    check_distribution_compatibility,
    distribution_to_json,
    json_to_distribution,
)
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import postgresql, sqlite

from dlnn_search.errors import StorageError
from dlnn_search.optuna_version import may_be_private, opened
from dlnn_search.samplers.observations import fits

#: Of a parameter: its value as Optuna stores it, and what it was drawn from.
Param = tuple[float, BaseDistribution]

#: Inserts that know what to do with a row that is there already, by the database's kind.
INSERT: dict[str, Any] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


def rdb_storage(url: str, **settings: Any) -> RDBStorage:
    """Return Optuna's storage of a database, one that joins our transactions if it can be."""
    if not may_be_private():
        return RDBStorage(url, **settings)
    from dlnn_search.storage.optuna.private import JointStorage

    return JointStorage(url, **settings)


def rename_within(storage: RDBStorage, study_id: int, name: str) -> None:
    """Rename a study within our transaction, which Optuna joins; its trials keep their ids."""
    from dlnn_search.storage.optuna.private import JointStorage

    assert isinstance(storage, JointStorage)
    storage.rename_study(study_id, name)


def trial_storage(storage: RDBStorage) -> TrialStorage:
    """Return what a worker puts around the storage that `rdb_storage` made."""
    if type(storage) is not RDBStorage:
        from dlnn_search.storage.optuna.private import JointStorage, PrivateTrialStorage

        assert isinstance(storage, JointStorage)
        return PrivateTrialStorage(storage)
    return TrialStorage(remembering(storage))


def remembering(storage: BaseStorage) -> BaseStorage:
    """Return a storage with Optuna's memory of finished trials, which never change.

    Where this Optuna hides it, all trials are read each time.
    """
    around = getattr(optuna.storages, "get_storage", None)
    return storage if around is None else around(storage)


def _passed_on(name: str) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._inner, name)(*args, **kwargs)

    return call


if TYPE_CHECKING:
    _PassingOn = RDBStorage
else:
    #: All that Optuna's interface has, what a later version adds to it, too.
    _PassingOn = type(
        "_PassingOn",
        (BaseStorage,),
        {
            name: _passed_on(name)
            for name, _ in inspect.getmembers(BaseStorage, inspect.isfunction)
            if not name.startswith("_")
        },
    )


class TrialStorage(_PassingOn):
    """Optuna's storage for the workers of one study, which gathers a trial's parameters."""

    _inner: BaseStorage

    def __init__(self, inner: BaseStorage) -> None:
        """Begin with nothing remembered."""
        self._inner = inner
        self._study_id: int | None = None
        #: What the study's parameters are drawn from, as far as this worker has seen.
        self._distributions: dict[str, BaseDistribution] = {}
        #: Parameters that were suggested for one trial, and are to be written together.
        self._gathered: dict[str, Param] = {}
        self._gathered_of: int | None = None
        self._is_gathering = False

    def get_study_id_from_name(self, study_name: str) -> int:
        """Return the id of the study, which is opened by it."""
        self._study_id = self._inner.get_study_id_from_name(study_name)
        return self._study_id

    def begun(self, study: optuna.Study, trial_id: int) -> optuna.Trial:
        """Return a trial that was made a moment ago."""
        return optuna.Trial(study, trial_id)

    def forget_made(self) -> None:
        """Forget a trial that was made, if that may have been undone: here it never is."""

    def without_memory(self, study: optuna.Study) -> optuna.Study:
        """Return the study for a new trial: its samplers see all trials as they are now."""
        name, sampler, pruner = study.study_name, study.sampler, study.pruner
        anew = optuna.load_study(study_name=name, storage=self, sampler=sampler, pruner=pruner)
        return opened(anew, self)

    def known(self, trial: optuna.Trial) -> FrozenTrial | None:
        """Return a trial as its worker knows it; None: it has to be read."""

    @contextmanager
    def gathering(self, trial_id: int) -> Iterator[None]:
        """Keep the parameters that a space suggests meanwhile, for `write_gathered`.

        Where the space fails, they are written; where it refuses them, they are as they were.
        """
        if trial_id != self._gathered_of:
            self._gathered_of, self._gathered = trial_id, {}
        self._is_gathering = True
        try:
            yield
        except optuna.TrialPruned:
            raise
        except BaseException:
            self.write_gathered(trial_id)
            raise
        finally:
            self._is_gathering = False

    def write_gathered(self, trial_id: int) -> None:
        """Write what was gathered for a trial; harmless where that was done."""
        if trial_id == self._gathered_of and self._gathered:
            self.set_trial_params(trial_id, self._gathered)

    def drop_gathered(self, trial_id: int) -> None:
        """Drop what was gathered for a trial: it shall be asked for other parameters."""
        if trial_id == self._gathered_of:
            self._gathered_of, self._gathered = None, {}

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        """Store a parameter, or keep it for `write_gathered`."""
        if not (self._is_gathering and trial_id == self._gathered_of):
            self._inner.set_trial_param(trial_id, param_name, param_value_internal, distribution)
            return
        # As Optuna does when it writes: of a name all trials have one distribution.
        check_distribution_compatibility(self._known(param_name, distribution), distribution)
        self._gathered[param_name] = param_value_internal, distribution

    def _known(self, name: str, given: BaseDistribution) -> BaseDistribution:
        if name not in self._distributions and self._study_id is not None:
            trials = self.get_all_trials(self._study_id, deepcopy=False)
            stored = (trial.distributions[name] for trial in trials if name in trial.distributions)
            self._distributions[name] = next(stored, given)
        return self._distributions.setdefault(name, given)

    def set_trial_params(self, trial_id: int, params: Mapping[str, Param]) -> None:
        """Store parameters; those that are there already stay."""
        for name, (value, distribution) in params.items():
            self._inner.set_trial_param(trial_id, name, value, distribution)

    def set_trial_intermediate_values(self, trial_id: int, values: Mapping[int, float]) -> None:
        """Store reports by step; of a step that has one the new one counts."""
        for step, value in values.items():
            self._inner.set_trial_intermediate_value(trial_id, step, value)


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
