"""A config is plain data: the same text gives the same value, and nothing else is let in."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dlnn_search.config import (
    MAX_CONFIG_BYTES,
    BatchNorm,
    ClockNet,
    Clocks,
    Cnn,
    Config,
    Conv,
    CurriculumStage,
    Dense,
    Dropout,
    FashionMnist,
    Mlp,
    Mnist,
    Origin,
    Pool,
    Training,
    TwoSoftmax,
    read_config,
    study_defaults,
)
from dlnn_search.errors import UsageError

ORIGIN = Origin(
    study="some-study", trial=3, metric="accuracy", value=0.9, epoch=7, dlnn_search_version="0.1.0"
)
MLP = Config(data=Mnist(), model=Mlp(blocks=(Dense(units=8), BatchNorm(), Dropout(rate=0.5))))
CNN = Config(
    data=FashionMnist(n_training=1000),
    model=Cnn(blocks=(Conv(filters=4), Pool()), dense=(Dense(units=8, l2=1e-4),)),
    training=Training(optimizer="sgd", momentum=0.9, epochs=3),
    origin=ORIGIN,
)
CLOCK = Config(
    data=Clocks(source="rendered", image_size=64),
    model=ClockNet(blocks=(Conv(filters=4),), head=TwoSoftmax(hour=(Dense(units=4),))),
    training=Training(epochs=9, curriculum=(CurriculumStage(azimuth_spread=0.5, epochs=4),)),
)
CONFIGS = pytest.mark.parametrize("config", [MLP, CNN, CLOCK], ids=["mlp", "cnn", "clock"])


def changed(config: Config, path: str, value: object) -> str:
    """Return a config's JSON with one value changed, or added; `path` as in `training.epochs`."""
    plain = json.loads(config.to_json())
    *parents, name = path.split(".")
    place: Any = plain
    for parent in parents:
        place = place[int(parent)] if isinstance(place, list) else place[parent]
    if isinstance(place, list):
        place[int(name)] = value
    else:
        place[name] = value
    return json.dumps(plain)


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "config.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@CONFIGS
def test_a_config_survives_its_json(config: Config, tmp_path: Path) -> None:
    again = read_config(written(tmp_path, config.to_json()))
    assert again == config
    assert again.to_json() == config.to_json()
    assert again.fingerprint() == config.fingerprint()


@given(
    rate=st.floats(min_value=1e-12, max_value=1e6),
    units=st.lists(st.integers(1, 65_536), max_size=5),
    seed=st.integers(0, 2**80),
)
def test_every_number_survives_json_exactly(rate: float, units: list[int], seed: int) -> None:
    config = Config(
        data=Mnist(),
        model=Mlp(blocks=tuple(Dense(units=n) for n in units)),
        training=Training(learning_rate=rate, seed=seed),
    )
    assert Config.model_validate_json(config.to_json()) == config
    assert Config.model_validate(config.model_dump(mode="json")) == config


@CONFIGS
def test_a_fingerprint_tells_what_a_config_means_not_where_it_comes_from(config: Config) -> None:
    fingerprint = config.fingerprint()
    assert len(fingerprint) == 12
    assert set(fingerprint) <= set("0123456789abcdef")
    for origin in (None, ORIGIN, ORIGIN.model_copy(update={"trial": 4})):
        assert config.model_copy(update={"origin": origin}).fingerprint() == fingerprint
    training = config.training.model_copy(update={"seed": config.training.seed + 1})
    assert config.model_copy(update={"training": training}).fingerprint() != fingerprint


def test_a_fingerprint_does_not_hang_on_the_order_of_what_was_typed(tmp_path: Path) -> None:
    plain = json.loads(CNN.to_json())
    backwards = {key: plain[key] for key in reversed(plain)}
    assert read_config(written(tmp_path, json.dumps(backwards))).fingerprint() == CNN.fingerprint()


def test_a_rate_that_is_the_default_has_the_fingerprint_of_one_that_was_left_out() -> None:
    named = MLP.model_copy(update={"training": Training(learning_rate=1e-3)})
    assert named.fingerprint() == MLP.fingerprint()


