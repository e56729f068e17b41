"""Configs that have a name: where the report starts from, and where it ends."""

from __future__ import annotations

from collections.abc import Callable

from dlnn_search.config import (
    ClockNet,
    Clocks,
    Cnn,
    Config,
    Conv,
    Dense,
    Dropout,
    Mlp,
    Mnist,
    Pool,
    Training,
    TwoSoftmax,
)


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


#: By the name that the command line and the documentation use.
NAMED: dict[str, Callable[[], Config]] = {
    "mnist_mlp": mnist_mlp,
    "mnist_cnn": mnist_cnn,
    "report_clock": report_clock,
}
