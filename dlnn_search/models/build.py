"""From a config to a Keras model: the only place where layers are made."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from dlnn_search.config import (
    Activation,
    BatchNorm,
    ClockNet,
    Clocks,
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
from dlnn_search.errors import StudyError
from dlnn_search.models.heads import OutputActivation, Tensor, head_of
from dlnn_search.models.shapes import Shape, check_size, network_input
from dlnn_search.study.finding import call, code_of


@keras.saving.register_keras_serializable("dlnn_search")
class LeanDropout(keras.layers.Dropout):
    """Dropout from 8 or 16 random bits a value instead of 32, and a mask that is kept.

    Keras draws a float32 for each value and selects twice; on the feature maps of the report's
    networks that is a tenth of a training step on a CPU. Comparing raw bits with a threshold
    draws the same distribution: exactly for rates that are multiples of 1/256 (8 bits), else to
    1/131,072 (16 bits). Scaling by the threshold's own rate keeps the expectation exact.
    Measured on (128, 12, 12, 64), forward and backward, one core: Keras 9.1 ms, 16 bits 4.2 ms,
    8 bits 2.7 ms.

    The seed's state is a variable of the layer as in Keras, so a checkpoint restores it.
    """

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        if not training or self.rate == 0:
            return inputs
        n_bits = 8 if float(self.rate * 256).is_integer() else 16
        threshold = round(self.rate * 2**n_bits)
        scale = 2**n_bits / (2**n_bits - threshold)
        n_values = tf.size(inputs)
        values_a_word = 64 // n_bits
        words = tf.random.stateless_uniform(
            [(n_values + values_a_word - 1) // values_a_word],
            tf.cast(self.seed_generator.next(), tf.int64),
            minval=None,
            maxval=None,
            dtype=tf.uint64,
            alg="philox",
        )
        bits = tf.reshape(tf.bitcast(words, tf.uint8 if n_bits == 8 else tf.uint16), [-1])
        keep = tf.reshape(bits[:n_values] >= threshold, tf.shape(inputs))
        mask = tf.cast(keep, inputs.dtype) * tf.cast(scale, inputs.dtype)
        dropped = inputs * tf.stop_gradient(mask)
        dropped.set_shape(inputs.shape)
        return dropped


def pixel_permutation(seed: int, n_pixels: int) -> NDArray[np.int32]:
    """Return the permutation of a seed: which pixel goes to each place, shape (n_pixels,).

    The same on every machine and with every release of NumPy, which promises to keep the raw
    words of a bit generator (NEP 19) but not `Generator.permutation`.
    """
    words = np.random.PCG64(np.random.SeedSequence([seed, _PURPOSE])).random_raw(n_pixels)
    return np.argsort(words, kind="stable").astype(np.int32)


#: Keeps the permutation independent of whatever else is drawn from the same seed.
_PURPOSE = zlib.crc32(b"permutation of pixels")


@keras.saving.register_keras_serializable("dlnn_search")
class PixelPermutation(keras.layers.Layer):
    """Put every image's pixels in the one order of a seed.

    uint8 to uint8, (batch, height, width, 1). Taking whole rows of a transposed batch copies 128
    bytes at a time, not one: 0.25 ms for 128 images of 28 px, one core, 0.64 ms without. Of a
    training step that is 3 % for the report's MLP and nothing that shows for its CNN.

    Source: report, section 3.
    """

    def __init__(self, seed: int, **kwargs: Tensor) -> None:
        super().__init__(**kwargs)
        self.seed = seed

    def call(self, images: Tensor) -> Tensor:
        _, height, width, _ = images.shape
        order = pixel_permutation(self.seed, height * width)
        by_pixel = keras.ops.transpose(keras.ops.reshape(images, (-1, height * width)))
        mixed = keras.ops.transpose(keras.ops.take(by_pixel, order, axis=0))
        return keras.ops.reshape(mixed, (-1, height, width, 1))

    def get_config(self) -> dict[str, Tensor]:
        return {**super().get_config(), "seed": self.seed}


@keras.saving.register_keras_serializable("dlnn_search")
class DarkContrast(keras.layers.Layer):
    """Subtract from each dark pixel `strength` times what it lacks to the threshold, down to 0.

    Gray levels 0 to 255, any dtype, to the same shape in the layer's compute dtype. A brighter
    pixel never becomes the darker one.

    Source: report, section 4.4 and Figure 4.
    """

    def __init__(self, threshold: float, strength: float, **kwargs: Tensor) -> None:
        super().__init__(**kwargs)
        self.threshold = threshold
        self.strength = strength

    def call(self, images: Tensor) -> Tensor:
        pixels = keras.ops.cast(images, self.compute_dtype)
        lacking = keras.ops.maximum(self.threshold - pixels, 0.0)
        return keras.ops.maximum(pixels - self.strength * lacking, 0.0)

    def get_config(self) -> dict[str, Tensor]:
        return {
            **super().get_config(),
            "threshold": self.threshold,
            "strength": self.strength,
        }


@keras.saving.register_keras_serializable("dlnn_search")
class Standardize(keras.layers.Layer):
    """Bring each image to mean 0 and deviation 1: lamps and exposures differ, times do not.

    A plain image (deviation 0) becomes all zeros. (batch, height, width, 1), any dtype, to the
    same shape in the layer's compute dtype.
    """

    def call(self, images: Tensor) -> Tensor:
        pixels = keras.ops.cast(images, "float32")
        mean, variance = keras.ops.moments(pixels, axes=(1, 2, 3), keepdims=True)
        # A gray level's worth of variance keeps noise on a plain image from being blown up.
        return keras.ops.cast((pixels - mean) / keras.ops.sqrt(variance + 1.0), self.compute_dtype)


#: Random pictures that an own model is asked about before it is trained.
N_PROBES = 4
#: How far the sum of an image's probabilities may be from 1: float32 leaves 1e-6.
TOLERATED_SUM = 1e-3


def build_own(config: Config, spec: OwnModel, input_shape: tuple[int, int, int]) -> keras.Model:
    """Return the model that a study's builder makes.

    Keras's global seed and number format are the config's while the builder runs.

    Args:
        config: Whose own builder, seed and precision; `auto` builds as float32.
        spec: The config's model.
        input_shape: Height, width and channels of the pictures.

    Raises:
        StudyError: If the code is not loaded, the builder fails, or its model is not one from
            uint8 images (batch, height, width, channels) to probabilities (batch, n_classes),
            float32, that can be saved.
    """
    assert not isinstance(config.data, Clocks)
    code = code_of(spec)
    what = f"The builder of '{code.study}'"
    if code.build is None:
        raise StudyError(f"{what} is missing: Study(..., build=my_builder).")
    precision, n_classes = config.training.precision, config.data.n_classes
    before = keras.config.dtype_policy()
    # Any seed, however large, becomes one that NumPy and TensorFlow take.
    seed = np.random.SeedSequence(config.training.seed).generate_state(1)[0]
    keras.utils.set_random_seed(int(seed))
    keras.config.set_dtype_policy("float32" if precision == "auto" else precision)
    try:
        model = call(code.build, what, StudyError, spec.options, input_shape, n_classes)
    finally:
        keras.config.set_dtype_policy(before)
    _check_ends(model, what, input_shape, n_classes)
    _check_outputs(model, what, input_shape)
    try:
        model.get_config()
    except NotImplementedError as error:
        raise StudyError(
            f"{what} made a model that cannot be saved. Give each layer of your own a "
            f"get_config(): {str(error).strip().splitlines()[0]}"
        ) from error
    return model


def _check_ends(
    model: object, what: str, input_shape: tuple[int, int, int], n_classes: int
) -> None:
    if not isinstance(model, keras.Model):
        raise StudyError(
            f"{what} returned {type(model).__name__}: expected a keras.Model from uint8 images "
            f"{_shown(input_shape)} to probabilities {_shown((n_classes,))}."
        )
    inputs, outputs = (getattr(model, end, None) or [] for end in ("inputs", "outputs"))
    if len(inputs) != 1 or len(outputs) != 1:
        raise StudyError(
            f"{what} made a model of {len(inputs)} inputs and {len(outputs)} outputs: expected "
            "one of each. Make it with keras.Model(image, probabilities), or begin a "
            "keras.Sequential with keras.Input."
        )
    if inputs[0].dtype != "uint8" or tuple(inputs[0].shape[1:]) != input_shape:
        raise StudyError(
            f"{what} made a model of {inputs[0].dtype} images {_shown(inputs[0].shape[1:])}: "
            f"expected uint8 {_shown(input_shape)}. Begin with keras.Input(input_shape, "
            "dtype='uint8') and scale inside, such as with keras.layers.Rescaling(1 / 255)."
        )
    if tuple(outputs[0].shape) != (None, n_classes):
        raise StudyError(
            f"{what} made a model with outputs {_shown(outputs[0].shape[1:])}: expected "
            f"{_shown((n_classes,))}. End with keras.layers.Dense(n_classes, "
            "activation='softmax', dtype='float32')."
        )
    if outputs[0].dtype != "float32":
        raise StudyError(
            f"{what} made a model with outputs in {outputs[0].dtype}: expected float32 in any "
            "precision. Give the last layer dtype='float32'."
        )


def _check_outputs(model: keras.Model, what: str, input_shape: tuple[int, int, int]) -> None:
    """Ask about random pictures: scores in place of probabilities would train badly, silently."""
    images = np.random.default_rng(0).integers(0, 256, (N_PROBES, *input_shape), np.uint8)
    try:
        outputs = np.asarray(model(images, training=False))
    except Exception as error:  # Keras and TensorFlow raise whatever they like
        raise StudyError(
            f"{what} made a model that cannot be run: {type(error).__name__}: {error}"
        ) from error
    sums = outputs.sum(axis=1)
    if not (np.all(outputs >= 0) and np.all(np.abs(sums - 1) <= TOLERATED_SUM)):
        raise StudyError(
            f"{what} made a model whose outputs for an image are {outputs.min():.3g} to "
            f"{outputs.max():.3g} with a sum of {sums[0]:.3g}: expected probabilities, whose sum "
            "is 1. Give the last layer activation='softmax'."
        )


def _shown(shape: tuple[int | None, ...]) -> str:
    return f"(batch, {', '.join(map(str, shape))})"


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
