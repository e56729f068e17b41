"""A study's own code: what a config says of it, and who may bring it."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from pydantic import ValidationError

from dlnn_search.config import Clocks, Cnn, Config, Mlp, Mnist, OwnData, OwnModel
from dlnn_search.errors import StudyError, UsageError
from dlnn_search.study import Study
from dlnn_search.study.finding import OwnCode, bring_code, code_of, load_study
from dlnn_search.worker.first_trials import example_config

STUDY = '''\
"""Mine."""

from dlnn_search import Config, OwnData, OwnImages, OwnModel, Quick, Study


def load(options):
    """Load nothing."""
    return OwnImages([], [])


def other_load(options):
    return OwnImages([], [])


def build(options, input_shape, n_classes):
    return None


def space(trial):
    return Config(model=OwnModel(options={"units": trial.suggest_int("units", 1, 9)}))


study = Study(
    space=space, data=OwnData(n_classes=2), load=load, build=build, maximize="accuracy",
    quick=Quick(trials=1),
)
'''


def load_nothing(options: dict[str, Any]) -> Any:
    return None


def space_of(config: Config) -> Any:
    return lambda trial: config


def written(folder: Path, text: str = STUDY, name: str = "my_study.py") -> Study:
    (folder / name).write_text(text, encoding="utf-8")
    return load_study(str(folder / name))


def test_options_are_plain_bounded_and_exported_as_they_are() -> None:
    options = {"sizes": [1, 2.5], "name": "x", "deep": {"flag": True}}
    data = OwnData(n_classes=2, options=options)
    config = Config(data=data, model=OwnModel(options=options))
    assert Config.model_validate_json(config.to_json()) == config
    assert hash(data) == hash(OwnData(n_classes=2, options=options))
    for wrong, why in (
        ({"a": object()}, "JSON"),
        ({"a": None}, "without None"),
        ({"a": [{"b": None}]}, "without None"),
        ({"a": float("nan")}, "finite"),
        ({"a": "x" * 10_001}, "at most 10,000 characters"),
    ):
        with pytest.raises(ValidationError, match=why):
            OwnData(n_classes=2, options=wrong)


def test_a_config_cannot_name_a_file_for_its_code() -> None:
    for name in ("../evil", "/tmp/evil.py", "evil.py", "", "a\n"):
        with pytest.raises(ValidationError):
            OwnModel(study=name)
        with pytest.raises(ValidationError):
            OwnData(n_classes=2, study=name)
    assert set(OwnModel.model_fields) == {"kind", "options", "study", "code"}


def test_own_models_are_for_classes_and_own_data_for_any_model_of_classes() -> None:
    own = OwnData(n_classes=2)
    for model in (Mlp(), Cnn(blocks=()), OwnModel()):
        assert Config(data=own, model=model).metric == "accuracy"
    Config(data=Mnist(), model=OwnModel())
    with pytest.raises(ValidationError, match="'clocks' needs a ClockNet, got 'own'"):
        Config(data=Clocks(), model=OwnModel())
    with pytest.raises(ValidationError, match="needs an Mlp, a Cnn or an OwnModel"):
        Config.model_validate({"data": own, "model": {"kind": "clock_net", "blocks": ()}})


def test_the_study_fills_in_its_name_and_the_hash_of_its_code(tmp_path: Path) -> None:
    study = written(tmp_path)
    for version in (study, study.quick_version()):
        config = example_config(version)
        assert isinstance(config.data, OwnData) and isinstance(config.model, OwnModel)
        for part in config.own_parts:
            assert part.study == "my-study"
            assert code_of(part) == OwnCode(
                "my-study", part.code or "", load=study.load, build=study.build
            )


def test_the_definition_covers_loader_and_builder_but_not_words(tmp_path: Path) -> None:
    def told(text: str) -> tuple[dict[str, Any], str]:
        study = written(tmp_path, text)
        return study.definition(), study.own_code().fingerprint

    first = told(STUDY)
    assert told(STUDY.replace("Load nothing.", "Load.") + "# the end\n") == first
    for before, after in (
        ("OwnImages([], [])\n\n\ndef other", "OwnImages([1], [1])\n\n\ndef other"),
        ("return None", "return 1"),
        ("load=load", "load=other_load"),  # of the statement, the functions' names
    ):
        assert before in STUDY
        definition, code = told(STUDY.replace(before, after))
        assert definition != first[0] and code != first[1]


def test_a_study_without_own_code_is_defined_as_ever() -> None:
    study = Study(space=space_of(Config(data=Mnist(), model=Mlp())), maximize="accuracy")
    assert set(study.definition()["settings"]) == {
        "metric", "direction", "data", "epochs", "pruner",
    }  # fmt: skip


def test_own_parts_need_own_code() -> None:
    own = OwnData(n_classes=2)
    with pytest.raises(StudyError, match="needs a loader"):
        Study(space=space_of(Config(data=own, model=Mlp())), data=own, maximize="accuracy")
    for config, lacking in (
        (Config(data=own, model=Mlp()), "loader"),
        (Config(data=Mnist(), model=OwnModel()), "builder"),
    ):
        study = Study(space=space_of(config), maximize="accuracy")
        with pytest.raises(StudyError, match=f"needs a {lacking}"):
            study.config(optuna.create_study().ask())


def test_a_loader_whose_code_no_hash_covers_is_refused() -> None:
    space = space_of(Config(data=Mnist(), model=Mlp()))
    functions: tuple[Any, ...] = (lambda options: None, print, OwnData)
    for function in functions:
        with pytest.raises(StudyError, match="made with `def` in the study's file, got "):
            Study(space=space, load=function, maximize="accuracy")
    Study(space=space, load=load_nothing, maximize="accuracy")


def test_an_exported_config_needs_the_file_of_its_study_and_that_version(tmp_path: Path) -> None:
    study = written(tmp_path)
    file = str(tmp_path / "my_study.py")
    config = Config.model_validate_json(example_config(study).to_json())
    assert bring_code(config, "best.json", file) == config
    with pytest.raises(UsageError, match=r"the study 'my-study'. Name its file: --study my_study"):
        bring_code(config, "best.json", None)
    written(tmp_path, name="another.py")
    with pytest.raises(UsageError, match="got that of 'another'"):
        bring_code(config, "best.json", str(tmp_path / "another.py"))
    written(tmp_path, STUDY.replace("return None", "return 1"))
    with pytest.raises(StudyError, match="another version of the code of 'my-study'"):
        bring_code(config, "best.json", file)


def test_a_typed_config_takes_the_code_that_it_is_given(tmp_path: Path) -> None:
    study = written(tmp_path)
    typed = {"data": {"name": "own", "n_classes": 2}, "model": {"kind": "own"}}
    config = Config.model_validate_json(json.dumps(typed))
    with pytest.raises(UsageError, match="the own code of a study"):
        bring_code(config, "mine.json", None)
    brought = bring_code(config, "mine.json", str(tmp_path / "my_study.py"))
    assert [part.code for part in brought.own_parts] == [study.own_code().fingerprint] * 2
    plain = Config(data=Mnist(), model=Mlp())
    assert bring_code(plain, "plain.json", None) is plain
