"""A worker joins the study that was started, and no other one."""

from __future__ import annotations

from typing import Any

import pytest

from dlnn_search.errors import StudyError, UsageError
from dlnn_search.storage.database import Database
from dlnn_search.storage.definitions import StoredStudy, check_data, find, join, register
from dlnn_search.storage.slots import Slots

DEFINITION: dict[str, Any] = {
    "settings": {"metric": "accuracy", "direction": "maximize", "epochs": 5},
    "code": "def space(trial):\n    return trial.suggest_int('units', 8, 64)",
}
RENDERED, COURSE = ["rendered clocks (80 px), aaaa"], ["the course's clocks (80 px), bbbb"]


def begun(database: Database) -> StoredStudy:
    stored = register(database, "mine", DEFINITION)
    slots = Slots(database, stored.id)
    slots.extend_to(1)
    slot = slots.claim("w")
    assert slot is not None
    slots.begin(slot, trial_id=1, trial_number=0)
    return stored


def test_a_worker_joins_the_same_definition(database: Database) -> None:
    stored = register(database, "mine", DEFINITION)
    assert join(database, "mine", dict(DEFINITION)).id == stored.id


def test_a_definition_is_the_same_in_whatever_order_its_keys_are_stored(database: Database) -> None:
    data = {"options": {"b": [{"y": 1, "x": 2}], "a": 1}, "name": "own"}
    in_order = {"name": "own", "options": {"a": 1, "b": [{"x": 2, "y": 1}]}}
    settings = DEFINITION["settings"]
    stored = register(database, "mine", {**DEFINITION, "settings": {**settings, "data": in_order}})
    definition = {**DEFINITION, "settings": {"data": data, **settings}}
    assert join(database, "mine", definition).id == stored.id


def test_a_study_that_was_never_started_cannot_be_joined(database: Database) -> None:
    with pytest.raises(UsageError, match=r"no study 'mine'.*dlnn-search start mine"):
        join(database, "mine", DEFINITION)


def test_another_definition_is_refused_even_before_the_first_trial(database: Database) -> None:
    register(database, "mine", DEFINITION)
    other = {
        "settings": {**DEFINITION["settings"], "epochs": 9},
        "code": DEFINITION["code"].replace("64", "128"),
    }
    with pytest.raises(StudyError) as told:
        join(database, "mine", other)
    for line in ("- epochs = 5", "+ epochs = 9", "'units', 8, 64", "'units', 8, 128"):
        assert line.replace("- ", "-").replace("+ ", "+") in str(told.value)
    assert find(database, "mine").definition["code"] == DEFINITION["code"]  # nothing was mended


def test_the_message_names_both_definitions_by_short_hashes(database: Database) -> None:
    register(database, "mine", DEFINITION)
    other = {**DEFINITION, "code": "def space(trial):\n    return None"}
    with pytest.raises(StudyError, match=r"\(definition [0-9a-f]{12}\) than .*\([0-9a-f]{12}\)"):
        join(database, "mine", other)


def test_other_pictures_are_refused_once_trials_learned(database: Database) -> None:
    stored = begun(database)
    check_data(database, stored, RENDERED)  # what the study learns from is noted
    check_data(database, stored, RENDERED)
    with pytest.raises(StudyError) as told:
        check_data(database, stored, COURSE)
    assert f"-{RENDERED[0]}" in str(told.value) and f"+{COURSE[0]}" in str(told.value)


def test_pictures_may_still_change_before_the_first_trial(database: Database) -> None:
    stored = register(database, "mine", DEFINITION)
    check_data(database, stored, RENDERED)
    check_data(database, stored, COURSE)
    assert find(database, "mine").definition["pictures"] == COURSE
    assert join(database, "mine", DEFINITION).id == stored.id  # they are no part of the study
