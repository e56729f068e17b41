"""Clothing with shuffled pixels by a convolutional network, with what the report did not have.

The space of the digits' study, and its smaller one for `--quick`.
"""

import dataclasses

from dlnn_search import FashionMnist, load_study

digits = load_study("task2-mnist-cnn-plus")
assert digits.quick is not None
study = dataclasses.replace(
    digits,
    data=FashionMnist(permutation_seed=2020),
    quick=dataclasses.replace(
        digits.quick, data=FashionMnist(permutation_seed=2020, n_training=8_000)
    ),
)
