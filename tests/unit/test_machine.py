"""How many cores and how much memory a process may use, and when a worker has grown."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from dlnn_search import machine
from dlnn_search.machine import usable_cores, usable_memory_bytes
from dlnn_search.worker.interruption import MEBIBYTE, MemoryWatch, limit_bytes


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 16 cores whose process stands in the control group /job/step."""
    root = tmp_path / "cgroup"
    (root / "job" / "step").mkdir(parents=True)
    own = tmp_path / "own"
    own.write_text("0::/job/step\n", encoding="ascii")
    monkeypatch.setattr(machine, "CGROUPS", root)
    monkeypatch.setattr(machine, "OWN_CGROUP", own)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    return root


def test_without_limits_all_cores_that_the_process_is_pinned_to_count(cgroups: Path) -> None:
    (cgroups / "job" / "cpu.max").write_text("max 100000\n", encoding="ascii")
    assert usable_cores() == 16


@pytest.mark.parametrize(
    ("quota", "cores"), [("400000 100000", 4), ("150000 100000", 2), ("10000 100000", 1)]
)
def test_the_tightest_group_around_the_process_limits_its_cores(
    cgroups: Path, quota: str, cores: int
) -> None:
    (cgroups / "job" / "cpu.max").write_text(quota, encoding="ascii")
    (cgroups / "job" / "step" / "cpu.max").write_text("800000 100000", encoding="ascii")
    assert usable_cores() == cores


def test_a_container_that_sees_its_group_as_the_root_is_limited_by_it(cgroups: Path) -> None:
    (cgroups / "cpu.max").write_text("200000 100000", encoding="ascii")
    assert usable_cores() == 2


def test_the_older_control_groups_limit_cores_and_memory(cgroups: Path) -> None:
    machine.OWN_CGROUP.write_text("4:cpu,cpuacct:/job\n3:memory:/job\n", encoding="ascii")
    for folder in ("cpu", "memory"):
        (cgroups / folder / "job").mkdir(parents=True)
    (cgroups / "cpu" / "job" / "cpu.cfs_quota_us").write_text("300000", encoding="ascii")
    (cgroups / "cpu" / "job" / "cpu.cfs_period_us").write_text("100000", encoding="ascii")
    limit = cgroups / "memory" / "job" / "memory.limit_in_bytes"
    limit.write_text("1073741824", encoding="ascii")
    assert usable_cores() == 3
    assert usable_memory_bytes() == 2**30


def test_memory_is_the_machines_unless_a_group_has_less(cgroups: Path) -> None:
    (cgroups / "memory.max").write_text("max", encoding="ascii")
    assert usable_memory_bytes() == psutil.virtual_memory().total
    (cgroups / "job" / "memory.max").write_text("2147483648", encoding="ascii")
    assert usable_memory_bytes() == 2**31


def test_a_worker_is_replaced_when_it_holds_twice_what_it_held_at_first() -> None:
    watch = MemoryWatch(share_bytes=100_000 * MEBIBYTE)
    assert watch.grown_words(1_000 * MEBIBYTE) is None
    assert watch.grown_words(1_999 * MEBIBYTE) is None
    words = watch.grown_words(2_100 * MEBIBYTE)
    assert words is not None
    assert "from 1,000 MiB after the first trial to 2,100 MiB (limit 2,000 MiB)" in words


def test_a_small_worker_may_grow_by_half_a_gibibyte() -> None:
    assert limit_bytes(100 * MEBIBYTE, 100_000 * MEBIBYTE) == 612 * MEBIBYTE


def test_the_machines_share_ends_growth_earlier() -> None:
    assert limit_bytes(1_000 * MEBIBYTE, 1_500 * MEBIBYTE) == 1_500 * MEBIBYTE


def test_a_worker_that_begins_above_its_share_is_not_replaced_after_each_trial() -> None:
    assert limit_bytes(1_000 * MEBIBYTE, 300 * MEBIBYTE) == 1_200 * MEBIBYTE


def test_the_memory_of_this_very_process_is_asked_for() -> None:
    watch = MemoryWatch(share_bytes=0)
    assert watch.grown_words() is None
    assert watch.grown_words() is None  # a fifth more it may have in any case
    assert watch._first_bytes is not None and watch._first_bytes > 10 * MEBIBYTE
