"""Models of a study's own builder, and the built-in ones on a study's own pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from dlnn_search.commands.trying import check
from dlnn_search.config import Cnn, Config, Conv, Dense, Mlp, Mnist, OwnData, OwnModel, Training
from dlnn_search.errors import StudyError
from dlnn_search.models.build import build
from dlnn_search.models.heads import head_of
from dlnn_search.models.shapes import foreseen
from dlnn_search.study.finding import OwnCode, OwnImages, register

layers = keras.layers
OWN = OwnData(study="mine", n_classes=4)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), np.uint8)


def good(options: dict[str, Any], shape: tuple[int, int, int], n_classes: int) -> keras.Model:
    image = keras.Input(shape, dtype="uint8")
    x = layers.Flatten()(layers.Rescaling(1 / 255)(image))
    x = layers.Dropout(0.5)(layers.Dense(options.get("units", 3), activation="relu")(x))
    return keras.Model(image, layers.Dense(n_classes, activation="softmax", dtype="float32")(x))


def built(builder: Callable[..., Any] | None, **training: Any) -> keras.Model:
    register(OwnCode("mine", "0" * 12, build=builder))
    config = Config(
        data=OWN,
        model=OwnModel(study="mine", options={"units": 7}),
        training=Training(**training),
    )
    return build(config, (8, 6, 3))


def refused(end: Callable[[Any, Any, int], Any]) -> str:
    """Return why a builder is refused that ends in `end(image, flat, n_classes)`."""

    def builder(options: Any, shape: tuple[int, int, int], n_classes: int) -> Any:
        image = keras.Input(shape, dtype="uint8")
        return end(image, layers.Flatten()(layers.Rescaling(1 / 255)(image)), n_classes)

    with pytest.raises(StudyError) as caught:
        built(builder)
    return str(caught.value)


def test_a_builder_gets_options_shape_and_classes() -> None:
    model = built(good)
    assert model.input_shape == (None, 8, 6, 3) and model.output_shape == (None, 4)
    assert model.layers[3].units == 7


def test_the_seed_of_the_config_is_that_of_the_weights() -> None:
    first, again, other = (built(good, seed=seed)(IMAGES) for seed in (5, 5, 2**40))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_the_precision_of_the_config_is_that_of_the_layers_while_they_are_built() -> None:
    before = keras.config.dtype_policy().name
    assert built(good).layers[3].compute_dtype == "float32"
    assert built(good, precision="mixed_bfloat16").layers[3].compute_dtype == "bfloat16"
    with pytest.raises(StudyError):
        built(lambda *_: 1 / 0, precision="mixed_bfloat16")
    assert keras.config.dtype_policy().name == before


def test_a_gray_picture_has_one_channel() -> None:
    register(OwnCode("mine", "0" * 12, build=good))
    config = Config(data=Mnist(), model=OwnModel(study="mine"))
    model = build(config, (28, 28))
    assert model.input_shape == (None, 28, 28, 1) and model.output_shape == (None, 10)


def test_a_builder_that_fails_is_told_with_its_line() -> None:
    def builder(options: Any, *_: Any) -> None:
        options["no such option"]

    with pytest.raises(StudyError) as caught:
        built(builder)
    line = builder.__code__.co_firstlineno + 1
    assert str(caught.value) == f"The builder of 'mine' failed: line {line}: KeyError: " + repr(
        "no such option"
    )
    with pytest.raises(StudyError, match="The builder of 'mine' is missing"):
        built(None)


class Unsaved(keras.layers.Layer):  # type: ignore[misc]
    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = [function]

    def call(self, x: Any) -> Any:
        return self.function[0](x)


def test_what_is_no_model_from_bytes_to_probabilities_is_refused() -> None:
    def classes(n: int) -> Any:
        return layers.Dense(n, activation="softmax")

    assert "returned int: expected a keras.Model from uint8 images (batch, 8, 6, 3)" in refused(
        lambda *_: 1
    )
    assert "outputs (batch, 5): expected (batch, 4)" in refused(
        lambda image, x, n: keras.Model(image, classes(n + 1)(x))
    )
    assert "1 inputs and 2 outputs" in refused(
        lambda image, x, n: keras.Model(image, [classes(n)(x), classes(n)(x)])
    )
    floats = keras.Input((8, 6, 3))
    assert "float32 images (batch, 8, 6, 3): expected uint8 (batch, 8, 6, 3)" in refused(
        lambda _, x, n: keras.Model(floats, classes(n)(layers.Flatten()(floats)))
    )
    assert "0 inputs" in refused(lambda image, x, n: keras.Sequential([classes(n)]))
    assert "sum of" in refused(lambda image, x, n: keras.Model(image, layers.Dense(n)(x)))
    assert "expected float32 in any precision" in refused(
        lambda image, x, n: keras.Model(
            image, layers.Dense(n, activation="softmax", dtype="bfloat16")(x)
        )
    )
    assert "cannot be saved. Give each layer of your own a get_config()" in refused(
        lambda image, x, n: keras.Model(image, classes(n)(Unsaved(keras.ops.abs)(x)))
    )


@pytest.mark.parametrize("model", [Mlp(blocks=(Dense(units=6),)), Cnn(blocks=(Conv(filters=2),))])
def test_the_built_in_networks_take_colour_and_any_number_of_classes(model: Mlp | Cnn) -> None:
    config = Config(data=OWN, model=model)
    network = build(config, (8, 6, 3))
    outputs = np.asarray(network(IMAGES))
    assert outputs.shape == (5, 4) and np.allclose(outputs.sum(1), 1)
    assert network.count_params() == sum(
        layer.n_parameters for layer in foreseen(config, (8, 6, 3))
    )
    head = head_of(config)
    assert head.guessing_loss == pytest.approx(np.log(4))
    said = {"output": np.eye(4, dtype=np.float32)[[0, 0, 0, 1, 2]]}
    assert head.metrics(np.zeros(5, np.uint8), said)["accuracy"] == pytest.approx(0.6)


def test_validation_opens_own_pictures_and_tries_the_own_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLNN_SEARCH_CACHE", str(tmp_path))

    def load(_: dict[str, Any]) -> OwnImages:
        return OwnImages(np.tile(IMAGES, (8, 1, 1, 1)), np.arange(40) % 4)

    config = Config(data=OWN, model=OwnModel(study="mine"), training=Training(batch_size=8))
    register(OwnCode("mine", "0" * 12, load=load, build=good))
    checked = check({}, config)
    assert checked.error is None
    assert checked.n_parameters == build(config, (8, 6, 3)).count_params()
    assert checked.memory_bytes > 0 and checked.trial_seconds > 0
    register(OwnCode("mine", "0" * 12, load=load, build=lambda *_: None))
    assert "The builder of 'mine' returned NoneType" in str(check({}, config).error)
