"""Clothing with shuffled pixels by a perceptron, with what the report did not have (section 5).

The space of the digits' study: shuffled, the two differ in nothing that a network could know.
"""

import dataclasses

from dlnn_search import FashionMnist, load_study

digits = load_study("task2-mnist-mlp-plus")
assert digits.quick is not None
study = dataclasses.replace(
    digits,
    data=FashionMnist(permutation_seed=2020),
    quick=dataclasses.replace(
        digits.quick, data=FashionMnist(permutation_seed=2020, n_training=20_000)
    ),
)
