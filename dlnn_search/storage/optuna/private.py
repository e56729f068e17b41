"""Optuna's storage, with fewer transactions: several values at once, and as a part of one of ours.

What is read and checked is what Optuna's own methods read and check; its contract suite runs over
these classes, too. Optuna itself writes each parameter and each report in a transaction. All of
our calls into Optuna's private parts are in this file, which is imported where Optuna's version is
one that the suite has passed on: `storage.optuna` does the same with any other.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from dlnn_search.storage.optuna import INSERT, Param, TrialStorage


class JointStorage(RDBStorage):
    """Optuna's storage, which can write within a transaction that somebody else ends."""

    @contextmanager
    def joined(self, connection: Connection) -> Iterator[None]:
        """Let this thread's calls be a part of a transaction; a failure of one undoes it all."""
        session = self.scoped_session()
        session.close()
        try:
            session.bind, session.join_transaction_mode = connection, "rollback_only"
            yield
        finally:
            session.close()
            session.bind, session.join_transaction_mode = self.engine, "conditional_savepoint"

    def rename_study(self, study_id: int, name: str) -> None:
        """Give a study another name; its trials keep their ids.

        Raises:
            KeyError: If there is no such study.
        """
        with _create_scoped_session(self.scoped_session) as session:
            study: Any = models.StudyModel.find_or_raise_by_id(study_id, session)
            study.study_name = name

    def set_trial_params(self, trial_id: int, params: Mapping[str, Param]) -> None:
        """Store parameters in one go; those that are there already stay.

        Raises:
            KeyError: If there is no such trial.
            UpdateFinishedTrialError: If it is finished.
        """
        rows = [
            {
                "trial_id": trial_id,
                "param_name": name,
                "param_value": value,
                "distribution_json": distribution_to_json(distribution),
            }
            for name, (value, distribution) in params.items()
        ]
        with _create_scoped_session(self.scoped_session, True) as session:
            self._check(session, trial_id)
            insert = INSERT[self.engine.name](models.TrialParamModel.__table__)
            session.connection().execute(insert.on_conflict_do_nothing(), rows)

    def set_trial_intermediate_values(self, trial_id: int, values: Mapping[int, float]) -> None:
        """Store reports in one go, by step; of a step that has one the new one counts.

        Raises:
            KeyError: If there is no such trial.
            UpdateFinishedTrialError: If it is finished.
        """
        model = models.TrialIntermediateValueModel
        rows = []
        for step, value in values.items():
            stored, kind = model.intermediate_value_to_stored_repr(value)
            rows.append(
                {
                    "trial_id": trial_id,
                    "step": step,
                    "intermediate_value": stored,
                    "intermediate_value_type": kind,
                }
            )
        with _create_scoped_session(self.scoped_session, True) as session:
            self._check(session, trial_id)
            insert: Any = INSERT[self.engine.name](model.__table__)
            upsert = insert.on_conflict_do_update(
                index_elements=["trial_id", "step"],
                set_={
                    name: insert.excluded[name]
                    for name in ("intermediate_value", "intermediate_value_type")
                },
            )
            session.connection().execute(upsert, rows)

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: Session
    ) -> models.TrialModel:
        """Make a trial while the study's row is locked: in two statements where Optuna takes five.

        All workers wait for that lock.
        """
        template = template_trial
        if template is None or not _has_user_attributes_alone(template):
            return super()._get_prepared_new_trial(study_id, template, session)
        made = models.TrialModel(
            study_id=study_id, state=template.state, datetime_start=template.datetime_start
        )
        table: Any = models.TrialModel.__table__
        n_before = sa.select(sa.func.count()).where(table.c.study_id == study_id).scalar_subquery()
        connection = session.connection()
        row = connection.execute(
            table.insert()
            .values(
                study_id=study_id,
                number=n_before,
                state=made.state,
                datetime_start=made._datetime_start_utc,
            )
            .returning(table.c.trial_id, table.c.number)
        ).one()
        made.trial_id, made.number = row.trial_id, row.number
        attributes: Any = models.TrialUserAttributeModel.__table__
        connection.execute(
            attributes.insert(),
            [
                {"trial_id": row.trial_id, "key": key, "value_json": json.dumps(value)}
                for key, value in template.user_attrs.items()
            ],
        )
        return made

    def _check(self, session: Session, trial_id: int) -> None:
        trial: Any = models.TrialModel.find_or_raise_by_id(trial_id, session)
        self.check_trial_is_updatable(trial_id, trial.state)


def _has_user_attributes_alone(template: FrozenTrial) -> bool:
    others = (
        template.values,
        template.params,
        template.intermediate_values,
        template.system_attrs,
        template.datetime_complete,
    )
    is_running = template.state == TrialState.RUNNING
    return is_running and bool(template.user_attrs) and not any(others)


class PrivateTrialStorage(TrialStorage):
    """A worker's storage, which writes what it gathered in one statement."""

    _inner: _CachedStorage

    def __init__(self, backend: JointStorage) -> None:
        """Begin with nothing remembered."""
        super().__init__(_CachedStorage(backend))
        self._joint = backend
        #: Trials that this worker made, and that nobody can have changed before it reads them.
        self._made: dict[int, FrozenTrial] = {}
        self._reads_made = False

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a trial, as Optuna does."""
        trial_id = self._inner.create_new_trial(study_id, template_trial)
        number = self.get_trial_number_from_id(trial_id)
        self._made = {trial_id: copy.deepcopy(self._inner._studies[study_id].trials[number])}
        return trial_id

    def begun(self, study: optuna.Study, trial_id: int) -> optuna.Trial:
        """Return a trial that was made a moment ago without reading what was just written."""
        self._reads_made = True
        try:
            return optuna.Trial(study, trial_id)
        finally:
            self._reads_made = False
            self._made.clear()

    def forget_made(self) -> None:
        """Forget a trial that was made: its transaction may have been undone."""
        inner = self._inner
        with inner._lock:
            for trial_id in self._made:
                study_id, number = inner._trial_id_to_study_id_and_number.pop(trial_id)
                inner._study_id_and_number_to_trial_id.pop((study_id, number), None)
                inner._studies[study_id].trials.pop(number, None)
            self._made.clear()

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial as it is stored."""
        if self._reads_made and trial_id in self._made:
            return self._made[trial_id]
        return self._inner.get_trial(trial_id)

    def get_trial_number_from_id(self, trial_id: int) -> int:
        """Return a trial's number, which never changes."""
        known = self._inner._trial_id_to_study_id_and_number.get(trial_id)
        return self._inner.get_trial_number_from_id(trial_id) if known is None else known[1]

    def without_memory(self, study: optuna.Study) -> optuna.Study:
        """Let a study's samplers see all trials as they are now."""
        study._thread_local.cached_all_trials = None
        return study

    def known(self, trial: optuna.Trial) -> FrozenTrial:
        """Return a trial as its worker knows it, without reading it."""
        return trial._get_latest_trial()

    def set_trial_params(self, trial_id: int, params: Mapping[str, Param]) -> None:
        """Store parameters in one go, as `JointStorage` does."""
        self._joint.set_trial_params(trial_id, params)

    def set_trial_intermediate_values(self, trial_id: int, values: Mapping[int, float]) -> None:
        """Store reports in one go, as `JointStorage` does."""
        self._joint.set_trial_intermediate_values(trial_id, values)
