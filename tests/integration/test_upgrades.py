"""A search goes on with the definition that it began with, whatever an upgrade changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dlnn_search.errors import StudyError
from dlnn_search.storage.database import Database
from dlnn_search.storage.studies import join, register
from dlnn_search.study import finding as study_files
from dlnn_search.study.finding import code_hash, load_study, studies_folder
from dlnn_search.worker.joining import as_stored

OTHER = "\nN_SCALES = 2\n"


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the built-in studies, to change at will."""
    copy = tmp_path / "studies"
    shutil.copytree(studies_folder(), copy)
    monkeypatch.setattr(study_files, "studies_folder", lambda: copy)
    return copy


@pytest.mark.parametrize(
    "name", ["task1-fashion-mlp", "task1-fashion-mlp-quick", "task2-fashion-mlp"]
)
def test_a_built_in_study_that_was_changed_goes_on_as_it_was(
    studies: Path, sqlite_database: Database, name: str
) -> None:
    began = load_study(name)
    register(sqlite_database, name, began.definition())
    kept = studies / "earlier" / code_hash(began.definition()["code"])
    kept.mkdir(parents=True)
    for file in ("task1_fashion_mlp.py", "task2_fashion_mlp.py"):
        shutil.copy(studies / file, kept)
    changed = studies / "task1_fashion_mlp.py"
    changed.write_text(changed.read_text() + OTHER)

    today = load_study(name)
    assert today.definition() != began.definition()
    found = as_stored(today, sqlite_database)
    assert found.definition() == began.definition()
    assert (found.name, found.trials, repr(found.sampler)) == (
        began.name,
        began.trials,
        repr(began.sampler),
    )
    join(sqlite_database, name, found.definition())
    # A new search begins with today's, and so does whoever names the study from now on.
    assert load_study(name).definition() == today.definition()


def test_without_the_earlier_file_a_changed_study_is_refused(
    studies: Path, sqlite_database: Database
) -> None:
    name = "task1-fashion-mlp"
    register(sqlite_database, name, load_study(name).definition())
    changed = studies / "task1_fashion_mlp.py"
    changed.write_text(changed.read_text() + OTHER)
    today = load_study(name)
    assert as_stored(today, sqlite_database) is today
    with pytest.raises(StudyError, match=r"\+N_SCALES = 2"):
        join(sqlite_database, name, today.definition())


def test_a_search_that_began_before_helpers_counted_goes_on(
    tmp_path: Path, sqlite_database: Database
) -> None:
    file = tmp_path / "mine.py"
    text = (studies_folder() / "task1_fashion_mlp.py").read_text()
    file.write_text(f"{text}\nimport mine_helps\n")
    (tmp_path / "mine_helps.py").write_text("A = 1\n")
    today = load_study(str(file))
    former = today.definition()
    del former["settings"]["helper mine_helps.py"]
    former["code"] = former["code"].removesuffix("\nA = 1")
    register(sqlite_database, "mine", former)
    assert as_stored(today, sqlite_database).definition() == former
