"""Optuna's private parts are used with tested versions alone; what is lacking is said in words."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from dlnn_search import optuna_version
from dlnn_search.errors import UsageError
from dlnn_search.optuna_version import SWITCH, TESTED, check_optuna, may_be_private
from dlnn_search.storage.database import open_database
from dlnn_search.storage.optuna import TrialStorage, trial_storage

PACKAGE = Path(optuna_version.__file__).parent
PRIVATE = PACKAGE / "storage" / "optuna" / "private.py"
#: Of Optuna's objects, and used by this package once.
ATTRIBUTES = {"_trial_id", "_thread_local", "_get_latest_trial", "_contains"}


def test_private_parts_of_optuna_are_used_in_one_file() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.ImportFrom(module=str(module)) if module.startswith("optuna."):
                    names = [*module.split("."), *(alias.name for alias in node.names)]
                case ast.Attribute(value=ast.Name(id="self")):
                    names = []
                case ast.Attribute(attr=attribute) if attribute in ATTRIBUTES:
                    names = [attribute]
                case ast.Attribute(attr="_storage" | "_study_id" as attribute):
                    # A study that somebody else opened has no other way.
                    names = [] if path == Path(optuna_version.__file__) else [attribute]
                case _:
                    names = []
            if any(name.startswith("_") for name in names):
                found.append(path)
    assert set(found) == {PRIVATE}


def test_a_version_that_was_not_tested_is_used_by_its_documented_interface(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert may_be_private(), f"the suite runs with one of {TESTED}"
    monkeypatch.setattr(optuna, "__version__", "5.99.0")
    monkeypatch.setitem(sys.modules, "dlnn_search.storage.optuna.private", None)  # no import of it
    database = open_database(f"sqlite:///{tmp_path / 'dlnn.db'}", create=True)
    try:
        assert not database.joins
        storage = trial_storage(database.optuna)
        assert type(storage) is TrialStorage
        study = optuna.create_study(storage=storage)
        trial = study.ask()
        with storage.gathering(0):
            trial.suggest_float("a", 0, 1)
        assert [frozen.params for frozen in study.trials] == [trial.params]
    finally:
        database.close()


def test_another_word_than_public_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "public")
    assert not may_be_private()
    monkeypatch.setenv(SWITCH, "private")
    with pytest.raises(UsageError, match=f"Expected {SWITCH} to be 'public' or not set, got"):
        may_be_private()


@pytest.fixture(autouse=True)
def checked_anew() -> Iterator[None]:
    check_optuna.cache_clear()
    yield
    check_optuna.cache_clear()


@pytest.mark.parametrize(
    ("owner", "place", "name"),
    [
        (optuna.storages.RDBStorage, "storages.RDBStorage", "upgrade"),
        (optuna.exceptions, "exceptions", "UpdateFinishedTrialError"),
    ],
)
def test_what_the_documented_interface_lacks_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch, owner: object, place: str, name: str
) -> None:
    monkeypatch.setattr(optuna, "__version__", "5.99.0")
    monkeypatch.delattr(owner, name)
    words = rf"Optuna 5\.99\.0 does not have 'optuna\.{place}\.{name}'.*install 'optuna==5"
    with pytest.raises(UsageError, match=words):
        open_database("sqlite:////nowhere/dlnn.db", create=True)


def test_an_argument_that_is_gone_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna, "load_study", lambda name, where: None)
    with pytest.raises(UsageError, match=r"have 'optuna\.load_study\(study_name=\.\.\.\)'"):
        check_optuna()


@pytest.mark.parametrize(
    "lacking",
    [
        "optuna.exceptions.UpdateFinishedTrialError",
        "optuna.distributions.CategoricalDistribution",  # an import
        "optuna.logging.set_verbosity",  # a call
    ],
)
def test_the_command_line_says_what_optuna_lacks(tmp_path: Path, lacking: str) -> None:
    code = f"import optuna, sys; del {lacking}; from dlnn_search.cli import main; main()"
    (tmp_path / "dlnn.db").touch()
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            "regions",
            "some-study",
            "--storage",
            f"sqlite:///{tmp_path / 'dlnn.db'}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert f"does not have '{lacking}'" in done.stderr
    assert "Traceback" not in done.stderr and "bug" not in done.stderr
