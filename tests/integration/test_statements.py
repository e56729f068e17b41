"""What a trial costs in the database, counted beside plain Optuna's on the same one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_trial_takes_fewer_transactions_and_statements_than_plain_optuna_s() -> None:
    counting = [sys.executable, "benchmarks/statements.py", "--before", "150", "--trials", "5"]
    done = subprocess.run(counting, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    line = r"(\w+), (\w+): ([\d.]+) statements in ([\d.]+) transactions a trial"
    found = {
        (kind, side): (float(statements), float(transactions))
        for kind, side, statements, transactions in re.findall(line, done.stdout)
    }
    for kind in ("sqlite", "postgresql"):
        plain, ours = found[kind, "plain"], found[kind, "ours"]
        assert plain == (77, 25), "plain Optuna has changed: measure again"
        assert ours[0] < plain[0] and ours[1] <= 5
