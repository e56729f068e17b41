"""The studies that studies/README.md shows, run as they are written there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "studies" / "README.md"
TIMEOUT_SECONDS = 300


def studies_shown() -> list[str]:
    """Return each block of Python that defines a study."""
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.M | re.S)
    return [block for block in blocks if re.search(r"^study = ", block, re.M)]


def run(folder: Path, *arguments: str, code: int = 0) -> str:
    """Run a command in the folder and return what it printed."""
    inherited = {name: value for name, value in os.environ.items() if name != "DLNN_SEARCH_STORAGE"}
    done = subprocess.run(
        [sys.executable, "-m", "dlnn_search", *arguments],
        cwd=folder,
        env={**inherited, "DLNN_SEARCH_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_page_shows_a_study_of_a_built_in_set_and_one_of_own_code() -> None:
    first, own = studies_shown()
    assert "Mnist()" in first
    assert "load=load" in own and "build=build" in own


@pytest.mark.skipif(
    "DLNN_SEARCH_DATA" not in os.environ, reason="needs MNIST: set DLNN_SEARCH_DATA"
)
def test_the_first_study_runs_as_written(tmp_path: Path) -> None:
    (tmp_path / "my_digits.py").write_text(studies_shown()[0], encoding="utf-8")
    said = run(tmp_path, "start", "./my_digits.py", "--workers", "1", "--trials", "1")
    assert "All 1 trials of my-digits are done: 1 complete" in said


def test_the_study_of_own_code_runs_as_written_from_validation_to_the_test(tmp_path: Path) -> None:
    file = tmp_path / "my_shapes.py"
    file.write_text(studies_shown()[1], encoding="utf-8")
    assert "configs work" in run(tmp_path, "validate", "./my_shapes.py")
    said = run(tmp_path, "start", "./my_shapes.py", "--workers", "1", "--trials", "2")
    assert "All 2 trials of my-shapes are done: 2 complete" in said
    assert "dlnn-search evaluate best.json\n" in said
    said = run(tmp_path, "export", "my-shapes", "-o", "best.json")
    assert "dlnn-search evaluate best.json\n" in said
    exported = (tmp_path / "best.json").read_text(encoding="utf-8")
    assert ".py" not in exported and str(tmp_path) not in exported
    assert json.loads(exported)["model"]["study"] == "my-shapes"

    # The file that the search was started from is asked for only where it is gone.
    (tmp_path / "moved").mkdir()
    moved = file.rename(tmp_path / "moved" / file.name)
    assert "evaluate best.json --study FILE\n" in run(
        tmp_path, "export", "my-shapes", "-o", "best.json"
    )
    said = run(tmp_path, "evaluate", "best.json", "--seeds", "1", code=2)
    assert "needs the own code of the study 'my-shapes'" in said
    moved.rename(file)
    said = run(tmp_path, "evaluate", "best.json", "--seeds", "1")
    assert "Test of my-shapes" in said and "1 opening of the test split" in said
    tested = json.loads((tmp_path / "best-test" / "evaluation.json").read_text(encoding="utf-8"))
    assert tested["seeds"][0]["test"]["accuracy"] > 0.5  # chance is 0.33
    (predictions,) = (tmp_path / "best-test").glob("predictions-seed*.csv")
    assert len(predictions.read_text().split()) == 1 + 120
    assert list((tmp_path / "best-test").glob("*.keras"))
    # Loaded once, for all of these commands.
    assert len(list((tmp_path / "cache" / "prepared").iterdir())) == 1

    file.write_text(file.read_text(encoding="utf-8").replace("<= 25", "<= 24"), encoding="utf-8")
    said = run(tmp_path, "evaluate", "best.json", "--study", "./my_shapes.py", code=3)
    assert "another version of the code of 'my-shapes'" in said
