"""Equal work for peers.py: every trial the same perceptron, three epochs, to count trials.

No two trials may have the same parameters, since systems refuse or reuse them: the learning rate
differs in its third digit.
"""

import optuna

from dlnn_search import Config, Dense, Dropout, FashionMnist, Mlp, Study, Training


def space(trial: optuna.Trial) -> Config:
    layer = (Dense(units=512, activation="relu"), Dropout(rate=0.2))
    rate = trial.suggest_float("learning_rate", 0.00099, 0.00101)
    return Config(
        model=Mlp(blocks=layer * 2),
        training=Training(optimizer="adam", learning_rate=rate, batch_size=128),
    )


study = Study(space=space, data=FashionMnist(), maximize="accuracy", epochs=3, trials=1_000)
