"""Augmentation: geometry, ranges, and draws that only seed and batch decide."""

import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from dlnn_search.config import (
    Augmentation,
    ClockNet,
    Clocks,
    Config,
    Data,
    Dense,
    Mlp,
    Mnist,
    Model,
    Training,
    TwoSoftmax,
)
from dlnn_search.data.clocks.renderer import render_times
from dlnn_search.training import step as module
from dlnn_search.training.step import augment, augmenter

SEED = (3, 4)
CLOCKS = render_times([3, 9, 0], [10, 41, 0], image_size=64, difficulty=0, azimuth_spread=0)


def changed(images: NDArray[np.uint8], seed: Any = SEED, **spec: float) -> NDArray[np.int64]:
    found = augment(tf.constant(images[..., None]), Augmentation(**spec), tf.constant(seed))
    assert found.dtype == tf.uint8
    assert found.shape == (*images.shape, 1)
    return found.numpy()[..., 0].astype(np.int64)  # type: ignore[no-any-return]


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """What each purpose draws instead of a random number: angle 0, zoom 1, right 2, down 3."""
    chosen: dict[int, float] = {}

    def draw(most: float, n: Any, seed: Any, purpose: int) -> Any:
        return tf.fill((n,), chosen.get(purpose, 0.0))

    monkeypatch.setattr(module, "_draw", draw)
    return chosen


@pytest.mark.parametrize("degrees", [10.0, -35.0, 90.0, 180.0])
def test_a_rotation_is_pillow_s_about_the_same_centre(
    draws: dict[int, float], degrees: float
) -> None:
    draws[0] = math.radians(degrees)
    found = changed(CLOCKS, rotation=math.pi)
    inside = np.hypot(*(np.mgrid[:64, :64] - 31.5)) < 30  # beyond, Pillow paints black
    for clock, turned in zip(CLOCKS, found, strict=True):
        expected = np.asarray(Image.fromarray(clock).rotate(degrees, Image.Resampling.BILINEAR))
        off = np.abs(turned - expected.astype(np.int64))[inside]
        assert off.max() <= 3  # a gray level here and there, from rounding


def test_half_of_the_pictures_are_mirrored() -> None:
    images = np.random.default_rng(0).integers(0, 256, (200, 5, 4), dtype=np.uint8)
    found = changed(images, mirror=True)
    same = (found == images).all(axis=(1, 2))
    mirrored = (found == images[:, :, ::-1]).all(axis=(1, 2))
    assert (same ^ mirrored).all()
    assert 70 < mirrored.sum() < 130
    assert np.array_equal(found, changed(images, mirror=True))


@pytest.mark.parametrize(
    ("data", "model"), [(Mnist(), Mlp()), (Clocks(), ClockNet(blocks=(), head=TwoSoftmax()))]
)
def test_what_a_mirror_makes_another_thing_of_is_not_mirrored(data: Data, model: Model) -> None:
    training = Training(epochs=1, augmentation=Augmentation(mirror=True))
    with pytest.raises(ValidationError, match="show something else: expected mirror=False"):
        Config(data=data, model=model, training=training)


def test_a_turned_clock_is_the_clock_drawn_with_a_turned_dial(draws: dict[int, float]) -> None:
    # Hands and numerals turn together: the label still holds.
    draws[0] = 0.5
    turned = changed(CLOCKS, rotation=1.0)
    inside = np.hypot(*(np.mgrid[:64, :64] - 31.5)) < 24

    def off(azimuth: float) -> float:
        drawn = render_times(
            [3, 9, 0], [10, 41, 0], image_size=64, difficulty=0, azimuths=[azimuth] * 3
        )
        return float(np.abs(turned - drawn.astype(np.int64))[:, inside].mean())

    right = min(off(0.5), off(-0.5))
    assert right < 0.3 * off(0.0)
    mirrored = np.abs(turned - turned[:, :, ::-1])[:, inside].mean()
    assert right < 0.3 * mirrored


