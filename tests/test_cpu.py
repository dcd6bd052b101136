from __future__ import annotations

import os

import pytest

from frcrn_accel.cpu import available_cpus, busy_cpu_s
from frcrn_accel.memory import available_memory_bytes


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


@pytest.mark.parametrize(
    ("own_groups", "quotas", "cpus"),
    [
        ("0::/slurm/job_7/step_0\n", {"slurm/job_7": "300000 100000"}, 3),
        ("0::/slurm/job_7/step_0\n", {"slurm/job_7/step_0": "max 100000", "slurm": "400000 100000"}, 4),
        (
            "0::/system.slice/a.service\n",
            {"system.slice/a.service": "150000 100000", "system.slice": "max 100000"},
            2,
        ),
        ("0::/system.slice/a.service\n", {"system.slice/b.service": "100000 100000"}, 8),
        ("4:memory:/x\n3:cpu,cpuacct:/job_7\n", {"cpu,cpuacct/job_7": "v1 200000"}, 2),
        ("4:memory:/x\n3:cpu,cpuacct:/job_7\n", {"cpu/job_7": "v1 200000", "memory/x": "100000 100000"}, 2),
        ("4:memory:/x\n0::/job_7\n", {"unified/job_7": "500000 100000"}, 5),
        ("0::/../../job_7\n", {"job_7": "600000 100000"}, 6),
        ("no group\n\n::\n", {"job_7": "100000 100000"}, 8),
    ],
)
def test_quota_of_the_own_group_and_those_above(affinity, tmp_path, own_groups, quotas, cpus):
    """systemd, Slurm and container runtimes give processes groups of their own."""
    for folder, limit in quotas.items():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        first, second = limit.split()
        if first == "v1":
            (tmp_path / folder / "cpu.cfs_quota_us").write_text(f"{second}\n")
            (tmp_path / folder / "cpu.cfs_period_us").write_text("100000\n")
        else:
            (tmp_path / folder / "cpu.max").write_text(f"{limit}\n")
    (tmp_path / "own").write_text(own_groups)
    assert available_cpus(tmp_path, tmp_path / "own") == cpus


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


class TestNestedGroups:
    """systemd, Slurm and Kubernetes put a process below the group that has the quota."""

    @staticmethod
    def write(folder, files: dict[str, str]) -> None:
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text + "\n")

    @pytest.mark.parametrize("depth", ["system.slice/job.scope", "system.slice", "system.slice/job.scope/inner"])
    def test_version_2(self, affinity, tmp_path, depth):
        self.write(
            tmp_path,
            {
                "own": f"0::/{depth}",
                "root/cpu.max": "max 100000",
                "root/system.slice/cpu.max": "600000 100000",
                "root/system.slice/job.scope/cpu.max": "300000 100000",
                "root/system.slice/job.scope/inner/cpu.max": "max 100000",
                "root/other.slice/cpu.max": "100000 100000",
            },
        )
        assert available_cpus(tmp_path / "root", tmp_path / "own") == (6 if depth == "system.slice" else 3)

    def test_version_1(self, affinity, tmp_path):
        self.write(
            tmp_path,
            {
                "own": "9:name=systemd:/user\n4:cpu,cpuacct:/slurm/job_7/step_0\n3:cpuset:/a\n0::/",
                "root/cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "root/cpu,cpuacct/cpu.cfs_period_us": "100000",
                "root/cpu,cpuacct/slurm/job_7/cpu.cfs_quota_us": "150000",
                "root/cpu,cpuacct/slurm/job_7/cpu.cfs_period_us": "100000",
                "root/cpu,cpuacct/a/cpu.cfs_quota_us": "50000",
                "root/cpu,cpuacct/a/cpu.cfs_period_us": "100000",
            },
        )
        assert available_cpus(tmp_path / "root", tmp_path / "own") == 2

    @pytest.mark.parametrize("own", ["", "0", "0::", "0::/gone/../..", "x:cpu", "\n\n:::"])
    def test_odd_files(self, affinity, tmp_path, own):
        self.write(tmp_path, {"own": own, "root/cpu.max": "400000 100000"})
        assert available_cpus(tmp_path / "root", tmp_path / "own") == 4

    def test_memory(self, tmp_path):
        self.write(
            tmp_path,
            {
                "own": "0::/job",
                "meminfo": "MemAvailable:  9000 kB",
                "root/job/memory.max": "5000000",
                "root/job/memory.current": "1000000",
            },
        )
        assert available_memory_bytes(tmp_path / "root", tmp_path / "meminfo", tmp_path / "own") == 4_000_000
