"""Workers that crash, stop or lose their folder, and what the journal says of files that are odd."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import soundfile

from dying import MARK, EndingBackend, StallingBackend
from frcrn_accel import CorpusError, ModelFile
from frcrn_accel.backends import Session
from frcrn_accel.corpus import CorpusJob, CorpusReport, denoise_corpus, slots
from frcrn_accel.corpus.journal import Journal, part_name
from frcrn_accel.corpus.local import WorkerProcess, run_local
from frcrn_accel.corpus.plan import Recording, Task, read_inputs
from frcrn_accel.corpus.work import Work, Worker
from frcrn_accel.denoiser import DenoiserOptions
from frcrn_accel.testing import FunctionBackend
from waiting import until

PLAIN = DenoiserOptions(backend=FunctionBackend, threads=1)


class WarningBackend(FunctionBackend):
    """Logs a warning with a name that a terminal would obey."""

    name: ClassVar[str] = "warning"

    def load(self, model: ModelFile, threads: int) -> Session:
        logging.getLogger("frcrn_accel").warning("not used: x\x1b[31m\nred")
        return super().load(model, threads)


def sound(path: Path, samples: int = 4_000) -> Path:
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(samples), 16_000)
    return path


def task(path: Path, output: str | None = None) -> Task:
    name = output or path.name
    return Task(name, (Recording(str(path), name),))


def lines(out: Path) -> dict[str, dict]:
    read = [json.loads(line) for line in (out / "corpus.jsonl").read_text().splitlines()[1:]]
    return {line["output"]: line for line in read}


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    (tmp_path / "parts").mkdir()
    return Worker(Work(PLAIN, tmp_path / "parts"))


def test_what_a_worker_logs_is_escaped(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    work = Work(DenoiserOptions(backend=WarningBackend, threads=1), tmp_path)
    assert list(run_local([], work, 1)) == []
    assert capfd.readouterr().err == "not used: x\\x1b[31m\\nred\n"


class TestWorkersThatEnd:
    @pytest.fixture
    def mark(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv(MARK, str(tmp_path / "mark"))
        (tmp_path / "mark").touch()
        return tmp_path / "mark"

    def test_a_crash_is_named(self, tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "parts").mkdir()
        work = Work(DenoiserOptions(backend=EndingBackend, threads=1), tmp_path / "parts")
        monkeypatch.setattr(slots, "MAX_TRIES", 1)
        tasks = [task(sound(tmp_path / name, n)) for name, n in (("crash.wav", 40_000), ("good.wav", 4_000))]
        results = [result for found in run_local(tasks, work, 1) for result in found]
        assert {result.output: result.entries[0].error for result in results} == {
            "crash.wav": "its worker process died 1 times (killed by SIGSEGV)",
            "good.wav": None,
        }

    def test_a_stopped_worker_is_replaced(self, tmp_path: Path, mark: Path) -> None:
        (tmp_path / "parts").mkdir()
        work = Work(DenoiserOptions(backend=EndingBackend, threads=1), tmp_path / "parts")
        (result,) = next(run_local([task(sound(tmp_path / "stop.wav", 80_000))], work, 1, silent_s=5))
        assert result.is_made
        assert not mark.exists()

    @pytest.mark.skipif(os.name != "posix", reason="processes cannot be stopped")
    @pytest.mark.parametrize("when", ["sends", "receives"])
    def test_one_that_is_stopped_within_a_message(self, tmp_path: Path, mark: Path, when: str) -> None:
        """In the middle of its own, or before it has read one that is larger than the buffer of a pipe."""
        (tmp_path / "parts").mkdir()
        work = Work(DenoiserOptions(backend=StallingBackend, threads=1), tmp_path / "parts")
        source = sound(tmp_path / "long.wav", 40_000 if when == "sends" else 4_000)
        with closing(WorkerProcess(work, silent_s=3)) as worker:
            (first,) = (process.pid for process in multiprocessing.active_children())
            if when == "receives":
                os.kill(first, signal.SIGSTOP)
            large = Recording(str(source), source.name, refusal="x" * 2_000_000)  # which workers do not look at
            assert worker.do(Task(source.name, (large,))).is_made
            (second,) = (process.pid for process in multiprocessing.active_children())
            assert second != first

    def test_one_that_cannot_be_started(self, tmp_path: Path) -> None:
        resource = pytest.importorskip("resource")
        work = Work(DenoiserOptions(backend=EndingBackend, threads=1), tmp_path / "parts")
        results = run_local([task(sound(tmp_path / "a.wav"))], work, 1)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            with pytest.raises(CorpusError, match=r"cannot be started: Too many open files: run fewer workers"):
                next(results)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def test_ctrl_c_ends_a_stopped_worker(self, tmp_path: Path, mark: Path) -> None:
        (tmp_path / "parts").mkdir()
        work = Work(DenoiserOptions(backend=EndingBackend, threads=1), tmp_path / "parts")

        def interrupt() -> None:
            until(mark.exists, lambda exists: not exists)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        sender = threading.Thread(target=interrupt)
        sender.start()
        with (
            pytest.raises(KeyboardInterrupt),
            closing(run_local([task(sound(tmp_path / "stop.wav", 80_000))], work, 1)) as results,
        ):
            list(results)
        sender.join()
        assert multiprocessing.active_children() == []


class TestRemovedWhileTheJobRuns:
    """What was not written stops the job, instead of failing for a reason that is not its own."""

    def test_the_folder_of_a_worker(self, worker: Worker, tmp_path: Path) -> None:
        source = sound(tmp_path / "a.wav")
        assert worker.do(task(source)).is_made
        shutil.rmtree(tmp_path / "parts")
        result = worker.do(task(source))
        assert result.entries == ()
        assert result.stop == f"the folder of unfinished files '{tmp_path}/parts' was removed while the job ran"

    def test_while_it_denoises(self, tmp_path: Path) -> None:
        (tmp_path / "parts").mkdir()

        def remove(audio: np.ndarray) -> np.ndarray:
            shutil.rmtree(tmp_path / "parts")
            return audio.copy()

        worker = Worker(Work(DenoiserOptions(backend=FunctionBackend(remove), threads=1), tmp_path / "parts"))
        result = worker.do(task(sound(tmp_path / "a.wav")))
        assert result.stop is not None
        assert "was removed while the job ran" in result.stop

    def test_a_job_is_resumed(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        for name in "abc":
            sound(tmp_path / "in" / f"{name}.wav")
        out, removed = tmp_path / "out", []

        def remove(report: CorpusReport) -> None:
            if report.done == 1 and not removed:
                removed.append(report.failed)
                (out / ".corpus").rename(tmp_path / "removed")  # at once: a worker may be writing in it

        job = CorpusJob(tmp_path / "in", out, PLAIN, workers=1)
        with pytest.raises(CorpusError, match="was removed while the job ran"):
            denoise_corpus(job, remove)
        assert all(line["error"] is None for line in lines(out).values())
        report = denoise_corpus(job)
        assert (report.before + report.done, report.failed) == (3, {})
        assert sorted(path.name for path in out.iterdir()) == ["a.wav", "b.wav", "c.wav", "corpus.jsonl"]

    def test_the_journal(self, tmp_path: Path) -> None:
        with Journal(tmp_path / "corpus.jsonl", tmp_path, {}, restart=False) as journal:
            journal.path.unlink()
            with pytest.raises(CorpusError, match=r"journal .* was removed while the job ran"):
                journal.sync()

    def test_a_job_that_ends_as_another_begins(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The folder with the lock goes between its creation and the lock, or right after the lock."""
        from filelock import FileLock

        acquire, found = FileLock.acquire, []

        def acquire_late(lock: FileLock, *arguments: object, **more: object) -> object:
            found.append(lock)
            if len(found) == 1:
                shutil.rmtree(tmp_path / ".corpus")
            held = acquire(lock, *arguments, **more)
            if len(found) == 1:
                shutil.rmtree(tmp_path / ".corpus")
            return held

        monkeypatch.setattr(FileLock, "acquire", acquire_late)
        with Journal(tmp_path / "corpus.jsonl", tmp_path, {}, restart=False):
            assert len(found) == 4  # twice with a check each
            with (
                pytest.raises(CorpusError, match="another job is using"),
                Journal(tmp_path / "corpus.jsonl", tmp_path, {}, restart=False),
            ):
                pass
        assert not (tmp_path / ".corpus").exists()


