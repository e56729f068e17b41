import numpy as np
import pytest

from dlnn_search.config import Cnn, Config, Conv, Dense, Dropout, Mlp, Mnist, Pool, Training
from dlnn_search.models.build import LeanDropout, build
from dlnn_search.models.shapes import ModelError, layer_shapes
from dlnn_search.study.named_configs import NAMED


def config_of(model: Mlp | Cnn, **training: object) -> Config:
    return Config(data=Mnist(), model=model, training=Training.model_validate(training))


@pytest.mark.parametrize("name", ["mnist_mlp", "mnist_cnn", "report_clock"])
def test_a_built_network_has_the_layers_that_were_foreseen(name: str) -> None:
    config = NAMED[name]()
    edge = 150 if name == "report_clock" else 28
    built = build(config, (edge, edge))
    foreseen = layer_shapes(config.model, (edge, edge))
    assert built.count_params() == sum(layer.n_parameters for layer in foreseen)
    with_weights = sorted(layer.n_parameters for layer in foreseen if layer.n_parameters)
    assert sorted(x.count_params() for x in built.layers if x.count_params()) == with_weights


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    model = Mlp(blocks=(Dense(units=16), Dense(units=16)))
    first, same, other = (build(config_of(model, seed=seed), (8, 8)) for seed in (1, 1, 2))
    for mine, equal in zip(first.get_weights(), same.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, equal)
    assert not np.array_equal(first.get_weights()[0], other.get_weights()[0])


def test_layers_of_equal_shape_begin_with_different_weights() -> None:
    built = build(config_of(Mlp(blocks=(Dense(units=64), Dense(units=64)))), (8, 8))
    kernels = [w for w in built.get_weights() if w.shape == (64, 64)]
    assert len(kernels) == 2
    assert not np.array_equal(*kernels)


def test_standard_normal_has_deviation_1_whatever_the_size() -> None:
    block = Dense(units=100, initializer="standard_normal")
    kernel = build(config_of(Mlp(blocks=(block,))), (28, 28)).get_weights()[0]
    assert kernel.std() == pytest.approx(1, abs=0.02)


def test_probabilities_are_float32_under_mixed_precision() -> None:
    built = build(config_of(Mlp(blocks=(Dense(units=8),)), precision="mixed_bfloat16"), (8, 8))
    output = built(np.zeros((2, 8, 8, 1), np.uint8))
    assert output.dtype == "float32"
    np.testing.assert_allclose(np.sum(output, axis=1), 1, rtol=1e-6)
    assert {weight.dtype for weight in built.get_weights()} == {np.dtype("float32")}


def test_pooling_before_the_activation_changes_no_value() -> None:
    pools_first = Cnn(blocks=(Conv(filters=4), Pool()))
    # A dropout of rate 0 between them keeps the order in which they are written.
    as_written = Cnn(blocks=(Conv(filters=4), Dropout(rate=0), Pool()))
    images = np.random.default_rng(0).integers(0, 256, (5, 9, 9, 1), dtype=np.uint8)
    one, other = (build(config_of(model), (9, 9)) for model in (pools_first, as_written))
    other.set_weights(one.get_weights())
    np.testing.assert_array_equal(one(images), other(images))


def test_a_map_that_shrinks_to_nothing_is_refused_with_the_block_s_name() -> None:
    model = Cnn(blocks=(Conv(filters=4), Pool(), Pool(), Pool(), Pool()))
    with pytest.raises(ModelError, match=r"blocks\[4\] \(pool\).*at least 2x2.*got 1x1x4"):
        build(config_of(model), (16, 16))


def test_a_network_beyond_all_memory_is_refused_before_it_is_made() -> None:
    with pytest.raises(ModelError, match=r"at most 100,000,000 parameters.*blocks\[1\]"):
        build(config_of(Mlp(blocks=(Dense(units=65_536), Dense(units=65_536)))), (8, 8))


@pytest.mark.parametrize("rate", [0.25, 0.2, 0.5, 0.013])
def test_dropout_drops_its_rate_and_keeps_the_mean(rate: float) -> None:
    dropped = np.asarray(LeanDropout(rate, seed=1)(np.ones((100, 1001), "float32"), training=True))
    assert np.mean(dropped == 0) == pytest.approx(rate, abs=0.005)
    assert dropped.mean() == pytest.approx(1, abs=0.01)


def test_dropout_draws_anew_at_each_call_and_nothing_when_predicting() -> None:
    layer, ones = LeanDropout(0.5, seed=1), np.ones((10, 10), "float32")
    assert not np.array_equal(layer(ones, training=True), layer(ones, training=True))
    np.testing.assert_array_equal(layer(ones, training=False), ones)
