"""Features of Arm CPUs, as each system tells them."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import struct
import subprocess
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frcrn_accel.doctor.arm import arm_flags, flags_of_auxv, flags_of_sysctl, flags_of_windows
from frcrn_accel.doctor.machine import examine_cpu

# Bits of AT_HWCAP (16) and AT_HWCAP2 (26) of 64-bit Arm Linux.
BITS = {
    "asimd": (16, 1),
    "asimdhp": (16, 10),
    "asimddp": (16, 20),
    "sve": (16, 22),
    "i8mm": (26, 13),
    "bf16": (26, 14),
}
PI_4 = "fp asimd evtstrm crc32 cpuid"
PI_5 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
GRAVITON_3 = (
    f"{PI_5} sha3 sm3 sm4 sha512 sve asimdfhm dit uscat ilrcpc flagm paca pacg dcpodp svei8mm svebf16 i8mm bf16"
)


def auxv(flags: str) -> bytes:
    """Return the auxiliary vector of a process on a CPU with some features, as `/proc/self/auxv` has it."""
    entries = {6: 4096, 16: 0, 23: 0, 26: 0}
    for name in set(flags.split()) & set(BITS):
        entry, bit = BITS[name]
        entries[entry] |= 1 << bit
    return b"".join(struct.pack("=QQ", *item) for item in [*entries.items(), (0, 0)])


def cpuinfo(flags: str) -> str:
    """Return the text of `/proc/cpuinfo` on a board with some features."""
    cpu = f"BogoMIPS\t: 108.00\nFeatures\t: {flags}\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n"
    return "\n".join(f"processor\t: {number}\n{cpu}" for number in range(4)) + "\nRevision\t: d04170\n"


@pytest.fixture
def on(monkeypatch):
    """Pretend to be on an Arm machine with another system."""

    def pretend(system: str) -> None:
        monkeypatch.setattr(platform, "machine", lambda: "ARM64" if system == "Windows" else "aarch64")
        monkeypatch.setattr(platform, "system", lambda: system)
        monkeypatch.setattr("archspec.cpu.brand_string", lambda: None)
        monkeypatch.setattr("archspec.cpu.detect.detected_info", lambda: types.SimpleNamespace(features=set()))
        monkeypatch.setattr("archspec.cpu.host", lambda: types.SimpleNamespace(features={"asimd"}))

    return pretend


def present() -> set[str]:
    return {name for name, has in examine_cpu().features.items() if has}


EXPECTED = [
    (PI_4, {"NEON"}),
    (PI_5, {"NEON", "half precision", "dot product"}),
    (GRAVITON_3, {"NEON", "half precision", "dot product", "i8mm", "BF16", "SVE"}),
]


class TestLinux:
    @pytest.mark.parametrize(("flags", "expected"), EXPECTED, ids=["Cortex-A72", "Cortex-A76", "Neoverse-V1"])
    def test_the_auxiliary_vector(self, on, monkeypatch, tmp_path, flags, expected):
        on("Linux")
        (tmp_path / "auxv").write_bytes(auxv(flags))
        monkeypatch.setattr("frcrn_accel.doctor.arm.AUXV", tmp_path / "auxv")
        assert present() == expected

    def test_a_system_that_hides_the_vector_has_cpuinfo(self, tmp_path):
        # In a process of its own, since archspec keeps what it finds.
        program = """
import builtins, io, json, pathlib, platform, sys
import frcrn_accel.doctor.arm as arm
platform.machine, arm.AUXV = lambda: "aarch64", pathlib.Path(sys.argv[1], "none")
from frcrn_accel.doctor.machine import examine_cpu
import archspec.cpu.detect as detect
found = []
for text in json.load(sys.stdin):
    detect.open = lambda path, text=text: io.StringIO(text)
    found.append(sorted(name for name, has in examine_cpu().features.items() if has))
print(json.dumps(found))
"""
        if platform.system() != "Linux":
            pytest.skip("/proc/cpuinfo is of Linux")
        command = [sys.executable, "-c", program, str(tmp_path)]
        texts = json.dumps([cpuinfo(flags) for flags, _ in EXPECTED])
        done = subprocess.run(command, input=texts, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == [sorted(expected) for _, expected in EXPECTED]

    @given(st.sets(st.sampled_from(sorted(BITS))))
    def test_every_combination(self, names):
        assert flags_of_auxv(auxv(" ".join(names))) == names

    @given(st.binary(max_size=100))
    def test_any_bytes(self, content):
        assert flags_of_auxv(content) <= set(BITS)

    def test_a_32_bit_process(self, monkeypatch, tmp_path):
        (tmp_path / "auxv").write_bytes(auxv(PI_5))
        monkeypatch.setattr("frcrn_accel.doctor.arm.AUXV", tmp_path / "auxv")
        monkeypatch.setattr("frcrn_accel.doctor.arm.sys", types.SimpleNamespace(maxsize=2**31 - 1))
        assert arm_flags("Linux") == frozenset()

    def test_this_process(self):
        if platform.machine() != "aarch64" or not os.path.exists("/proc/self/auxv"):  # noqa: PTH110
            pytest.skip("this is not 64-bit Arm Linux")
        assert "asimd" in arm_flags("Linux")


class TestMacOs:
    M1 = "hw.optional.AdvSIMD: 1\nhw.optional.arm.FEAT_FP16: 1\nhw.optional.arm.FEAT_DotProd: 1\n"
    M1 += "hw.optional.arm.FEAT_I8MM: 0\nhw.optional.arm.FEAT_BF16: 0\n"

    def test_sysctl(self, on, monkeypatch):
        on("Darwin")
        asked = []

        def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
            asked.append(command)
            return subprocess.CompletedProcess(command, 0, stdout=self.M1)

        monkeypatch.setattr(subprocess, "run", run)
        assert present() == {"NEON", "half precision", "dot product"}
        assert asked[0][:2] == ["/usr/sbin/sysctl", "-i"]
        assert "hw.optional.arm.FEAT_I8MM" in asked[0]

    @pytest.mark.parametrize("error", [FileNotFoundError("no sysctl"), subprocess.CalledProcessError(1, "sysctl")])
    def test_without_sysctl_the_name_of_the_chip_counts(self, on, monkeypatch, error):
        on("Darwin")

        def fail(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(subprocess, "run", fail)
        assert present() == {"NEON"}

    @pytest.mark.parametrize("text", ["", "nonsense", "hw.optional.arm.FEAT_I8MM:", "hw.optional.arm.FEAT_SME: 1"])
    def test_other_texts(self, text):
        assert flags_of_sysctl(text) == frozenset()


class TestWindows:
    def test_processor_features(self, on, monkeypatch):
        on("Windows")
        kernel = types.SimpleNamespace(IsProcessorFeaturePresent=lambda feature: int(feature in (19, 43, 67)))
        monkeypatch.setattr(ctypes, "WinDLL", lambda name: kernel, raising=False)
        assert present() == {"NEON", "half precision", "dot product"}

    def test_a_windows_without_the_function(self, on, monkeypatch):
        on("Windows")
        monkeypatch.setattr(ctypes, "WinDLL", lambda name: types.SimpleNamespace(), raising=False)
        assert present() == {"NEON"}

    def test_every_feature(self):
        assert flags_of_windows(lambda feature: 1) == set(BITS)


def test_another_system():
    assert arm_flags("FreeBSD") == frozenset()
