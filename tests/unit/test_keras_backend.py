"""Keras computes with TensorFlow here, whatever it is told to do elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("where", ["the environment", "keras.json"])
def test_another_backend_of_keras_that_is_set_elsewhere_is_not_used_here(
    where: str, tmp_path: Path
) -> None:
    environment = {**os.environ, "KERAS_HOME": str(tmp_path)}
    environment.pop("KERAS_BACKEND", None)
    if where == "the environment":
        environment["KERAS_BACKEND"] = "jax"
    else:
        (tmp_path / "keras.json").write_text('{"backend": "jax"}', encoding="utf-8")
    # As each command does: first the package, then, at need, what builds a model.
    program = "import dlnn_search.models.build, keras; print(keras.config.backend())"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "tensorflow", done.stderr
