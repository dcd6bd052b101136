"""What is different on Windows and macOS, with their systems faked on this one: see docs/platforms.md."""

from __future__ import annotations

import ctypes
import errno
import importlib
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import types
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import soundfile

from delaying import DelayingBackend
from frcrn_accel import AudioError, Denoiser, cli
from frcrn_accel.adapters.background import BackgroundStream
from frcrn_accel.atomic import replacing
from frcrn_accel.backends import gpu
from frcrn_accel.bench.report import describe_machine
from frcrn_accel.corpus import CorpusJob, denoise_corpus
from frcrn_accel.corpus.plan import leads_out
from frcrn_accel.cpu import affinity_cpus, available_cpus, busy_cpu_s, cpu_identity, quota_cpus
from frcrn_accel.denoiser import DenoiserOptions
from frcrn_accel.files import check_targets
from frcrn_accel.memory import available_memory_bytes, keep_freed_memory
from frcrn_accel.models import DEFAULT_MODEL, cached_variant, find_cached, find_model
from frcrn_accel.posix_signals import Stopped, stopping
from frcrn_accel.processes import FileProcess, FileProcesses
from frcrn_accel.processes.denoiser_worker import peak_memory_bytes
from frcrn_accel.testing import FunctionBackend

NOISE = (0.1 * np.random.default_rng(0).standard_normal(16_000)).astype(np.float32)


def without(module: types.ModuleType, *names: str, **values: object) -> types.SimpleNamespace:
    """Return what looks like a module of a system that lacks some names, and has other values."""
    kept = {name: value for name, value in vars(module).items() if name not in names}
    return types.SimpleNamespace(**{**kept, **values})


@pytest.fixture
def halving() -> Denoiser:
    return Denoiser(backend=FunctionBackend(lambda audio: audio / 2), threads=1)


class TestProcessorsAndMemory:
    """Windows and macOS have no affinity in Python, no control groups and no /proc."""

    def test_no_affinity_and_no_groups(self, monkeypatch, tmp_path):
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: 10)
        assert affinity_cpus() is None
        assert quota_cpus(tmp_path / "none", tmp_path / "none") is None
        assert available_cpus(tmp_path / "none", tmp_path / "none") == 10

    @pytest.mark.parametrize("count", [None, 0])
    def test_a_system_that_does_not_count_its_cpus(self, monkeypatch, tmp_path, count):
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: count)
        assert available_cpus(tmp_path, tmp_path / "none") == 1

    def test_no_proc(self, tmp_path):
        none = tmp_path / "none"
        assert available_memory_bytes(none, none, none) is None
        assert busy_cpu_s(none) is None
        assert "model name=" in cpu_identity(none)

    @pytest.mark.parametrize(
        "error", [TypeError("Windows: no name"), OSError("no such library"), AttributeError("musl")]
    )
    def test_freed_memory_is_the_allocators_business(self, monkeypatch, error):
        def fail(name: None) -> None:
            raise error

        monkeypatch.setattr(ctypes, "CDLL", fail)
        keep_freed_memory()

    def test_a_c_library_without_mallopt(self, monkeypatch):
        monkeypatch.setattr(ctypes, "CDLL", lambda name: types.SimpleNamespace())
        keep_freed_memory()

    @pytest.mark.parametrize(("system", "expected"), [("darwin", 123_456), ("win32", None)])
    def test_peak_memory(self, monkeypatch, tmp_path, system, expected):
        usage = types.SimpleNamespace(ru_maxrss=123_456)
        monkeypatch.setattr("frcrn_accel.processes.denoiser_worker.Path", lambda path: tmp_path / "none")
        monkeypatch.setattr("frcrn_accel.processes.denoiser_worker.sys", without(sys, platform=system))
        monkeypatch.setattr(resource, "getrusage", lambda who: usage)
        assert peak_memory_bytes() == expected

    @pytest.mark.parametrize("failing", [None, OSError("not known")])
    def test_no_load_average(self, monkeypatch, failing):
        def fail() -> None:
            raise failing

        if failing is None:
            monkeypatch.delattr(os, "getloadavg", raising=False)
        else:
            monkeypatch.setattr(os, "getloadavg", fail)
        assert describe_machine().load_average is None


