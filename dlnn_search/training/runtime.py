"""TensorFlow's process-wide settings: threads, determinism, and no lines nobody asked for."""

from __future__ import annotations

import logging
import os
import sys

import tensorflow as tf

from dlnn_search.errors import UsageError


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


_log = logging.getLogger(__name__)


def set_threads(threads: int | None) -> None:
    """Let TensorFlow use this many threads, if its runtime has not started yet.

    TensorFlow fixes its thread pools at the first operation of a process; after that a call
    changes nothing and says so in the log.
    """
    if threads is None:
        return
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
    devices = tf.config.list_physical_devices("GPU")
    if not devices:
        raise UsageError(
            f"Expected GPU {gpu}, but TensorFlow finds none. Check the number with nvidia-smi, and "
            "that TensorFlow's CUDA parts are installed: pip install 'dlnn-search[gpu]'."
        )
    if memory_mib is not None:
        limit = tf.config.LogicalDeviceConfiguration(memory_limit=memory_mib)
        tf.config.set_logical_device_configuration(devices[0], [limit])
