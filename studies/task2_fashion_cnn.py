"""Task 2: clothing with shuffled pixels, by a convolutional network (report, section 3).

The space of task 1: what shuffling costs can be told only if all else is equal. One permutation
moves the pixels of all pictures alike.
"""

from dlnn_search import load_study

study = load_study("task1-fashion-cnn").on(permutation_seed=2020)
