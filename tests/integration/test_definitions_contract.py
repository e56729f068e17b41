"""A worker joins the study that was started, and no other one."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
import sqlalchemy as sa

from dlnn_search.errors import StudyError, UsageError
from dlnn_search.storage.control import orders
from dlnn_search.storage.database import Database
from dlnn_search.storage.schema import artifacts
from dlnn_search.storage.slots import Slots
from dlnn_search.storage.studies import (
    StoredStudy,
    all_studies,
    check_data,
    find,
    join,
    parent_of,
    register,
    set_parent,
)

from .slot_life import give_trials

DEFINITION: dict[str, Any] = {
    "settings": {"metric": "accuracy", "direction": "maximize", "epochs": 5},
    "code": "def space(trial):\n    return trial.suggest_int('units', 8, 64)",
}
RENDERED, COURSE = ["rendered clocks (80 px), aaaa"], ["the course's clocks (80 px), bbbb"]


def begun(database: Database) -> StoredStudy:
    stored = register(database, "mine", DEFINITION)
    slots = Slots(database, stored.id)
    give_trials(slots, 1)
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


OTHER = {**DEFINITION, "code": "def space(trial):\n    return trial.suggest_int('units', 8, 128)"}


def ended(
    database: Database, *outcomes: str, definition: dict[str, Any] = DEFINITION
) -> StoredStudy:
    """Return a study in both halves, one of whose trials came to each of these ends."""
    stored = register(database, "mine", definition)
    study = optuna.create_study(study_name="mine", storage=database.optuna)
    slots = Slots(database, stored.id)
    give_trials(slots, len(outcomes) + 1)
    for outcome in outcomes:
        slot = slots.claim("w")
        assert slot is not None
        trial = study.ask()
        slots.begin(slot, trial_id=trial._trial_id, trial_number=trial.number)
        slots.settle(slot, outcome, value=1.0 if outcome == "complete" else None)  # type: ignore[arg-type]
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return stored


def optuna_names(database: Database) -> set[str]:
    return {study.study_name for study in database.optuna.get_all_studies()}


def test_an_edited_study_of_which_every_trial_failed_begins_anew(database: Database) -> None:
    old = ended(database, "failed", "failed")
    said: list[str] = []
    new = register(database, "mine", OTHER, say=said.append)
    old_ones = "dlnn-search trials mine-old-1"
    assert said == [f"'mine' starts again. Its trials so far are kept: {old_ones}"]
    assert new.id != old.id and new.definition == OTHER
    assert Slots(database, new.id).all_done(), "it has no slot yet"
    kept = find(database, "mine-old-1")
    assert (kept.id, kept.definition) == (old.id, DEFINITION)
    assert len(Slots(database, kept.id).fates(range(9))) == 3
    assert optuna_names(database) == {"mine-old-1"}
    assert len(optuna.load_study(study_name="mine-old-1", storage=database.optuna).trials) == 2
    assert orders(database, kept.id).control == "stop", "workers that still wait for it end"


@pytest.mark.parametrize("outcome", ["complete", "pruned"])
def test_an_edited_study_with_a_result_begins_anew_only_if_asked(
    database: Database, outcome: str
) -> None:
    old = ended(database, "failed", outcome)
    with pytest.raises(StudyError, match=r"edited after its first trial(.|\n)*--fresh"):
        register(database, "mine", OTHER)
    assert optuna_names(database) == {"mine"}
    new = register(database, "mine", OTHER, fresh=True)
    assert new.id != old.id
    assert find(database, "mine-old-1").id == old.id
    assert optuna_names(database) == {"mine-old-1"}


def test_a_study_that_was_not_edited_goes_on_unless_asked_to_begin_anew(database: Database) -> None:
    old = ended(database, "failed")
    assert register(database, "mine", DEFINITION).id == old.id
    second = register(database, "mine", DEFINITION, fresh=True)
    assert second.id != old.id
    assert register(database, "mine", DEFINITION, fresh=True).id == second.id, "nothing to keep"


def test_each_archived_study_has_a_name_of_its_own_and_its_linked_ones_follow(
    database: Database,
) -> None:
    ended(database, "complete")
    confirm = register(database, "mine-confirm", DEFINITION)
    set_parent(database, confirm.id, "mine")
    with database.transaction() as connection:
        place = {"place": "p", "path": "checkpoints/mine/0/last.npz", "study_id": 1, "slot_id": 1}
        connection.execute(
            artifacts.insert().values(
                **place, kind="checkpoint", sha256="0", size_bytes=1, created_at=0.0
            )
        )
    folder = database.files / "checkpoints" / "mine" / "0"
    folder.mkdir(parents=True)
    (folder / "last.npz").touch()
    register(database, "mine", OTHER, fresh=True)
    assert parent_of(database, find(database, "mine-old-1-confirm").id) == "mine-old-1"
    with database.transaction() as connection:
        path = connection.scalar(sa.select(artifacts.c.path))
    assert path == "checkpoints/mine-old-1/0/last.npz"
    assert (database.files / path).is_file()
    ended(database, "failed", definition=OTHER)
    register(database, "mine", OTHER, fresh=True)
    names = {study.name for study in all_studies(database)}
    assert names == {"mine", "mine-old-1", "mine-old-1-confirm", "mine-old-2"}


@pytest.mark.parametrize("fresh", [True, False])
def test_a_study_does_not_begin_anew_while_a_worker_holds_a_trial(
    database: Database, fresh: bool
) -> None:
    stored = ended(database, "failed")
    assert Slots(database, stored.id).claim("w") is not None
    with pytest.raises(
        UsageError, match=r"is being searched by 1 worker.*dlnn-search stop mine --now"
    ):
        register(database, "mine", OTHER, fresh=fresh)
    assert find(database, "mine").id == stored.id
    assert [study.name for study in all_studies(database)] == ["mine"]


def test_pictures_that_an_earlier_version_told_in_fewer_words_are_the_same(
    database: Database,
) -> None:
    stored = begun(database)
    check_data(database, stored, ["the pictures of 'mine', aaaa"])
    check_data(database, stored, ["the pictures of 'mine', aaaa, all bbbb"])
    with pytest.raises(StudyError, match="other pictures"):
        check_data(database, stored, ["the pictures of 'mine', aaab, all bbbb"])
