"""From the list of studies to the ledger, as the README tells it."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dlnn_search import data
from dlnn_search.config import Config
from dlnn_search.config.training import fresh_seeds
from dlnn_search.metrics import common_sense_error

from .command_line import N_TEST_IMAGES, Place

LOAD = """
import os, sys
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras, numpy as np
for path in sys.argv[1:]:
    model = keras.models.load_model(path)
    outputs = model.predict(np.zeros((3, *model.input_shape[1:]), "uint8"), verbose=0)
    print(sorted((name, output.shape) for name, output in outputs.items()))
"""


def test_studies_lists_what_comes_with_it_before_there_is_a_database(place: Place) -> None:
    listed = place.succeed("studies")
    for name in ("task1-mnist-mlp", "task1-fashion-cnn", "task3-clock"):
        assert name in listed
    assert not list(place.folder.iterdir())


def test_a_search_settles_exactly_its_budget(searched: Place) -> None:
    searched.assert_complete(n_trials=4, epochs=2)
    assert set(searched.trial_states()) == {"COMPLETE"}
    assert len(searched.checkpoints()) == 3  # of the best


def test_trials_lists_each_trial_with_its_parameters(searched: Place) -> None:
    listed = searched.succeed("trials", "tiny")
    assert listed.count("complete") == 4
    assert listed.count("learning_rate=") == 4
    assert listed.count(" of 2, ") == 4
    assert all(line == line.rstrip() for line in listed.splitlines())


def test_best_shows_the_lowest_value_and_how_to_go_on(searched: Place) -> None:
    shown = searched.succeed("best", "tiny")
    ((value, number),) = searched.rows(
        "SELECT value, trial_number FROM dlnn_slots ORDER BY value, trial_number LIMIT 1"
    )
    assert f"trial {number}, common sense error {value:.2f} min on validation" in shown
    assert "dlnn-search confirm tiny\n  dlnn-search export tiny -o best.json" in shown


def test_studies_tells_what_was_searched_here(searched: Place, tmp_path: Path) -> None:
    place = searched.copy_to(tmp_path / "copy")
    place.execute("UPDATE dlnn_studies SET name = 'task3-clock-quick'")
    ((value,),) = place.rows("SELECT min(value) FROM dlnn_slots")
    words = f"searched here: quick: 4/4 trials, best {value:.2f} min"
    assert place.succeed("studies").count(words) == 1


def test_start_of_a_finished_search_says_so_and_adds_nothing(
    searched: Place, tmp_path: Path
) -> None:
    place = searched.copy_to(tmp_path / "again")
    said = place.succeed("start", "tiny.py", "--workers", 2, "--trials", 4)
    assert "All 4 trials of tiny are done: 4 complete, 0 pruned, 0 failed." in said
    assert "worker" not in said.split("All 4 trials")[0]  # none was started
    place.assert_complete(n_trials=4, epochs=2)


def test_a_larger_budget_adds_exactly_the_difference(searched: Place, tmp_path: Path) -> None:
    place = searched.copy_to(tmp_path / "more")
    before = place.rows("SELECT number, value, trial_id FROM dlnn_slots ORDER BY number")
    place.succeed("start", "tiny.py", "--workers", 2, "--trials", 6)
    place.assert_complete(n_trials=6, epochs=2)
    after = place.rows("SELECT number, value, trial_id FROM dlnn_slots ORDER BY number")
    assert after[:4] == before


@pytest.fixture(scope="module")
def evaluated(searched: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The best two configs exported, and a copy of the best one tested with two seeds."""
    place = searched.copy_to(tmp_path_factory.mktemp("evaluated") / "work")
    assert place.succeed("ledger") == "No test split was opened yet.\n"
    said = place.succeed("export", "tiny", "--top", 2, "-o", "best.json")
    assert "Wrote best.json\nWrote best-2.json\n" in said
    elsewhere = place.folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "copied.json").write_text((place.folder / "best.json").read_text())
    (place.folder / "evaluation.txt").write_text(
        place.succeed("evaluate", "elsewhere/copied.json", "--seeds", 2)
    )
    return place


