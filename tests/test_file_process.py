"""Files in a process with limits, and files that end it."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import soundfile

from frcrn_accel import AudioError, Denoiser, EngineError, Windowing
from frcrn_accel.errors import AudioTooLongError, OutputExistsError
from frcrn_accel.file_denoising import FileJob, FileReport
from frcrn_accel.notices import collected_notices
from frcrn_accel.processes import FileProcess, FileProcesses, Intake, ProcessLimits
from frcrn_accel.testing import FunctionBackend

pytestmark = pytest.mark.skipif(os.name != "posix", reason="without POSIX, files are read in this process")

NOISE = (0.1 * np.random.default_rng(0).standard_normal(24_000)).astype(np.float32)
WINDOWING = Windowing(window_s=1.0, past_s=0.2, future_s=0.04, fade_s=0.05, fixed=True)


@dataclass(frozen=True)
class Harmful(Intake):
    """An intake that does in the process what a harmful file might; it is unpickled there.

    Attributes:
        harm: What to do.
    """

    harm: str = ""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        harms: dict[str, tuple[Callable[..., object], tuple[object, ...]]] = {
            "segfault": (ctypes.string_at, (0,)),
            "abort": (os.abort, ()),
            "memory": (bytearray, (4 << 30,)),
            "hang": (signal.pause, ()),
        }
        return harms[self.harm]


@pytest.fixture(scope="module")
def denoiser() -> Iterator[Denoiser]:
    with Denoiser(backend=FunctionBackend(lambda audio: audio / 2), windowing=WINDOWING) as denoiser:
        yield denoiser


@pytest.fixture(scope="module")
def processes() -> Iterator[FileProcesses]:
    processes = FileProcesses()
    yield processes
    processes.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "source.wav", NOISE, 16_000, "FLOAT")
    return tmp_path / "source.wav"


class TestFileProcess:
    @pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".opus"])
    def test_files_are_those_of_this_process(
        self, denoiser: Denoiser, processes: FileProcesses, source: Path, suffix: str
    ) -> None:
        here, there = source.with_name(f"here{suffix}"), source.with_name(f"there{suffix}")
        shown: list[tuple[float, float]] = []
        expected = denoiser.denoise_file(source, here)
        report = denoiser.denoise_file(
            source, there, run=processes.run, progress=lambda done_s, total_s: shown.append((done_s, total_s))
        )
        assert there.read_bytes() == here.read_bytes()
        assert dataclasses.replace(report, target=here, processing_s=0) == dataclasses.replace(
            expected, processing_s=0
        )
        assert shown[-1] == (1.5, 1.5)

    def test_errors_are_those_of_this_process(
        self, denoiser: Denoiser, processes: FileProcesses, source: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(AudioTooLongError, match=r"longer than the limit of 1 s"):
            denoiser.denoise_file(source, tmp_path / "a.wav", run=processes.run, max_duration_s=1)
        (tmp_path / "a.wav").touch()
        with pytest.raises(OutputExistsError, match="exists"):
            denoiser.denoise_file(source, tmp_path / "a.wav", run=processes.run)
        (tmp_path / "text").write_text("no audio")
        with pytest.raises(AudioError, match=r"'.*text' cannot be read as audio") as caught:
            denoiser.denoise_file(tmp_path / "text", tmp_path / "b.wav", run=processes.run)
        assert not isinstance(caught.value, AudioTooLongError)
        with pytest.raises(AudioError, match="cannot be written") as caught:
            denoiser.denoise_file(source, tmp_path / "none" / "b.wav", run=processes.run)
        assert isinstance(caught.value.__cause__, OSError)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "source.wav", "text"]

    def test_failures_of_the_engine(self, processes: FileProcesses, source: Path, tmp_path: Path) -> None:
        def fail(audio: np.ndarray) -> np.ndarray:
            raise EngineError("no power")

        for function, message in ((fail, "no power"), (lambda audio: audio * np.nan, "NaN or infinity")):
            with (
                Denoiser(backend=FunctionBackend(function), windowing=WINDOWING) as denoiser,
                pytest.raises(EngineError, match=message),
            ):
                denoiser.denoise_file(source, tmp_path / "a.wav", run=processes.run)
        assert list(tmp_path.iterdir()) == [source]

    def test_an_exception_of_progress_stops_it(
        self, denoiser: Denoiser, processes: FileProcesses, source: Path, tmp_path: Path
    ) -> None:
        def stop(done_s: float, total_s: float) -> None:
            raise KeyError("enough")

        with pytest.raises(KeyError, match="enough"):
            denoiser.denoise_file(source, tmp_path / "a.wav", run=processes.run, progress=stop)
        assert list(tmp_path.iterdir()) == [source]
        denoiser.denoise_file(source, tmp_path / "a.wav", run=processes.run)

    def test_what_is_chosen_and_checked(
        self, denoiser: Denoiser, processes: FileProcesses, source: Path, tmp_path: Path
    ) -> None:
        def run(intake: Intake) -> FileReport:
            return denoiser.denoise_file(
                source, tmp_path / "a", overwrite=True, run=lambda job: processes.run(job, intake)
            )

        assert run(Intake(choose_suffix=True)).target == tmp_path / "a.wav"
        with pytest.raises(AudioError, match="up to 0 channels, got 1"):
            run(Intake(max_channels=0))
        with pytest.raises(AudioTooLongError, match=r"limit of 0\.5 s"):
            run(Intake(max_decoded_bytes=32_000, choose_suffix=True))

    def test_films_are_chosen_and_checked_with_all_tracks(
        self, denoiser: Denoiser, processes: FileProcesses, source: Path, tmp_path: Path
    ) -> None:
        film = tmp_path / "film"
        inputs = ("-f", "lavfi", "-i", "color=size=32x32:rate=5:duration=1", "-i", source, "-i", source)
        coding = (
            "-map",
            "0",
            "-map",
            "1",
            "-map",
            "2",
            "-ac:a:1",
            "2",
            "-c:v",
            "mpeg4",
            "-c:a",
            "flac",
            "-f",
            "matroska",
        )
        subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *inputs, *coding, film], check=True)

        def run(name: str, **intake: Any) -> FileReport:
            with collected_notices():
                return denoiser.denoise_file(
                    film, tmp_path / name, overwrite=True, run=lambda job: processes.run(job, Intake(**intake))
                )

        report = run("a", choose_suffix=True)
        assert (report.target, report.tracks, report.is_film) == (tmp_path / "a.mkv", (0, 1), True)
        report = run("a", choose_suffix=True, takes_films=False)
        assert (report.target, report.tracks, report.is_film) == (tmp_path / "a.mka", (0,), False)
        report = run("a.webm", takes_films=False)
        assert (report.target, report.is_film) == (tmp_path / "a.weba", False)
        with pytest.raises(AudioError, match="up to 1 channels, got 2"):
            run("a.mkv", max_channels=1)
        second_bytes = 3 * 4 * report.sample_rate_hz
        with pytest.raises(AudioTooLongError, match=r"limit of 0\.5 s"):
            run("a", max_decoded_bytes=second_bytes // 2, choose_suffix=True)

    @pytest.mark.parametrize(
        ("harm", "message"),
        [
            ("segfault", r"ended its process \(SIGSEGV\)"),
            ("abort", r"ended its process \(SIGABRT\)"),
            ("memory", r"its process ended \(code 1\)"),
            ("hang", "more than 0.3 s without progress"),
        ],
    )
    def test_the_process_ends_and_is_started_again(
        self, denoiser: Denoiser, source: Path, tmp_path: Path, harm: str, message: str
    ) -> None:
        died: list[None] = []
        process = FileProcess(ProcessLimits(silence_s=0.3 if harm == "hang" else 30), lambda: died.append(None))
        with pytest.raises(AudioError, match=f"cannot be denoised: .*{message}"):
            denoiser.denoise_file(source, tmp_path / "a.wav", run=lambda job: process.run(job, Harmful(harm=harm)))
        assert len(died) == (harm != "hang")
        process.close()

    @pytest.mark.parametrize("stall", ["sends", "receives"])
    def test_a_process_that_stalls_within_a_message(
        self, denoiser: Denoiser, source: Path, tmp_path: Path, stall: str
    ) -> None:
        """It sends a part of one, while a process that it started holds the pipe; or it does not read an answer."""
        process = FileProcess(ProcessLimits(silence_s=2))
        denoiser.denoise_file(source, tmp_path / "a.wav", run=process.run)
        with pytest.raises(AudioError, match=r"cannot be denoised: .*more than 2 s without progress"):
            denoiser.denoise_file(source, tmp_path / "b.wav", run=lambda job: process.run(job, _Stalling(stall)))
        denoiser.denoise_file(source, tmp_path / "b.wav", run=process.run)
        process.close()

    def test_a_new_process_after_one_that_died(self, denoiser: Denoiser, source: Path, tmp_path: Path) -> None:
        process = FileProcess()
        with pytest.raises(AudioError):
            denoiser.denoise_file(
                source, tmp_path / "a.wav", run=lambda job: process.run(job, Harmful(harm="segfault"))
            )
        denoiser.denoise_file(source, tmp_path / "a.wav", run=process.run)
        process.kill()  # while idle
        denoiser.denoise_file(source, tmp_path / "b.wav", run=process.run)
        process.close()

    def test_memory_has_a_limit(self, denoiser: Denoiser, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "wide.wav", np.zeros((20 * 96_000, 8), np.int16), 96_000)
        process = FileProcess(ProcessLimits(memory_bytes=64 << 20))
        with pytest.raises(AudioError, match="cannot be denoised: it needs more memory than 64 MiB"):
            denoiser.denoise_file(tmp_path / "wide.wav", tmp_path / "a.wav", run=process.run)
        process.close()
        assert not (tmp_path / "a.wav").exists()

    def test_a_process_that_lies(self, denoiser: Denoiser, source: Path, tmp_path: Path) -> None:
        """What it says is data: nothing of it is run, and no size in it is believed."""
        for message in (
            b"\x80\x04cos\nsystem\n",
            b'{"do": "jump"}',
            b'{"do": "run", "shape": [1000000, 1000000]}',
            b'{"do": "progress", "done_s": NaN, "total_s": 1}',
            b'{"do": "done", "report": {}}',
        ):
            process = _Liar(message)
            with pytest.raises(AudioError, match="cannot be denoised"):
                denoiser.denoise_file(source, tmp_path / "a.wav", run=process.run)
            process.close()

    def test_secrets_stay_here(self, monkeypatch: pytest.MonkeyPatch, denoiser: Denoiser, source: Path) -> None:
        monkeypatch.setenv("FRCRN_ACCEL_TOKENS", "secret-secret-secret")
        process = FileProcess()
        seen = source.with_name("environ.json")
        with pytest.raises(RuntimeError):  # it is no intake
            denoiser.denoise_file(source, source.with_name("a.wav"), run=lambda job: process.run(job, _Telling(seen)))
        process.close()
        environment = json.loads(seen.read_text())
        assert "PATH" in environment
        assert "FRCRN_ACCEL_TOKENS" not in environment


class _Liar(FileProcess):
    """A process that answers a job with a message that makes no sense."""

    def __init__(self, message: bytes) -> None:
        super().__init__()
        self._message = message

    def run(self, job: FileJob, intake: Intake | None = None) -> FileReport:
        return super().run(job, _Saying(self._message))


@dataclass(frozen=True)
class _Stalling(Intake):
    """An intake that stalls the process: it "sends" a part of a message, or never "receives" the answer to one."""

    stall: str = ""

    def __init__(self, stall: str) -> None:
        object.__setattr__(self, "stall", stall)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        text = json.dumps({"do": "run", "shape": [1, 1 << 20]}).encode()
        whole = len(text).to_bytes(4, "big") + text + (4 << 20).to_bytes(4, "big")
        sent = b"\0\0" if self.stall == "sends" else whole + bytes(4 << 20)
        code = f"""
