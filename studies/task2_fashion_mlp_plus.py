"""Clothing with shuffled pixels by a perceptron, with what the report did not have (section 5).

A rate that falls to 0, averaged weights, decoupled decay, dropped pixels. Nothing is turned or
shifted: shuffled pixels have no places that could be. A trial takes one to three
minutes on one core.
"""

import optuna

from dlnn_search import (
    Activation,
    BatchNorm,
    Config,
    Dense,
    Dropout,
    FashionMnist,
    Halving,
    Mlp,
    Quick,
    Study,
    Training,
)


def space(trial: optuna.Trial) -> Config:
    n_layers = trial.suggest_int("layers", 2, 3)
    units = trial.suggest_int("units", 256, 1024, log=True)
    activation = trial.suggest_categorical("activation", ["relu", "gelu"])
    # Without augmentation, pixels dropped at random are what varies a picture.
    pixel_dropout = trial.suggest_float("pixel_dropout", 0.0, 0.3)
    dropout = trial.suggest_float("dropout", 0.1, 0.6)
    blocks: list[Dense | BatchNorm | Activation | Dropout] = [Dropout(rate=pixel_dropout)]
    for _ in range(n_layers):
        blocks += [
            Dense(units=units, activation="linear"),
            BatchNorm(momentum=0.9),
            Activation(function=activation),
            Dropout(rate=dropout),
        ]
    return Config(
        model=Mlp(blocks=tuple(blocks)),
        training=Training(
            optimizer="adamw",
            learning_rate=trial.suggest_float("learning_rate", 3e-4, 5e-3, log=True),
            weight_decay=trial.suggest_float("weight_decay", 1e-4, 0.1, log=True),
            batch_size=2 ** trial.suggest_int("log2_batch_size", 7, 9),
            schedule="cosine",
            # Over the last thousand steps.
            average=0.999,
        ),
    )


study = Study(
    space=space,
    data=FashionMnist(permutation_seed=2020),
    maximize="accuracy",
    epochs=30,
    # A falling rate brings the last tenths at the end: the order before a quarter says little.
    pruner=Halving(first_rung=8),
    trials=30,
    quick=Quick(trials=6, epochs=3, data=FashionMnist(permutation_seed=2020, n_training=20_000)),
)
