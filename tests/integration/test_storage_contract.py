"""Curves, workers, ledger and definitions, on every storage."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa

from dlnn_search.config import Config, Dense, Mlp, Mnist, Origin, OwnData, Training
from dlnn_search.errors import StorageError, StudyError, UsageError
from dlnn_search.results.status import study_status
from dlnn_search.storage import schema
from dlnn_search.storage.database import Database, open_database
from dlnn_search.storage.ledger import LedgerEntry, openings
from dlnn_search.storage.schema import now
from dlnn_search.storage.slots import Slot, Slots
from dlnn_search.storage.studies import MAX_DIFFERENCES, all_studies, find, register
from dlnn_search.storage.trials import Point, add_points, curve_of_slot
from dlnn_search.storage.workers import WorkerRow, new_worker_name
from dlnn_search.study import Halving, Quick, RandomSearch, Study

from .slot_life import give_trials

SOURCE = '''\
"""A study for tests."""

from dlnn_search import Config, Mlp, Training


def space(trial):
    """Suggest a rate."""
    rate = trial.suggest_float("rate", 1e-4, 1e-2, log=True)
    return Config(model=Mlp(), training=Training(learning_rate=rate))


study = Study(space=space, trials=5)
'''


def a_study(source: str = SOURCE, **changes: Any) -> Study:
    settings: dict[str, Any] = {
        "space": lambda trial: Config(model=Mlp()),
        "data": Mnist(),
        "maximize": "accuracy",
        "epochs": 3,
        "quick": Quick(trials=2, epochs=1),
        "name": "some-study",
        **changes,
    }
    return Study(sources=(source,), **settings)


@pytest.fixture
def slot(database: Database) -> Slot:
    slots = Slots(database, register(database, "some-study", a_study().definition()).id)
    give_trials(slots, 1)
    slot = slots.claim("w")
    assert slot is not None
    return slot


def point(epoch: int, loss: float = 0.5) -> Point:
    return Point(epoch, {"loss": loss, "accuracy": 1 - loss}, 1.5, 1e4)


class TestCurves:
    def test_a_curve_is_read_as_it_was_written(self, database: Database, slot: Slot) -> None:
        points = [point(epoch, loss=1 / epoch) for epoch in (1, 2, 3)]
        assert all(add_points(database, slot.id, slot.fence, [each]) for each in points)
        assert curve_of_slot(database, slot.id) == points

    def test_a_curve_is_in_order_whatever_order_it_was_written_in(
        self, database: Database, slot: Slot
    ) -> None:
        for epoch in (10, 2, 1, 9):
            add_points(database, slot.id, slot.fence, [point(epoch)])
        assert [each.epoch for each in curve_of_slot(database, slot.id)] == [1, 2, 9, 10]

    def test_an_epoch_trained_twice_counts_once_and_as_it_was_first(
        self, database: Database, slot: Slot
    ) -> None:
        assert add_points(database, slot.id, slot.fence, [point(1, loss=0.5)])
        assert add_points(database, slot.id, slot.fence, [point(1, loss=0.1)])
        assert curve_of_slot(database, slot.id) == [point(1, loss=0.5)]

    def test_the_next_holder_goes_on_with_the_curve(self, database: Database, slot: Slot) -> None:
        slots = Slots(database, find(database, "some-study").id)
        for epoch in (1, 2):
            add_points(database, slot.id, slot.fence, [point(epoch)])
        slots.release(slot)
        again = slots.claim("other")
        assert again is not None
        for epoch in (2, 3, 4):  # its last checkpoint was of epoch 1
            assert add_points(database, again.id, again.fence, [point(epoch)])
        assert [each.epoch for each in curve_of_slot(database, slot.id)] == [1, 2, 3, 4]

    def test_a_slot_without_an_epoch_has_an_empty_curve(
        self, database: Database, slot: Slot
    ) -> None:
        assert curve_of_slot(database, slot.id) == []


class TestPresence:
    def test_a_worker_is_seen_from_its_start_to_its_end(self, database: Database) -> None:
        stored = register(database, "some-study", a_study().definition())
        worker_row = WorkerRow(database, stored.id)
        (row,) = study_status(database, stored).workers
        assert (row.name, row.state, row.epoch) == (worker_row.worker, "starting", None)
        worker_row.show(state="training", trial_number=4, epoch=2, epochs=9, share=0.5, value=0.25)
        (row,) = study_status(database, stored).workers
        assert (row.state, row.trial_number, row.epoch, row.epochs) == ("training", 4, 2, 9)
        assert (row.share, row.value) == (0.5, 0.25)
        worker_row.show(epoch=3)
        (row,) = study_status(database, stored).workers
        assert (row.state, row.epoch, row.value) == ("training", 3, 0.25)
        worker_row.show(state="stopped", trial_number=None)
        assert not study_status(database, stored).workers

    def test_a_worker_is_silent_since_it_last_said_something(self, database: Database) -> None:
        stored = register(database, "some-study", a_study().definition())
        worker_row = WorkerRow(database, stored.id, "w")
        with database.transaction() as connection:
            connection.execute(schema.workers.update().values(seen_at=now() - 100))
        (row,) = study_status(database, stored).workers
        assert 100 <= row.silent_seconds < 130
        worker_row.show()
        (row,) = study_status(database, stored).workers
        assert 0 <= row.silent_seconds < 30

    def test_two_workers_cannot_have_one_name(self, database: Database) -> None:
        stored = register(database, "some-study", a_study().definition())
        WorkerRow(database, stored.id, "w")
        with pytest.raises(StorageError):
            WorkerRow(database, stored.id, "w")
        assert new_worker_name() != new_worker_name()


class TestLedger:
    CONFIG = Config(data=Mnist(), model=Mlp(), training=Training(seed=3))

    def test_an_opening_is_committed_before_anything_is_measured(self, database: Database) -> None:
        LedgerEntry(database, self.CONFIG).record()
        other = open_database(database.url, create=False)
        (opening,) = openings(other)
        other.close()
        assert (opening.data, opening.seed) == ("mnist", 3)
        assert opening.fingerprint == self.CONFIG.fingerprint()
        assert opening.metrics is None
        assert opening.user
        assert opening.host

    def test_what_was_measured_is_added_to_its_own_entry(self, database: Database) -> None:
        first, second = (LedgerEntry(database, self.CONFIG) for _ in range(2))
        first.record()
        second.record()
        second.complete({"accuracy": 0.75})
        assert [opening.metrics for opening in openings(database)] == [None, {"accuracy": 0.75}]

    def test_nothing_is_completed_that_was_not_recorded(self, database: Database) -> None:
        with pytest.raises(RuntimeError, match="call record"):
            LedgerEntry(database, self.CONFIG).complete({})
        assert openings(database) == []

    def test_an_entry_tells_which_trial_its_config_comes_from(self, database: Database) -> None:
        origin = Origin(
            study="s", trial=9, metric="accuracy", value=0.5, dlnn_search_version="0.1.0"
        )
        LedgerEntry(database, self.CONFIG.model_copy(update={"origin": origin})).record()
        (opening,) = openings(database)
        assert (opening.study, opening.trial) == ("s", 9)

    def test_a_study_with_the_longest_name_may_open_its_own_data(self, database: Database) -> None:
        data = OwnData(study="x" * 100, n_classes=2)
        LedgerEntry(database, Config(data=data, model=Mlp())).record()
        (opening,) = openings(database)
        assert opening.data == "x" * 100

    def test_openings_of_one_config_are_found_among_others(self, database: Database) -> None:
        other = Config(data=Mnist(), model=Mlp(blocks=(Dense(units=8),)))
        for config in (self.CONFIG, other, self.CONFIG):
            LedgerEntry(database, config).record()
        found = openings(database, self.CONFIG.fingerprint())
        assert [opening.id for opening in found] == [1, 3]
        assert len(openings(database)) == 3
        assert openings(database, "no such one") == []


UNCHANGED = {
    "a comment": SOURCE.replace("    rate =", "    # a comment\n    rate ="),
    "a docstring of the file": SOURCE.replace("for tests", "for everybody"),
    "a docstring of the space": SOURCE.replace("Suggest a rate", "Suggest"),
    "layout": SOURCE.replace('("rate", 1e-4', '(\n        "rate",\n        0.0001'),
    "the budget": SOURCE.replace("trials=5", "trials=500"),
}
CHANGED = {
    "a bound": (SOURCE.replace("1e-2", "1e-1"), ["0.01, log", "0.1, log"]),
    "a name": (SOURCE.replace('"rate"', '"lr"'), ["'rate'", "'lr'"]),
    "a line more": (
        SOURCE.replace("    return", "    rate /= 2\n    return"),
        ["+    rate /= 2"],
    ),
}
BOTH = pytest.mark.parametrize("quick", [False, True])


def complete_a_trial(database: Database, slots: Slots, slot: Slot, name: str) -> None:
    """Give both halves of a study a trial with a result."""
    trial = optuna.create_study(study_name=name, storage=database.optuna).ask()
    slots.begin(slot, trial._trial_id, trial.number)
    slots.settle(slot, "complete", value=0.5)


class TestDefinitions:
    def register(self, database: Database, study: Study, quick: bool) -> int:
        """Register a study, and complete its first trial unless there is one."""
        study = study.quick_version() if quick else study
        study_id = register(database, study.name, study.definition()).id
        slots = Slots(database, study_id)
        give_trials(slots, 1)
        slot = slots.claim("worker")
        if slot is not None:
            complete_a_trial(database, slots, slot, study.name)
        return study_id

    def test_a_study_without_trials_may_be_mended(self, database: Database) -> None:
        register(database, "some-study", a_study().definition())
        mended = a_study(epochs=4).definition()
        assert register(database, "some-study", mended).definition == mended
        assert find(database, "some-study").definition == mended

    @BOTH
    @pytest.mark.parametrize("what", UNCHANGED)
    def test_an_edit_that_changes_no_trial_is_accepted(
        self, database: Database, what: str, quick: bool
    ) -> None:
        assert UNCHANGED[what] != SOURCE
        first = self.register(database, a_study(), quick)
        assert self.register(database, a_study(UNCHANGED[what]), quick) == first

    @BOTH
    @pytest.mark.parametrize("what", CHANGED)
    def test_an_edited_space_is_refused_with_the_lines_that_differ(
        self, database: Database, what: str, quick: bool
    ) -> None:
        source, shown = CHANGED[what]
        self.register(database, a_study(), quick)
        with pytest.raises(StudyError, match="edited after its first trial") as caught:
            self.register(database, a_study(source), quick)
        for part in shown:
            assert part in str(caught.value)
        assert "import" not in str(caught.value)  # a line that does not differ
        self.register(database, a_study(), quick)  # the edit undone

    @pytest.mark.parametrize(
        "change",
        [
            {"data": Mnist(n_training=100)},
            {"epochs": 4},
            {"pruner": Halving(first_rung=2)},
            {"maximize": None, "minimize": "loss"},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_an_edited_setting_is_refused(self, database: Database, change: dict[str, Any]) -> None:
        self.register(database, a_study(), quick=False)
        with pytest.raises(StudyError, match=r"What differs[^\n]*\n-"):
            self.register(database, a_study(**change), quick=False)

    def test_another_sampler_leaves_trials_comparable(self, database: Database) -> None:
        old = a_study().definition()
        old["settings"]["sampler"] = "Tpe(n_startup_trials=10)"  # as version 0.1 stored it
        slots = Slots(database, register(database, "some-study", old).id)
        give_trials(slots, 1)
        slot = slots.claim("worker")
        assert slot is not None
        complete_a_trial(database, slots, slot, "some-study")
        self.register(database, a_study(sampler=RandomSearch()), quick=False)

    def test_settings_of_the_quick_version_alone_leave_the_full_one_as_it_is(
        self, database: Database
    ) -> None:
        edited = a_study(quick=Quick(trials=2, epochs=2))
        for quick in (False, True):
            self.register(database, a_study(), quick)
        self.register(database, edited, quick=False)
        with pytest.raises(StudyError, match=r"-epochs = 1\n\+epochs = 2"):
            self.register(database, edited, quick=True)

    def test_a_budget_of_any_version_may_change(self, database: Database) -> None:
        edited = a_study(trials=7, quick=Quick(trials=9, epochs=1))
        for study, quick in itertools.product((a_study(), edited), (False, True)):
            self.register(database, study, quick)
        assert [study.name for study in all_studies(database)] == ["some-study", "some-study-quick"]

    def test_a_study_rewritten_as_a_whole_is_shown_in_part(self, database: Database) -> None:
        self.register(database, a_study(), quick=False)
        rewritten = "\n".join(f"x{n} = {n}" for n in range(50))
        with pytest.raises(StudyError, match=r"and \d+ more lines") as caught:
            self.register(database, a_study(rewritten), quick=False)
        assert len(str(caught.value).splitlines()) <= MAX_DIFFERENCES + 4

    def test_a_study_is_found_by_its_name(self, database: Database) -> None:
        self.register(database, a_study(), quick=False)
        stored = find(database, "some-study")
        assert (stored.name, stored.metric, stored.direction) == (
            "some-study",
            "accuracy",
            "maximize",
        )

    def test_a_mistyped_name_is_answered_with_the_nearest(self, database: Database) -> None:
        self.register(database, a_study(), quick=False)
        with pytest.raises(UsageError, match=r"no study 'some-stdy'\. Did you mean 'some-study'\?"):
            find(database, "some-stdy")
        with pytest.raises(UsageError, match="Known: some-study"):
            find(database, "wholly other")

    def test_a_database_without_studies_says_how_to_begin_one(self, database: Database) -> None:
        with pytest.raises(UsageError, match="'dlnn-search studies' lists what can be started"):
            find(database, "some-study")


def test_a_time_is_the_databases_own_to_the_millisecond(database: Database) -> None:
    with database.transaction() as connection:
        first = connection.scalar(sa.select(now()))
    with database.transaction() as connection:
        then = connection.scalar(sa.select(now()))
    assert first is not None
    assert then is not None
    assert first <= then < first + 60
    assert first > 1.7e9


def test_a_database_is_closed_where_its_block_ends_by_an_error_too(sqlite_template: Path) -> None:
    def is_open() -> bool:
        files = [os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()]
        return os.path.realpath(sqlite_template) in files

    with open_database(f"sqlite:///{sqlite_template}", create=False) as database:
        database.optuna.get_all_studies()
        assert is_open()
    assert not is_open()

    def fail() -> None:
        with open_database(f"sqlite:///{sqlite_template}", create=False) as database:
            all_studies(database)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not is_open()
