"""Study files: a user's own and the product's, or why one cannot be read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlnn_search.errors import StudyError, UsageError
from dlnn_search.study.finding import MAX_STUDY_BYTES, built_in_studies, load_study
from dlnn_search.worker.first_trials import example_config

GOOD = '''\
"""A study of mine.
Its first paragraph goes on.

Its second is left out.
"""

from dlnn_search import Config, Mlp, Mnist, Quick, Study, Training


def space(trial):
    rate = trial.suggest_float("rate", 1e-4, 1e-2)
    return Config(model=Mlp(), training=Training(learning_rate=rate))


study = Study(space=space, data=Mnist(), maximize="accuracy", quick=Quick(trials=2))
'''


@pytest.fixture(autouse=True)
def no_modules_left() -> Iterator[None]:
    yield
    for name in [name for name in sys.modules if name.startswith("dlnn_search_study_")]:
        del sys.modules[name]


def written(folder: Path, content: str | bytes, name: str = "my_study.py") -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def refused(name_or_file: str) -> str:
    with pytest.raises(StudyError) as caught:
        load_study(name_or_file)
    return str(caught.value)


def test_a_study_is_named_after_its_file_and_summed_up_by_its_docstring(tmp_path: Path) -> None:
    study = load_study(written(tmp_path, GOOD))
    assert study.name == "my-study"
    assert study.summary == "A study of mine. Its first paragraph goes on."
    assert load_study(str(tmp_path / "my_study.py"), quick=True).name == "my-study-quick"


def test_a_study_may_do_without_a_docstring(tmp_path: Path) -> None:
    assert load_study(written(tmp_path, GOOD.split('"""')[2])).summary == ""


@pytest.mark.parametrize(
    ("file", "name"),
    [("My_Study.py", "my-study"), ("2-tasks.py", "2-tasks"), ("x" * 100 + ".py", "x" * 100)],
)
def test_a_name_fits_a_folder_and_a_url(tmp_path: Path, file: str, name: str) -> None:
    assert load_study(written(tmp_path, GOOD, file)).name == name


@pytest.mark.parametrize(
    "file", ["_hidden.py", "-x.py", "my study.py", "étude.py", "a.b.py", "x" * 101 + ".py"]
)
def test_a_file_whose_name_is_no_name_is_refused(tmp_path: Path, file: str) -> None:
    assert f"got '{file}'" in refused(written(tmp_path, GOOD, file))


def test_a_syntax_error_is_told_with_its_line(tmp_path: Path) -> None:
    said = refused(written(tmp_path, "x = 1\n\ndef space(:\n"))
    assert "is no valid Python: line 3:" in said


def test_an_error_while_it_runs_is_told_with_its_line(tmp_path: Path) -> None:
    source = GOOD.replace("study = ", "numbers = [1]\nnumbers[3]\nstudy = ")
    line = source.splitlines().index("numbers[3]") + 1
    said = refused(written(tmp_path, source))
    assert f"cannot be run: line {line}: IndexError" in said


def test_a_missing_import_is_told_with_its_line(tmp_path: Path) -> None:
    said = refused(written(tmp_path, "import no_such_module_at_all\n"))
    assert "line 1: ModuleNotFoundError" in said


def test_a_study_that_is_invalid_is_told_what_is_wrong(tmp_path: Path) -> None:
    said = refused(written(tmp_path, GOOD.replace("maximize", "minimize")))
    assert "is not valid: Expected 'accuracy' to be maximized" in said


def test_a_space_that_fails_is_told_with_its_line(tmp_path: Path) -> None:
    source = GOOD.replace("    rate =", "    missing\n    rate =")
    line = source.splitlines().index("    missing") + 1
    study = load_study(written(tmp_path, source))
    with pytest.raises(StudyError, match=rf"'my-study' failed: line {line}: NameError"):
        example_config(study)


def test_a_space_that_makes_an_invalid_config_is_told_with_its_line(tmp_path: Path) -> None:
    source = GOOD.replace("learning_rate=rate", "learning_rate=-rate")
    line = next(n for n, text in enumerate(source.splitlines(), 1) if "-rate" in text)
    study = load_study(written(tmp_path, source))
    with pytest.raises(StudyError, match=rf"invalid config.*line {line}[\s\S]*learning_rate"):
        example_config(study)


@pytest.mark.parametrize(
    ("source", "came"),
    [("", "no such name"), ("study = None", "no such name"), ("study = 3", "int")],
)
def test_a_file_without_a_study_is_told_what_is_missing(
    tmp_path: Path, source: str, came: str
) -> None:
    said = refused(written(tmp_path, source))
    assert "to hold `study = Study(...)`" in said
    assert said.endswith(f"got {came}.")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"x = 1\0\n", "null bytes"),
        (b"\xff\xfe", "cannot be read"),
        (b"#" * (MAX_STUDY_BYTES + 1), "too large for a study file: over 1,000,000 bytes"),
        (b"x = " + b"(" * 5000, "is no valid Python"),
        (b"x = " + b"-" * 100_000 + b"1", "is no valid Python"),
    ],
    ids=["null byte", "binary", "huge", "open brackets", "deep"],
)
def test_a_file_that_is_no_python_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    assert said in refused(written(tmp_path, content))


def test_a_file_that_ends_the_program_is_refused(tmp_path: Path) -> None:
    assert "SystemExit" in refused(written(tmp_path, "import sys\nsys.exit(3)\n"))


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.py", tmp_path / "folder.py"):
        with pytest.raises(UsageError, match=f"There is no study file '{path}'"):
            (tmp_path / "folder.py").mkdir(exist_ok=True)
            load_study(str(path))


def test_every_built_in_study_is_found_by_its_name_and_so_is_its_quick_version() -> None:
    assert built_in_studies()
    for name in built_in_studies():
        assert load_study(name).name == name
        assert load_study(f"{name}-quick").name == f"{name}-quick"
        by_name, by_option = load_study(f"{name}-quick"), load_study(name, quick=True)
        assert by_name.definition() == by_option.definition() != load_study(name).definition()


def test_a_mistyped_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"Did you mean 'task1-mnist-mlp'\?"):
        load_study("task1-mnist-mpl")
    with pytest.raises(UsageError, match=r"a file of your own ends in '\.py'"):
        load_study("")


def test_files_of_one_name_in_two_folders_are_two_studies(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    first = load_study(written(tmp_path, GOOD))
    second = load_study(written(tmp_path, GOOD.replace("1e-2", "1e-1"), "b/my_study.py"))
    assert first.name == second.name
    assert first.definition() != second.definition()
