"""`evaluate`: seeds that chose nothing, one test unless asked again, and what it leaves behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dlnn_search import ClockNet, Clocks, Config, Conv, Training, data
from dlnn_search.commands.evaluate import Planned, evaluate, plan_evaluation
from dlnn_search.config import Origin
from dlnn_search.config.training import fresh_seeds
from dlnn_search.data.splits import Split
from dlnn_search.errors import UsageError
from dlnn_search.storage.checkpoints import find_orphans, remove
from dlnn_search.storage.database import Database
from dlnn_search.storage.ledger import LedgerEntry, Opening, openings
from dlnn_search.storage.studies import add_given, register, set_parent
from dlnn_search.training.checkpoint import Checkpoint, Epoch, State

from .slot_life import DEFINITION

ORIGIN = Origin(
    study="tiny", trial=1, metric="common_sense_error", value=9.0, dlnn_search_version="1"
)
CONFIG = Config(
    data=Clocks(
        source="rendered", image_size=32, images_per_time=2, difficulty=0, azimuth_spread=0.2
    ),
    model=ClockNet(blocks=(Conv(filters=1),)),
    training=Training(epochs=1, batch_size=512, precision="float32"),
    origin=ORIGIN,
)


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLNN_SEARCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("DLNN_SEARCH_FILES", str(tmp_path / "files"))


def seeded(seed: int, config: Config = CONFIG) -> Config:
    return config.model_copy(update={"training": config.training.model_copy(update={"seed": seed})})


def planned(
    database: Database, folder: Path, n: int = 2, config: Config = CONFIG, again: bool = False
) -> Planned:
    return plan_evaluation(config, database, n_seeds=n, default=folder / "best-test", again=again)


def run(database: Database, plan: Planned) -> list[float]:
    tested = evaluate(plan, database, on_epoch=lambda *_: None)
    return [one.metrics["common_sense_error"] for one in tested]


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_what_tests_is_no_seed_of_the_search_or_of_what_is_linked_with_it(
    database: Database, tmp_path: Path
) -> None:
    first, second, third, fourth = fresh_seeds("tiny", "test", 4)
    for name, seed in (("tiny", 7), ("tiny-confirm", first), ("tiny-retune", third)):
        stored = register(database, name, DEFINITION)
        if name != "tiny":
            set_parent(database, stored.id, "tiny")
        add_given(database, stored.id, [seeded(seed).model_dump(mode="json")], str)
    assert planned(database, tmp_path).seeds == (second, fourth)
    other = CONFIG.model_copy(update={"origin": ORIGIN.model_copy(update={"study": "other"})})
    assert planned(database, tmp_path, config=other).seeds == tuple(fresh_seeds("other", "test", 2))
    # An earlier version confirmed with the 100 seeds after the search's own.
    high = planned(database, tmp_path, n=100, config=seeded(second - 50))
    assert not set(high.seeds) & set(range(second - 50, second + 51))


def test_a_config_that_was_tested_is_refused_with_when_and_how_often_whatever_its_seed(
    database: Database, tmp_path: Path
) -> None:
    def completed(*seeds: int) -> None:
        for seed in seeds:
            entry = LedgerEntry(database, seeded(seed))
            entry.record()
            entry.complete({"common_sense_error": 1.0})

    opened = LedgerEntry(database, seeded(0))
    opened.record()  # and killed: nothing was measured
    assert len(planned(database, tmp_path, n=3).seeds) == 3
    completed(0, 1, 2)  # by an earlier version
    with pytest.raises(UsageError, match=r"tested 1 time before: on \d{4}-.*\(3 seeds\)"):
        planned(database, tmp_path)
    completed(*planned(database, tmp_path, again=True).seeds)
    completed(*planned(database, tmp_path, again=True).seeds)
    with pytest.raises(UsageError, match=r"3 times before: .*\(3 .*\(2 .*\(2 seeds\).*--again"):
        planned(database, tmp_path, config=seeded(5))
    longer = CONFIG.training.model_copy(update={"epochs": 2})
    planned(database, tmp_path, config=CONFIG.model_copy(update={"training": longer}))


def test_a_second_test_wants_to_be_asked_for_and_overwrites_nothing(
    sqlite_database: Database, tmp_path: Path
) -> None:
    first = run(sqlite_database, planned(sqlite_database, tmp_path))
    rows, files = openings(sqlite_database), contents(tmp_path / "best-test")
    assert json.loads(files["evaluation.json"])["complete"] is True
    with pytest.raises(UsageError, match="--again"):
        planned(sqlite_database, tmp_path, n=3)
    with pytest.raises(UsageError, match="holds the results of another evaluation"):
        plan_evaluation(
            CONFIG,
            sqlite_database,
            n_seeds=2,
            default=tmp_path,
            output=tmp_path / "best-test",
            again=True,
        )
    other = seeded(0, CONFIG.model_copy(update={"model": ClockNet(blocks=(Conv(filters=2),))}))
    assert planned(sqlite_database, tmp_path, config=other).output == tmp_path / "best-test-2"
    second = run(sqlite_database, planned(sqlite_database, tmp_path, again=True))
    assert second == first
    assert openings(sqlite_database)[:2] == rows and len(openings(sqlite_database)) == 4
    assert contents(tmp_path / "best-test") == files
    assert contents(tmp_path / "best-test-2").keys() == files.keys()


def test_an_interrupted_evaluation_ends_without_a_second_look(
    sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_test: Callable[..., Split] = data.load_test
    calls = 0

    def killed_at_the_second(of: object, opening: LedgerEntry) -> Split:
        nonlocal calls
        calls += 1
        if calls == 2:
            opening.record()
            raise KeyboardInterrupt
        return load_test(of, opening)

    with monkeypatch.context() as patch:
        patch.setattr(data, "load_test", killed_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            run(sqlite_database, planned(sqlite_database, tmp_path, n=3))
    one, opened = openings(sqlite_database)
    assert one.metrics and opened.metrics is None
    age(sqlite_database.files / "evaluations")
    assert find_orphans(sqlite_database) == [], "it can go on"
    values = run(sqlite_database, planned(sqlite_database, tmp_path, n=3))
    after: list[Opening] = list(openings(sqlite_database))
    assert after[:2] == [one, opened] and len(after) == 4
    seeds = fresh_seeds("tiny", "test", 3)
    assert [row.seed for row in after] == [seeds[0], seeds[1], seeds[1], seeds[2]]
    measured = [row.metrics["common_sense_error"] for row in after if row.metrics]
    assert values == measured and len(set(values)) == 3
    summary = json.loads((tmp_path / "best-test" / "evaluation.json").read_text())
    assert [one["test"]["common_sense_error"] for one in summary["seeds"]] == values
    with pytest.raises(UsageError, match="1 time before"):
        planned(sqlite_database, tmp_path, n=3)
    (finished,) = find_orphans(sqlite_database)
    assert "finished" in finished.why
    remove(sqlite_database, [finished])
    assert list((sqlite_database.files / "evaluations").iterdir()) == []


def age(folder: Path, seconds: float = 1_000.0) -> None:
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (path.stat().st_mtime - seconds,) * 2)


def keep_epochs(folder: Path, n: int) -> None:
    curve = tuple(Epoch(number, {"loss": 1.0}, 1.0, 1.0) for number in range(1, n + 1))
    weights = [np.zeros(3)]
    Checkpoint(folder, CONFIG.fingerprint()).save(State("float32", curve, weights, weights))


def test_a_cross_validation_is_swept_when_its_last_fold_is_trained(database: Database) -> None:
    root = database.files / "crossvalidations"
    for name, epochs in {
        "aaaaaaaaaaaa-3-folds": (5, 5, 5),
        "bbbbbbbbbbbb-3-folds": (5, 5, 4),
        "cccccccccccc-3-folds": (5, 5),
        "dddddddddddd-12-folds": (5, 5),
    }.items():
        for fold, n in enumerate(epochs, start=1):
            keep_epochs(root / name / str(fold), n)
    (root / "eeeeeeeeeeee-1-folds" / "1").mkdir(parents=True)
    assert find_orphans(database) == [], "it has ended a moment ago, if it has"
    age(root)
    (orphan,) = find_orphans(database)
    assert orphan.path == root / "aaaaaaaaaaaa-3-folds"


def test_an_earlier_version_s_evaluations_are_swept_when_they_are_tested_or_a_day_old(
    database: Database,
) -> None:
    root = database.files / "evaluations"
    tested, trained = seeded(0), seeded(1)
    for config in (tested, trained):
        keep_epochs(root / config.fingerprint(), 1)
    entry = LedgerEntry(database, tested)
    entry.record()
    age(root)
    assert find_orphans(database) == [], "it may still be running"
    entry.complete({"common_sense_error": 1.0})
    assert [orphan.path for orphan in find_orphans(database)] == [root / tested.fingerprint()]
    age(root, 86_400)
    assert len(find_orphans(database)) == 2
