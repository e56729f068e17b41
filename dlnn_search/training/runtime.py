"""This machine's TensorFlow: its threads and devices, and the number format that it trains in.

`auto` takes mixed_bfloat16 only where two things hold: this machine trains this kind of model
faster in it (probed once a machine, kept in the user's cache), and it costs no accuracy
(measured beforehand by benchmarks/precision.py, kept in precision_measured.json). Neither goes
without saying: processors with AVX512-BF16 were seen to convolve in bfloat16 at twice the speed
of float32, and at half of it.

TensorFlow is imported by the functions that need it, so that `import_tensorflow` can be first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path
from statistics import mean
from typing import Any

import filelock
import numpy as np
import platformdirs

from dlnn_search.config import Config
from dlnn_search.errors import UsageError
from dlnn_search.files import written_whole

#: What a probe must show before the number format changes: timings of a busy machine scatter.
WORTHWHILE_SPEEDUP = 1.15
#: Accuracy, a tenth of a percentage point; two seeds of one format differ by up to 0.0026.
TOLERATED_LOSS = 0.001
#: An x86 processor with none of these computes in bfloat16 by detours, at a tenth of the speed.
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "avx_ne_convert"})
CPUINFO = Path("/proc/cpuinfo")
#: Two probes took 65 s together on a machine loaded twice over.
PROBE_TIMEOUT_SECONDS = 180
#: The network that stands for a kind, and the edge of its pictures in pixels.
REPRESENTATIVES = {
    "mlp": ("mnist_mlp", 28),
    "cnn": ("mnist_cnn", 28),
    "clock_net": ("report_clock", 150),
}
PRECISIONS = ("float32", "mixed_bfloat16")
N_TURNS = 5
BATCHES_A_TURN = {"mlp": 24, "cnn": 3, "clock_net": 3}

_log = logging.getLogger(__name__)


def import_tensorflow() -> None:
    """Import TensorFlow and find its devices, with standard error closed to native code.

    Its loader reports missing CUDA libraries before any log level holds. What Python raises is
    not affected.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        import tensorflow as tf

        tf.config.list_physical_devices()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def set_threads(threads: int | None) -> None:
    """Let TensorFlow use this many threads, if its runtime has not started yet.

    TensorFlow fixes its thread pools at the first operation of a process; after that a call
    changes nothing and says so in the log.
    """
    if threads is None:
        return
    import tensorflow as tf

    if tf.config.threading.get_intra_op_parallelism_threads() == threads:
        return
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError:
        _log.info("TensorFlow runs already: its threads stay as they are, not %d.", threads)


def set_deterministic(deterministic: bool) -> None:
    """Make all operations of this process bit-reproducible, if asked; never undone.

    TensorFlow has no per-model switch, so a process that trained one deterministic config goes
    on with the deterministic kernels.
    """
    if deterministic:
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()


def use_gpu(gpu: int, memory_mib: int | None) -> None:
    """Take the one GPU that CUDA was allowed to see, and at most a part of its memory.

    Call it before the first operation of the process.

    Args:
        gpu: Its number, for the error.
        memory_mib: What TensorFlow may take of it; None: all.

    Raises:
        UsageError: If TensorFlow sees no GPU.
    """
    import tensorflow as tf

    devices = tf.config.list_physical_devices("GPU")
    if not devices:
        raise UsageError(
            f"Expected GPU {gpu}, but TensorFlow finds none. Check the number with nvidia-smi, and "
            "that TensorFlow's CUDA parts are installed: pip install '.[gpu]' in "
            "dlnn-search's folder."
        )
    if memory_mib is not None:
        limit = tf.config.LogicalDeviceConfiguration(memory_limit=memory_mib)
        tf.config.set_logical_device_configuration(devices[0], [limit])


def with_precision(config: Config, precision: str) -> Config:
    """Return the config with another precision."""
    training = config.training.model_copy(update={"precision": precision})
    return config.model_copy(update={"training": training})


