"""Notes in optuna-dashboard: on a study's first trials, later on what stands out."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna_dashboard import get_note

from dlnn_search.storage.database import Database
from dlnn_search.storage.trials import Point, add_points
from dlnn_search.worker import reports as module
from dlnn_search.worker.reports import write_note
from dlnn_search.worker.verdict import Verdict

from .trials_of_a_study import Searched, study_of


@pytest.fixture
def searched(database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Searched:
    monkeypatch.setenv("DLNN_SEARCH_FILES", str(tmp_path))
    monkeypatch.setattr(module, "MAX_NOTED", 2)
    return Searched.open(database, study_of(), n_slots=9)


def noted(searched: Searched, verdict: Verdict) -> str:
    """Let a trial end, and return its note."""
    held = searched.begin()
    trial, slot = held.trial, held.slot
    add_points(searched.database, slot.id, slot.fence, [Point(1, {"loss": 0.5}, 0.1, 1e3)])
    assert verdict.outcome is not None
    searched.slots.settle(slot, verdict.outcome, value=verdict.value, failure=verdict.failure)
    write_note(trial, slot.id, verdict, searched.database, "loss")
    return str(get_note(trial))


def test_later_trials_have_a_note_where_they_stand_out(searched: Searched) -> None:
    first = noted(searched, Verdict("complete", value=0.5, best_epoch=1))
    assert "**Complete**: loss 0.5" in first and "| 1 | 0.5 |" in first
    assert noted(searched, Verdict("pruned", value=0.9, best_epoch=1))
    assert noted(searched, Verdict("complete", value=0.6, best_epoch=1)) == "", "nothing special"
    assert "loss 0.4" in noted(searched, Verdict("complete", value=0.4, best_epoch=1)), "the best"
    assert noted(searched, Verdict("complete", value=0.45, best_epoch=1)) == ""
    failed = noted(searched, Verdict("failed", reason="Diverged in epoch 2.", failure="diverged"))
    assert "**Failed**: diverged" in failed and "Diverged in epoch 2." in failed
