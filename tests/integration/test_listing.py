"""`trials`, `studies` and `status` of databases: for people, for programs, and elsewhere."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from dlnn_search.results.status import merged
from dlnn_search.storage.database import open_database
from dlnn_search.storage.database.known import (
    MAX_KNOWN,
    known_databases,
    list_file,
    remember_database,
)
from dlnn_search.storage.schema import slots
from dlnn_search.storage.studies import register
from dlnn_search.worker.optuna_study import open_optuna_study

from .whole_study import a_study, fill

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database with two studies; trial 1 of the first has the result of trial 0."""
    url = f"sqlite:///{tmp_path_factory.mktemp('searched') / 'dlnn.db'}"
    with open_database(url, create=True) as database:
        study_id = fill(database)
        old = a_study("some-study-old")
        register(database, old.name, old.definition(), file="/studies/some_study.py")
        open_optuna_study(old, database)
        mine = slots.c.study_id == study_id
        with database.transaction() as connection:
            first = connection.scalar(sa.select(slots.c.id).where(mine, slots.c.number == 0))
            second = slots.update().where(mine, slots.c.number == 1)
            connection.execute(second.values(reused_from=first))
    return url


@pytest.fixture
def at(run: Run, url: str) -> Run:
    return lambda *arguments: run(*arguments, "--storage", url)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user with a folder for state, who has searched nowhere yet."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("DLNN_SEARCH_STORAGE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "state"


def rows_of(said: Any) -> list[dict[str, Any]]:
    assert said.code == 0 and not said.err
    found: list[dict[str, Any]] = json.loads(said.out)["trials"]
    return found


def test_trials_are_listed_for_people_with_what_is_a_duplicate_of_which(at: Run) -> None:
    said = at("trials", "some-study")
    lines = said.out.splitlines()
    assert said.code == 0 and lines[0].startswith("trial  state        accuracy")
    (of_1,) = [line for line in lines if line.startswith("    1  ")]
    assert of_1.endswith("= trial 0 (same config)")
    assert sum("same config" in line for line in lines) == 1


