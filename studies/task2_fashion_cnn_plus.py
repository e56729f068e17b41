"""Clothing with shuffled pixels by a convolutional network, with what the report did not have.

The space of the digits' study, and its smaller one for `--quick`.
"""

from dlnn_search import load_study

study = load_study("task2-mnist-cnn-plus").on(name="fashion-mnist")
