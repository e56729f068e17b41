"""Clothing with shuffled pixels by a perceptron, with what the report did not have (section 5).

The space of the digits' study: shuffled, the two differ in nothing that a network could know.
"""

from dlnn_search import load_study

study = load_study("task2-mnist-mlp-plus").on(name="fashion-mnist")