def test_a_shift_moves_right_and_down_and_repeats_the_edge(draws: dict[int, float]) -> None:
    draws[2], draws[3] = 0.25, 0.125
    picture = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    found = changed(picture, shift=0.5)
    np.testing.assert_array_equal(found[0, 2:, 4:], picture[0, :-2, :-4])
    np.testing.assert_array_equal(found[0, 2:, 0], picture[0, :-2, 0])


def test_a_zoom_above_0_enlarges(draws: dict[int, float]) -> None:
    draws[1] = 0.5
    picture = np.zeros((1, 41, 41), np.uint8)
    picture[0, 16:25, 16:25] = 255  # 9 px about the centre
    assert (changed(picture, zoom=0.5)[0] > 127).sum(axis=0).max() in (13, 14)


def test_draws_fill_their_range_to_both_sides_and_stay_inside() -> None:
    found = module._draw(0.3, 2000, tf.constant(SEED), 0).numpy()
    assert np.abs(found).max() <= 0.3
    assert found.min() < -0.29 and found.max() > 0.29
    assert abs(found.mean()) < 0.02


def test_perspective_makes_one_side_larger_than_the_other() -> None:
    grid = np.zeros((64, 63, 63), np.uint8)
    grid[:, :, 10:13] = grid[:, :, 50:53] = 200
    found = changed(grid, perspective=0.3)
    left, right = (found[:, 31, half].sum(axis=1) for half in (slice(0, 31), slice(31, 63)))
    assert np.any(left > 1.3 * right) and np.any(right > 1.3 * left)
    assert np.abs(changed(grid, perspective=0.3) - found).max() == 0


def test_brightness_and_glare_change_light_alone() -> None:
    gray = np.full((400, 16, 16), 100, np.uint8)
    bright = changed(gray, brightness=0.2)
    assert np.ptp(bright, axis=(1, 2)).max() == 0
    assert 80 <= bright.min() < 84 and 116 < bright.max() <= 120
    glaring = changed(gray, glare=0.4) - 100
    assert glaring.min() == 0 and 80 < glaring.max() <= 102
    assert 0.4 < np.mean(glaring.max(axis=(1, 2)) == 0) < 0.6


def test_the_seed_decides_and_each_picture_has_draws_of_its_own() -> None:
    same = np.repeat(CLOCKS[:1], 8, axis=0)
    spec = {"rotation": 3.0, "shift": 0.1, "glare": 0.5}
    first, again, other = (changed(same, seed, **spec) for seed in (SEED, SEED, (3, 5)))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len({picture.tobytes() for picture in first}) == 8


def test_each_batch_has_draws_of_its_own_and_any_seed_will_do() -> None:
    alter = augmenter(Training(augmentation=Augmentation(rotation=1.0), seed=2**40))
    assert alter is not None
    images = tf.constant(CLOCKS[..., None])
    first, again, other = (alter(images, tf.constant(n, tf.int64)).numpy() for n in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_no_augmentation_inserts_no_operation() -> None:
    assert augmenter(Training()) is None
    graph = tf.function(lambda images: augment(images, Augmentation(), SEED)).get_concrete_function(
        tf.TensorSpec((None, 8, 8, 1), tf.uint8)
    )
    kinds = {operation.type for operation in graph.graph.get_operations()}
    assert not kinds & {"ImageProjectiveTransformV3", "Cast", "StatelessRandomUniformV2"}


def test_a_permutation_and_an_augmentation_exclude_each_other() -> None:
    training = Training(augmentation=Augmentation(shift=0.1))
    model = Mlp(blocks=(Dense(units=2),))
    assert Config(data=Mnist(), model=model, training=training)
    assert Config(data=Mnist(permutation_seed=1), model=model)
    with pytest.raises(ValidationError, match=r"pixels in their places.*permutation_seed=1"):
        Config(data=Mnist(permutation_seed=1), model=model, training=training)


@pytest.mark.parametrize("field", list(Augmentation.model_fields))
def test_an_augmentation_has_limits(field: str) -> None:
    for value in (-0.1, 4.0):
        with pytest.raises(ValidationError):
            Augmentation.model_validate({field: value})
