"""What this machine has and what each worker gets of it: cores, memory, GPUs."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from dlnn_search.errors import UsageError

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


#: nvidia-smi answers within a second; where it hangs, the driver is broken.
SMI_SECONDS = 30
#: Importing TensorFlow takes 3 to 20 s; a machine where it takes longer has a broken driver.
TENSORFLOW_SECONDS = 120
#: What CUDA itself takes of a GPU for each process, beside TensorFlow's pool.
CONTEXT_MIB = 600
#: A network of any use needs about that much.
LEAST_MIB = 512

_FIND_DEVICES = """
import json, tensorflow as tf
print(json.dumps([device.name for device in tf.config.list_physical_devices("GPU")]))
"""


@dataclass(frozen=True)
class Gpu:
    """A GPU, as nvidia-smi lists it."""

    index: int
    uuid: str
    name: str
    memory_mib: int

    @property
    def words(self) -> str:
        return f"{self.index} ({self.name}, {self.memory_mib / 1024:.0f} GB)"


@dataclass(frozen=True)
class Seat:
    """What one of a machine's workers has for its own.

    Attributes:
        gpu: Its GPU's index; None is the processor.
        gpu_memory_mib: Its part of the GPU's memory; None: all that TensorFlow takes.
        threads: TensorFlow's.
        hide_gpus: Whether GPUs that are there are not to be used.
    """

    threads: int
    gpu: int | None = None
    gpu_memory_mib: int | None = None
    hide_gpus: bool = False

    @property
    def options(self) -> list[str]:
        """The `worker` command's options."""
        options = ["--threads", str(self.threads)]
        if self.gpu is not None:
            options += ["--gpu", str(self.gpu)]
        if self.gpu_memory_mib is not None:
            options += ["--gpu-memory", str(self.gpu_memory_mib)]
        return options

    @property
    def environment(self) -> dict[str, str]:
        """What must be set before TensorFlow is imported."""
        return {
            **worker_environment(self.threads),
            **gpu_environment(self.gpu),
            **({"CUDA_VISIBLE_DEVICES": "-1"} if self.hide_gpus else {}),
        }


def worker_environment(threads: int) -> dict[str, str]:
    """Return what must be set before TensorFlow is imported."""
    return {
        "OMP_NUM_THREADS": str(threads),
        # NumPy's, for the sampler: its matrices are so small that a second thread costs more.
        "OPENBLAS_NUM_THREADS": "1",
        "TF_NUM_INTRAOP_THREADS": str(threads),
        "TF_NUM_INTEROP_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONUNBUFFERED": "1",
    }


