"""A study with something of everything that a database may hold of one."""

from __future__ import annotations

from typing import Any

import optuna
import optuna_dashboard
from optuna.trial import TrialState

from dlnn_search.config import Config, Mlp, Mnist, Origin, Training
from dlnn_search.files import slot_path
from dlnn_search.storage.checkpoints import settle_checkpoint
from dlnn_search.storage.database import Database
from dlnn_search.storage.ledger import LedgerEntry
from dlnn_search.storage.slots import Slot, Slots
from dlnn_search.storage.studies import register
from dlnn_search.storage.trials import Point, add_points
from dlnn_search.storage.workers import add_event
from dlnn_search.study import Halving, Study
from dlnn_search.worker.optuna_study import begin_trial, open_optuna_study
from dlnn_search.worker.reports import tell
from dlnn_search.worker.verdict import Verdict

from .slot_life import give_trials, note_config


def space(trial: optuna.Trial) -> Config:
    rate = trial.suggest_float("rate", 1e-4, 1e-2, log=True)
    trial.suggest_int("units", 8, 64, step=8)
    trial.suggest_categorical("activation", ["relu", "tanh", None, True, 0.5])
    return Config(model=Mlp(), training=Training(learning_rate=rate))


def a_study(name: str = "some-study") -> Study:
    return Study(
        space=space,
        data=Mnist(n_training=256),
        maximize="accuracy",
        epochs=2,
        name=name,
        pruner=Halving(first_rung=1),
    )


def checkpoint(slot: int) -> bytes:
    return f"weights of slot {slot} ".encode() * 100


def fill(database: Database, name: str = "some-study") -> int:
    """Store a study of 8 slots: complete, pruned, failed, held, given back, and 3 fresh ones.

    Returns:
        Its id.
    """
    study = a_study(name)
    study_id = register(database, name, study.definition()).id
    trials = open_optuna_study(study, database)
    trials.set_user_attr("who", "somebody")
    slots = Slots(database, study_id)
    give_trials(slots, 8)
    outcomes: tuple[Any, ...] = ("complete", "pruned", "failed", None, "given back")
    for number, outcome in enumerate(outcomes):
        slot = slots.claim("w")
        assert slot is not None
        assert slot.number == number
        trial = begin_trial(trials, study, slot)
        slots.begin(slot, trial._trial_id, trial.number)
        note_config(database, slot, study.config(trial).model_dump(mode="json"))
        _train(database, slot, trial, name)
        if outcome in ("complete", "pruned", "failed"):
            value = None if outcome == "failed" else 0.5 + number / 10
            slots.settle(slot, outcome, value=value, best_epoch=2, reason="ü because")
            tell(trials, trial._trial_id, Verdict(outcome, value=value))
            slots.mark_told(slot.id)
            settle_checkpoint(database, slot.id, study.keep_checkpoints)
        if outcome == "given back":
            held = slot
    trials.enqueue_trial({"rate": 0.005})
    optuna_dashboard.save_note(trials, "of the study")
    optuna_dashboard.save_note(
        optuna.Trial(trials, trials.trials[1]._trial_id), "of trial 1\n" + "x" * 3000
    )
    add_event(database, study_id, "lost", "A worker was lost.", worker="w", slot_id=held.id)
    add_event(database, study_id, "paused", "Paused.")
    slots.release(held)
    origin = Origin(study=name, trial=0, metric="accuracy", value=0.5, dlnn_search_version="0.1.0")
    config = Config(data=Mnist(), model=Mlp()).model_copy(update={"origin": origin})
    entry = LedgerEntry(database, config)
    entry.record()
    entry.complete({"accuracy": 0.1 + 0.2})
    LedgerEntry(database, Config(data=Mnist(), model=Mlp())).record()
    return study_id


def _train(database: Database, slot: Slot, trial: optuna.Trial, name: str) -> None:
    folder = (database.files / slot_path(name, slot.number)).parent
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "last-3.npz").write_bytes(b"an earlier holder's")
    (folder / "last-12.npz").write_bytes(checkpoint(slot.number))
    for epoch in (1, 2):
        point = Point(epoch, {"loss": 1 / (3 + epoch), "accuracy": 0.1 * epoch}, 1.5, 1e4 / 3)
        assert add_points(database, slot.id, slot.fence, [point])
        trial.report(0.1 * epoch if slot.number else float("inf"), step=epoch)
    trial.set_user_attr("list", [1, {"a": None}])
    trial.storage.set_trial_system_attr(trial._trial_id, "completed_rung_0", 1 / 3)


def optuna_trials(database: Database, name: str) -> list[dict[str, Any]]:
    """Return all that Optuna knows of a study's trials, but their ids."""
    study = optuna.load_study(study_name=name, storage=database.optuna)
    assert study.metric_names == ["accuracy"]
    assert study.user_attrs["who"] == "somebody"
    return [
        {
            key: value
            for key, value in vars(trial).items()
            if key not in ("_trial_id", "_user_attrs", "_system_attrs")
        }
        | {"state": trial.state, "user": trial.user_attrs, "system": trial.system_attrs}
        for trial in study.trials
    ]


def notes(database: Database, name: str) -> list[str]:
    from optuna_dashboard._note import get_note_from_system_attrs

    storage = database.optuna
    study_id = storage.get_study_id_from_name(name)
    attributes = storage.get_study_system_attrs(study_id)
    trials = storage.get_all_trials(study_id)
    return [
        get_note_from_system_attrs(attributes, trial_id)["body"]
        for trial_id in (None, *(trial._trial_id for trial in trials))
    ]


STATES = [
    TrialState.COMPLETE,
    TrialState.PRUNED,
    TrialState.FAIL,
    TrialState.RUNNING,
    TrialState.RUNNING,
    TrialState.WAITING,
]
