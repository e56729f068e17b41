"""Digits with shuffled pixels by a convolutional network, with what the report did not have.

A rate that falls to 0, averaged weights, decoupled decay. Shuffled pixels have no neighbours, so
that the dense layers behind few convolutions have the most to do. A trial takes one to five
minutes on one core.
"""

import optuna

from dlnn_search import (
    Activation,
    BatchNorm,
    Cnn,
    Config,
    Conv,
    Dense,
    Dropout,
    Halving,
    Mnist,
    Pool,
    Quick,
    Study,
    Training,
)


def build(trial: optuna.Trial, max_filters: int) -> Config:
    filters = trial.suggest_int("filters", 8, max_filters, log=True)
    # What is far apart was perhaps together: a wider kernel sees more of it.
    kernel = trial.suggest_categorical("kernel", [3, 5])
    n_convs = trial.suggest_int("convs", 1, 2)
    conv_dropout = trial.suggest_float("conv_dropout", 0.0, 0.4)
    units = trial.suggest_int("dense_units", 128, 768, log=True)
    dense_layers = trial.suggest_int("dense_layers", 1, 2)
    dense_dropout = trial.suggest_float("dense_dropout", 0.1, 0.6)
    blocks: list[Conv | Pool | BatchNorm | Dropout | Activation] = []
    for i in range(n_convs):
        blocks.append(Conv(filters=filters, kernel=kernel, padding="same", activation="linear"))
        if i == 0:
            blocks.append(Pool())  # pooled first, the rest has a quarter to do
        blocks += [BatchNorm(momentum=0.9), Activation(function="relu")]
        blocks.append(Dropout(rate=conv_dropout))
    dense: list[Dense | BatchNorm | Activation | Dropout] = []
    for _ in range(dense_layers):
        dense += [
            Dense(units=units, activation="linear"),
            BatchNorm(momentum=0.9),
            Activation(function="relu"),
            Dropout(rate=dense_dropout),
        ]
    return Config(
        model=Cnn(blocks=tuple(blocks), dense=tuple(dense)),
        training=Training(
            optimizer="adamw",
            learning_rate=trial.suggest_float("learning_rate", 3e-4, 5e-3, log=True),
            weight_decay=trial.suggest_float("weight_decay", 1e-4, 0.1, log=True),
            batch_size=2 ** trial.suggest_int("log2_batch_size", 6, 9),
            schedule="cosine",
            # Over the last thousand steps.
            average=0.999,
        ),
    )


def space(trial: optuna.Trial) -> Config:
    return build(trial, max_filters=48)


def quick_space(trial: optuna.Trial) -> Config:
    return build(trial, max_filters=12)


study = Study(
    space=space,
    data=Mnist(permutation_seed=2020),
    maximize="accuracy",
    epochs=10,
    # A falling rate brings the last tenths at the end: the order before a quarter says little.
    pruner=Halving(first_rung=4),
    trials=30,
    quick=Quick(
        trials=6,
        epochs=2,
        data=Mnist(permutation_seed=2020, n_training=8_000),
        space=quick_space,
    ),
)