def gpu_environment(gpu: int | None) -> dict[str, str]:
    """Return what lets CUDA see one GPU only, counted as nvidia-smi counts."""
    if gpu is None:
        return {}
    return {"CUDA_VISIBLE_DEVICES": str(gpu), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def find_gpus() -> list[Gpu]:
    """Return the machine's GPUs that this process may use; none without NVIDIA's driver.

    Slurm and others name in `CUDA_VISIBLE_DEVICES` the ones that a job may use.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        said = subprocess.run(
            [
                program,
                "--query-gpu=index,uuid,name,memory.total",
                "--format=csv,noheader,nounits",
            ],
            capture_output=True,
            text=True,
            timeout=SMI_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):  # the program without a driver, or a broken one
        return []
    found = [gpu for line in said.stdout.splitlines() if (gpu := _gpu(line)) is not None]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    names = [name.strip() for name in visible.split(",")]
    return [gpu for gpu in found if _is_named(gpu, names)]


def _gpu(line: str) -> Gpu | None:
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != 4 or not parts[0].isdigit():
        return None
    # Unified memory (Jetson, GB10) is "[N/A]": no size of its own to share out.
    return Gpu(int(parts[0]), parts[1], parts[2], int(parts[3]) if parts[3].isdigit() else 0)


def _is_named(gpu: Gpu, names: Sequence[str]) -> bool:
    return any(
        name == str(gpu.index) or (name.startswith("GPU-") and gpu.uuid.startswith(name))
        for name in names
    )


def tensorflow_sees_gpus() -> bool:
    """Ask TensorFlow, in a process of its own: it may hang or crash on a broken driver."""
    try:
        said = subprocess.run(
            [sys.executable, "-c", _FIND_DEVICES],
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            capture_output=True,
            text=True,
            timeout=TENSORFLOW_SECONDS,
            check=True,
        )
        return bool(json.loads(said.stdout.splitlines()[-1]))
    except (subprocess.SubprocessError, ValueError, IndexError):
        return False


def plan_seats(
    *,
    gpus: str | None,
    n_workers: int | None,
    workers_per_gpu: int | None,
    say: Callable[[str], None],
) -> list[Seat]:
    """Return the seats of this machine's workers, as the options of `start` mean them.

    Raises:
        UsageError: If they cannot be had.
    """
    if n_workers == 0:
        return []
    hide = gpus is not None and gpus.strip().lower() == "none"
    chosen = [] if hide else choose_gpus(gpus, find_gpus())
    if chosen and not tensorflow_sees_gpus():
        names = ", ".join(gpu.words for gpu in chosen)
        if gpus is not None or workers_per_gpu is not None:
            raise UsageError(
                f"Expected TensorFlow to use GPU {names}, which nvidia-smi lists; it finds none. "
                "Install its CUDA parts, with pip install '.[gpu]' in dlnn-search's folder, or "
                "train on the processor with --gpus none."
            )
        say(
            f"nvidia-smi lists GPU {names}, but TensorFlow cannot use it (pip install "
            "'dlnn-search[gpu]'): training on the processor."
        )
        chosen, hide = [], True
    return seats(
        chosen,
        n_workers=n_workers,
        workers_per_gpu=workers_per_gpu,
        cores=usable_cores(),
        hide_gpus=hide,
    )


def choose_gpus(wanted: str | None, found: Sequence[Gpu]) -> list[Gpu]:
    """Return the GPUs that `--gpus` means: `0,1`, `all`, `none`; not given: all there are.

    Raises:
        UsageError: If it means one that is not there.
    """
    text = "all" if wanted is None else wanted.strip().lower()
    if text == "none":
        return []
    here = ", ".join(gpu.words for gpu in found)
    if text == "all":
        if wanted is not None and not found:
            raise UsageError(_no_gpu(wanted))
        return list(found)
    if not re.fullmatch(r"\d{1,4}(\s*,\s*\d{1,4})*", text):
        raise UsageError(
            f"Expected --gpus as numbers such as 0,1, or 'all' or 'none', got '{wanted}'."
        )
    numbers = [int(number) for number in text.split(",")]
    if len(set(numbers)) != len(numbers):
        raise UsageError(
            f"Expected each GPU once, got --gpus {wanted}. "
            "For several workers on each use --workers-per-gpu 2."
        )
    if not found:
        raise UsageError(_no_gpu(str(wanted)))
    by_index = {gpu.index: gpu for gpu in found}
    missing = [number for number in numbers if number not in by_index]
    if missing:
        allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = "" if allowed is None else f" (CUDA_VISIBLE_DEVICES={allowed} allows no other)"
        raise UsageError(f"There is no GPU {missing[0]}: this machine has {here}{why}.")
    return [by_index[number] for number in numbers]


def _no_gpu(wanted: str) -> str:
    if shutil.which("nvidia-smi") is None:
        why = "the program nvidia-smi, which comes with NVIDIA's driver, is not installed"
    elif (allowed := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        why = f"nvidia-smi lists none that CUDA_VISIBLE_DEVICES={allowed} allows"
    else:
        why = "nvidia-smi lists none"
    return (
        f"Expected GPUs for --gpus {wanted}, found none: {why}. "
        "Leave --gpus out to train on the processor."
    )


def seats(
    gpus: Sequence[Gpu],
    *,
    n_workers: int | None,
    workers_per_gpu: int | None,
    cores: int,
    hide_gpus: bool = False,
) -> list[Seat]:
    """Share the machine out among its workers.

    Args:
        gpus: To train on; none is the processor.
        n_workers: None: as many as the GPUs take, or one on the processor.
        workers_per_gpu: The most that share a GPU; None: one, or as many as `n_workers` needs.
        cores: To be shared out as threads.
        hide_gpus: Keep the workers from GPUs that are there.

    Raises:
        UsageError: If the numbers do not fit together, or the workers not into the memory.
    """
    if workers_per_gpu is not None and not gpus:
        raise UsageError(
            f"Expected GPUs for --workers-per-gpu {workers_per_gpu}, found none. Use --workers N "
            "to train on the processor."
        )
    if workers_per_gpu is not None and workers_per_gpu < 1:
        raise UsageError(f"Expected at least 1, got --workers-per-gpu {workers_per_gpu}.")
    if n_workers is None:
        n_workers = max(1, len(gpus) * (workers_per_gpu or 1))
    if workers_per_gpu is not None and n_workers > len(gpus) * workers_per_gpu:
        raise UsageError(
            f"Expected at most {len(gpus) * workers_per_gpu} workers for {len(gpus)} GPUs with "
            f"--workers-per-gpu {workers_per_gpu}, got --workers {n_workers}."
        )
    threads = max(1, cores // max(1, n_workers))
    if not gpus:
        return [Seat(threads, hide_gpus=hide_gpus)] * n_workers
    # Round robin: GPU 0 has the first worker, GPU 1 the second, and so on.
    placed = [gpus[number % len(gpus)] for number in range(n_workers)]
    return [Seat(threads, gpu.index, _memory_part(gpu, placed.count(gpu))) for gpu in placed]


def _memory_part(gpu: Gpu, n_sharing: int) -> int | None:
    if n_sharing == 1 or not gpu.memory_mib:
        return None
    part = gpu.memory_mib // n_sharing - CONTEXT_MIB
    if part < LEAST_MIB:
        fitting = max(1, gpu.memory_mib // (LEAST_MIB + CONTEXT_MIB))
        raise UsageError(
            f"{n_sharing} workers do not fit into GPU {gpu.words}: each needs {CONTEXT_MIB} MiB "
            f"for CUDA and at least {LEAST_MIB} MiB for its network. At most {fitting} fit: "
            f"--workers-per-gpu {fitting}."
        )
    return part