class TestWhatIsNamed:
    def test_left_out_and_unreadable(self, tmp_path: Path) -> None:
        folder = tmp_path / "in"
        for name in ("a.wav", "._a.wav", ".git/b.wav", "notes.txt", "b.TXT"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if name.lower().endswith(".txt"):
                (folder / name).touch()
            else:
                sound(folder / name)
        (folder / "lost.wav").symlink_to(folder / "nothing")
        found = read_inputs(str(folder), str(tmp_path / "out"))
        assert {one.output: one.refusal for one in found.recordings} == {
            "a.wav": None,
            "lost.wav": f"'{folder}/lost.wav' cannot be read: {os.strerror(2)}",
        }
        assert found.left_out == {f"{folder}/.git": "hidden", f"{folder}/._a.wav": "hidden"}
        assert found.other_suffixes == {".txt": 2}
        report = denoise_corpus(CorpusJob(folder, tmp_path / "out", PLAIN, workers=1))
        assert (report.files, report.done, list(report.failed)) == (2, 1, ["lost.wav"])

    def test_hidden_keys_of_a_storage(self, tmp_path: Path) -> None:
        files = pytest.importorskip("fsspec").filesystem("memory")
        for name in ("a.wav", "._a.wav", ".corpus/b.wav", "../c.wav"):
            with files.open(f"/hidden/{name}", "wb") as file:
                file.write(b"x")
        found = read_inputs("memory://hidden", str(tmp_path))
        files.store.clear()
        assert {one.output for one in found.recordings} >= {"a.wav"}
        assert set(found.left_out.values()) == {"hidden"}
        assert {path.rpartition("/hidden/")[2] for path in found.left_out} == {"._a.wav", ".corpus/b.wav"}

    def test_warnings_are_in_the_journal_and_counted(self, tmp_path: Path) -> None:
        folder = tmp_path / "in"
        folder.mkdir()
        sound(folder / "whole.wav")
        cut = sound(folder / "cut.wav").read_bytes()[:-2_000]
        (folder / "cut.wav").write_bytes(cut)
        report = denoise_corpus(CorpusJob(folder, tmp_path / "out", PLAIN, workers=1))
        (text,) = report.warnings["cut.wav"]
        assert text.startswith(f"'{folder}/cut.wav' is cut off: about 0.1 s")
        assert list(report.warnings) == ["cut.wav"]
        assert lines(tmp_path / "out")["cut.wav"]["warnings"] == [text]
        assert lines(tmp_path / "out")["whole.wav"]["warnings"] == []
        assert json.loads(json.dumps(report.to_json(), allow_nan=False))["warnings"] == {"cut.wav": [text]}


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of 1 s with two tracks of sound."""
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    inputs = [("testsrc=size=32x32:rate=25", "libx264"), ("sine=300", "flac"), ("sine=500", "flac")]
    command = [ffmpeg, "-v", "error"]
    for source, _ in inputs:
        command += ["-f", "lavfi", "-t", "1", "-i", source]
    command += ["-map", "0", "-map", "1", "-map", "2", "-c:v", "libx264", "-c:a", "flac", str(path)]
    subprocess.run(command, check=True)
    return path


class TestFilms:
    @pytest.mark.parametrize("suffix", [".mkv", ".mov"])
    @pytest.mark.parametrize("skip_clean", [None, 1.0])
    def test_a_film_comes_out_as_a_film(self, worker: Worker, film: Path, tmp_path: Path, suffix, skip_clean) -> None:
        import av

        if skip_clean is not None:
            pytest.importorskip("speechmos")
            worker = Worker(Work(PLAIN, tmp_path / "parts", skip_clean=skip_clean))
        (entry,) = worker.do(task(film, f"film{suffix}")).entries
        assert (entry.error, entry.copied) == (None, skip_clean is not None)
        assert entry.duration_s == pytest.approx(1, abs=0.03)
        with av.open(tmp_path / "parts" / part_name(f"film{suffix}")) as made, av.open(film) as before:
            assert [stream.type for stream in made.streams] == ["video", "audio", "audio"]
            pictures = [[bytes(packet) for packet in each.demux(video=0)] for each in (made, before)]
        assert pictures[0] == pictures[1]
