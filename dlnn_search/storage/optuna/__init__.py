"""A worker's way to Optuna's storage: what a trial writes is gathered, and written at its moments.

This is the documented way, which any Optuna 5 has: each value is a call and a transaction of its
own, and whoever comes next heals what a kill leaves between two. `optuna_private` does the same
with fewer and larger transactions where Optuna's version is one that it was tested with.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy.dialects import postgresql, sqlite

from dlnn_search.optuna_version import may_be_private, opened

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
