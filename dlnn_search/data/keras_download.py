"""Keras's own download of MNIST and Fashion-MNIST, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from dlnn_search.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

#: Without a byte for so long, the connection is given up. Keras sets no limit of its own.
SILENCE_SECONDS = 30
#: However slowly the bytes come in: 65 MB in this time is 0.3 Mbit/s.
LIMIT_SECONDS = 1_800

# A fresh process, because importing Keras takes in TensorFlow: 4 s and half a gigabyte, and
# device settings that a worker has yet to choose.
_SCRIPT = """
import socket, sys
import numpy as np
socket.setdefaulttimeout(float(sys.argv[3]))
from keras import datasets
(x_train, y_train), (x_test, y_test) = getattr(datasets, sys.argv[1]).load_data()
np.savez(sys.argv[2], x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
"""


def download_with_keras(keras_name: str, path: Path) -> None:
    """Write a data set of `keras.datasets` to an `.npz` file; Keras keeps a copy of its own.

    Args:
        keras_name: The module in `keras.datasets`: `mnist` or `fashion_mnist`.
        path: The file to write, ending in `.npz`.

    Raises:
        DataError: If Keras fails, or takes longer than `LIMIT_SECONDS`; begins in lower case, to
            be put into a longer message.
    """
    command = [sys.executable, "-c", _SCRIPT, keras_name, str(path), str(SILENCE_SECONDS)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        ended = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(
            f"Keras's download did not end within {LIMIT_SECONDS // 60} minutes."
        ) from error
    if ended.returncode != 0 or not path.is_file():
        lines = [line for line in ended.stderr.splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else f"exit code {ended.returncode}"
        reason = reason[:300].rstrip(".")
        raise DataError(f"Keras's download failed (is this machine online?): {reason}.")
