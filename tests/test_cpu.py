from __future__ import annotations

import os

import pytest

from frcrn_accel.cpu import available_cpus, busy_cpu_s


@pytest.fixture
def affinity(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def test_affinity_without_a_quota(affinity, tmp_path):
    assert available_cpus(tmp_path) == 8


@pytest.mark.parametrize(
    ("cpu_max", "cpus"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("50000 100000", 1),
        ("9900000 100000", 8),
        ("", 8),
    ],
)
def test_quota_of_cgroup_2(affinity, tmp_path, cpu_max, cpus):
    (tmp_path / "cpu.max").write_text(cpu_max + "\n")
    assert available_cpus(tmp_path) == cpus


@pytest.mark.parametrize(("quota", "cpus"), [("-1", 8), ("300000", 3)])
def test_quota_of_cgroup_1(affinity, tmp_path, quota, cpus):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text(quota + "\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert available_cpus(tmp_path) == cpus


def test_a_platform_without_affinity(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert available_cpus(tmp_path) == 6


def test_busy_time_leaves_out_waiting(tmp_path):
    ticks = os.sysconf("SC_CLK_TCK")
    stat = tmp_path / "stat"
    stat.write_text(
        f"cpu  {ticks} {2 * ticks} {4 * ticks} 999 999 {8 * ticks} {16 * ticks} {32 * ticks} 5 5\ncpu0 1\n"
    )
    assert busy_cpu_s(stat) == 63
    stat.write_text("nothing of the kind\n")
    assert busy_cpu_s(stat) is None
    assert busy_cpu_s(tmp_path / "no") is None
