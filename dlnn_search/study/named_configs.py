"""Configs that have a name: where the report starts from, and where it ends."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from dlnn_search.config import (
    BatchNorm,
    ClockNet,
    Clocks,
    Cnn,
    Config,
    Conv,
    Dense,
    Dropout,
    FashionMnist,
    Mlp,
    Mnist,
    Pool,
    Training,
    TwoSoftmax,
    read_config,
)
from dlnn_search.errors import UsageError, did_you_mean
from dlnn_search.study.finding import studies_folder

#: "The default number of epochs is fairly low, only 10." Source: report, section 2.
EPOCHS_OF_REPORT = 10
#: Of the one random permutation, here and in the studies of task 2; the report names none.
PERMUTATION_SEED = 2020


def mnist_mlp() -> Config:
    """Return the report's base MLP: 669,706 parameters.

    Source: report, section 2.1; keras-team/keras 2.3.1, examples/mnist_mlp.py (98.40 % on the
    test set after 20 epochs).
    """
    hidden = (Dense(units=512), Dropout(rate=0.2))
    return Config(
        data=Mnist(),
        model=Mlp(blocks=(*hidden, *hidden)),
        training=Training(optimizer="rmsprop", learning_rate=0.001, batch_size=128, epochs=20),
    )


def mnist_cnn() -> Config:
    """Return the report's base CNN: 1,199,882 parameters.

    The example trains it with Adadelta at a rate of 1.0; the report, and so this, with RMSprop.

    Source: report, section 2.1; keras-team/keras 2.3.1, examples/mnist_cnn.py (99.25 % on the
    test set after 12 epochs).
    """
    return Config(
        data=Mnist(),
        model=Cnn(
            blocks=(Conv(filters=32), Conv(filters=64), Pool(), Dropout(rate=0.25)),
            dense=(Dense(units=128), Dropout(rate=0.5)),
        ),
        training=Training(optimizer="rmsprop", learning_rate=0.001, batch_size=128, epochs=12),
    )


def digit_mlp(permutation_seed: int | None = None) -> Config:
    """Return the report's selected MLP for digits: 1,350,286 parameters.

    The 524 units of the second layer are as printed.

    Args:
        permutation_seed: Trains it on pixels in that one random order (report, section 3).

    Source: report, section 2.6 and Table 3.
    """
    return Config(
        data=Mnist(permutation_seed=permutation_seed),
        model=Mlp(
            blocks=(Dense(units=1024), BatchNorm(), Dropout(rate=0.1), Dense(units=524)),
        ),
        training=_selected(0.0001),
    )


def digit_cnn(permutation_seed: int | None = None) -> Config:
    """Return the report's selected CNN for digits: 913,802 parameters.

    Args:
        permutation_seed: Trains it on pixels in that one random order (report, section 3).

    Source: report, section 2.6 and Table 3.
    """
    return Config(
        data=Mnist(permutation_seed=permutation_seed),
        model=Cnn(
            blocks=(
                Conv(filters=32),
                Conv(filters=64),
                Conv(filters=64),
                BatchNorm(),
                Dropout(rate=0.1),
                Conv(filters=64),
                Pool(),
                BatchNorm(),
            ),
            dense=(Dense(units=128),),
        ),
        training=_selected(0.001),
    )


def fashion_mlp(permutation_seed: int | None = None) -> Config:
    """Return the report's selected MLP for clothes: 1,625,386 parameters.

    The 524 units of the second and third layer are as printed.

    Args:
        permutation_seed: Trains it on pixels in that one random order (report, section 3).

    Source: report, section 2.6 and Table 3.
    """
    return Config(
        data=FashionMnist(permutation_seed=permutation_seed),
        model=Mlp(
            blocks=(
                Dense(units=1024),
                BatchNorm(),
                Dense(units=524),
                Dropout(rate=0.1),
                Dense(units=524),
            ),
        ),
        training=_selected(0.0001),
    )


def fashion_cnn(permutation_seed: int | None = None) -> Config:
    """Return the report's selected CNN for clothes: 504,874 parameters.

    Args:
        permutation_seed: Trains it on pixels in that one random order (report, section 3).

    Source: report, section 2.6 and Table 3.
    """
    return Config(
        data=FashionMnist(permutation_seed=permutation_seed),
        model=Cnn(
            blocks=(
                Conv(filters=64),
                BatchNorm(),
                Conv(filters=64),
                BatchNorm(),
                Dropout(rate=0.1),
                Conv(filters=64),
                BatchNorm(),
                Conv(filters=32),
                Pool(),
                BatchNorm(),
                Dropout(rate=0.1),
            ),
            dense=(Dense(units=128), Dropout(rate=0.1)),
        ),
        training=_selected(0.0001),
    )


def _selected(learning_rate: float) -> Training:
    """Return how Table 3's models are trained.

    The optimiser is the base models' (section 2.1), 10 epochs the report's default (section 2).
    It gives no batch size ("a large batch size was applied"): 128 is the examples'.
    """
    return Training(
        optimizer="rmsprop", learning_rate=learning_rate, batch_size=128, epochs=EPOCHS_OF_REPORT
    )


def cifar10_cnn() -> Config:
    """Return the report's base clock network: 42,569,768 parameters at 150 px.

    The example's layers as they are, on one gray channel of 150 px instead of three of 32, and
    its ten outputs replaced by two softmaxes of hours and minutes, weighted alike (6 to 4 came
    with section 4.3). Nearly all parameters are in the first dense layer, which sees 36x36x64
    values. Optimiser, rate and batch are the example's; 500 epochs are the report's. The
    example's decay of the rate, 1e-6 a step, is left out: a sixth in all these steps.

    Source: report, section 4.1; keras-team/keras 2.3.1, examples/cifar10_cnn.py.
    """

    def twice(filters: int) -> tuple[Conv | Pool | Dropout, ...]:
        return (
            Conv(filters=filters, padding="same"),
            Conv(filters=filters),
            Pool(),
            Dropout(rate=0.25),
        )

    return Config(
        data=Clocks(),
        model=ClockNet(
            blocks=(*twice(32), *twice(64)),
            dense=(Dense(units=512), Dropout(rate=0.5)),
            head=TwoSoftmax(hour_weight=1, minute_weight=1),
        ),
        training=Training(optimizer="rmsprop", learning_rate=0.0001, batch_size=32, epochs=500),
    )


def report_clock() -> Config:
    """Return the report's final clock network: 624,392 parameters.

    Layers, loss weights, optimiser, rate, batch, epochs and validation share are the report's.
    It does not print its dropout rates ("of differing magnitude"); these are chosen: little
    where feature maps are few and large, more towards the dense layers.

    Source: report, section 4.5 and Figure 5.
    """
    return Config(
        data=Clocks(validation=0.05),
        model=ClockNet(
            blocks=(
                Conv(filters=64, kernel=4, stride=2),
                Pool(),
                Dropout(rate=0.1),
                Conv(filters=64, kernel=4),
                Pool(),
                Dropout(rate=0.1),
                Conv(filters=128),
                Pool(),
                Dropout(rate=0.2),
                Conv(filters=256),
                Pool(),
                Dropout(rate=0.2),
            ),
            dense=(Dropout(rate=0.2), Dense(units=128), Dropout(rate=0.3)),
            head=TwoSoftmax(
                hour=(Dense(units=64), Dropout(rate=0.2)),
                minute=(Dense(units=256), Dropout(rate=0.2)),
                hour_weight=6,
                minute_weight=4,
            ),
        ),
        training=Training(optimizer="adam", learning_rate=0.0003, batch_size=24, epochs=300),
    )


_SELECTED = (digit_mlp, digit_cnn, fashion_mlp, fashion_cnn)

#: By the name that the command line and the documentation use.
NAMED: dict[str, Callable[[], Config]] = {
    "mnist_mlp": mnist_mlp,
    "mnist_cnn": mnist_cnn,
    **{make.__name__: make for make in _SELECTED},
    **{f"permuted_{make.__name__}": partial(make, PERMUTATION_SEED) for make in _SELECTED},
    "cifar10_cnn": cifar10_cnn,
    "report_clock": report_clock,
}


def best_configs() -> dict[str, Path]:
    """Return the files of the built-in studies' winners, by the study's name.

    What found each, and how it did on the test split, is in docs/results.md.
    """
    return {path.stem: path for path in sorted(studies_folder().glob("best/*.json"))}


def find_config(name_or_path: str) -> Config:
    """Return the config of that name, a built-in study's winner, or the one in that file.

    A file that is called like a config is meant by `./NAME`.

    Raises:
        UsageError: If there is neither, or the file holds no valid config.
    """
    if name_or_path in NAMED:
        return NAMED[name_or_path]()
    best = best_configs()
    if name_or_path in best:
        return read_config(best[name_or_path])
    path = Path(name_or_path)
    if not path.suffix and path.name == name_or_path and not _is_there(path):
        raise UsageError(
            f"There is no config named '{name_or_path}', and no such file."
            f"{did_you_mean(name_or_path, [*NAMED, *best])}"
        )
    return read_config(path)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False
