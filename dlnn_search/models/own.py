"""Networks of a study's own builder: called with the config's seed and precision, and checked."""

from __future__ import annotations

import keras
import numpy as np

from dlnn_search.config import Clocks, Config, OwnModel
from dlnn_search.errors import StudyError
from dlnn_search.study.own_code import call, code_of

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
            "is 1. Let the last layer have activation='softmax'."
        )


def _shown(shape: tuple[int | None, ...]) -> str:
    return f"(batch, {', '.join(map(str, shape))})"
