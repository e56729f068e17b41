"""`crossvalidate`: a model a fold, from a file or a name, going on where it stopped."""

import json
from typing import Any

import pytest

from .command_line import Place, wait_for

USAGE = 2
CONFIG: dict[str, dict[str, Any]] = {
    "data": {
        "name": "clocks",
        "source": "rendered",
        "image_size": 32,
        "images_per_time": 2,
        "difficulty": 0,
        "azimuth_spread": 0.2,
    },
    "model": {"kind": "clock_net", "blocks": [{"kind": "conv", "filters": 2}, {"kind": "pool"}]},
    "training": {"epochs": 2, "batch_size": 64, "precision": "float32"},
}


def write_config(place: Place, epochs: int = 2, batch_size: int = 64) -> None:
    training = {**CONFIG["training"], "epochs": epochs, "batch_size": batch_size}
    (place.folder / "mine.json").write_text(json.dumps({**CONFIG, "training": training}))


def test_a_row_a_fold_mean_and_spread_and_json(place: Place) -> None:
    write_config(place)
    told = place.succeed("crossvalidate", "mine.json", "--folds", 2, "-o", "folds.json")
    assert "2-fold cross-validation on clocks" in told
    assert "±" in told and "2 folds" in told and "Wrote folds.json" in told
    summary = json.loads((place.folder / "folds.json").read_text())
    assert [(fold["fold"], fold["n_validation"]) for fold in summary["folds"]] == [
        (1, 576),
        (2, 576),
    ]
    errors = [fold["validation"]["common_sense_error"] for fold in summary["folds"]]
    assert summary["mean"]["common_sense_error"] == pytest.approx(sum(errors) / 2)
    spread = abs(errors[0] - errors[1]) / 2**0.5
    assert summary["standard_deviation"]["common_sense_error"] == pytest.approx(spread)
    # Neither a database nor a ledger: the test split stayed closed.
    assert not place.database.exists()
    again = place.run("crossvalidate", "mine.json", "--folds", 2, "-o", "again.json")
    assert "epoch" not in again.err  # all trained already
    assert json.loads((place.folder / "again.json").read_text()) == summary


def test_an_interrupted_cross_validation_goes_on(place: Place) -> None:
    write_config(place, epochs=12, batch_size=1)
    with place.begin("crossvalidate", "mine.json", "--folds", 2) as running:
        # The first is on the disk by then; an epoch is told before it is kept.
        wait_for("two epochs", lambda: "fold 1: epoch 2/12" in running.said())
        running.interrupt()
        assert running.wait() == 130
    write_config(place, epochs=12, batch_size=1)
    with place.begin("crossvalidate", "mine.json", "--folds", 2) as running:
        first = wait_for(
            "an epoch", lambda: [x for x in running.said().splitlines() if "fold" in x]
        )
        assert "fold 1: epoch 1/12" not in first[0]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["mnist_ml"], ["'mnist_ml'", "Did you mean 'mnist_mlp'?"]),
        (["nowhere.json"], ["'nowhere.json'", "dlnn-search export"]),
        (["mnist_mlp", "--folds", "1"], ["2 to 100 folds", "--folds 1"]),
        (["mnist_mlp", "-o", "nowhere/x.json"], ["no folder 'nowhere'"]),
    ],
)
def test_what_cannot_be_meant_is_told(place: Place, arguments: list[str], parts: list[str]) -> None:
    done = place.run("crossvalidate", *arguments)
    assert done.code == USAGE, done.both
    for part in parts:
        assert part in done.err
    assert not list(place.folder.iterdir())
