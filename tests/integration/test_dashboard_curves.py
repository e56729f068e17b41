"""The learning curves of a study's page, on every database."""

from __future__ import annotations

from typing import Any

import optuna
from werkzeug.test import Client

from dlnn_search.dashboard import _application, _remembering
from dlnn_search.report.figures import learning_curves
from dlnn_search.results.status import shown_curves
from dlnn_search.storage.database import Database
from dlnn_search.storage.slots import Slots
from dlnn_search.storage.studies import register
from dlnn_search.storage.trials import Point, add_points, trials_of

from .slot_life import DEFINITION, claimed, give_trials, set_slot


def test_importances_of_a_study_without_parameters_are_none_and_no_error(
    database: Database,
) -> None:
    given = optuna.create_study(study_name="given", storage=database.optuna)
    searched = optuna.create_study(study_name="searched", storage=database.optuna)
    for number in range(4):
        given.add_trial(optuna.create_trial(value=float(number)))
        searched.enqueue_trial({"x": number / 4})
    searched.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=4)
    client = Client(_application(_remembering(database)))

    def importances(study_id: int) -> Any:
        answer = client.get(f"/api/studies/{study_id}/param_importances")
        assert answer.status_code == 200
        return answer.get_json()["param_importances"]

    assert importances(given._study_id) == [[]]
    assert [one["name"] for one in importances(searched._study_id)[0]] == ["x"]
    assert client.get("/api/studies/999/param_importances").status_code == 404


def test_of_equal_trials_the_first_is_the_best_and_a_failed_one_never(database: Database) -> None:
    study = register(database, "some-study", DEFINITION)
    slots = Slots(database, study.id)
    give_trials(slots, 4)
    outcomes: list[tuple[str, float | None]] = [
        ("failed", None),
        ("complete", 0.9),
        ("complete", 0.9),
        ("complete", 0.8),
    ]
    for number, (outcome, value) in enumerate(outcomes):
        slot = claimed(slots)
        point = Point(1, {"accuracy": 0.5}, 1.0, 1e3)
        assert add_points(database, slot.id, slot.fence, [point], place="0" * 32, epochs=1)
        set_slot(database, slot, trial_number=number, state="done", outcome=outcome, value=value)
    figure = learning_curves(study, shown_curves(database, study))
    assert [line.name for line in figure.data] == [
        "trial 0, failed",
        "trial 1, best",
        "trial 2",
        "trial 3",
    ]


def test_trials_are_read_by_number_the_latest_or_the_best_first(database: Database) -> None:
    study = register(database, "some-study", DEFINITION)
    slots = Slots(database, study.id)
    give_trials(slots, 5)
    rows: list[dict[str, Any]] = [
        {"state": "done", "outcome": "complete", "value": 0.8},
        {"state": "done", "outcome": "failed", "failure": "diverged", "reason": "NaN"},
        {"state": "done", "outcome": "complete", "value": 0.9},
        {"state": "waiting", "waiting_reason": "duplicate"},
    ]
    for number, row in enumerate(rows):
        slot = claimed(slots)
        points = [Point(epoch, {"accuracy": 0.5}, 2.0, 1e3) for epoch in range(1, number + 1)]
        assert add_points(database, slot.id, slot.fence, points)
        set_slot(database, slot, trial_number=number, **row)
    given = claimed(slots)
    set_slot(database, given, config={"training": {"seed": 3}}, state="open")

    def numbers(**which: Any) -> list[int]:
        return [trial.number for trial in trials_of(database, study, **which)]

    assert numbers() == [0, 1, 2, 3]
    assert numbers(order="latest", limit=2) == [3, 2]
    assert numbers(order="best") == [3, 2, 0, 1], "unsettled first, without a value last"
    assert numbers(outcome="complete", order="best", limit=1) == [2]
    assert numbers(number=1) == numbers(failure="diverged") == [1]
    assert numbers(begun=False) == [-1], "the one with a config"
    first, failed, best, waiting = trials_of(database, study)
    assert (first.epochs_done, best.epochs_done, best.seconds) == (0, 2, 4.0)
    assert (failed.outcome, failed.reason, failed.is_settled) == ("failed", "NaN", True)
    assert (waiting.outcome, waiting.is_settled) == ("waiting", False)
    assert waiting.reason is not None and "another trial" in waiting.reason
