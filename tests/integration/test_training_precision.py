import os
import subprocess
import sys
from pathlib import Path

import pytest

from dlnn_search.study.named_configs import mnist_cnn
from dlnn_search.training import runtime
from dlnn_search.training.runtime import resolve_precision, with_precision


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLNN_SEARCH_CACHE", str(tmp_path))


@pytest.fixture(autouse=True)
def processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A processor that computes in bfloat16, whatever runs the test; edit the file for another."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: Some\nflags\t\t: fpu avx2 avx512f avx512_bf16\n\n")
    monkeypatch.setattr(runtime, "CPUINFO", cpuinfo)
    return cpuinfo


@pytest.mark.parametrize(
    ("lossless", "speedup", "expected"),
    [
        (True, 2.0, "mixed_bfloat16"),
        (True, 1.0, "float32"),
        (False, 2.0, "float32"),
        (True, 0.0, "float32"),
    ],
)
def test_auto_takes_bfloat16_only_where_it_is_faster_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, lossless: bool, speedup: float, expected: str
) -> None:
    monkeypatch.setattr(runtime, "loses_nothing", lambda _: lossless)
    monkeypatch.setattr(runtime, "_probe", lambda _: speedup)
    assert resolve_precision(mnist_cnn(), (28, 28)).training.precision == expected


def test_a_concrete_precision_stays() -> None:
    config = with_precision(mnist_cnn(), "mixed_bfloat16")
    assert resolve_precision(config, (28, 28)) is config


def test_a_machine_is_probed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    probed: list[str] = []

    def probe(kind: str) -> float:
        probed.append(kind)
        return 1.5

    monkeypatch.setattr(runtime, "_probe", probe)
    assert [runtime.bfloat16_speedup("cnn") for _ in range(2)] == [1.5, 1.5]
    assert probed == ["cnn"]


def test_a_processor_without_bfloat16_is_not_probed(
    monkeypatch: pytest.MonkeyPatch, processor: Path
) -> None:
    def probe(kind: str) -> float:
        raise AssertionError("a probe takes a minute there")

    monkeypatch.setattr(runtime, "_probe", probe)
    processor.write_text("model name\t: Some\nflags\t\t: fpu avx2 avx512f\n\n")
    assert runtime.bfloat16_speedup("cnn") == 0.0


def test_a_processor_that_does_not_say_is_probed(
    monkeypatch: pytest.MonkeyPatch, processor: Path
) -> None:
    monkeypatch.setattr(runtime, "_probe", lambda _: 1.5)
    processor.write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n\n")
    assert runtime.bfloat16_speedup("cnn") == 1.5
    processor.unlink()
    assert runtime.bfloat16_speedup("cnn") == 1.5


def test_a_probe_that_cannot_run_means_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "loses_nothing", lambda _: True)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert resolve_precision(mnist_cnn(), (28, 28)).training.precision == "float32"


def test_a_kind_that_was_never_measured_is_not_trusted() -> None:
    assert not runtime.loses_nothing("a new kind")


def test_tensorflow_is_imported_with_standard_error_closed() -> None:
    code = (
        "import sys; from dlnn_search.training.runtime import import_tensorflow; "
        "assert 'tensorflow' not in sys.modules; import_tensorflow(); "
        "assert 'tensorflow' in sys.modules"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stderr == ""