import os, signal, stat, time
sockets = [fd for fd in range(3, 10) if os.path.exists(f"/dev/fd/{{fd}}") and stat.S_ISSOCK(os.fstat(fd).st_mode)]
content = {sent!r}
while content:
    content = content[os.write(sockets[0], content):]
if {self.stall!r} == "sends" and not os.fork():
    time.sleep(5)
    os._exit(0)
os.kill(os.getpid(), signal.SIGSTOP)
"""
        return exec, (code, {})


@dataclass(frozen=True)
class _Saying(Intake):
    message: bytes = b""

    def __init__(self, message: bytes) -> None:
        object.__setattr__(self, "message", message)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        # The connection is the first one that the process opened after its standard streams.
        code = (
            "[__import__('multiprocessing.connection').connection.Connection(__import__('os').dup(fd))"
            f".send_bytes({self.message!r}) for fd in range(3, 10)"
            " if __import__('stat').S_ISSOCK(__import__('os').fstat(fd).st_mode)]"
        )
        return eval, (
            f"__import__('contextlib').suppress(OSError).__enter__() or {code} and __import__('os')._exit(0)",
        )


@dataclass(frozen=True)
class _Telling(Intake):
    path: Path = Path()

    def __init__(self, path: Path) -> None:
        object.__setattr__(self, "path", path)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        code = f"__import__('json').dump(dict(__import__('os').environ), open({str(self.path)!r}, 'w'))"
        return eval, (code,)
