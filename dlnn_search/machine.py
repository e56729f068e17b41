"""What this process may use of its machine: cores and memory, as far as its container lets it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Return how many cores this process may keep busy: at least one.

    The least of what the machine has, what the process is pinned to (`taskset`, Slurm), and what
    its control groups grant (Docker's `--cpus`, Kubernetes' limits; 1.5 counts as 2).
    """
    pinned = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    cores = len(pinned) if pinned else os.cpu_count() or 1
    granted = [math.ceil(quota) for quota in _cpu_quotas()]
    return max(1, min([cores, *granted]))


def usable_memory_bytes() -> int:
    """Return the machine's memory, or what the process's control groups grant of it."""
    return min([psutil.virtual_memory().total, *_memory_limits()])


def _cpu_quotas() -> Iterator[float]:
    for folder in _own_cgroups():
        quota, _, period = _read(folder / "cpu.max").partition(" ")  # version 2: "150000 100000"
        if not quota:  # version 1; -1 is without limit
            quota = _read(folder / "cpu.cfs_quota_us")
            period = _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            yield int(quota) / int(period)


def _memory_limits() -> Iterator[int]:
    for folder in _own_cgroups():
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _read(folder / name)
            if limit.isdigit():  # "max" is without limit; version 1 says so by a huge number
                yield int(limit)


def _own_cgroups() -> Iterator[Path]:
    """Yield the folders of the process's control groups and of all that they are part of."""
    for line in _read(OWN_CGROUP).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):  # version 2 has a line without a name
            if controller not in ("", "cpu", "memory"):
                continue
            # A container sees its own group as the root, whatever its path is outside.
            root = CGROUPS / controller
            folder = root / path.strip("/")
            while folder != root and root in folder.parents:
                yield folder
                folder = folder.parent
            yield root


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