class TestSignals:
    """Windows has neither SIGHUP nor masks of signals."""

    def test_stopping_without_sighup(self, monkeypatch):
        monkeypatch.setattr("frcrn_accel.posix_signals.signal", without(signal, "SIGHUP"))
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(Stopped) as stopped, stopping():
            signal.raise_signal(signal.SIGTERM)
        assert stopped.value.number == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is before

    def test_stopping_in_another_thread(self):
        before = signal.getsignal(signal.SIGTERM)
        seen = []

        def run() -> None:
            with stopping() as check:
                check()
                seen.append(signal.getsignal(signal.SIGTERM))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert seen == [before]

    def test_workers_of_a_corpus_without_masks(self, monkeypatch, tmp_path):
        monkeypatch.setattr("frcrn_accel.corpus.local.signal", without(signal, "pthread_sigmask"))
        (tmp_path / "in").mkdir()
        soundfile.write(tmp_path / "in/a.wav", NOISE[:4_000], 16_000)
        plain = DenoiserOptions(backend=FunctionBackend, threads=1)
        report = denoise_corpus(CorpusJob(tmp_path / "in", tmp_path / "out", plain, workers=1))
        assert (report.done, report.failed) == (1, {})


class TestFilesAndUsers:
    """On Windows files belong to no user by number, and processes have no limits of POSIX."""

    def test_files_are_read_in_this_process(self, halving, monkeypatch, tmp_path):
        monkeypatch.setattr("frcrn_accel.processes.file_process.os", without(os, name="nt"))
        monkeypatch.setattr(FileProcess, "run", lambda *_: pytest.fail("it started a process"))
        soundfile.write(tmp_path / "in.wav", NOISE, 16_000, "FLOAT")
        processes = FileProcesses()
        report = halving.denoise_file(tmp_path / "in.wav", tmp_path / "out.wav", run=processes.run)
        processes.close()
        assert report.duration_s == 1.0
        np.testing.assert_allclose(soundfile.read(tmp_path / "out.wav")[0], NOISE / 2, atol=1e-6)

    @pytest.mark.usefixtures("empty_cache")
    def test_a_cache_without_owners(self, monkeypatch):
        source = find_model(DEFAULT_MODEL)
        made = cached_variant(source, {}, lambda path: path.write_bytes(source.path.read_bytes())).path
        made.chmod(0o666)
        monkeypatch.delattr(os, "geteuid")
        assert find_cached(source, {}).path == made

    def test_temporary_files_without_proc(self, tmp_path):
        """Without the boot and the start of processes nothing tells what is left over, so nothing is removed."""
        program = """
import os, pathlib, sys
pathlib.Path.readlink = lambda self: (_ for _ in ()).throw(FileNotFoundError(str(self)))
del os.geteuid
from frcrn_accel.atomic import remove_leftovers, replacing
folder = pathlib.Path(sys.argv[1])
with replacing(folder / "a.wav", overwrite=False) as path:
    path.write_bytes(b"whole")
    remove_leftovers(folder, own=True)
    assert path.name.startswith(".a-frcrn-00000000-"), path
"""
        subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.wav": b"whole"}

    def test_a_file_that_another_program_holds(self, monkeypatch, tmp_path):
        """Windows refuses to replace an open file."""
        (tmp_path / "out.wav").write_bytes(b"precious")

        def refuse(self: Path, target: Path) -> None:
            raise PermissionError(errno.EACCES, "Access is denied", str(target))

        monkeypatch.setattr(Path, "replace", refuse)
        with (
            pytest.raises(PermissionError, match="Access is denied"),
            replacing(tmp_path / "out.wav", overwrite=True) as path,
        ):
            path.write_bytes(b"new")
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"out.wav": b"precious"}

    @pytest.mark.parametrize(
        ("output", "leads"),
        [("a/b.wav", False), ("C:\\b.wav", True), ("C:b.wav", True), ("..\\b.wav", True), ("\\b.wav", True)],
    )
    def test_paths_of_windows(self, monkeypatch, output, leads):
        monkeypatch.setattr("frcrn_accel.corpus.plan.Path", PureWindowsPath)
        assert leads_out(output) is leads

    @pytest.mark.parametrize(
        ("system", "same", "different"),
        [
            ("linux", [], [("A.wav", "a.wav"), ("\u00e9.wav", "e\u0301.wav")]),
            ("win32", [("A.wav", "a.wav")], [("\u00e9.wav", "e\u0301.wav")]),
            ("darwin", [("A.wav", "a.wav"), ("\u00e9.wav", "e\u0301.wav")], [("a.wav", "b.wav")]),
        ],
    )
    def test_targets_that_are_one_file(self, monkeypatch, system, same, different):
        monkeypatch.setattr("frcrn_accel.files.names.sys", without(sys, platform=system))
        for targets in different:
            check_targets(zip(("in/1.wav", "in/2.wav"), targets, strict=True))
        for targets in same:
            with pytest.raises(AudioError, match=r"'in/1\.wav' and 'in/2\.wav' would both become"):
                check_targets(zip(("in/1.wav", "in/2.wav"), targets, strict=True))


