"""Named configs: the report's networks, layer by layer."""

import keras
import pytest

from dlnn_search.config import Clocks, Config, Dense, FashionMnist, Mlp, Mnist, OwnModel
from dlnn_search.errors import UsageError
from dlnn_search.models.build import build
from dlnn_search.models.shapes import n_parameters
from dlnn_search.study.finding import built_in_studies, load_study
from dlnn_search.study.named_configs import NAMED, best_configs, find_config

PARAMETERS = {
    "mnist_mlp": 669_706,  # keras-team/keras, examples/mnist_mlp.py
    "mnist_cnn": 1_199_882,  # keras-team/keras, examples/mnist_cnn.py
    "digit_mlp": 1_350_286,
    "digit_cnn": 913_802,
    "fashion_mlp": 1_625_386,
    "fashion_cnn": 504_874,
    "permuted_digit_mlp": 1_350_286,
    "permuted_digit_cnn": 913_802,
    "permuted_fashion_mlp": 1_625_386,
    "permuted_fashion_cnn": 504_874,
    "cifar10_cnn": 42_569_768,
    "report_clock": 624_392,  # the sum of Figure 5
}
SELECTED = {
    "digit_mlp": "dense 1024, batch_norm, dropout 0.1, dense 524, dense 10",
    "digit_cnn": (
        "conv 32, conv 64, conv 64, batch_norm, dropout 0.1, conv 64, pool 2, batch_norm, "
        "flatten, dense 128, dense 10"
    ),
    "fashion_mlp": "dense 1024, batch_norm, dense 524, dropout 0.1, dense 524, dense 10",
    "fashion_cnn": (
        "conv 64, batch_norm, conv 64, batch_norm, dropout 0.1, conv 64, batch_norm, conv 32, "
        "pool 2, batch_norm, dropout 0.1, flatten, dense 128, dropout 0.1, dense 10"
    ),
}


def image_shape(config: Config) -> tuple[int, int]:
    if isinstance(config.data, Clocks):
        return config.data.image_size, config.data.image_size
    return 28, 28


def printed(config: Config) -> str:
    """Return a digit network's layers in the words of Table 3."""
    model = config.model
    assert not isinstance(model, OwnModel)
    layers = [*model.blocks]
    if not isinstance(model, Mlp):
        layers += ["flatten", *model.dense]
    words = []
    for block in [*layers, Dense(units=10)]:
        size = [
            getattr(block, key)
            for key in ("units", "filters", "rate", "size")
            if hasattr(block, key)
        ]
        words.append(" ".join([getattr(block, "kind", "flatten"), *map(str, size)]))
    return ", ".join(words)


def test_every_named_config_is_counted() -> None:
    assert set(NAMED) == set(PARAMETERS)


@pytest.mark.parametrize("name", NAMED)
def test_a_named_config_has_its_number_of_parameters(name: str) -> None:
    config = NAMED[name]()
    assert n_parameters(config.model, image_shape(config)) == PARAMETERS[name]
    if name != "cifar10_cnn":  # 170 MB of weights, counted layer by layer below
        assert build(config, image_shape(config)).count_params() == PARAMETERS[name]


def test_the_base_clock_network_is_the_cifar10_example_on_large_gray_pictures() -> None:
    convolutions = [
        9 * 1 * 32 + 32,
        9 * 32 * 32 + 32,
        9 * 32 * 64 + 64,
        9 * 64 * 64 + 64,
    ]
    joined = 36 * 36 * 64  # 150, valid 148, pooled 74, valid 72, pooled 36
    dense = (joined + 1) * 512
    heads = (512 + 1) * (12 + 60)
    assert sum(convolutions) + dense + heads == PARAMETERS["cifar10_cnn"]
    small = NAMED["cifar10_cnn"]().model_copy(update={"data": Clocks(image_size=32)})
    model = build(small, (32, 32))
    assert model.count_params() == n_parameters(small.model, (32, 32))
    assert [tensor.shape for tensor in model.outputs] == [(None, 12), (None, 60)]


@pytest.mark.parametrize("name", SELECTED)
def test_the_selected_models_are_those_of_table_3(name: str) -> None:
    config, permuted = NAMED[name](), NAMED[f"permuted_{name}"]()
    assert printed(config) == SELECTED[name]
    assert isinstance(config.data, Mnist if name.startswith("digit") else FashionMnist)
    assert config.training.optimizer == "rmsprop"
    assert config.training.learning_rate == (0.001 if name == "digit_cnn" else 0.0001)
    for layer in build(config, (28, 28)).layers:
        if isinstance(layer, keras.layers.Dense | keras.layers.Conv2D):
            assert isinstance(layer.kernel_initializer, keras.initializers.GlorotUniform)
        if isinstance(layer, keras.layers.Conv2D):
            assert layer.kernel_size == (3, 3) and layer.padding == "valid"
    digits = Mnist | FashionMnist
    assert isinstance(permuted.data, digits) and isinstance(config.data, digits)
    assert config.data.permutation_seed is None and permuted.data.permutation_seed is not None
    same_data = permuted.data.model_copy(update={"permutation_seed": None})
    assert permuted.model_copy(update={"data": same_data}) == config


def test_all_permuted_configs_share_one_permutation() -> None:
    seeds = {
        getattr(make().data, "permutation_seed", None)
        for name, make in NAMED.items()
        if name.startswith("permuted_")
    }
    assert len(seeds) == 1


@pytest.mark.parametrize("name", NAMED)
def test_a_named_config_survives_json(name: str) -> None:
    config = NAMED[name]()
    assert Config.model_validate_json(config.to_json()) == config


@pytest.mark.parametrize("name", best_configs())
def test_a_built_in_studys_winner_is_found_by_the_studys_name(name: str) -> None:
    assert name in built_in_studies()
    config = find_config(name)
    assert config.origin is not None and config.origin.study == name
    study = load_study(name)
    assert config.metric == study.metric
    searched = study.data
    if isinstance(searched, Clocks):  # an exported config says which pictures `auto` was
        searched = searched.model_copy(update={"source": "rendered"})
    assert config.data == searched


def test_a_name_that_is_nearly_a_winners_is_suggested() -> None:
    with pytest.raises(UsageError, match="Did you mean 'task1-mnist-mlp'"):
        find_config("task1-mnist-mpl")