def test_json_has_numbers_as_numbers_and_nothing_else_on_stdout(at: Run) -> None:
    rows = rows_of(at("trials", "some-study", "--json"))
    assert [row["number"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["state"] for row in rows[:3]] == ["complete", "pruned", "failed"]
    assert [row["duplicate_of"] for row in rows] == [None, 0, None, None, None]
    assert rows[0]["value"] == 0.5 and rows[2]["value"] is None
    assert rows[0]["epochs"] == 2 and rows[0]["seconds"] == 3.0
    assert rows[0]["reason"] == "ü because"
    for row in rows:
        assert list(row["params"]) == ["rate", "units", "activation"]
        assert isinstance(row["params"]["rate"], float) and isinstance(row["params"]["units"], int)


def test_csv_has_the_same_rows_as_json_and_a_column_a_parameter(at: Run) -> None:
    said = at("trials", "some-study", "--csv")
    assert said.code == 0 and not said.err
    table = list(csv.DictReader(io.StringIO(said.out)))
    rows = rows_of(at("trials", "some-study", "--json"))
    assert [int(line["number"]) for line in table] == [row["number"] for row in rows]
    for line, row in zip(table, rows, strict=True):
        assert float(line["params_rate"]) == row["params"]["rate"]
        assert line["value"] == ("" if row["value"] is None else str(row["value"]))
    header = said.out.splitlines()[0]
    assert (
        at("trials", "some-study-old", "--csv").out.split(",params_")[0].strip()
        == (header.split(",params_")[0])
    )


def test_trials_are_sorted_by_value_or_by_a_parameter_and_cut_to_the_first(at: Run) -> None:
    by_rate = rows_of(at("trials", "some-study", "--json", "--sort", "rate"))
    rates = [row["params"]["rate"] for row in by_rate]
    assert rates == sorted(rates) and len(rates) == 5
    by_value = rows_of(at("trials", "some-study", "--json", "--sort", "value"))
    assert [row["value"] for row in by_value] == [0.6, 0.5, None, None, None]  # maximised
    assert rows_of(at("trials", "some-study", "--json", "--top", 2)) == by_value[:2]
    last = rows_of(at("trials", "some-study", "--json", "--top", 1, "--sort", "number"))
    assert [row["number"] for row in last] == [0]
    choices = rows_of(at("trials", "some-study", "--json", "--sort", "activation"))
    assert len(choices) == 5  # texts, numbers, None and True beside each other


def test_only_trials_of_a_state_are_listed(at: Run) -> None:
    rows = rows_of(at("trials", "some-study", "--json", "--state", "failed"))
    assert [row["number"] for row in rows] == [2]
    assert at("trials", "some-study", "--state", "waiting").out == (
        "'some-study' has no waiting trial yet.\n"
    )
    assert rows_of(at("trials", "some-study", "--state", "waiting", "--json")) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sort", "size"], "(number, value, epochs, time, rate, units, activation), got --sort"),
        (["--state", "open"], "failed, running, waiting, interrupted), got --state 'open'"),
        (["--top", "0"], "Expected at least 1 trial to list, got --top 0."),
        (["--json", "--csv"], "Expected --json or --csv, got both."),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(
    at: Run, options: list[str], words: str
) -> None:
    said = at("trials", "some-study", *options)
    assert said.code == 2 and not said.out
    assert words in said.err and said.err.count("\n") == 1


def test_parameters_that_only_some_trials_have_keep_their_place() -> None:
    trials = (["layers", "rate"], ["layers", "units_1", "rate"], ["layers", "units_1", "units_2"])
    assert merged(trials) == ["layers", "units_1", "units_2", "rate"]
    assert merged([[], ["b", "a"], ["a", "c", "b"]]) == ["b", "a", "c"]


def test_the_best_trial_and_a_file_s_name_are_found_as_the_study_s_name_is(at: Run) -> None:
    assert at("trials", "./some_study.py").out == at("trials", "some-study").out
    assert "rate" in at("best", "some_study.py").out


def test_all_studies_of_a_database_are_listed_with_where_they_are_from(
    at: Run, url: str, state: Path
) -> None:
    said = at("studies", "--all")
    lines = said.out.splitlines()
    assert said.code == 0 and lines[0] == f"In {url}:"
    words = "3 of 8 trials, maximize accuracy, best 0.5000"
    assert any(line.startswith("some-study ") and line.endswith(words) for line in lines)
    assert lines[-2].startswith("some-study-old  ") and "no value yet" in lines[-2]
    assert lines[-1] == "  /studies/some_study.py"


def test_databases_are_remembered_without_passwords_for_this_user_alone(state: Path) -> None:
    file = state.parent / "x y?.db"
    file.touch()
    addresses = [
        "postgresql+psycopg://ann:s3cret-word@db.example:5432/trials?password=s3cret-word",
        f"sqlite:///{file}".replace("?", "%3F"),
    ]
    for address in (*addresses, addresses[0]):
        remember_database(address)
    text = list_file().read_text(encoding="utf-8")
    assert list_file().is_relative_to(state) and "s3cret" not in text
    assert stat.S_IMODE(list_file().stat().st_mode) == 0o600
    assert known_databases() == ["postgresql+psycopg://ann@db.example:5432/trials", addresses[1]]
    assert known_databases(but=addresses[0]) == [addresses[1]]
    file.unlink()
    assert known_databases() == ["postgresql+psycopg://ann@db.example:5432/trials"]


def test_the_list_of_databases_keeps_the_latest_and_survives_what_cannot_be_read(
    state: Path,
) -> None:
    for number in range(MAX_KNOWN + 5):
        remember_database(f"postgresql+psycopg://ann@host{number}/trials")
    known = known_databases()
    assert len(known) == MAX_KNOWN
    assert known[0].endswith(f"host{MAX_KNOWN + 4}/trials")
    for damaged in ("", "{", '{"a": 1}', '[1, null, "no address", "sqlite:///\\u0000"]'):
        list_file().write_text(damaged, encoding="utf-8")
        assert known_databases() == []
    remember_database("postgresql+psycopg://ann@host/trials")
    assert known_databases() == ["postgresql+psycopg://ann@host/trials"]


def test_a_list_that_cannot_be_written_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", os.devnull)
    remember_database("postgresql+psycopg://ann@host/trials")
    assert known_databases() == []


def test_a_study_of_another_database_is_found_by_the_command_that_is_named(
    run: Run, url: str, state: Path
) -> None:
    assert "used" not in run("status", "some-study").err
    remember_database(url)
    for command in ("status", "trials", "best", "resume"):
        said = run(command, "some-study")
        assert said.code == 5 and said.err.count("\n") == 1
        _, found, named = said.err.partition("Another database that you used has it: ")
        assert found and "Start a search" in said.err
        program, *arguments = shlex.split(named)
        assert program == "dlnn-search" and arguments[:2] == [command, "some-study"]
        assert run(*arguments).code == 0
    assert "used" not in run("status", "some-other-study").err


def test_a_database_that_lacks_a_study_names_the_one_that_has_it(
    run: Run, url: str, state: Path, tmp_path: Path
) -> None:
    remember_database(url)
    here = f"sqlite:///{tmp_path / 'dlnn.db'}"
    open_database(here, create=True).close()
    said = run("export", "some-study", "-o", "best.json", "--storage", here)
    assert said.code == 2
    assert f"has it: dlnn-search status some-study --storage {url}\n" in said.err


def test_the_other_databases_are_named_where_all_studies_are_asked_for(
    run: Run, url: str, state: Path, tmp_path: Path
) -> None:
    remember_database(url)
    here = f"sqlite:///{tmp_path / 'dlnn.db'}"
    for command in (["status"], ["studies", "--all"]):
        words = " ".join(command)
        missing = run(*command)
        assert missing.code == 5
        assert missing.err.endswith(f"used: dlnn-search {words} --storage {url}\n")
    open_database(here, create=True).close()
    for command in (["status"], ["studies", "--all"]):
        said = run(*command, "--storage", here)
        assert said.code == 0
        assert said.out.endswith(
            f"Other databases that you used:\n  dlnn-search {' '.join(command)} --storage {url}\n"
        )