class TestServer:
    def test_no_descriptors_to_count_and_no_user_timeout(self, halving, monkeypatch, tmp_path):
        pytest.importorskip("uvicorn", reason="needs the [serve] extra")
        httpx = pytest.importorskip("httpx")
        running = importlib.import_module("serving").running
        monkeypatch.setitem(sys.modules, "resource", None)
        module = importlib.import_module("frcrn_accel.serve.server")
        monkeypatch.setattr(module, "socket", without(socket, "TCP_USER_TIMEOUT", "SO_KEEPALIVE"))
        with running(halving, tmp_path / "server") as run:
            assert run.client.get("/health").status_code == httpx.codes.OK


class TestLibraries:
    @pytest.mark.parametrize(("system", "name"), [("win32", "nvcuda.dll"), ("linux", "libcuda.so.1")])
    def test_nvidias_driver(self, monkeypatch, system, name):
        def load(asked: str) -> None:
            raise OSError(f"{asked} is missing")

        monkeypatch.setattr(gpu, "sys", without(sys, platform=system))
        monkeypatch.setattr(ctypes, "CDLL", load)
        assert gpu.driver_problem() == f"NVIDIA's driver is not installed ({name} is missing)"

    @pytest.mark.parametrize(
        ("system", "remedy"),
        [
            ("linux", "libportaudio2"),
            ("darwin", "brew install portaudio"),
            ("win32", "reinstall the package sounddevice"),
        ],
    )
    def test_portaudio(self, monkeypatch, system, remedy):
        sound_card = importlib.import_module("frcrn_accel.adapters.sound_card")
        monkeypatch.setattr(sound_card, "sys", without(sys, platform=system))

        class Failing:
            def find_spec(self, name: str, *_: object) -> None:
                if name == "sounddevice":
                    raise OSError("PortAudio library not found")

        monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
        monkeypatch.setattr(sys, "meta_path", [Failing(), *sys.meta_path])
        with pytest.raises(sound_card.SoundCardError, match=f"PortAudio library not found.*{remedy}"):
            sound_card.find_device(None, "input")

    def test_openvino_keeps_no_signal_stack(self, monkeypatch):
        pytest.importorskip("openvino", reason="needs the [openvino] extra")
        module = importlib.import_module("frcrn_accel.backends.openvino")
        monkeypatch.setattr(module, "sys", without(sys, platform="darwin"))
        monkeypatch.setattr(module.ctypes, "CDLL", lambda name: pytest.fail("the C library was asked"))
        with Denoiser(backend="openvino", threads=1) as denoiser:
            assert np.isfinite(denoiser(NOISE[:4_000], sample_rate=16_000)).all()


