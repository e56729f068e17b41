"""Time one kind of model in float32 and mixed_bfloat16 on this machine: prints the speed-up.

python -m dlnn_search.training.precision_probe cnn
"""

from __future__ import annotations

import sys
import time

import numpy as np

from dlnn_search.models.build import build
from dlnn_search.models.heads import head_of
from dlnn_search.study.named_configs import NAMED
from dlnn_search.training.optimizer import make_optimizer
from dlnn_search.training.precision import with_precision
from dlnn_search.training.step import Steps

#: The network that stands for a kind, and the edge of its pictures in pixels.
REPRESENTATIVES = {
    "mlp": ("mnist_mlp", 28),
    "cnn": ("mnist_cnn", 28),
    "clock_net": ("report_clock", 150),
}
PRECISIONS = ("float32", "mixed_bfloat16")
N_TURNS = 5
BATCHES_A_TURN = {"mlp": 24, "cnn": 3, "clock_net": 3}


def speedup(kind: str) -> float:
    """Return float32's time divided by mixed_bfloat16's, the fastest of some turns of each."""
    name, edge = REPRESENTATIVES[kind]
    config = NAMED[name]()
    head = head_of(config)
    size = config.training.batch_size
    shape = (size * BATCHES_A_TURN[kind], edge, edge, 1)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    targets = np.zeros((len(images), len(head.names)), np.int32)
    sides = []
    for precision in PRECISIONS:
        concrete = with_precision(config, precision)
        model = build(concrete, (edge, edge))
        sides.append(Steps(model, head, make_optimizer(concrete.training)))
    fastest = [float("inf"), float("inf")]
    # In turns, so that other load falls on both; one more at first, to trace and compile.
    for turn in range(N_TURNS + 1):
        for number, steps in enumerate(sides):
            began = time.perf_counter()
            steps.train(images, targets, size)
            if turn:
                fastest[number] = min(fastest[number], time.perf_counter() - began)
    return fastest[0] / fastest[1]


if __name__ == "__main__":
    print(f"{speedup(sys.argv[1]):.3f}")
