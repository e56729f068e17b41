"""Which GPUs there are, and how a machine is shared out among its workers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dlnn_search import machine as gpus
from dlnn_search.errors import UsageError
from dlnn_search.machine import Gpu, Seat, choose_gpus, find_gpus, plan_seats, seats

TWO = "0, GPU-aaaa, NVIDIA A100, 40960\n1, GPU-bbbb, NVIDIA A100, 40960\n"
A, B = (Gpu(0, "GPU-aaaa", "NVIDIA A100", 40960), Gpu(1, "GPU-bbbb", "NVIDIA A100", 40960))

Smi = Callable[..., None]


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    """Put an nvidia-smi on the path that prints what it is told."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(says: str, code: int = 0) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\nprintf '%s' '{says}'\nexit {code}\n", encoding="utf-8")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return install


@pytest.fixture
def no_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_the_gpus_are_those_that_nvidia_smi_lists(smi: Smi) -> None:
    smi(TWO)
    assert find_gpus() == [A, B]


def test_a_machine_without_nvidia_smi_has_no_gpu(no_smi: None) -> None:
    assert find_gpus() == []


def test_a_driver_that_fails_is_no_gpu(smi: Smi) -> None:
    smi("NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.", 9)
    assert find_gpus() == []


@pytest.mark.parametrize(
    ("visible", "expected"), [("1", [B]), ("GPU-aa", [A]), ("", []), ("-1", [])]
)
def test_only_gpus_that_a_job_may_use_count(
    visible: str, expected: list[Gpu], smi: Smi, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find_gpus() == expected


def test_gpus_are_chosen_by_number_in_the_given_order() -> None:
    assert choose_gpus("1, 0", [A, B]) == [B, A]
    assert choose_gpus(None, [A, B]) == choose_gpus("all", [A, B]) == [A, B]
    assert choose_gpus("none", [A, B]) == choose_gpus(None, []) == []


def test_a_gpu_that_is_not_there_is_refused_with_what_was_found() -> None:
    with pytest.raises(UsageError, match=r"no GPU 3: this machine has 0 \(NVIDIA A100, 40 GB\), 1"):
        choose_gpus("0,3", [A, B])


def test_gpus_where_none_is_say_what_was_looked_for(no_smi: None, smi: Smi) -> None:
    with pytest.raises(UsageError, match=r"found none: the program nvidia-smi.* not installed"):
        choose_gpus("0", [])
    smi("")
    with pytest.raises(UsageError, match="found none: nvidia-smi lists none"):
        choose_gpus("all", [])


@pytest.mark.parametrize("text", ["", "a", "0,", "0;1", "-1", "0,0"])
def test_gpus_that_cannot_be_meant_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="Expected"):
        choose_gpus(text, [A, B])


def test_each_gpu_has_one_worker_unless_told_otherwise() -> None:
    assert seats([A, B], n_workers=None, workers_per_gpu=None, cores=8) == [
        Seat(threads=4, gpu=0),
        Seat(threads=4, gpu=1),
    ]


def test_workers_that_share_a_gpu_fit_into_its_memory_together() -> None:
    shared = seats([A, B], n_workers=None, workers_per_gpu=2, cores=8)
    assert [seat.gpu for seat in shared] == [0, 1, 0, 1]
    for gpu in (A, B):
        parts = [seat.gpu_memory_mib for seat in shared if seat.gpu == gpu.index]
        assert len(parts) == 2 and all(parts)
        assert sum(part or 0 for part in parts) + 2 * gpus.CONTEXT_MIB <= gpu.memory_mib


def test_only_the_gpu_that_is_shared_is_limited() -> None:
    one, other, third = seats([A, B], n_workers=3, workers_per_gpu=None, cores=2)
    assert (one.gpu, other.gpu, third.gpu) == (0, 1, 0)
    assert one.gpu_memory_mib == third.gpu_memory_mib is not None
    assert other.gpu_memory_mib is None
    assert one.threads == 1  # never none, however few cores there are


def test_workers_that_do_not_fit_into_the_memory_are_refused_with_how_many_do() -> None:
    small = Gpu(0, "GPU-c", "GTX 1650", 4096)
    with pytest.raises(
        UsageError, match=r"4 workers do not fit.*At most 3 fit: --workers-per-gpu 3"
    ):
        seats([small], n_workers=None, workers_per_gpu=4, cores=8)
    assert len(seats([small], n_workers=None, workers_per_gpu=3, cores=8)) == 3


def test_more_workers_than_the_gpus_take_are_refused() -> None:
    with pytest.raises(UsageError, match=r"at most 4 workers for 2 GPUs.*got --workers 5"):
        seats([A, B], n_workers=5, workers_per_gpu=2, cores=8)


def test_without_gpus_the_cores_are_shared_out_as_threads() -> None:
    assert seats([], n_workers=3, workers_per_gpu=None, cores=8) == [Seat(threads=2)] * 3
    assert seats([], n_workers=None, workers_per_gpu=None, cores=8) == [Seat(threads=8)]
    with pytest.raises(UsageError, match="Expected GPUs for --workers-per-gpu 2, found none"):
        seats([], n_workers=None, workers_per_gpu=2, cores=8)


def test_a_worker_sees_its_own_gpu_alone() -> None:
    environment = Seat(threads=2, gpu=1, gpu_memory_mib=900).environment
    assert environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"  # as nvidia-smi counts
    assert environment["TF_NUM_INTRAOP_THREADS"] == "2"
    assert "CUDA_VISIBLE_DEVICES" not in Seat(threads=2).environment
    assert Seat(threads=2, hide_gpus=True).environment["CUDA_VISIBLE_DEVICES"] == "-1"


def plan(said: list[str], wanted: str | None = None, per_gpu: int | None = None) -> list[Seat]:
    return plan_seats(gpus=wanted, n_workers=None, workers_per_gpu=per_gpu, say=said.append)


def test_gpus_that_tensorflow_cannot_use_are_left_and_told(
    smi: Smi, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(TWO)
    monkeypatch.setattr(gpus, "tensorflow_sees_gpus", lambda: False)
    said: list[str] = []
    (seat,) = plan(said)
    assert seat.gpu is None and seat.hide_gpus
    assert "TensorFlow cannot use it" in said[0] and "training on the processor" in said[0]
    with pytest.raises(UsageError, match=r"Expected TensorFlow to use GPU 0 .*it finds none"):
        plan(said, "0")
    with pytest.raises(UsageError, match="it finds none"):
        plan(said, None, 2)


def test_gpus_that_tensorflow_can_use_are_used_unasked(
    smi: Smi, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(TWO)
    monkeypatch.setattr(gpus, "tensorflow_sees_gpus", lambda: True)
    assert [seat.gpu for seat in plan([])] == [0, 1]
    assert [(seat.gpu, seat.hide_gpus) for seat in plan([], "none")] == [(None, True)]