def resolve_precision(config: Config, image_shape: tuple[int, ...]) -> Config:
    """Return the config with a concrete precision in place of `auto`.

    Args:
        config: Returned as it is if its precision is concrete already.
        image_shape: Height and width of the pictures; kept for rules that may depend on it.

    Returns:
        float32 where in doubt: where no measurement covers the kind of model, and where the
        probe cannot run.
    """
    if config.training.precision != "auto":
        return config
    kind = config.model.kind
    faster = loses_nothing(kind) and bfloat16_speedup(kind) >= WORTHWHILE_SPEEDUP
    return with_precision(config, "mixed_bfloat16" if faster else "float32")


def loses_nothing(kind: str) -> bool:
    """Whether the kept measurement covers a kind of model and shows no loss of accuracy."""
    text = resources.files("dlnn_search.training").joinpath("precision_measured.json").read_text()
    measured = json.loads(text)["models"].get(kind)
    if measured is None:
        return False
    pairs = zip(measured["float32"], measured["mixed_bfloat16"], strict=True)
    losses = [exact - rounded for exact, rounded in pairs]
    return bool(mean(losses) <= TOLERATED_LOSS)


def bfloat16_speedup(kind: str) -> float:
    """Return how much faster this machine trains a kind of model in mixed_bfloat16.

    Probed in a process of its own, since a probe here would start TensorFlow's runtime before
    the worker has set its threads. 0 if it cannot be known, or no probe is needed to know.
    """
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU") and _lacks_bfloat16():
        return 0.0
    key = f"{_hardware()} tensorflow-{tf.__version__} {kind}"
    path = _cache() / "precision.json"
    known = _read(path)
    if key not in known:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(path.with_suffix(".lock"), timeout=2 * PROBE_TIMEOUT_SECONDS):
                known = _read(path)
                if key not in known:
                    known[key] = _probe(kind)
                    with written_whole(path) as partial:
                        partial.write_text(json.dumps(known, indent=2), encoding="utf-8")
        except (OSError, filelock.Timeout) as error:
            _log.warning("Training in float32: the cache '%s' cannot be used: %s", path, error)
            return 0.0
    return float(known[key])


def _lacks_bfloat16() -> bool:
    """Whether the processor says that it has no instruction for it; other kinds do not say."""
    with contextlib.suppress(OSError):
        for line in CPUINFO.read_text(encoding="utf-8").splitlines():
            if line.startswith("flags"):
                return not BFLOAT16_FLAGS & set(line.split())
    return False


def _probe(kind: str) -> float:
    command = [sys.executable, "-m", "dlnn_search.training.runtime", kind]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_SECONDS, check=True
        )
        return float(done.stdout.split()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        _log.warning("Training in float32: the probe of bfloat16 failed: %s", error)
        return 0.0


def _cache() -> Path:
    named = os.environ.get("DLNN_SEARCH_CACHE")
    return Path(named) if named else platformdirs.user_cache_path("dlnn-search")


def _read(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(known, dict):
            return known
    return {}


def _hardware() -> str:
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        return str(details.get("device_name", "gpu"))
    if not CPUINFO.exists():
        return f"{platform.machine()} {platform.processor()}".strip()
    # Clouds name many processors alike: model number and instruction sets tell them apart.
    kept = ("vendor_id", "cpu family", "model", "stepping", "flags")
    lines = CPUINFO.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    told = [line for line in lines if line.split(":")[0].strip().startswith(kept)]
    name = next((line.split(":")[1].strip() for line in lines if "model name" in line), "cpu")
    return f"{name} {hashlib.sha256(os.linesep.join(told).encode()).hexdigest()[:8]}"


def speedup(kind: str) -> float:
    """Return float32's time divided by mixed_bfloat16's, the fastest of some turns of each.

    What `python -m dlnn_search.training.runtime KIND` prints.
    """
    from dlnn_search.models.build import build
    from dlnn_search.models.heads import head_of
    from dlnn_search.study.named_configs import NAMED
    from dlnn_search.training.optimizer import make_optimizer
    from dlnn_search.training.step import Steps

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