@pytest.mark.parametrize(
    ("optimizer", "rate"),
    [("adadelta", 1.0), ("sgd", 0.01), ("adam", 0.001), ("adamw", 0.001), ("rmsprop", 0.001)],
)
def test_a_config_always_names_its_learning_rate(optimizer: Any, rate: float) -> None:
    assert Training(optimizer=optimizer).learning_rate == rate
    assert Training(optimizer=optimizer, learning_rate=0.5).learning_rate == 0.5


@pytest.mark.parametrize(
    ("config", "path", "value", "said"),
    [
        (MLP, "learning_rate", 0.1, "learning_rate: Extra inputs are not permitted (got 0.1)"),
        (MLP, "training.epoch", 3, "training.epoch: Extra inputs"),
        (MLP, "model.blocks.0.unit", 3, "model.blocks.0.dense.unit: Extra inputs"),
        (MLP, "training.epochs", "many", "training.epochs: Input should be a valid integer"),
        (MLP, "training.epochs", 2.5, "training.epochs: Input should be a valid integer"),
        (MLP, "training.epochs", None, "training.epochs"),
        (MLP, "training.epochs", [3], "training.epochs"),
        (MLP, "training", "fast", "training: Input should be"),
        (MLP, "model", {}, "model: Unable to extract tag"),
        (MLP, "model.kind", "rnn", "model: Input tag 'rnn'"),
        (MLP, "model.blocks.0.kind", "conv", "model.mlp.blocks.0"),
        (MLP, "data.name", "imagenet", "data: Input tag 'imagenet'"),
        (MLP, "schema_version", 2, "schema_version"),
        (MLP, "training.monitor", "acuracy", "Unknown metric 'acuracy'. Known: loss, accuracy"),
        (MLP, "training.optimizer", "lion", "training.optimizer"),
    ],
)
def test_what_is_wrong_is_named_with_its_place_and_what_came(
    tmp_path: Path, config: Config, path: str, value: object, said: str
) -> None:
    with pytest.raises(UsageError, match="is no valid config") as caught:
        read_config(written(tmp_path, changed(config, path, value)))
    assert said.replace("model.blocks", "model.mlp.blocks") in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "path", "refused", "accepted"),
    [
        (MLP, "training.epochs", 0, 1),
        (MLP, "training.epochs", 100_001, 100_000),
        (MLP, "training.batch_size", 0, 1),
        (MLP, "training.learning_rate", 0, 1e-300),
        (MLP, "training.learning_rate", -1e-3, 10),
        (MLP, "training.momentum", 1, 0.999),
        (MLP, "training.weight_decay", -1, 0),
        (MLP, "training.seed", -1, 0),
        (MLP, "model.blocks.0.units", 0, 1),
        (MLP, "model.blocks.0.units", 10**12, 65_536),
        (MLP, "model.blocks.2.rate", 1, 0),
        (MLP, "data.validation", 0, 0.01),
        (MLP, "data.validation", 1, 0.99),
        (CNN, "data.n_training", 9, 10),
        (CNN, "model.blocks.0.kernel", 32, 31),
        (CLOCK, "data.azimuth_spread", 3.2, math.pi),
        (CLOCK, "data.image_size", 31, 32),
        (CLOCK, "data.difficulty", 1.01, 1),
    ],
)
def test_numbers_are_held_to_their_bounds(
    tmp_path: Path, config: Config, path: str, refused: float, accepted: float
) -> None:
    with pytest.raises(UsageError, match=path.rpartition(".")[2]):
        read_config(written(tmp_path, changed(config, path, refused)))
    read_config(written(tmp_path, changed(config, path, accepted)))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("path", ["training.learning_rate", "data.validation", "training.momentum"])
def test_numbers_that_are_none_are_refused(tmp_path: Path, number: str, path: str) -> None:
    text = changed(MLP, path, "HERE").replace('"HERE"', number)
    with pytest.raises(UsageError, match="finite number"):
        read_config(written(tmp_path, text))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_none_are_refused_in_python_as_well(value: float) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        Training(learning_rate=value)


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        MLP.training.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("data", "model", "said"),
    [
        (Clocks(), MLP.model, "The data 'clocks' needs a ClockNet, got 'mlp'"),
        (Clocks(), CNN.model, "The data 'clocks' needs a ClockNet, got 'cnn'"),
        (Mnist(), CLOCK.model, r"The data 'mnist' needs an Mlp.*, got 'clock_net'"),
    ],
)
def test_a_network_that_does_not_fit_the_data_is_refused(
    tmp_path: Path, data: Any, model: Any, said: str
) -> None:
    text = changed(changed_to(MLP, "data", data), "model", model.model_dump(mode="json"))
    with pytest.raises(UsageError, match=said):
        read_config(written(tmp_path, text))


