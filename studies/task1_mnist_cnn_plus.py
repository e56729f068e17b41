"""Digits by a convolutional network, with what the report did not have (section 5).

Pictures turned, shifted and zoomed anew each epoch, a rate that falls to 0,
averaged weights, decoupled decay.
A trial takes three to ten minutes on one core.
"""

import optuna

from dlnn_search import (
    Activation,
    Augmentation,
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
    # The first convolution works on the whole picture and costs the most.
    later_convs = trial.suggest_int("later_convs_per_stage", 1, 2)
    kernel = trial.suggest_categorical("kernel", [3, 5])
    conv_dropout = trial.suggest_float("conv_dropout", 0.0, 0.3)
    units = trial.suggest_int("dense_units", 64, 256, log=True)
    dense_dropout = trial.suggest_float("dense_dropout", 0.0, 0.5)
    blocks: list[Conv | Pool | BatchNorm | Dropout | Activation] = []
    for stage, n_convs in enumerate((1, later_convs, later_convs)):
        for i in range(n_convs):
            # Doubled at each stage, as its maps have a quarter of the pixels.
            blocks.append(
                Conv(filters=filters * 2**stage, kernel=kernel, padding="same", activation="linear")
            )
            if i == n_convs - 1:
                blocks.append(Pool())  # pooled first, the rest has a quarter to do
            blocks += [BatchNorm(momentum=0.9), Activation(function="relu")]
        blocks.append(Dropout(rate=conv_dropout))
    return Config(
        model=Cnn(
            blocks=tuple(blocks),
            dense=(Dense(units=units, activation="relu"), Dropout(rate=dense_dropout)),
        ),
        training=Training(
            optimizer="adamw",
            learning_rate=trial.suggest_float("learning_rate", 5e-4, 1e-2, log=True),
            weight_decay=trial.suggest_float("weight_decay", 1e-4, 0.1, log=True),
            batch_size=2 ** trial.suggest_int("log2_batch_size", 5, 8),
            schedule="cosine",
            # Over the last thousand steps.
            average=0.999,
            augmentation=Augmentation(
                # Digits stand within some 15 degrees and two pixels of each other.
                rotation=trial.suggest_float("rotation", 0.0, 0.3),
                shift=trial.suggest_float("shift", 0.0, 0.1),
                zoom=trial.suggest_float("zoom", 0.0, 0.2),
            ),
        ),
    )


def space(trial: optuna.Trial) -> Config:
    return build(trial, max_filters=32)


def quick_space(trial: optuna.Trial) -> Config:
    return build(trial, max_filters=12)


study = Study(
    space=space,
    data=Mnist(),
    maximize="accuracy",
    epochs=10,
    # A falling rate brings the last tenths at the end: the order before a quarter says little.
    pruner=Halving(first_rung=4),
    trials=30,
    quick=Quick(trials=6, epochs=2, data=Mnist(n_training=8_000), space=quick_space),
)
