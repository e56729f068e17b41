"""Which Optuna is installed: one that our contract suite has passed on, or another version 5.

With a tested one, writes are batched and joined with ours through Optuna's private interface
(`storage.optuna.private`). With another one its documented interface does everything; what even
that needs and this Optuna lacks is said in words.
"""

from __future__ import annotations

import inspect
import operator
import os
import re
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import optuna

from dlnn_search.errors import UsageError

if TYPE_CHECKING:  # what says which part is lacking needs no part itself
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

#: The contract suite has passed on these (docs/decisions.md says how to add one).
TESTED = ("5.0.0",)
#: `public` keeps a tested version to its documented interface, too.
SWITCH = "DLNN_SEARCH_OPTUNA"

_ATTRIBUTES = {
    "Study": "direction enqueue_trial get_trials metric_names set_metric_names set_user_attr"
    " user_attrs",
    "Trial": "number params suggest_categorical suggest_float suggest_int user_attrs",
    "trial": "FrozenTrial TrialState",
    "samplers": "BaseSampler CmaEsSampler GPSampler QMCSampler RandomSampler TPESampler",
    "pruners": "BasePruner NopPruner",
    "exceptions": "ExperimentalWarning StorageInternalError UpdateFinishedTrialError",
    "distributions": "BaseDistribution CategoricalDistribution FloatDistribution IntDistribution"
    " check_distribution_compatibility distribution_to_json json_to_distribution",
    "storages.BaseStorage": "create_new_study create_new_trial delete_study get_all_trials"
    " get_study_directions get_study_id_from_name get_study_system_attrs get_study_user_attrs"
    " get_trial get_trial_id_from_study_id_trial_number get_trial_number_from_id remove_session"
    " set_study_system_attr set_study_user_attr set_trial_intermediate_value set_trial_param"
    " set_trial_state_values set_trial_user_attr",
    "storages.RDBStorage": "get_current_version get_head_version upgrade",
}
_ARGUMENTS = {
    "create_study": "study_name storage sampler pruner direction load_if_exists",
    "load_study": "study_name storage sampler pruner",
    "storages.RDBStorage": "url engine_kwargs skip_compatibility_check skip_table_creation",
    "storages.BaseStorage.create_new_trial": "study_id template_trial",
    "trial.create_trial": "state params distributions user_attrs intermediate_values",
}

#: The storage of each study that `opened` was told of, and Optuna's id of the study.
_opened: WeakKeyDictionary[optuna.Study, tuple[BaseStorage, int]] = WeakKeyDictionary()


def may_be_private() -> bool:
    """Whether the installed version is a tested one, and nobody keeps it to its documented part.

    Raises:
        UsageError: If DLNN_SEARCH_OPTUNA is something else than `public`.
    """
    switch = os.environ.get(SWITCH, "")
    if switch not in ("", "public"):
        raise UsageError(f"Expected {SWITCH} to be 'public' or not set, got '{switch}'.")
    return not switch and optuna.__version__ in TESTED


@cache
def check_optuna() -> None:
    """Check that the installed Optuna has what we need of its documented interface.

    Raises:
        UsageError: If it lacks something, with the version to install.
    """
    for name, attributes in _ATTRIBUTES.items():
        for attribute in attributes.split():
            _found(f"{name}.{attribute}")
    for name, arguments in _ARGUMENTS.items():
        known = inspect.signature(_found(name)).parameters
        for argument in arguments.split():
            if argument not in known:
                raise lacking(f"optuna.{name}({argument}=...)")


def _found(name: str) -> Any:
    try:
        return operator.attrgetter(name)(optuna)
    except AttributeError:
        raise lacking(f"optuna.{name}") from None


def lacking(what: str) -> UsageError:
    """Return the error for a part of Optuna's that is not there."""
    return UsageError(
        f"Optuna {optuna.__version__} does not have '{what}', which dlnn-search needs. Install a "
        f"version that it was tested with: pip install 'optuna=={TESTED[-1]}'"
    )


def lacking_as_of(error: BaseException) -> UsageError | None:
    """Return the error in words, where a part of Optuna's was not found; else None."""
    if isinstance(error, ImportError) and (error.name or "").split(".")[0] == "optuna":
        missing = re.match(r"cannot import name '(\w+)'", str(error))
        return lacking(f"{error.name}.{missing[1]}" if missing else str(error.name))
    if isinstance(error, AttributeError) and error.obj is not None and error.name:
        owner = error.obj if inspect.ismodule(error.obj) else type(error.obj)
        home = owner.__name__ if inspect.ismodule(owner) else owner.__module__
        if home.split(".")[0] == "optuna":
            return lacking(f"{owner.__name__}.{error.name}")
    return None


def opened(study: optuna.Study, storage: BaseStorage) -> optuna.Study:
    """Remember the storage over which a study was opened just now."""
    _opened[study] = storage, storage.get_study_id_from_name(study.study_name)
    return study


def storage_of(study: optuna.Study) -> BaseStorage:
    """Return a study's storage."""
    return _handle(study)[0]


def study_id_of(study: optuna.Study) -> int:
    """Return Optuna's id of a study."""
    return _handle(study)[1]


def trial_id_of(study: optuna.Study, trial: optuna.Trial | FrozenTrial) -> int:
    """Return Optuna's id of a study's trial."""
    storage, study_id = _handle(study)
    return storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)


def _handle(study: optuna.Study) -> tuple[BaseStorage, int]:
    known = _opened.get(study)
    if known is not None:
        return known
    # Somebody else opened it, and Optuna has no documented way from a study to its storage.
    try:
        return study._storage, study._study_id
    except AttributeError as error:
        raise lacking(f"optuna.Study.{error.name}") from None
