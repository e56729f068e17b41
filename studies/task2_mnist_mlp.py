"""Task 2: digits with shuffled pixels, by a multilayer perceptron (report, section 3).

The space of task 1: what shuffling costs can be told only if all else is equal. One permutation
moves the pixels of all pictures alike.
"""

from dlnn_search import load_study

study = load_study("task1-mnist-mlp").on(permutation_seed=2020)
