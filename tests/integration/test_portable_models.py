"""Trained models elsewhere: loaded by processes that cannot import dlnn_search."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dlnn_search.config import (
    BatchNorm,
    ClockNet,
    Clocks,
    Cnn,
    Config,
    Contrast,
    Conv,
    Dense,
    Dropout,
    Joint,
    Mnist,
    OneRegression,
    OneSoftmax,
    Pool,
    Regression,
    SinCos,
    SoftLabels,
    Training,
    TwoSoftmax,
    read_config,
)
from dlnn_search.config.model import ClockHead
from dlnn_search.models.build import build
from dlnn_search.models.heads import by_name, head_of
from dlnn_search.training.portable import portable_model, save_portable

IMAGES = np.random.default_rng(5).integers(0, 256, (64, 28, 28, 1), dtype=np.uint8)
BLOCKS = (Conv(filters=6), BatchNorm(), Pool(size=4), Dropout(rate=0.2))
HEADS: tuple[ClockHead, ...] = (
    TwoSoftmax(),
    OneSoftmax(),
    SoftLabels(),
    Joint(),
    Regression(output="linear"),
    OneRegression(),
    SinCos(),
)


def clock(head: ClockHead, precision: str = "float32") -> Config:
    model = ClockNet(blocks=BLOCKS, contrast=Contrast(), normalize=True, head=head)
    training = Training.model_validate({"precision": precision, "seed": 4})
    return Config(data=Clocks(image_size=32), model=model, training=training)


DIGITS = Config(data=Mnist(permutation_seed=3), model=Cnn(blocks=BLOCKS, dense=(Dense(units=8),)))
BFLOAT16 = clock(TwoSoftmax(), "mixed_bfloat16")
# Normalised without contrast before it: the layer sees bytes.
PLAIN = BFLOAT16.model_copy(update={"model": BFLOAT16.model.model_copy(update={"contrast": None})})
CONFIGS: dict[str, Config] = {"digits": DIGITS, "bfloat16": BFLOAT16, "bytes": PLAIN}
CONFIGS |= {str(head.kind): clock(head) for head in HEADS}

ALONE = """
import sys
sys.modules["dlnn_search"] = None  # any import of it fails
import numpy as np
from pathlib import Path
folder = Path(sys.argv[1])
images = np.load(folder / "images.npy")
found = {}
"""
BY_KERAS = """
import keras
for path in folder.glob("*.keras"):
    model = keras.saving.load_model(path)
    outputs = model(images, training=False)
    for name, value in (outputs if isinstance(outputs, dict) else {"output": outputs}).items():
        found[f"{path.stem} {name}"] = value
    allowed = ("keras.layers", "keras.src.layers", "keras.src.ops")
    assert all(type(layer).__module__.startswith(allowed) for layer in model.layers)
"""
BY_TENSORFLOW = """
import tensorflow as tf
for path in folder.glob("*-savedmodel"):
    signatures = tf.saved_model.load(str(path)).signatures
    assert set(signatures) == {"predict", "serving_default"}, set(signatures)
    for name, value in signatures["predict"](images=tf.constant(images)).items():
        found[f"{path.name.removesuffix('-savedmodel')} {name}"] = value
"""
KEEP = "np.savez(sys.argv[2], **{name: np.asarray(value) for name, value in found.items()})"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All configs' models, their outputs as they were, and the same found by others."""
    folder = tmp_path_factory.mktemp("portable")
    np.save(folder / "images.npy", IMAGES)
    for name, config in CONFIGS.items():
        save_portable(config, build(config, (28, 28)), folder, name)
    for number, how in enumerate((BY_KERAS, BY_TENSORFLOW)):
        done = subprocess.run(
            [sys.executable, "-I", "-c", ALONE + how + KEEP, folder, folder / f"{number}.npz"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_models_predict_alike_without_this_package(folder: Path, name: str) -> None:
    config = CONFIGS[name]
    head = head_of(config)
    outputs = by_name(head, build(config, (28, 28))(IMAGES, training=False))
    arrays = {name: np.asarray(value) for name, value in outputs.items()}
    by_keras, by_tensorflow = (np.load(folder / f"{number}.npz") for number in (0, 1))
    tolerance = 2e-2 if config.training.precision == "mixed_bfloat16" else 1e-5
    portable = {
        output: by_keras[f"{name} {output if len(arrays) > 1 else 'output'}"] for output in arrays
    }
    for output, expected in arrays.items():
        np.testing.assert_allclose(portable[output], expected, atol=tolerance)
    read = {key.split()[1]: by_tensorflow[key] for key in by_tensorflow if key.split()[0] == name}
    answer = read["minutes"] if "minutes" in read else read["class"]
    assert answer.dtype == np.int64
    np.testing.assert_array_equal(answer, head.decode(portable))
    if name == "digits":
        assert set(read) == {"class", "probability"}
        np.testing.assert_allclose(read["probability"], arrays["output"].max(axis=1), atol=1e-5)
    else:
        assert set(read) == {"minutes", "hour", "minute"}
        np.testing.assert_array_equal(read["hour"] * 60 + read["minute"], answer)
        assert answer.min() >= 0 and answer.max() < 720


def test_the_config_beside_a_model_is_that_of_the_model(folder: Path) -> None:
    for name, config in CONFIGS.items():
        assert read_config(folder / f"{name}.json") == config
    assert json.loads((folder / "joint.json").read_text())["training"]["seed"] == 4


def test_saving_again_replaces_what_was_there(folder: Path, tmp_path: Path) -> None:
    for _ in range(2):
        save_portable(DIGITS, build(DIGITS, (28, 28)), tmp_path, "model-seed0")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model-seed0.keras", "model-seed0.json", "model-seed0-savedmodel"}


def test_a_model_without_our_layers_stays_as_it_is() -> None:
    config = Config(data=Mnist(), model=Cnn(blocks=(Conv(filters=2),)))
    model = build(config, (28, 28))
    assert portable_model(model) is model