def changed_to(config: Config, name: str, value: Any) -> Config:
    return config.model_copy(update={name: value})


def test_a_curriculum_needs_clocks() -> None:
    training = Training(epochs=9, curriculum=(CurriculumStage(azimuth_spread=0.5, epochs=4),))
    with pytest.raises(ValidationError, match="A curriculum needs clocks, got the data 'mnist'"):
        Config(data=Mnist(), model=Mlp(), training=training)


@pytest.mark.parametrize("stages", [(9,), (4, 5), (4, 6)])
def test_a_curriculum_leaves_an_epoch_for_the_data_itself(stages: tuple[int, ...]) -> None:
    curriculum = tuple(CurriculumStage(azimuth_spread=0.5, epochs=n) for n in stages)
    with pytest.raises(ValidationError, match=f"take {sum(stages)} epochs of 9"):
        Training(epochs=9, curriculum=curriculum)
    Training(epochs=sum(stages) + 1, curriculum=curriculum)


def test_a_config_takes_data_and_epochs_from_its_study_where_it_names_none() -> None:
    with study_defaults(FashionMnist(), 4):
        config = Config(model=Mlp())
        assert (config.data, config.training.epochs) == (FashionMnist(), 4)
        own = Config(data=Mnist(), model=Mlp(), training=Training(epochs=7))
        assert (own.data, own.training.epochs) == (Mnist(), 7)
    assert Training().epochs == 10
    with pytest.raises(ValueError, match=r"A config needs `data=\.\.\.`"):
        Config(model=Mlp())


def test_the_best_epoch_is_picked_by_the_metric_of_the_data_unless_one_is_named() -> None:
    assert (MLP.metric, CLOCK.metric) == ("accuracy", "common_sense_error")
    training = MLP.training.model_copy(update={"monitor": "loss"})
    assert changed_to(MLP, "training", training).metric == "loss"


def test_a_file_that_is_missing_is_answered_with_the_command_that_writes_one(
    tmp_path: Path,
) -> None:
    with pytest.raises(UsageError, match=r"Cannot read the config .*dlnn-search export STUDY"):
        read_config(tmp_path / "none.json")
    with pytest.raises(UsageError, match="Cannot read the config"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no valid config"),
        (b"{", "is no valid config"),
        (b"[]", "is no valid config"),
        (b"null", "is no valid config"),
        (b"{}", "needs `data="),
        (b'{"data": {"name": "mnist"}}', "model: Field required"),
        (b"\xff\xfe\x00\x01", "Cannot read the config"),
        (b"\x00" * 10, "is no valid config"),
        (b"[" * 100_000, "is no valid config"),
        (b" " * (MAX_CONFIG_BYTES + 1), "more than 1,000,000 bytes: expected a config in JSON"),
    ],
    ids=[
        "empty",
        "cut",
        "list",
        "null",
        "object",
        "without a model",
        "binary",
        "zeros",
        "deep",
        "large",
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_config(written(tmp_path, content))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
mutations = st.tuples(
    st.sampled_from(
        ["data", "model", "training", "training.epochs", "training.learning_rate", "model.blocks",
         "model.blocks.0", "model.blocks.0.units", "data.name", "data.validation", "origin",
         "schema_version", "training.curriculum"]
    ),
    json_values,
)  # fmt: skip
fuzzed = (
    st.binary(max_size=400)
    | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | json_values.map(lambda value: json.dumps(value).encode())
    | mutations.map(lambda mutation: changed(MLP, *mutation).encode())
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=fuzzed)
def test_whatever_a_file_holds_only_a_config_or_a_usage_error_comes_out(
    tmp_path: Path, content: bytes
) -> None:
    path = written(tmp_path, content)
    try:
        config = read_config(path)
    except UsageError as error:
        assert str(path) in str(error)
    else:
        assert Config.model_validate_json(config.to_json()) == config
