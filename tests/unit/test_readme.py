"""README.md and docs/reference.md, held against the product."""

from __future__ import annotations

import re
from pathlib import Path

import optuna

from dlnn_search.errors import ExitCode
from dlnn_search.study.finding import load_study

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")


def test_the_readme_has_at_most_150_lines() -> None:
    assert len(README.splitlines()) <= 150


def test_the_study_in_the_readme_has_ten_lines_and_makes_configs(tmp_path: Path) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)
    assert len([line for line in code.splitlines() if line]) <= 10
    (tmp_path / "my_digits.py").write_text(code, encoding="utf-8")
    study = load_study(str(tmp_path / "my_digits.py"))
    config = study.config(optuna.create_study().ask())
    assert config.training.epochs == study.epochs == 10


def test_the_reference_lists_every_exit_code_and_no_other() -> None:
    table = REFERENCE.split("| code | meaning |")[1].split("\n\n")[0]
    listed = re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE)
    assert listed == [str(code.value) for code in sorted(ExitCode)]


def test_the_reference_lists_every_environment_variable_and_no_other() -> None:
    code = "".join(path.read_text("utf-8") for path in (ROOT / "dlnn_search").rglob("*.py"))
    named = set(re.findall(r'"(DLNN_SEARCH_[A-Z_]+[A-Z])"', code))
    table = REFERENCE.split("| variable | meaning |")[1].split("\n\n")[0]
    listed = set(re.findall(r"^\| `(DLNN_SEARCH_\w+)` \|", table, flags=re.MULTILINE))
    service = (ROOT / "docs" / "service.md").read_text(encoding="utf-8")
    given = set(
        re.findall(
            r"`(DLNN_SEARCH_\w+)`", service.split("| variable | value |")[1].split("\n\n")[0]
        )
    )
    # The last one is between two processes of a start.
    assert listed | given == named - {"DLNN_SEARCH_ON_END"}
    assert listed & given == {"DLNN_SEARCH_STORAGE"}
