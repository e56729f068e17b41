"""What goes wrong is told in one message that says what came and what to do."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from .command_line import Done, Place, study_text

USAGE, STUDY, DATA, STORAGE = 2, 3, 4, 5
PASSWORD = "hunter2-secret"


def assert_told(done: Done, code: int, *parts: str) -> None:
    """Check the message: on standard error, with its parts, and without a traceback."""
    assert done.code == code, done.both
    assert len(re.findall("^Error: ", done.err, re.MULTILINE)) == 1, done.both
    assert not done.out
    assert "Traceback" not in done.both
    assert "this is a bug" not in done.both
    for part in parts:
        assert part in done.err, done.err


def contents(place: Place) -> set[str]:
    return {str(path.relative_to(place.folder)) for path in place.folder.rglob("*")}


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["start", "task3-clok"], USAGE, ["'task3-clok'", "Did you mean 'task3-clock'?"]),
        (["start", "nowhere.py"], USAGE, ["no study file 'nowhere.py'"]),
        (["start", "task3-clock", "--wrokers", "2"], USAGE, ["--wrokers", "--workers"]),
        (["start", "task3-clock", "--workers", "2000"], USAGE, ["0 to 1024", "--workers 2000"]),
        (["start", "task3-clock", "--workers", "-3"], USAGE, ["0 to 1024", "got --workers -3"]),
        (["start", "task3-clock", "--workers", "two"], USAGE, ["--workers", "whole number"]),
        (["start", "task3-clock", "--trials", "0"], USAGE, ["1 to 1,000,000 trials", "got 0"]),
        (["start", "task3-clock", "--timeout", "5x"], USAGE, ["45s, 30m, 2h", "got '5x'"]),
        (["start", "task3-clock", "--timeout", "0s"], USAGE, ["above 0", "got '0s'"]),
        (["start", "task3-clock", "--storage", "a b"], USAGE, ["sqlite:///", "--storage"]),
        (["start", "task3-clock", "--storage", "mysql://h/n"], USAGE, ["got 'mysql'"]),
        (["start", "task3-clock", "--storage", "sqlite://"], USAGE, ["in memory"]),
        (["strat"], USAGE, ["No such command 'strat'"]),
        (["trials"], USAGE, ["STUDY"]),
        (["trials", "tiny"], STORAGE, ["no database", "dlnn-search start"]),
        (["worker", "task3-clock"], STORAGE, ["no database", "dlnn-search start"]),
        (["worker", "task3-clock", "--threads", "0"], USAGE, ["got --threads 0"]),
        (["evaluate", "nowhere.json"], USAGE, ["'nowhere.json'", "dlnn-search export"]),
        (["dashboard", "--port", "65536"], USAGE, ["0 to 65535", "got --port 65536"]),
        (["dashboard"], STORAGE, ["no database"]),
        (["data", "prepare", "mnits"], USAGE, ["Did you mean 'mnist'?"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_told_and_leaves_nothing_behind(
    place: Place, arguments: Sequence[str], code: int, parts: Sequence[str]
) -> None:
    assert_told(place.run(*arguments), code, *parts)
    assert not contents(place)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("x = (\n", ["no valid Python", "line 1"]),
        ("import optuna\nimport no_such_module\n", ["line 2", "No module named"]),
        ("x = 1\n", ["study = Study(...)"]),
        ("study = 3\n", ["study = Study(...)", "got int"]),
        ("\0", ["no valid Python: source", "null bytes"]),
        (
            study_text().replace("    blocks = [", "    blocks = 1 / 0\n    blocks = ["),
            ["space of 'mine' failed", "ZeroDivisionError"],
        ),
        (
            study_text().replace("batch_size=64", "batch_size=0"),
            ["invalid config", "batch_size", "(got 0)"],
        ),
        (study_text().replace("minimize", "maximize"), ["'common_sense_error' to be minimized"]),
    ],
    ids=["syntax", "import", "no study", "other study", "binary", "space", "config", "direction"],
)
def test_a_study_file_that_cannot_work_is_told_before_anything_is_stored(
    place: Place, text: str, parts: Sequence[str]
) -> None:
    (place.folder / "mine.py").write_text(text)
    assert_told(place.run("start", "mine.py"), STUDY, *parts)
    assert contents(place) == {"mine.py"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--debug", "start", "task3-clok"],
        ["start", "--debug", "task3-clok"],
        ["start", "task3-clok", "--debug"],
    ],
    ids=" ".join,
)
def test_debug_anywhere_adds_the_traceback_to_the_message(
    place: Place, arguments: Sequence[str]
) -> None:
    done = place.run(*arguments)
    assert done.code == USAGE
    assert "Traceback (most recent call last)" in done.err
    assert "\nError: Unknown study 'task3-clok'. Did you mean 'task3-clock'?" in done.err


@pytest.mark.parametrize("command", [["start", "task3-clock"], ["trials", "x"], ["ledger"]])
def test_an_unreachable_server_is_told_without_the_password(
    place: Place, command: Sequence[str]
) -> None:
    with closing(socket.socket()) as nobody:  # bound, but listening to no one
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        url = f"postgresql+psycopg://me:{PASSWORD}@{address}/team"
        told = place.run(*command, "--storage", url)
        debug = place.run("--debug", *command, DLNN_SEARCH_STORAGE=url)
    assert_told(told, STORAGE, f"me:***@{address}/team", "Check that it runs")
    assert "Traceback" in debug.err
    assert PASSWORD not in told.both + debug.both
    assert not contents(place)


def test_a_malformed_address_is_told_without_its_text(place: Place) -> None:
    for url in (f"postgresql://me:{PASSWORD}@host:port/n", f"me:{PASSWORD}@host"):
        told = place.run("trials", "x", "--storage", url)
        assert_told(told, USAGE, "Expected a database URL")
        assert PASSWORD not in told.both


def test_a_file_that_is_no_database_stays_as_it_is(place: Place) -> None:
    file = place.folder / "notes.db"
    file.write_text("Buy milk. " * 500)
    before = file.read_bytes()
    for command in (["trials", "x"], ["start", "task3-clock"]):
        told = place.run(*command, "--storage", "sqlite:///notes.db")
        assert_told(told, STORAGE, "notes.db", "no SQLite database", "--storage")
    assert file.read_bytes() == before


def test_a_database_of_another_version_is_told_with_both_versions(
    searched: Place, tmp_path: Path
) -> None:
    place = searched.copy_to(tmp_path / "copy")
    place.execute("UPDATE dlnn_schema SET version = 99")
    for command in (["trials", "tiny"], ["start", "tiny.py"], ["worker", "tiny.py"]):
        assert_told(place.run(*command), STORAGE, "version 99", "expects version", "--storage")


def test_an_edited_study_is_told_with_the_lines_that_changed(
    searched: Place, tmp_path: Path
) -> None:
    place = searched.copy_to(tmp_path / "copy")
    edited = study_text().replace('"filters", 2, 6', '"filters", 2, 12')
    (place.folder / "tiny.py").write_text(edited)
    for command, words in (
        (["start", "tiny.py", "--trials", 6], "edited after its first trial"),
        (["worker", "tiny.py"], "is another one here (definition "),
    ):
        told = place.run(*command)
        assert_told(told, STUDY, words)
        removed, added = (
            next(line for line in told.err.splitlines() if line.startswith(sign))
            for sign in ("  -", "  +")
        )
        assert "2, 6" in removed and "2, 12" in added
    assert place.slot_states() == ["done"] * 4


def test_other_words_in_a_study_are_no_edit(searched: Place, tmp_path: Path) -> None:
    place = searched.copy_to(tmp_path / "copy")
    said_otherwise = study_text().replace("tiny clocks.", "clocks.") + "# The end.\n"
    (place.folder / "tiny.py").write_text(said_otherwise)
    assert "All 4 trials" in place.succeed("start", "tiny.py", "--trials", 4)


def test_a_port_in_use_is_told_with_another(searched: Place) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = searched.run("dashboard", "--port", port)
    assert_told(told, USAGE, f"Port {port}", "in use", "--port")


def test_exports_that_cannot_be_are_told(searched: Place, tmp_path: Path) -> None:
    nowhere, file = tmp_path / "nowhere" / "best.json", tmp_path / "best.json"
    told = [
        (searched.run("export", "tiny", "-o", nowhere), ["no folder", str(nowhere.parent)]),
        (searched.run("export", "tiny", "-o", tmp_path), ["folder", "best.json"]),
        (searched.run("export", "tiny", "-o", file, "--top", 0), ["got --top 0"]),
        (searched.run("export", "tinny", "-o", file), ["'tinny'", "Did you mean 'tiny'?"]),
        (
            searched.run("export", "tiny"),
            ["something to write", "-o best.json", "--model best.keras"],
        ),
    ]
    for done, parts in told:
        assert_told(done, USAGE, *parts)
    assert not list(tmp_path.iterdir())


def test_there_is_nothing_to_export_before_a_trial_is_complete(place: Place) -> None:
    study = place.write_study(epochs=50, batch_size=1)
    assert place.run("start", study, "--timeout", "1s").code == 130
    assert_told(
        place.run("export", "tiny", "-o", "best.json"), USAGE, "0 complete trials", "dlnn-search"
    )
    assert_told(place.run("best", "tiny"), USAGE, "no complete trial yet", "dlnn-search start")
    assert not (place.folder / "best.json").exists()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("{", ["'mine.json'", "Invalid JSON"]),
        ("[]", ["'mine.json'"]),
        ('{"model": {"kind": "mlp"}}', ["'mine.json'", "data"]),
        ('{"data": {"name": "mnist"}, "model": {"kind": "rnn"}}', ["model", "rnn"]),
        ('{"data": {"name": "clocks"}, "model": {"kind": "mlp"}}', ["ClockNet", "mlp"]),
        (" " * 1_000_001, ["'mine.json'", "more than 1,000,000 bytes"]),
    ],
    ids=["broken", "list", "no data", "unknown model", "misfit", "huge"],
)
def test_a_file_that_is_no_config_is_not_evaluated(
    place: Place, text: str, parts: Sequence[str]
) -> None:
    (place.folder / "mine.json").write_text(text)
    assert_told(place.run("evaluate", "mine.json"), USAGE, *parts)
    assert contents(place) == {"mine.json"}


def test_evaluate_wants_a_seed_before_any_work(searched: Place, tmp_path: Path) -> None:
    file = tmp_path / "best.json"
    searched.succeed("export", "tiny", "-o", file)
    for seeds in (0, -1, 101):
        told = searched.run("evaluate", file, "--seeds", seeds)
        assert_told(told, USAGE, "1 to 100", f"got --seeds {seeds}")
    assert [path.name for path in tmp_path.iterdir()] == ["best.json"]


@pytest.mark.parametrize(
    ("images", "parts"),
    [
        (np.zeros((720, 40, 40), np.float32), ["uint8", "float32"]),
        (np.zeros((720, 40, 41), np.uint8), ["(720, 40, 41)"]),
        (np.zeros((720, 20, 20), np.uint8), ["20"]),
        (np.zeros((719, 40, 40), np.uint8), ["719"]),
    ],
    ids=["dtype", "not square", "too small", "too few"],
)
def test_pictures_of_another_form_are_not_imported(
    place: Place, images: np.ndarray, parts: Sequence[str]
) -> None:
    np.save(place.folder / "images.npy", images)
    labels = np.stack(np.divmod(np.arange(len(images)) % 720, 60), axis=1)
    np.save(place.folder / "labels.npy", labels)
    cache = place.folder / "cache"
    told = place.run(
        "data", "import", "clocks", "images.npy", "labels.npy", DLNN_SEARCH_CACHE=str(cache)
    )
    assert_told(told, DATA, *parts)
    assert not list(cache.rglob("*.npy"))