class TestWithoutSoxr:
    """Windows on Arm has no wheel of soxr, and pip leaves it out there."""

    @pytest.fixture(autouse=True)
    def no_soxr(self, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "soxr", None)

    def test_the_package_can_be_imported(self):
        program = "import sys; sys.modules['soxr'] = None; import frcrn_accel, frcrn_accel.files, frcrn_accel.cli"
        subprocess.run([sys.executable, "-c", program], check=True)

    def test_audio_at_16_khz_is_denoised(self, halving, tmp_path):
        np.testing.assert_allclose(halving(NOISE, sample_rate=16_000), NOISE / 2, atol=1e-6)
        soundfile.write(tmp_path / "in.wav", NOISE, 16_000, "FLOAT")
        halving.denoise_file(tmp_path / "in.wav", tmp_path / "out.wav")
        np.testing.assert_allclose(soundfile.read(tmp_path / "out.wav")[0], NOISE / 2, atol=1e-6)

    @pytest.mark.parametrize("rate_hz", [8_000, 44_100, 48_000])
    def test_other_rates_are_one_clear_error(self, halving, rate_hz):
        with pytest.raises(AudioError) as raised:
            halving(NOISE, sample_rate=rate_hz)
        text = str(raised.value)
        assert text.startswith("the sample rate cannot be converted: the package soxr is missing (")
        assert "There is no wheel of it for Python for Arm on Windows" in text
        assert "\n" not in text

    def test_the_command_line(self, monkeypatch, capsys, tmp_path):
        pytest.importorskip("onnxruntime")
        soundfile.write(tmp_path / "in.wav", NOISE, 44_100)
        command = ["frcrn-accel", "denoise", tmp_path / "in.wav", "-o", tmp_path / "out.wav", "--backend", "ort"]
        monkeypatch.setattr(sys, "argv", [str(part) for part in command])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        error = capsys.readouterr().err
        assert ended.value.code == 2
        assert "soxr is missing" in error
        assert "Traceback" not in error
        assert [path.name for path in tmp_path.iterdir()] == ["in.wav"]


def test_calls_that_change_their_rate_need_no_soxr(monkeypatch):
    """After a change of rate, the delayed samples come out at the new rate, followed by the denoised signal."""
    monkeypatch.setitem(sys.modules, "soxr", None)
    with Denoiser(backend=DelayingBackend(0.5)) as denoiser:
        background = BackgroundStream(lambda rate, channels: denoiser.stream(rate, channels=channels))
        background.open(16_000, 1)
        found = {}
        for rate, channels in ((16_000, 1), (48_000, 2)):
            tone = np.rint(9_000 * np.sin(2 * np.pi * 200 * np.arange(2 * rate) / rate)).astype(np.int16)
            chunks = np.split(np.tile(tone, (channels, 1)), 200, axis=1)
            parts = []
            for chunk in chunks:
                parts.append(background.process(chunk, rate))
                background.wait()
            found[rate] = np.concatenate(parts, axis=1)
        background.close()
    peaks = [np.abs(part).max() for part in np.split(found[48_000], 20, axis=1)]  # of 0.1 s
    assert min(peaks) > 4_000
    assert peaks[-1] == pytest.approx(4_500, abs=50)


def test_streams_need_no_soxr(monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setitem(sys.modules, "soxr", None)
    with Denoiser("frcrn-small-stream", backend="ort", threads=1) as denoiser:
        stream = denoiser.stream(48_000)
        assert len(np.concatenate([stream.process(NOISE[:4_800]), stream.flush()])) == 4_800 + stream.latency_samples
