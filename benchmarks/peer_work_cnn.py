"""Equal work for peers.py: every trial the same small convolutional network, two epochs.

On 8,000 images, so that a minute holds several trials; see peer_work_mlp.py.
"""

import optuna

from dlnn_search import Cnn, Config, Conv, Dense, Dropout, FashionMnist, Pool, Study, Training


def space(trial: optuna.Trial) -> Config:
    rate = trial.suggest_float("learning_rate", 0.00099, 0.00101)
    blocks = (Conv(filters=16), Conv(filters=32), Pool(), Dropout(rate=0.25))
    dense = (Dense(units=64, activation="relu"), Dropout(rate=0.5))
    return Config(
        model=Cnn(blocks=blocks, dense=dense),
        training=Training(optimizer="adam", learning_rate=rate, batch_size=128),
    )


study = Study(
    space=space,
    data=FashionMnist(n_training=8_000),
    maximize="accuracy",
    epochs=2,
    trials=1_000,
)
