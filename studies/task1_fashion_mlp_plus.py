"""Clothing by a perceptron, with what the report did not have (section 5, "future work").

Pictures mirrored and shifted anew each epoch, a rate that falls to 0,
averaged weights, decoupled decay.
A trial takes one to five minutes on one core.
"""

import optuna

from dlnn_search import (
    Activation,
    Augmentation,
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
    n_layers = trial.suggest_int("layers", 2, 4)
    units = trial.suggest_int("units", 256, 1024, log=True)
    activation = trial.suggest_categorical("activation", ["relu", "gelu"])
    first_dropout = trial.suggest_float("first_dropout", 0.0, 0.3)
    dropout = trial.suggest_float("dropout", 0.0, 0.5)
    blocks: list[Dense | BatchNorm | Activation | Dropout] = []
    for layer in range(n_layers):
        blocks += [
            Dense(units=units, activation="linear"),
            BatchNorm(momentum=0.9),
            Activation(function=activation),
            Dropout(rate=dropout if layer else first_dropout),
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
            augmentation=Augmentation(
                # Half of a pair of shoes: clothes may be mirrored, and are centred otherwise.
                mirror=trial.suggest_categorical("mirror", [True, False]),
                rotation=trial.suggest_float("rotation", 0.0, 0.1),
                shift=trial.suggest_float("shift", 0.0, 0.08),
                zoom=trial.suggest_float("zoom", 0.0, 0.1),
            ),
        ),
    )


study = Study(
    space=space,
    data=FashionMnist(),
    maximize="accuracy",
    epochs=40,
    # A falling rate brings the last tenths at the end: the order before a quarter says little.
    pruner=Halving(first_rung=10),
    trials=30,
    quick=Quick(trials=6, epochs=3, data=FashionMnist(n_training=20_000)),
)
