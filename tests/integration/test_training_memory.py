"""What a worker's memory holds of a large data set: as good as nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

N_IMAGES = 4_000
EDGE_PX = 150

TRAIN = """
import json, sys
from pathlib import Path
import numpy as np
from dlnn_search import ClockNet, Clocks, Config, Conv, Training
from dlnn_search.data import Split, TrainingData
from dlnn_search.training.fit import fit

def anonymous_megabytes():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1e3

images = np.load(sys.argv[1], mmap_mode="r")
times = np.arange(len(images)) % 720
labels = np.stack([times // 60, times % 60], 1).astype(np.uint8)

def split(first, last):
    return Split(images, np.arange(first, last), labels[first:last])

config = Config(
    data=Clocks(),
    model=ClockNet(blocks=(Conv(filters=2, kernel=8, stride=8),), join="average"),
    training=Training(epochs=1, precision="float32"),
)
# The first, on a few images, holds what TensorFlow needs whatever the data.
fit(config, TrainingData(split(0, 300), split(300, 400)), threads=1)
before = anonymous_megabytes()
fit(config, TrainingData(split(0, len(images) - 400), split(len(images) - 400, len(images))))
print(json.dumps(anonymous_megabytes() - before))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")
def test_training_copies_no_data_set_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "pictures.npy"
    pictures = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.uint8, shape=(N_IMAGES, EDGE_PX, EDGE_PX)
    )
    pictures[:] = np.random.default_rng(0).integers(0, 256, (EDGE_PX, EDGE_PX), np.uint8)
    pictures.flush()
    ended = subprocess.run(
        [sys.executable, "-c", TRAIN, str(path)], capture_output=True, text=True, check=True
    )
    grown = json.loads(ended.stdout.splitlines()[-1])
    as_float_megabytes = pictures.size * 4 / 1e6
    assert grown < 0.5 * as_float_megabytes, f"{grown:.0f} MB of {as_float_megabytes:.0f}"
