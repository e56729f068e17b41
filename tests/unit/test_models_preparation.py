"""Preparation inside the model: pixels permuted, dark ones darkened, images normalised."""

from itertools import pairwise
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlnn_search.config import (
    BatchNorm,
    ClockNet,
    Clocks,
    Cnn,
    Config,
    Contrast,
    Conv,
    Dense,
    FashionMnist,
    Mlp,
    Mnist,
    Pool,
)
from dlnn_search.models.build import (
    DarkContrast,
    PixelPermutation,
    Standardize,
    build,
    pixel_permutation,
)

#: Keras's own, of its variables, whenever a model is written.
saving = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

IMAGES = np.random.default_rng(5).integers(0, 256, (16, 28, 28, 1), dtype=np.uint8)
MODELS = [
    Mlp(blocks=(Dense(units=8), BatchNorm())),
    Cnn(blocks=(Conv(filters=2), Pool(size=8)), dense=(Dense(units=8),)),
]


def permuted_by_hand(images: np.ndarray, seed: int) -> np.ndarray:
    order = pixel_permutation(seed, 784)
    mixed = np.empty_like(images).reshape(len(images), 784)
    for place, source in enumerate(order):
        mixed[:, place] = images.reshape(len(images), 784)[:, source]
    return mixed.reshape(images.shape)


@pytest.mark.parametrize("model", MODELS, ids=["mlp", "cnn"])
@pytest.mark.parametrize("data", [Mnist, FashionMnist])
def test_a_model_that_permutes_equals_the_plain_model_on_permuted_pixels_bit_for_bit(
    model: Mlp | Cnn, data: type[Mnist]
) -> None:
    plain = build(Config(data=data(), model=model), (28, 28))
    permuting = build(Config(data=data(permutation_seed=3), model=model), (28, 28))
    for mine, same in zip(plain.get_weights(), permuting.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, same)  # the permutation draws from no weight's seed
    expected = plain(permuted_by_hand(IMAGES, 3))
    np.testing.assert_array_equal(permuting(IMAGES), expected)
    assert not np.array_equal(permuting(IMAGES), plain(IMAGES))


def test_the_permutation_moves_every_pixel_to_one_place_alike_for_all_images() -> None:
    mixed = np.asarray(PixelPermutation(7)(IMAGES))
    assert mixed.dtype == np.uint8
    np.testing.assert_array_equal(mixed, permuted_by_hand(IMAGES, 7))
    order = pixel_permutation(7, 784)
    assert sorted(order) == list(range(784))
    assert np.sum(order == np.arange(784)) < 10
    assert not np.array_equal(order, pixel_permutation(8, 784))


def test_the_permutation_is_the_same_on_every_machine_and_numpy_version() -> None:
    # Written down once. If this fails, permuted results can't be compared with older ones.
    assert pixel_permutation(0, 10).tolist() == [2, 7, 4, 9, 1, 3, 6, 0, 5, 8]
    assert pixel_permutation(2020, 784)[:8].tolist() == [118, 463, 478, 150, 136, 595, 297, 154]


@saving
def test_an_exported_model_takes_pixels_as_they_are(tmp_path: Path) -> None:
    data = Mnist(permutation_seed=3)
    permuting = build(Config(data=data, model=MODELS[0]), (28, 28))
    permuting.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(IMAGES), permuting(IMAGES))


dark = st.tuples(st.floats(1, 255), st.floats(0, 10))


@given(dark)
def test_contrast_keeps_bright_pixels_and_the_order_of_all(parameters: tuple[float, float]) -> None:
    threshold, strength = parameters
    grays = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    after = np.asarray(DarkContrast(threshold, strength, dtype="float32")(grays)).ravel()
    before = np.arange(256, dtype=np.float32)
    bright = before >= threshold
    np.testing.assert_array_equal(after[bright], before[bright])
    assert np.all(np.diff(after) >= 0) and after.min() >= 0
    taken = before - after
    assert np.all(taken >= -1e-4)
    # More is taken from a darker pixel, as long as there is something left to take.
    left = [gray for gray in range(256) if not bright[gray] and after[gray] > 0]
    assert all(taken[darker] >= taken[lighter] - 1e-3 for darker, lighter in pairwise(left))


def test_contrast_by_hand() -> None:
    grays = np.array([0, 60, 100, 149, 150, 255], np.uint8).reshape(1, 2, 3, 1)
    after = np.asarray(DarkContrast(150, 1, dtype="float32")(grays)).ravel()
    assert after.tolist() == [0, 0, 50, 148, 150, 255]


@saving
@pytest.mark.parametrize("normalize", [False, True])
def test_a_clock_network_darkens_first_then_scales(normalize: bool, tmp_path: Path) -> None:
    def network(contrast: Contrast | None) -> keras.Model:
        blocks = (Conv(filters=4), Pool(size=4))
        model = ClockNet(blocks=blocks, contrast=contrast, normalize=normalize)
        return build(Config(data=Clocks(image_size=32), model=model), (28, 28))

    plain, darkening = network(None), network(Contrast(threshold=200, strength=1))
    # Even gray levels up to 200 become whole ones, so that both ways see equal bytes.
    darkened = np.where(IMAGES < 200, np.maximum(2 * IMAGES.astype(int) - 200, 0), IMAGES)
    expected, found = plain(darkened.astype(np.uint8)), darkening(IMAGES)
    for name in ("hour", "minute"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)
    darkening.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(IMAGES)["hour"], found["hour"])


def test_normalised_images_have_mean_0_and_deviation_1_each() -> None:
    dim = IMAGES // 4 + 7
    for images in (IMAGES, dim):
        found = np.asarray(Standardize()(images), np.float64)
        np.testing.assert_allclose(found.mean(axis=(1, 2, 3)), 0, atol=1e-5)
        np.testing.assert_allclose(found.std(axis=(1, 2, 3)), 1, atol=2e-3)
    np.testing.assert_array_equal(Standardize()(np.full((2, 8, 8, 1), 9, np.uint8)), 0)