def seeds_tested(evaluated: Place) -> list[int]:
    text = (evaluated.folder / "elsewhere/copied-test/evaluation.json").read_text()
    return [one["seed"] for one in json.loads(text)["seeds"]]


def test_an_exported_config_round_trips_and_names_its_origin(evaluated: Place) -> None:
    values = []
    for name in ("best.json", "best-2.json"):
        text = (evaluated.folder / name).read_text()
        config = Config.model_validate_json(text)
        assert config.to_json() == text
        assert Config.model_validate_json(config.to_json()) == config
        assert config.origin is not None and config.origin.study == "tiny"
        values.append(config.origin.value)
    ((first,), (second,)) = evaluated.rows("SELECT value FROM dlnn_slots ORDER BY value LIMIT 2")
    assert values == [first, second]
    assert not [path.name for path in evaluated.folder.iterdir() if path.name.startswith(".")]


def test_an_evaluation_leaves_models_that_keras_loads(evaluated: Place) -> None:
    folder = evaluated.folder / "elsewhere" / "copied-test"
    models = [folder / f"model-seed{seed}.keras" for seed in seeds_tested(evaluated)]
    done = subprocess.run(
        [evaluated.python, "-c", LOAD, *map(str, models)],
        env=evaluated.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[('hour', (3, 12)), ('minute', (3, 60))]"] * 2


def test_an_evaluation_leaves_a_prediction_for_each_test_image(evaluated: Place) -> None:
    for seed in seeds_tested(evaluated):
        path = evaluated.folder / f"elsewhere/copied-test/predictions-seed{seed}.csv"
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == N_TEST_IMAGES
        assert [int(row["image"]) for row in rows] == list(range(N_TEST_IMAGES))
        for row in rows:
            hour, minute = map(int, row["predicted"].split(":"))
            assert 0 <= hour < 12 and 0 <= minute < 60


def test_an_evaluation_leaves_a_picture_of_the_worst_clocks(evaluated: Place) -> None:
    for seed in seeds_tested(evaluated):
        path = evaluated.folder / f"elsewhere/copied-test/worst-seed{seed}.png"
        with Image.open(path) as picture:
            picture.load()
            assert picture.format == "PNG" and min(picture.size) > 500


def test_an_evaluation_is_told_and_summed_up(evaluated: Place) -> None:
    path = evaluated.folder / "elsewhere/copied-test/evaluation.json"
    summary = json.loads(path.read_text())
    errors = [seed["test"]["common_sense_error"] for seed in summary["seeds"]]
    assert seeds_tested(evaluated) == fresh_seeds("tiny", "test", 2)
    assert errors[0] != errors[1]
    assert Config.model_validate(summary["config"]).fingerprint() == summary["fingerprint"]
    said = (evaluated.folder / "evaluation.txt").read_text()
    assert f"common sense error: {sum(errors) / 2:.2f} ± " in said
    assert "The ledger now holds 2 openings of the test split of clocks" in said


def test_the_ledger_holds_a_completed_row_a_seed(evaluated: Place) -> None:
    rows = evaluated.rows("SELECT data, study, seed, closed_at, metrics FROM dlnn_ledger")
    seeds = seeds_tested(evaluated)
    assert [row[:3] for row in rows] == [("clocks", "tiny", seed) for seed in seeds]
    assert all(closed and metrics for _, _, _, closed, metrics in rows)
    shown = evaluated.succeed("ledger")
    assert shown.count("clocks") == 2 and "not completed" not in shown


def test_a_tested_config_is_tested_again_only_if_that_is_asked_for(evaluated: Place) -> None:
    (evaluated.folder / "renamed.json").write_text((evaluated.folder / "best.json").read_text())
    refused = evaluated.run("evaluate", "renamed.json", "--seeds", 1)
    assert refused.code == 2 and "1 time before" in refused.err and "--again" in refused.err
    assert not (evaluated.folder / "renamed-test").exists()
    assert evaluated.rows("SELECT count(*) FROM dlnn_ledger") == [(2,)]


PLAIN = """
import sys
sys.modules["dlnn_search"] = None  # any import of it fails
import keras, numpy as np
outputs = keras.models.load_model(sys.argv[1]).predict(np.load(sys.argv[2]), verbose=0)
np.savez(sys.argv[3], **outputs)
"""


def read_plainly(place: Place, model: Path, images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the minutes that plain Keras reads in pictures, in a process of its own."""
    given, found = place.folder / "images.npy", place.folder / "outputs.npz"
    np.save(given, images)
    done = subprocess.run(
        [place.python, "-c", PLAIN, model, given, found],
        env={**place.environment, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with np.load(found) as outputs:
        minutes = 60 * outputs["hour"].argmax(axis=1) + outputs["minute"].argmax(axis=1)
    return np.asarray(minutes, np.int64)


def test_the_best_model_is_exported_as_it_was_validated(
    searched: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = searched.copy_to(tmp_path / "copy")
    said = place.succeed("export", "tiny", "--model", "best.keras")
    assert "Wrote best.json\nWrote best.keras\nThe weights of trial " in said
    assert "keras.models.load_model('best.keras') opens it" in said
    assert not [path for path in place.folder.iterdir() if path.name.startswith(".")]
    config = Config.model_validate_json((place.folder / "best.json").read_text())
    assert config.origin is not None and f"best epoch, {config.origin.epoch}" in said
    monkeypatch.setenv("DLNN_SEARCH_CACHE", place.environment["DLNN_SEARCH_CACHE"])
    validation = data.load(config.data).validation
    images = validation.batch(slice(None))
    minutes = read_plainly(place, place.folder / "best.keras", images)
    hours, rest = validation.labels.T.astype(np.int64)
    error = common_sense_error(60 * hours + rest, minutes).mean()
    assert error == pytest.approx(config.origin.value, abs=1e-6)
    for number, image in enumerate(images[:4]):
        Image.fromarray(image[..., 0]).save(place.folder / f"{number}.png")
    read = place.succeed("predict", "best.keras", *(f"{number}.png" for number in range(4)))
    expected = [f"{n}.png: {m // 60:02d}:{m % 60:02d}" for n, m in enumerate(minutes[:4])]
    assert read.splitlines() == expected


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("UPDATE dlnn_artifacts SET place = '0'", "is not in this files folder"),
        ("UPDATE dlnn_artifacts SET sha256 = '0'", "is damaged: expected the SHA-256 0"),
        ("DELETE FROM dlnn_artifacts", "was kept: expected it among the study's best ones"),
        (None, "is gone: expected '"),
    ],
)
def test_a_model_whose_checkpoint_is_not_here_is_refused_and_nothing_is_written(
    searched: Place, tmp_path: Path, harm: str | None, words: str
) -> None:
    place = searched.copy_to(tmp_path / "copy")
    if harm is not None:
        place.execute(harm)
    else:
        for path in place.checkpoints():
            path.unlink()
    refused = place.run("export", "tiny", "-o", "mine.json", "--model", "best.keras")
    assert refused.code == 5, refused.both
    assert words in refused.err and "and 'dlnn-search evaluate best.json'" in refused.err
    written = {"best.keras", "best.json", "mine.json"}
    assert not written & {path.name for path in place.folder.iterdir()}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "Expected something to write"),
        (["--model", "best.h5"], "ends in .keras for --model, got 'best.h5'"),
        (["--model", "nowhere/best.keras"], "There is no folder 'nowhere'"),
        (["--top", 0, "-o", "best.json"], "at least 1 config"),
    ],
)
def test_an_export_that_cannot_be_meant_is_refused(
    searched: Place, options: list[object], words: str
) -> None:
    refused = searched.run("export", "tiny", *options)
    assert refused.code == 2 and words in refused.err


def test_a_search_opens_no_test_split(searched: Place) -> None:
    assert searched.rows("SELECT * FROM dlnn_ledger") == []
