"""Errors and exit codes, as users read of them."""

from __future__ import annotations

import re
from pathlib import Path

from dlnn_search.errors import ExitCode

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_lists_every_exit_code_and_no_other() -> None:
    table = README.read_text(encoding="utf-8").split("| exit code | meaning |")[1]
    listed = re.findall(r"^\| (\d+) \|", table.split("\n\n")[0], flags=re.MULTILINE)
    assert listed == [str(code.value) for code in sorted(ExitCode)]
