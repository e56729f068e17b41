"""From a config to a Keras model: the only place where layers are made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest

import keras
import numpy as np

from dlnn_search.config import (
    Activation,
    BatchNorm,
    ClockNet,
    Config,
    Conv,
    Dense,
    Dropout,
    FashionMnist,
    Mlp,
    Mnist,
    OwnModel,
    Pool,
)
from dlnn_search.config.model import ConvBlock, DenseBlock, InitializerName
from dlnn_search.models.dropout import LeanDropout
from dlnn_search.models.heads import Tensor, head_of
from dlnn_search.models.heads.head import OutputActivation
from dlnn_search.models.own import build_own
from dlnn_search.models.preparation import DarkContrast, PixelPermutation, Standardize
from dlnn_search.models.shapes import Shape, check_size, network_input


def build(config: Config, image_shape: Shape) -> keras.Model:
    """Build the network of a config, with weights drawn from its seed.

    Args:
        config: What to build. Its precision `auto` builds as float32: `resolve_precision` makes
            it concrete before training.
        image_shape: Height and width of the pictures, pixels, and channels if more than one.

    Returns:
        A model from uint8 images (batch, height, width, channels) to float32: one tensor (batch,
        n_classes) of probabilities for classes; for clocks what the head puts out, one tensor or
        two, such as `{"hour": (batch, 12), "minute": (batch, 60)}`. Scaling, permuting and all
        other preparation happens inside, so that nobody can forget it or do it twice.

    Raises:
        ModelError: If a feature map would shrink below one pixel, or the network is too large.
        StudyError: If the study's own builder fails or makes no such model.
    """
    model = config.model
    if isinstance(model, OwnModel):
        return build_own(config, model, network_input(image_shape))
    check_size(config, image_shape)
    layers = _Maker(config)
    image = keras.Input(network_input(image_shape), dtype="uint8", name="image")
    x = layers.prepared(config, image)
    if isinstance(model, Mlp):
        x = layers.dense(model.blocks, layers.flat(x))
    else:
        x = layers.trunk(model.blocks, x)
        x = layers.flat(x) if model.join == "flatten" else layers.averaged(x)
        x = layers.dense(model.dense, x)
    outputs = dict(head_of(config).attach(layers, x))
    single = len(outputs) == 1
    return keras.Model(image, next(iter(outputs.values())) if single else outputs, name=model.kind)


#: Activations that never fall as their input rises.
_MONOTONE = frozenset({"relu", "tanh", "sigmoid", "linear", "elu", "selu", "leaky_relu"})


def _pool_before(conv: Conv, following: ConvBlock | None) -> Pool | None:
    """Return the pooling that may as well come before a convolution's activation, if any.

    The largest of four rising functions is the function of the largest, bit for bit, and on a
    quarter of the values it costs a quarter (8.4 to 5.5 ms for (128, 24, 24, 64), one core).
    """
    if isinstance(following, Pool) and following.of == "max" and conv.activation in _MONOTONE:
        return following
    return None


class _Maker:
    """Makes layers, giving each a seed of its own by its number."""

    def __init__(self, config: Config) -> None:
        precision = config.training.precision
        self._dtype = "float32" if precision == "auto" else precision
        self._seed = config.training.seed
        self._n_seeds = 0
        self._n_named: Counter[str] = Counter()

    def prepared(self, config: Config, image: Tensor) -> Tensor:
        """Permute, darken and scale as the config says, uint8 -> this precision."""
        digits = config.data if isinstance(config.data, Mnist | FashionMnist) else None
        seed = None if digits is None else digits.permutation_seed
        if seed is not None:
            image = PixelPermutation(seed, name="permutation")(image)
        if isinstance(config.model, ClockNet):
            contrast = config.model.contrast
            if contrast is not None:
                image = DarkContrast(
                    contrast.threshold, contrast.strength, dtype="float32", name="contrast"
                )(image)
            if config.model.normalize:
                return Standardize(**self._as("standardize"))(image)
        return keras.layers.Rescaling(1 / 255, **self._as("rescaling"))(image)

    def flat(self, x: Tensor) -> Tensor:
        return keras.layers.Flatten(**self._as("flatten"))(x)

    def averaged(self, x: Tensor) -> Tensor:
        return keras.layers.GlobalAveragePooling2D(**self._as("average"))(x)

    def trunk(self, blocks: Sequence[ConvBlock], x: Tensor) -> Tensor:
        """Append convolutional blocks, (batch, h, w, channels) -> (batch, h', w', filters)."""
        pairs = zip_longest(blocks, blocks[1:])
        for block, following in pairs:
            if isinstance(block, Conv):
                pool = _pool_before(block, following)
                weighted = self._weighted(block)
                x = keras.layers.Conv2D(
                    block.filters,
                    block.kernel,
                    strides=block.stride,
                    padding=block.padding,
                    **(weighted | {"activation": "linear"} if pool else weighted),
                )(x)
                if pool:
                    x = keras.layers.MaxPooling2D(pool.size, **self._as("pool"))(x)
                    x = keras.layers.Activation(block.activation, **self._as("activation"))(x)
                    next(pairs)
            elif isinstance(block, Pool):
                kinds = {
                    "max": keras.layers.MaxPooling2D,
                    "average": keras.layers.AveragePooling2D,
                }
                x = kinds[block.of](block.size, **self._as("pool"))(x)
            else:
                x = self._pointwise(block)(x)
        return x

    def dense(self, blocks: Sequence[DenseBlock], x: Tensor) -> Tensor:
        """Append dense blocks, (batch, features) -> (batch, units)."""
        for block in blocks:
            if isinstance(block, Dense):
                x = keras.layers.Dense(block.units, **self._weighted(block))(x)
            else:
                x = self._pointwise(block)(x)
        return x

    def output(self, width: int, activation: OutputActivation, name: str, x: Tensor) -> Tensor:
        """Append an output layer, (batch, features) -> (batch, width).

        Always float32: bfloat16 has 8 bits of mantissa, too few for a sum of 60 probabilities or
        for one of 720 times (and what Keras's guide on mixed precision asks for).
        """
        return keras.layers.Dense(
            width,
            activation=activation,
            kernel_initializer=keras.initializers.GlorotUniform(seed=self._next_seed()),
            dtype="float32",
            name=name,
        )(x)

    def _pointwise(self, block: BatchNorm | Dropout | Activation) -> keras.layers.Layer:
        if isinstance(block, Dropout):
            return LeanDropout(block.rate, seed=self._next_seed(), **self._as("dropout"))
        if isinstance(block, BatchNorm):
            return keras.layers.BatchNormalization(momentum=block.momentum, **self._as(block.kind))
        return keras.layers.Activation(block.function, **self._as(block.kind))

    def _weighted(self, block: Dense | Conv) -> dict[str, object]:
        penalty = keras.regularizers.L1L2(block.l1, block.l2) if block.l1 or block.l2 else None
        return {
            "activation": block.activation,
            "kernel_initializer": self._initializer(block.initializer),
            "kernel_regularizer": penalty,
            **self._as(block.kind),
        }

    def _initializer(self, name: InitializerName) -> keras.initializers.Initializer:
        seed = self._next_seed()
        if name == "standard_normal":
            return keras.initializers.RandomNormal(mean=0.0, stddev=1.0, seed=seed)
        kinds = {
            "glorot_uniform": keras.initializers.GlorotUniform,
            "glorot_normal": keras.initializers.GlorotNormal,
            "lecun_uniform": keras.initializers.LecunUniform,
            "lecun_normal": keras.initializers.LecunNormal,
            "he_uniform": keras.initializers.HeUniform,
            "he_normal": keras.initializers.HeNormal,
        }
        return kinds[name](seed=seed)

    def _as(self, kind: str) -> dict[str, str]:
        """Return name and number format of the next layer of a kind.

        Keras's own names count all layers of a process: not the same in every one.
        """
        self._n_named[kind] += 1
        return {"name": f"{kind}_{self._n_named[kind]}", "dtype": self._dtype}

    def _next_seed(self) -> int:
        self._n_seeds += 1
        # One seed for all layers would draw equal weights in layers of equal shape.
        return int(np.random.SeedSequence([self._seed, self._n_seeds]).generate_state(1)[0])
