"""Task 1: tell handwritten digits apart with a convolutional network (report, section 2).

A trial takes two to ten minutes on one core.
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
    # Table 2: layers count for more than filters; 2 x 10 filters beat 2 x 500.
    n_stages = trial.suggest_int("stages", 1, 3)
    per_stage = trial.suggest_int("convs_per_stage", 1, 2)
    # Doubled at each stage, as its maps have a quarter of the pixels.
    filters = trial.suggest_int("filters", 8, max_filters, log=True)
    kernel = trial.suggest_categorical("kernel", [3, 5])
    units = trial.suggest_int("dense_units", 32, 256, log=True)
    # Table 1: relu first (0.990), tanh 0.985, sigmoid 0.983; gelu is relu's smooth successor.
    activation = trial.suggest_categorical("activation", ["relu", "tanh", "gelu"])
    # Between convolution and activation, as in its paper; Table 3's models put it behind.
    batch_norm = trial.suggest_categorical("batch_norm", [False, True])
    # The base model drops 0.25 behind the convolutions and 0.5 behind the dense layer.
    conv_dropout = trial.suggest_float("conv_dropout", 0.0, 0.4)
    dense_dropout = trial.suggest_float("dense_dropout", 0.0, 0.6)
    # A penalty hurt at 0.01 (section 2.4.1): search far below.
    l1 = trial.suggest_float("l1", 1e-8, 1e-5, log=True)
    l2 = trial.suggest_float("l2", 1e-8, 1e-3, log=True)
    optimizer = trial.suggest_categorical("optimizer", ["adam", "rmsprop", "sgd"])
    # From a hundredth to ten times the rate that the report selected, 1e-3; SGD's is larger.
    low, high = (1e-3, 0.3) if optimizer == "sgd" else (1e-5, 1e-2)
    rate = trial.suggest_float(f"{optimizer}_learning_rate", low, high, log=True)

    blocks: list[Conv | Pool | BatchNorm | Dropout | Activation] = []
    for stage in range(n_stages):
        for _ in range(per_stage):
            blocks.append(
                Conv(
                    filters=filters * 2**stage,
                    kernel=kernel,
                    padding="same",
                    activation="linear" if batch_norm else activation,
                    l1=l1,
                    l2=l2,
                )
            )
            if batch_norm:
                # Keras's 0.99 needs some hundred batches before validation sees the network.
                blocks += [BatchNorm(momentum=0.9), Activation(function=activation)]
        blocks += [Pool(), Dropout(rate=conv_dropout)]
    return Config(
        model=Cnn(
            blocks=tuple(blocks),
            dense=(Dense(units=units, activation=activation), Dropout(rate=dense_dropout)),
        ),
        training=Training(
            optimizer=optimizer,
            learning_rate=rate,
            momentum=0.9 if optimizer == "sgd" else 0.0,
            # By factors of two, since only the ratio counts.
            batch_size=2 ** trial.suggest_int("log2_batch_size", 5, 8),
        ),
    )


def space(trial: optuna.Trial) -> Config:
    # 64 at the first stage is twice the base model's; twice that costs four times as long.
    return build(trial, max_filters=64)


def quick_space(trial: optuna.Trial) -> Config:
    return build(trial, max_filters=16)


study = Study(
    space=space,
    data=Mnist(),
    maximize="accuracy",
    epochs=15,
    # Digits leave chance within the first epoch: the second tells something.
    pruner=Halving(first_rung=2),
    trials=60,
    quick=Quick(trials=6, epochs=2, data=Mnist(n_training=8_000), space=quick_space),
)
