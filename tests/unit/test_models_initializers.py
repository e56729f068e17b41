"""Initialisers and activations: each builds, and is what its name says."""

import math
from typing import get_args

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from dlnn_search.config import Activation, Cnn, Config, Conv, Dense, Mlp, Mnist, Pool
from dlnn_search.config.model import ActivationName, InitializerName
from dlnn_search.models.build import build

FAN_IN, FAN_OUT = 784, 400
#: Deviation of the weights, and whether they are uniform: for dense layers of these sizes.
#: Sources: Glorot & Bengio 2010; LeCun et al. 1998; He et al. 2015.
INITIALIZERS = {
    "glorot_uniform": ((2 / (FAN_IN + FAN_OUT)) ** 0.5, True),
    "glorot_normal": ((2 / (FAN_IN + FAN_OUT)) ** 0.5, False),
    "standard_normal": (1.0, False),
    "lecun_uniform": ((1 / FAN_IN) ** 0.5, True),
    "lecun_normal": ((1 / FAN_IN) ** 0.5, False),
    "he_uniform": ((2 / FAN_IN) ** 0.5, True),
    "he_normal": ((2 / FAN_IN) ** 0.5, False),
}
INPUTS = np.linspace(-4, 4, 33, dtype=np.float32)
_NORMAL_CDF = 0.5 * (1 + np.vectorize(math.erf)(INPUTS / 2**0.5))
_SIGMOID = 1 / (1 + np.exp(-INPUTS))
ACTIVATIONS = {
    "relu": np.maximum(INPUTS, 0),
    "tanh": np.tanh(INPUTS),
    "sigmoid": _SIGMOID,
    "linear": INPUTS,
    "elu": np.where(INPUTS > 0, INPUTS, np.expm1(INPUTS)),
    "selu": 1.05070099 * np.where(INPUTS > 0, INPUTS, 1.67326324 * np.expm1(INPUTS)),
    "gelu": INPUTS * _NORMAL_CDF,
    "silu": INPUTS * _SIGMOID,
    "mish": INPUTS * np.tanh(np.log1p(np.exp(INPUTS))),
    "leaky_relu": np.where(INPUTS > 0, INPUTS, 0.2 * INPUTS),
}


def kernel_of(model: Mlp | Cnn) -> NDArray[np.float32]:
    weights: NDArray[np.float32] = build(Config(data=Mnist(), model=model), (28, 28)).get_weights()[
        0
    ]
    return weights


def test_every_initializer_and_activation_of_a_config_is_tested() -> None:
    assert set(get_args(InitializerName)) == set(INITIALIZERS)
    assert set(get_args(ActivationName)) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", get_args(InitializerName))
def test_an_initializer_draws_with_its_deviation_and_shape(name: InitializerName) -> None:
    deviation, uniform = INITIALIZERS[name]
    weights = kernel_of(Mlp(blocks=(Dense(units=FAN_OUT, initializer=name),)))
    assert weights.shape == (FAN_IN, FAN_OUT)
    assert weights.mean() == pytest.approx(0, abs=4 * deviation / weights.size**0.5)
    assert weights.std() == pytest.approx(deviation, rel=0.01)
    # A uniform distribution ends at the square root of 3 deviations, normal ones go on: Keras
    # truncates them at about 2.3, but for the standard normal.
    largest = np.abs(weights).max() / deviation
    if uniform:
        assert largest == pytest.approx(3**0.5, rel=0.01)
    else:
        assert largest > (4 if name == "standard_normal" else 2.2)


@pytest.mark.parametrize("name", get_args(InitializerName))
def test_an_initializer_counts_a_convolution_s_inputs(name: InitializerName) -> None:
    blocks = (Conv(filters=4), Conv(filters=64, kernel=5, initializer=name), Pool(size=8))
    built = build(Config(data=Mnist(), model=Cnn(blocks=blocks)), (28, 28))
    weights = next(array for array in built.get_weights() if array.shape == (5, 5, 4, 64))
    fan_in, fan_out = 25 * 4, 25 * 64
    variance = {"glorot": 2 / (fan_in + fan_out), "lecun": 1 / fan_in, "he": 2 / fan_in}
    deviation = variance.get(name.split("_")[0], 1.0) ** 0.5
    assert weights.std() == pytest.approx(deviation, rel=0.05)


@pytest.mark.parametrize("name", get_args(ActivationName))
def test_an_activation_is_its_formula_in_dense_and_convolutional_layers(
    name: ActivationName,
) -> None:
    models: list[Mlp | Cnn] = [
        Mlp(blocks=(Dense(units=1, activation=name),)),
        Mlp(blocks=(Activation(function=name),)),
        Cnn(blocks=(Conv(filters=1, kernel=1, activation=name),)),
    ]
    for model in models:
        built = build(Config(data=Mnist(), model=model), (1, 1))
        layer = next(
            layer for layer in built.layers if getattr(layer, "activation", None) is not None
        )
        found = np.asarray(keras.ops.convert_to_numpy(layer.activation(INPUTS)))
        np.testing.assert_allclose(found, ACTIVATIONS[name], rtol=2e-4, atol=2e-5)
