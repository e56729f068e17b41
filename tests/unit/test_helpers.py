"""Helper modules beside a study's file: found, hashed, and nobody else's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dlnn_search.config import Dense, Mlp
from dlnn_search.errors import StudyError
from dlnn_search.storage.database import Database
from dlnn_search.storage.studies import join, register, short_hash
from dlnn_search.study import Study
from dlnn_search.study.finding import load_study
from dlnn_search.worker.first_trials import example_config

STUDY = '''\
"""Mine."""

from dlnn_search import Config, Dense, Mlp, Mnist, Study
IMPORTS


def space(trial):
    trial.suggest_float("rate", 0, 1)
    return Config(model=Mlp(blocks=(Dense(units=UNITS),)))


study = Study(space=space, data=Mnist(), maximize="accuracy")
'''


def written(
    folder: Path, files: dict[str, str], imports: str = "import sizes", units: str = "sizes.UNITS"
) -> str:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    study = folder / "my_study.py"
    study.write_text(STUDY.replace("IMPORTS", imports).replace("UNITS),", f"{units}),", 1))
    return str(study)


def units_of(study: Study) -> int:
    model = example_config(study).model
    assert isinstance(model, Mlp)
    (block,) = model.blocks[:1]
    assert isinstance(block, Dense)
    return block.units


@pytest.mark.parametrize(
    ("imports", "units"),
    [
        ("import sizes", "sizes.UNITS"),
        ("import sizes as s", "s.UNITS"),
        ("from sizes import UNITS as many", "many"),
        ("from sizes import *", "UNITS"),
        ("import nets.wide.deep", "nets.wide.deep.UNITS"),
        ("import nets.wide.deep as deep", "deep.UNITS"),
        ("from nets.wide import deep", "deep.UNITS"),
        ("from nets.wide.deep import UNITS as many", "many"),
        ("from nets import up", "up.UNITS"),
        ("from plain import inner", "inner.UNITS"),
        ("try:\n    import sizes\nexcept ImportError:\n    sizes = None", "sizes.UNITS"),
        ("def late():\n    import sizes\n    return sizes.UNITS", "late()"),
    ],
)
def test_a_module_of_the_study_s_folder_can_be_imported_in_any_way(
    tmp_path: Path, imports: str, units: str
) -> None:
    files = {
        "sizes.py": "UNITS = 17\n",
        "nets/__init__.py": "",
        "nets/wide/__init__.py": "import sizes\n",
        "nets/wide/deep.py": "from . import sizes\nUNITS = sizes.UNITS\n",
        "nets/up.py": "from .wide.deep import UNITS\n",
        "plain/inner.py": "from sizes import UNITS\n",  # a folder without __init__.py
    }
    study = load_study(written(tmp_path, files, imports, units))
    assert units_of(study) == 17
    before = study.definition()
    (tmp_path / "sizes.py").write_text("UNITS = 18\n")
    changed = load_study(str(tmp_path / "my_study.py"))
    assert units_of(changed) == 18
    assert units_of(study) == 17, "an earlier load keeps its helpers"
    assert short_hash(changed.definition()) != short_hash(before)
    assert changed.own_code().fingerprint != study.own_code().fingerprint


def test_comments_and_docstrings_of_a_helper_may_change(tmp_path: Path) -> None:
    first = load_study(written(tmp_path, {"sizes.py": '"""One."""\nUNITS = 17\n'}))
    again = load_study(written(tmp_path, {"sizes.py": '"""Two."""\nUNITS = 17  # many\n'}))
    assert first.definition() == again.definition()


def test_what_no_import_reaches_is_in_no_definition(tmp_path: Path) -> None:
    file = written(tmp_path, {"sizes.py": "UNITS = 17\n", "other.py": "1\n"})
    before = load_study(file).definition()
    (tmp_path / "other.py").write_text("this is no Python")
    assert load_study(file).definition() == before


@pytest.mark.parametrize("name", ["keras.py", "random.py", "my_study.py", "optuna.py"])
def test_a_study_without_helpers_is_defined_as_ever(tmp_path: Path, name: str) -> None:
    files = {name: "raise SystemExit\n", "wandb/run/log.txt": "1"}
    imports = "import random, optuna\n"
    study = load_study(written(tmp_path, files, imports, "17"))
    assert set(study.definition()["settings"]) == {
        "metric", "direction", "data", "epochs", "pruner",
    }  # fmt: skip
    assert "SystemExit" not in study.definition()["code"]
    assert units_of(study) == 17


def test_two_studies_with_a_helper_of_one_name_have_each_their_own(tmp_path: Path) -> None:
    late = "def late():\n    import sizes\n    return sizes.UNITS"
    studies = {
        units: load_study(
            written(tmp_path / f"{units}", {"sizes.py": f"UNITS = {units}\n"}, late, "late()")
        )
        for units in (17, 18)
    }
    for units, study in studies.items():
        assert units_of(study) == units
    assert "sizes" not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        __import__("sizes")


def test_a_definition_is_the_same_in_every_process_and_every_folder(tmp_path: Path) -> None:
    files = {
        "sizes.py": "import more, even_more\nUNITS = more.UNITS\n",
        "more.py": "UNITS = 17",
        "even_more.py": "import sizes",  # in a circle
    }
    code = (
        "from dlnn_search.study.finding import load_study\n"
        "from dlnn_search.storage.studies import short_hash\n"
        "import sys; study = load_study(sys.argv[1])\n"
        "print(short_hash(study.definition()), study.own_code().fingerprint)"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code, written(tmp_path / folder, files)],
            check=True,
            text=True,
            capture_output=True,
            env={**__import__("os").environ, "PYTHONHASHSEED": seed},
        ).stdout
        for folder, seed in (("a", "1"), ("b", "2"))
    }
    assert len(told) == 1


def test_a_helper_that_was_edited_is_named(tmp_path: Path, sqlite_database: Database) -> None:
    file = written(tmp_path, {"nets/sizes.py": "UNITS = 17\n"}, "from nets import sizes")
    study = load_study(file)
    register(sqlite_database, study.name, study.definition())
    (tmp_path / "nets/sizes.py").write_text("UNITS = 18\n")
    edited = load_study(file)
    with pytest.raises(StudyError) as caught:
        join(sqlite_database, edited.name, edited.definition())
    said = str(caught.value)
    assert "\n-helper nets/sizes.py = " in said and "\n+helper nets/sizes.py = " in said
    assert "\n-UNITS = 17\n+UNITS = 18" in said


def test_what_is_wrong_with_a_helper_is_told_with_its_file_and_line(tmp_path: Path) -> None:
    file = written(tmp_path, {"sizes.py": "\nUNITS = 1 / 0\n"})
    with pytest.raises(StudyError, match=r"my_study.py' cannot be run: 'sizes.py', line 2: Zero"):
        load_study(file)
    written(tmp_path, {"sizes.py": "\ndef UNITS(:\n"})
    with pytest.raises(StudyError, match=r"helper module '.*sizes.py' is no valid Python: line 2"):
        load_study(file)
    written(tmp_path, {"sizes.py": "import nowhere\n"})
    with pytest.raises(StudyError, match="No module named 'nowhere'"):
        load_study(file)
    written(tmp_path, {"sizes.py": "UNITS = property()\n"}, units="sizes.missing")
    with pytest.raises(StudyError, match=r"module '\w+.sizes' has no attribute 'missing'"):
        example_config(load_study(file))
