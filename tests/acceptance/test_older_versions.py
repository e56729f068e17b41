"""What an earlier version left in a folder works on: read, resumed, confirmed, backed up, tested.

The folder was left by the program of our tables' second version (`tests/fixtures`); the figures
here are what that program said of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dlnn_search import read_config

from .command_line import Place

FIXTURE = Path(__file__).parents[1] / "fixtures" / "version_2.tar.xz"
STUDY = ("--study", "shades.py")
EPOCHS, RUNG = 12, 4
#: In slots 7 and 9: what an interrupted worker, and one that was killed, left to go on from.
KEPT_EPOCHS = {7: 4, 9: 1}
#: By study: how many trials there are in each state, and the best.
FIGURES: dict[str, dict[str, Any]] = {
    "shades": {
        "trials": {"complete": 4, "pruned": 1, "failed": 2, "held": 1, "waiting": 1, "open": 1},
        "best": {"trial": 0, "value": 0.9444444444444444, "epoch": 10, "epochs": EPOCHS},
    },
    "shades-confirm": {
        "trials": {"complete": 4, "pruned": 0, "failed": 0, "held": 0, "waiting": 0, "open": 0},
        "best": {"trial": 0, "value": 0.875, "epoch": 11, "epochs": EPOCHS},
    },
    "task1-mnist-cnn-quick": {
        "trials": {"complete": 1, "pruned": 0, "failed": 0, "held": 0, "waiting": 0, "open": 1},
        "best": {"trial": 0, "value": 0.945, "epoch": 2, "epochs": 2},
    },
}
#: A backup holds nothing: whoever restores it goes on with what was held.
RESTORED = {
    **FIGURES,
    "shades": {
        **FIGURES["shades"],
        "trials": {**FIGURES["shades"]["trials"], "held": 0, "open": 2},
    },
}
#: Outcome, value, best epoch and parameters of the trials of `shades` that had ended.
TRIALS: list[tuple[str, float | None, int | None, dict[str, float]]] = [
    ("complete", 0.9444444444444444, 10, {"units": 8, "learning_rate": 0.03}),
    ("complete", 0.75, 12, {"units": 6, "learning_rate": 0.03}),
    ("complete", 0.9444444444444444, 10, {"units": 8, "learning_rate": 0.03}),
    ("failed", None, None, {"units": 4}),
    ("complete", 0.20833333333333334, 1, {"units": 4, "learning_rate": 1e-05}),
    ("pruned", 0.20833333333333334, 1, {"units": 7}),
    ("failed", None, None, {"units": 5}),
]
FINGERPRINTS = {
    "shades.json": "45bfe856768d",
    "shades-2.json": "01ee1c808712",
    "digits.json": "b6d3e2daa2b0",
}


@pytest.fixture
def older(tmp_path: Path, environment: dict[str, str]) -> Place:
    """The folder, moved to another place, with its tables brought up to this version."""
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(tmp_path, filter="data")
    cache = {"DLNN_SEARCH_CACHE": str(tmp_path / "cache")}
    place = Place(tmp_path / "work", {**environment, **cache})
    place.succeed("storage", "upgrade")
    return place


def figures(place: Place, *storage: str) -> dict[str, dict[str, Any]]:
    found = json.loads(place.succeed("status", "--json", *storage))
    best = ("trial", "value", "epoch", "epochs")
    return {
        one["study"]: {
            "trials": one["trials"],
            "best": one["best"] and {key: one["best"][key] for key in best},
        }
        for one in found
    }


def curve(place: Place, slot: int) -> list[tuple[Any, ...]]:
    """Return the epochs of a slot of `shades`: what they took tells which were trained anew."""
    return place.rows(
        "SELECT c.epoch, c.seconds, c.metrics FROM dlnn_curves c JOIN dlnn_slots s "
        "ON s.id = c.slot_id JOIN dlnn_studies t ON t.id = s.study_id "
        "WHERE t.name = 'shades' AND s.number = ? ORDER BY c.epoch",
        slot,
    )


def pictures(place: Place) -> list[tuple[str, int, int]]:
    """Return the prepared files, in a way that tells one that was written again."""
    prepared = Path(place.environment["DLNN_SEARCH_CACHE"], "prepared")
    found = [(path, path.stat()) for path in sorted(prepared.rglob("pictures.npy"))]
    return [(path.parent.name, stat.st_ino, stat.st_mtime_ns) for path, stat in found]


def assert_checkpoints_are_proved(place: Place) -> None:
    kept = place.rows("SELECT path, sha256 FROM dlnn_artifacts")
    assert kept
    for path, sha256 in kept:
        assert hashlib.sha256((place.data / path).read_bytes()).hexdigest() == sha256, path


def test_its_studies_have_the_figures_that_they_had(older: Place) -> None:
    assert figures(older) == FIGURES
    columns = "s.outcome, s.value, s.best_epoch"
    rows = older.rows(
        f"SELECT {columns} FROM dlnn_slots s JOIN dlnn_studies t ON t.id = s.study_id "
        "WHERE t.name = 'shades' AND s.state = 'done' ORDER BY s.number"
    )
    assert rows == [trial[:3] for trial in TRIALS]
    told = older.succeed("trials", "shades").splitlines()
    for number, (outcome, value, _, params) in enumerate(TRIALS):
        (line,) = [n for n, text in enumerate(told) if text.split()[:2] == [str(number), outcome]]
        assert value is None or f" {value:.4f}, epoch" in told[line]
        shown = next(text for text in told[line:] if "units=" in text).split()
        assert {f"{name}={given:.4g}" for name, given in params.items()} <= set(shown)
    best = older.succeed("best", "shades")
    assert "trial 0, accuracy 0.9444 on validation, epoch 10 of 12" in best
    assert "units            8" in best
    ledger = older.succeed("ledger").splitlines()[1:]
    assert [line.split()[4] for line in ledger] == ["45bfe856768d", "c3ebed6133c9"]
    assert ["accuracy 0.9583" in ledger[0], "accuracy 0.9167" in ledger[1]] == [True, True]


def test_its_best_configs_are_exported_as_before(older: Place) -> None:
    older.succeed("export", "shades", "--top", 2, "-o", "again.json", *STUDY)
    older.succeed("export", "task1-mnist-cnn-quick", "-o", "digits-again.json")
    for file, fingerprint in FINGERPRINTS.items():
        assert read_config(older.folder / file).fingerprint() == fingerprint
    pairs = [("shades", "again"), ("shades-2", "again-2"), ("digits", "digits-again")]
    for before, after in pairs:
        config = read_config(older.folder / f"{before}.json")
        assert read_config(older.folder / f"{after}.json") == config


def test_its_search_goes_on_from_its_checkpoints_to_a_larger_budget(older: Place) -> None:
    before = {slot: curve(older, slot) for slot in range(10)}
    assert {slot: len(before[slot]) for slot in KEPT_EPOCHS} == KEPT_EPOCHS
    prepared = pictures(older)
    older.succeed("start", "shades.py", "--workers", 1, "--trials", 11)
    assert figures(older)["shades"]["trials"]["held"] == 0
    rows = older.rows(
        "SELECT s.outcome, s.value, s.best_epoch, s.trial_number, s.told FROM dlnn_slots s "
        "JOIN dlnn_studies t ON t.id = s.study_id WHERE t.name = 'shades' ORDER BY s.number"
    )
    assert [row[:3] for row in rows[:7]] == [trial[:3] for trial in TRIALS]
    assert [row[3:] for row in rows] == [(number, 1) for number in range(11)]
    for slot, n_epochs in KEPT_EPOCHS.items():
        epochs = curve(older, slot)
        assert epochs[:n_epochs] == before[slot]
        assert [epoch for epoch, *_ in epochs] == list(range(1, len(epochs) + 1))
        assert len(epochs) >= {"complete": EPOCHS, "pruned": RUNG}[rows[slot][0]]
    assert rows[8][:3] == rows[7][:3]  # it waited for the trial of the same config
    assert curve(older, 8) == curve(older, 7)
    assert pictures(older) == prepared
    assert_checkpoints_are_proved(older)


@pytest.mark.skipif("DLNN_SEARCH_DATA" not in os.environ, reason="needs MNIST in DLNN_SEARCH_DATA")
def test_its_search_of_a_built_in_study_goes_on(older: Place) -> None:
    data = {"DLNN_SEARCH_DATA": os.environ["DLNN_SEARCH_DATA"]}
    place = replace(older, environment={**older.environment, **data})
    query = "SELECT * FROM dlnn_curves WHERE slot_id = (SELECT MAX(slot_id) FROM dlnn_curves c "
    query += "JOIN dlnn_slots s ON s.id = c.slot_id JOIN dlnn_studies t ON t.id = s.study_id "
    query += "WHERE t.name = 'task1-mnist-cnn-quick') ORDER BY epoch"
    before = place.rows(query)
    place.succeed("start", "task1-mnist-cnn", "--quick", "--workers", 1)
    found = figures(place)["task1-mnist-cnn-quick"]
    assert found["trials"] == {
        "complete": 2,
        "pruned": 0,
        "failed": 0,
        "held": 0,
        "waiting": 0,
        "open": 0,
    }
    assert found["best"]["value"] > 0.9
    after = place.rows(query)
    assert (len(before), len(after)) == (1, 2)
    assert after[0] == before[0]
    assert_checkpoints_are_proved(place)


def test_its_confirmation_goes_on_with_more_seeds(older: Place) -> None:
    def trained() -> list[tuple[Any, ...]]:
        return older.rows(
            "SELECT s.value, s.config FROM dlnn_slots s JOIN dlnn_studies t ON t.id = s.study_id "
            "WHERE t.name = 'shades-confirm' ORDER BY s.number"
        )

    before = trained()
    told = older.succeed("confirm", "shades", "--top", 2, "--seeds", 3, *STUDY)
    assert "0.8750" in told
    after = trained()
    assert after[:4] == before
    seeds = [json.loads(config)["training"]["seed"] for _, config in after]
    assert len(after) == 6 and len({*seeds}) == 3
    assert all(value is not None for value, _ in after)


def test_its_studies_are_backed_up_and_restored(older: Place, address: str) -> None:
    older.succeed("storage", "backup", "--all", "-o", "again.zip")
    older.succeed("storage", "restore", "again.zip", "--storage", address)
    assert figures(older, "--storage", address) == RESTORED


def test_its_backup_is_restored_and_searched_on(older: Place, address: str) -> None:
    older.succeed("storage", "restore", "backup.zip", "--storage", address)
    assert figures(older, "--storage", address) == RESTORED
    older.succeed("start", "shades.py", "--workers", 1, "--storage", address)
    found = json.loads(older.succeed("status", "shades", "--json", "--storage", address))
    n_trials = found["trials"]
    assert n_trials["complete"] + n_trials["pruned"] == 8
    assert (n_trials["failed"], n_trials["held"], n_trials["open"]) == (2, 0, 0)
    events = [event["words"] for event in found["events"]]
    assert not [words for words in events if "starts over" in words or "goes back" in words]
    assert any(words.startswith("Trial 8: It has the result of trial 7") for words in events)


def test_its_exported_config_is_evaluated_on_record(older: Place) -> None:
    prepared = pictures(older)
    rows = "SELECT opened_at, config, seed, metrics FROM dlnn_ledger ORDER BY id"
    before = older.rows(rows)
    older.succeed("evaluate", "shades-2.json", "--seeds", 1, "-o", "tested", *STUDY)
    after = older.rows(rows)
    assert after[:2] == before and len(after) == 3
    assert pictures(older) == prepared
    summary = json.loads((older.folder / "tested" / "evaluation.json").read_text())
    assert summary["fingerprint"] == FINGERPRINTS["shades-2.json"]


def test_its_exported_model_predicts(older: Place) -> None:
    assert older.succeed("predict", "digits.keras", "one.png").split() == ["one.png:", "1"]
