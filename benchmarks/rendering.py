"""Clock pictures a second and core: python benchmarks/rendering.py [--sizes 64 150].

By processor time, which another program on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np

from dlnn_search.data.clocks.renderer import render_times

N_IMAGES = 720
N_TURNS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[48, 64, 100, 150, 300])
    sizes = parser.parse_args().sizes
    times = np.arange(N_IMAGES)
    print("| size, px | images a core-second, median (range) |")
    print("| --- | --- |")
    for size in sizes:
        rates = []
        for seed in range(N_TURNS):
            began = time.process_time()
            render_times(
                times // 60,
                times % 60,
                image_size=size,
                azimuth_spread=math.pi,
                difficulty=1.0,
                seed=seed,
            )
            rates.append(N_IMAGES / (time.process_time() - began))
        print(f"| {size} | {np.median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f}) |")


if __name__ == "__main__":
    main()
