"""Many files: plans, the journal, workers that die, jobs that are killed."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tarfile
from itertools import chain
from pathlib import Path
from typing import ClassVar

import imageio_ffmpeg
import numpy as np
import pytest
import soundfile
from corpus import digests

from command_line import run_command
from dying import FIRST, MARK, DyingBackend, DyingOnceBackend, DyingWhenLoadedBackend
from frcrn_accel import AudioError, CorpusError, Denoiser
from frcrn_accel.cli.corpus import job_progress
from frcrn_accel.corpus import CorpusJob, CorpusReport, Entry, Shard, denoise_corpus
from frcrn_accel.corpus.journal import Journal, part_name
from frcrn_accel.corpus.plan import Recording, Task, in_tars, read_inputs
from frcrn_accel.corpus.sizing import Sharing, choose_sharing, fit_workers
from frcrn_accel.corpus.work import Work, Worker
from frcrn_accel.denoiser import DenoiserOptions
from frcrn_accel.digest import sha256_of
from frcrn_accel.files import is_film, open_audio
from frcrn_accel.memory import available_memory_bytes
from frcrn_accel.models import find_model
from frcrn_accel.testing import FunctionBackend


def options(backend: object) -> DenoiserOptions:
    return DenoiserOptions(backend=backend, threads=1)


PLAIN = options(FunctionBackend)  # returns its input
ONE = {"workers": 1}


def denoise(inputs, out, denoiser=PLAIN, progress=lambda report: None, **more) -> CorpusReport:
    return denoise_corpus(CorpusJob(inputs, out, denoiser, **more), progress)


class BendingBackend(FunctionBackend):
    """Returns something that depends on the level of its input."""

    name = "bending"

    def __init__(self) -> None:
        super().__init__(lambda audio: np.tanh(3 * audio))


class GpuBackend(FunctionBackend):
    """Returns its input, and takes no threads."""

    name = "gpu"
    on_gpu = True
    uses_threads = False


@pytest.fixture(scope="module")
def tree(tmp_path_factory, noisy) -> Path:
    """Five recordings in three formats, a text file named like a recording, and a text file."""
    folder = tmp_path_factory.mktemp("tree")
    (folder / "a/b").mkdir(parents=True)
    for count, name in enumerate(["one.wav", "two.flac", "a/three.MP3", "a/b/four.wav", "a/b/five.flac"]):
        audio = noisy[count * 8_000 : count * 8_000 + 6_000 + 500 * count]
        soundfile.write(folder / name, audio, 16_000, format=Path(name).suffix[1:].upper())
    (folder / "a/broken.wav").write_text("no audio")
    (folder / "notes.txt").write_text("no audio and no such suffix")
    return folder


@pytest.fixture(scope="module")
def expected(tree, tmp_path_factory) -> dict[str, str]:
    """Digests of the output of `Denoiser` for each recording."""
    folder = tmp_path_factory.mktemp("expected")
    digests = {}
    for name in ["one.wav", "two.flac", "a/three.MP3", "a/b/four.wav", "a/b/five.flac"]:
        target = folder / Path(name).name
        Denoiser(backend=FunctionBackend()).denoise_file(tree / name, target)
        digests[name] = sha256_of(target)
    return digests


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments: object) -> tuple[int, str]:
        result = run_command(monkeypatch, capsys, "corpus", *arguments)
        return result.code, result.err

    return run


def lines(out: Path) -> list[dict]:
    """Return the lines of the journal, without the first."""
    return [json.loads(line) for line in (out / "corpus.jsonl").read_text().splitlines()[1:]]


class TestInputs:
    def test_a_folder(self, tree, tmp_path):
        found = read_inputs(str(tree), str(tmp_path)).recordings
        names = ["a/b/five.flac", "a/b/four.wav", "a/broken.wav", "a/three.MP3", "one.wav", "two.flac"]
        assert found == [Recording(str(tree / name), name) for name in names]

    def test_outputs_in_the_input_folder_are_no_inputs(self, tmp_path, noisy):
        for name in ("a.wav", "out/a.wav", "out/x/b.wav", "outer/c.wav"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(tmp_path / name, noisy[:100], 16_000)
        found = read_inputs(str(tmp_path), str(tmp_path / "out")).recordings
        assert [recording.output for recording in found] == ["a.wav", "outer/c.wav"]

    def test_a_list(self, tmp_path):
        path = tmp_path / "files.txt"
        path.write_bytes("\ufeffb/ü.wav\r\n\n/data/x.flac\ns3://bucket/k/y.ogg\nhttps://host/z.mp3?key=1\n".encode())
        assert read_inputs(str(path), "out").recordings == [
            Recording(str(tmp_path / "b/ü.wav"), "b/ü.wav"),
            Recording("s3://bucket/k/y.ogg", "bucket/k/y.ogg"),
            Recording("/data/x.flac", "data/x.flac"),
            Recording("https://host/z.mp3?key=1", "host/z.mp3"),
        ]

    def test_formats_that_are_not_written(self, tmp_path):
        path = tmp_path / "files.txt"
        path.write_text("a.AVI\na.wmv\nb.spx\nb.opus\nc.ape\nd.dts\nf.m2ts\nhttps://host/e.rm?key=1\n")
        found = read_inputs(str(path), "out")
        outputs = ["a.AVI.mkv", "a.wmv", "b.opus", "b.spx.opus", "c.ape.flac", "d.dts.m4a", "f.m2ts", "host/e.rm.mkv"]
        assert [recording.output for recording in found.recordings] == outputs
        assert found.other_formats == {
            ".ape": ".flac",
            ".avi": ".mkv",
            ".dts": ".m4a",
            ".rm": ".mkv",
            ".spx": ".opus",
        }
        path.write_text("a.spx\na.spx.opus\n")
        with pytest.raises(AudioError, match=r"would both become 'a\.spx\.opus'"):
            read_inputs(str(path), "out")
        manifest = tmp_path / "files.jsonl"
        manifest.write_text('{"input": "a.avi", "output": "a.wav"}\n')
        found = read_inputs(str(manifest), "out")
        assert (found.recordings[0].output, found.other_formats) == ("a.wav", {})

    def test_a_manifest(self, tmp_path):
        path = tmp_path / "files.jsonl"
        path.write_text('{"input": "a.wav", "speaker": 3}\n{"input": "../b.wav", "output": "c/b.flac"}\n')
        assert read_inputs(str(path), "out").recordings == [
            Recording(str(tmp_path / "a.wav"), "a.wav"),
            Recording(str(tmp_path / "../b.wav"), "c/b.flac"),
        ]

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("f.txt", b"", "names no audio files"),
            ("f.txt", b"\xff\xfe\0\0", r"is not UTF-8 text: .* at byte 0"),
            ("f.txt", b"../a.wav", r"line 1: '\.\./a\.wav' is not a path below the output folder"),
            ("f.txt", b"a.wav\na.wav", r"would both become 'a\.wav'"),
            ("f.txt", b"a/../../b.wav", "is not a path below the output folder"),
            ("f.txt", b".corpus/lock.wav", "is not a path below the output folder"),
            ("f.jsonl", b"[" * 100_000, "line 1: invalid JSON"),
            ("f.jsonl", b'["a.wav"]', r'line 1: expected {"input": PATH}'),
            ("f.jsonl", b'{"input": 3}', r'line 1: expected {"input": PATH}'),
            ("f.jsonl", b'{"input": "a.wav", "output": 3}', r'line 1: expected {"input": PATH}'),
            ("f.jsonl", b'{"input": "a.wav", "output": "/etc/a.wav"}', "is not a path below the output folder"),
            ("f.jsonl", b'{"input": "a.wav", "output": ".."}', "is not a path below the output folder"),
            ("f.jsonl", rb'{"input": "\ud800.wav"}', "line 1: a name has half of a surrogate pair"),
            (
                "f.jsonl",
                rb'{"input": "a.wav", "output": "\udfff.wav"}',
                "line 1: a name has half of a surrogate pair",
            ),
            ("f.wav", b"x", "is not a folder: give a folder, a list"),
        ],
    )
    def test_what_is_wrong(self, tmp_path, name, content, message):
        (tmp_path / name).write_bytes(content)
        with pytest.raises((CorpusError, AudioError), match=message):
            read_inputs(str(tmp_path / name), "out")

    def test_what_is_not_there(self, tmp_path):
        with pytest.raises(CorpusError, match="does not exist"):
            read_inputs(str(tmp_path / "none"), "out")
        with pytest.raises(CorpusError, match="cannot be read: No such file"):
            read_inputs(str(tmp_path / "none.txt"), "out")
        with pytest.raises(CorpusError, match="names no audio files"):
            read_inputs(str(tmp_path), "out")
        with pytest.raises(CorpusError, match="are the same"):
            read_inputs(str(tmp_path), str(tmp_path))


class TestShards:
    def test_they_are_disjoint_and_complete(self):
        names = [f"{number:04}.wav" for number in range(500)]
        parts = [[name for name in names if Shard(number, 16).holds(name)] for number in range(1, 17)]
        assert sorted(chain(*parts)) == names
        assert all(15 < len(part) < 50 for part in parts)  # 31 on average

    def test_a_file_stays_in_its_shard(self):
        # These must never change: jobs that have begun would lose files and do others twice.
        assert [name for name in ("a.wav", "b/c.flac", "ü.wav", "d.mp3") if Shard(1, 3).holds(name)] == [
            "a.wav",
            "b/c.flac",
        ]

    @pytest.mark.parametrize("text", ["", "3", "0/4", "5/4", "1/0", "-1/4", "1/2/3", "a/b", "\u0663/\u0664"])
    def test_what_is_none(self, text):
        with pytest.raises(CorpusError, match=r"invalid shard .*: write it as NUMBER/COUNT, e\.g\. 3/16"):
            Shard.parse(text)

    def test_each_has_a_journal(self, tree, expected, tmp_path):
        for number in (1, 2):
            denoise(tree, tmp_path, PLAIN, shard=Shard(number, 2), **ONE)
        journals = sorted(tmp_path.glob("*.jsonl"))
        assert [path.name for path in journals] == ["corpus-1-of-2.jsonl", "corpus-2-of-2.jsonl"]
        assert digests(tmp_path) == expected


class TestJob:
    def test_a_tree(self, tree, expected, tmp_path):
        seen = []
        out = tmp_path / "x/out"
        report = denoise(tree, out, PLAIN, workers=2, progress=lambda so_far: seen.append(so_far.done))
        assert digests(out) == expected
        assert (report.files, report.before, report.done, report.copied) == (6, 0, 5, 0)
        assert list(report.failed) == ["a/broken.wav"]
        assert "cannot be read as audio" in report.failed["a/broken.wav"]
        assert report.audio_s == pytest.approx(sum(soundfile.info(out / name).duration for name in expected))
        assert report.real_time_factor == report.wall_s / report.audio_s > 0
        assert seen == sorted(seen)
        assert seen[-1] == 5
        assert sorted(path.name for path in out.iterdir()) == ["a", "corpus.jsonl", "one.wav", "two.flac"]

    def test_the_journal(self, tree, expected, tmp_path):
        denoise(tree, tmp_path, PLAIN, **ONE)
        entries = {line["output"]: line for line in lines(tmp_path)}
        assert {name: line["sha256"] for name, line in entries.items()} == expected | {"a/broken.wav": None}
        one = entries["one.wav"]
        assert set(one) == {field.name for field in dataclasses.fields(Entry)}
        assert one["input"] == str(tree / "one.wav")
        assert one["duration_s"] == 6_000 / 16_000
        assert one["real_time_factor"] == one["processing_s"] / one["duration_s"]
        assert one["error"] is None
        head = json.loads((tmp_path / "corpus.jsonl").read_text().splitlines()[0])
        assert head["settings"]["precision"] == "fp32"

    def test_a_second_run_does_nothing_but_what_failed(self, tree, expected, tmp_path):
        denoise(tree, tmp_path, PLAIN, **ONE)
        times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*") if path.name != "corpus.jsonl"}
        report = denoise(tree, tmp_path, PLAIN, **ONE)
        assert (report.files, report.before, report.done, len(report.failed)) == (6, 5, 0, 1)
        assert times == {path: path.stat().st_mtime_ns for path in times}
        assert digests(tmp_path) == expected

    def test_an_output_that_was_lost_is_made_again(self, tree, expected, tmp_path):
        denoise(tree, tmp_path, PLAIN, **ONE)
        (tmp_path / "a/three.MP3").unlink()
        report = denoise(tree, tmp_path, PLAIN, **ONE)
        assert (report.before, report.done) == (4, 1)
        assert digests(tmp_path) == expected

    def test_other_settings_are_an_error(self, tree, tmp_path):
        denoise(tree, tmp_path, PLAIN, **ONE)
        before = (tmp_path / "corpus.jsonl").read_bytes()
        limited = dataclasses.replace(PLAIN, attenuation_limit_db=6.0)
        with pytest.raises(
            CorpusError, match=r"other settings: attenuation_limit_db was None, now '6\.0'; .* --overwrite"
        ):
            denoise(tree, tmp_path, limited, **ONE)
        assert (tmp_path / "corpus.jsonl").read_bytes() == before
        report = denoise(tree, tmp_path, limited, overwrite=True, **ONE)
        assert (report.before, report.done) == (0, 5)

    def test_settings_stay_what_they_were(self, tree, tmp_path):
        """Jobs that version 0.2.0 began must find the same keys and values."""
        denoiser = dataclasses.replace(PLAIN, attenuation_limit_db=6.0, batch_size=2, high_band="drop")
        denoise(tree, tmp_path, denoiser, shard=Shard(1, 2), files_per_tar=9, **ONE)
        head = json.loads((tmp_path / "corpus-1-of-2.jsonl").read_text().splitlines()[0])
        tars = head["settings"].pop("tars")
        assert re.fullmatch("9 files each of [0-9a-f]{16}", tars)
        assert head == {
            "corpus": 1,
            "replaces": False,
            "others": [],
            "settings": {
                "version": "0.2.0",
                "inputs": str(tree.resolve()),
                "shard": "1/2",
                "model": "frcrn-small",
                "attenuation_limit_db": "6.0",
                "high_band": "drop",
                "model_sha256": sha256_of(find_model("frcrn-small").path),
                "backend": "function",
                "precision": "fp32",
                "dnsmos": False,
                "skip_clean": None,
            },
        }
        other = dataclasses.replace(denoiser, threads=2, batch_size=1)  # the outputs do not depend on these
        denoise(tree, tmp_path, other, shard=Shard(1, 2), files_per_tar=9, workers=2)

    def test_the_high_band(self, tmp_path):
        """Each output is what a `Denoiser` of that choice makes of the recording."""
        (tmp_path / "in").mkdir()
        hiss = (0.1 * np.random.default_rng(0).standard_normal(24_000)).astype(np.float32)
        soundfile.write(tmp_path / "in" / "a.wav", hiss, 48_000, "FLOAT")
        found = {}
        for mode in ("follow", "drop"):
            denoise(tmp_path / "in", tmp_path / mode, dataclasses.replace(PLAIN, high_band=mode), **ONE)
            found[mode], _ = soundfile.read(tmp_path / mode / "a.wav", dtype="float32")
            expected = Denoiser(backend=FunctionBackend(), high_band=mode)(hiss, 48_000)
            np.testing.assert_array_equal(found[mode], expected)
        assert found["drop"].std() < 0.7 * found["follow"].std()

    def test_another_high_band_is_an_error(self, tree, tmp_path):
        denoise(tree, tmp_path, dataclasses.replace(PLAIN, high_band="drop"), **ONE)
        with pytest.raises(CorpusError, match=r"other settings: high_band was 'drop', now 'follow'"):
            denoise(tree, tmp_path, PLAIN, **ONE)

    def test_a_job_of_a_version_that_wrote_something_else_is_not_resumed(self, tree, tmp_path):
        denoise(tree, tmp_path, PLAIN, **ONE)
        journal = tmp_path / "corpus.jsonl"
        before = journal.read_text().replace('"version": "0.2.0"', '"version": "0.1.0"')
        journal.write_text(before)
        with pytest.raises(
            CorpusError, match=r"other settings: version was '0\.1\.0', now '0\.2\.0'; .* --overwrite"
        ):
            denoise(tree, tmp_path, PLAIN, **ONE)
        assert journal.read_text() == before

    def test_what_a_job_writes(self, tmp_path):
        """Where these change, raise `_OUTPUTS_SINCE` to the next version: 0.1.0 wrote others for the last two."""
        seconds = np.random.default_rng(0).standard_normal((3, 48_000))
        inputs = {
            "noise": 0.05 * seconds[0],
            "bang": np.concatenate([0.01 * seconds[1], 0.9 * seconds[0, :480]]),
            "offset": 0.3 + 0.05 * seconds[2],
        }
        (tmp_path / "in").mkdir()
        for name, audio in inputs.items():
            soundfile.write(tmp_path / "in" / f"{name}.wav", audio, 48_000, subtype="FLOAT")
        denoise(tmp_path / "in", tmp_path / "out", options(BendingBackend), **ONE)
        levels = {}
        for name in inputs:
            audio, _ = soundfile.read(tmp_path / "out" / f"{name}.wav")
            levels[name] = [float(part.std()) for part in np.array_split(audio, 3)]
        assert levels == {
            "noise": pytest.approx([0.09378, 0.09252, 0.09330], rel=1e-3),
            "bang": pytest.approx([0.01846, 0.01862, 0.20671], rel=1e-3),
            "offset": pytest.approx([0.09291, 0.09336, 0.09282], rel=1e-3),
        }

    def test_outputs_of_others_are_not_replaced_unasked(self, tree, expected, tmp_path):
        (tmp_path / "one.wav").write_bytes(b"precious")
        report = denoise(tree, tmp_path, PLAIN, **ONE)
        assert report.failed["one.wav"] == "'one.wav' exists already: start over with --overwrite to replace it"
        assert (tmp_path / "one.wav").read_bytes() == b"precious"
        denoise(tree, tmp_path, PLAIN, overwrite=True, **ONE)
        assert digests(tmp_path) == expected

    def test_what_was_begun_with_overwrite_goes_on_without(self, tree, expected, tmp_path):
        for name in expected:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"old")

        def stop(report: CorpusReport) -> None:
            if report.done == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            denoise(tree, tmp_path, PLAIN, overwrite=True, progress=stop, **ONE)
        assert sum(digest not in expected.values() for digest in digests(tmp_path).values()) == 3
        report = denoise(tree, tmp_path, PLAIN, **ONE)
        assert (report.before, report.done) == (2, 3)
        assert digests(tmp_path) == expected

    def test_one_job_at_a_time(self, tree, tmp_path):
        def another(report: CorpusReport) -> None:
            with pytest.raises(CorpusError, match="another job is using"):
                denoise(tree, tmp_path, PLAIN, **ONE)

        report = denoise(tree, tmp_path, PLAIN, progress=another, **ONE)
        assert report.done == 5
        assert not (tmp_path / ".corpus").exists()

    def test_threads_are_not_given_to_a_backend_that_has_no_use_for_them(self, tree, expected, tmp_path):
        report = denoise(tree, tmp_path, DenoiserOptions(backend=GpuBackend))
        assert (report.done, report.workers) == (5, "1 worker(s)")
        assert digests(tmp_path) == expected

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"workers_on": "slurm"}, "workers cannot run on 'slurm': choose 'local' or 'ray'"),
            ({"gpus": 1}, "add --workers-on ray"),
            ({"journal": "j.jsonl"}, "the journal of a local output folder is kept in that folder"),
        ],
    )
    def test_arguments_without_effect(self, tree, tmp_path, arguments, message):
        with pytest.raises(CorpusError, match=message):
            denoise(tree, tmp_path / "out", PLAIN, **arguments)
        assert not (tmp_path / "out").exists()


class TestKilled:
    """Jobs that are killed in a process of their own, and resumed in this one."""

    STEPS: ClassVar = {
        "before the line": "Journal.add = lambda self, entries: die()",
        "within the line": "add = Journal.add\nJournal.add = lambda *a: (add(*a), cut(a[0].path, -9), die())",
        "between line and name": "Journal.place = lambda self, output: die()",
        "after the name": "place = Journal.place\nJournal.place = lambda self, output: (place(self, output), die())",
        "within the first line": "Journal.sync = lambda self: (cut(self.path, 5), die())",
    }

    @pytest.mark.parametrize("step", STEPS)
    def test_at_each_step(self, tree, expected, tmp_path, step):
        code = (
            "import os, signal, sys\n"
            "from frcrn_accel.denoiser import DenoiserOptions\n"
            "from frcrn_accel.corpus import CorpusJob, denoise_corpus\n"
            "from frcrn_accel.corpus.journal import Journal\n"
            "from frcrn_accel.testing import FunctionBackend\n"
            "def cut(path, end):\n"
            "    path.write_bytes(path.read_bytes()[:end])\n"
            "def die():\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
            f"{self.STEPS[step]}\n"
            "if __name__ == '__main__':\n"
            "    options = DenoiserOptions(backend=FunctionBackend, threads=1)\n"
            "    denoise_corpus(CorpusJob(*sys.argv[1:], options, workers=2))\n"
        )
        script = tmp_path / "job.py"
        script.write_text(code)
        out = tmp_path / "out"
        done = subprocess.run([sys.executable, str(script), str(tree), str(out)], timeout=60, check=False)
        assert done.returncode == -signal.SIGKILL
        begun = digests(out)
        report = denoise(tree, out, PLAIN, **ONE)
        assert {name: digest for name, digest in digests(out).items() if name in expected} == expected
        assert sorted(path.name for path in out.iterdir()) == ["a", "corpus.jsonl", "one.wav", "two.flac"]
        assert report.before + report.done == 5
        # Nothing was done twice: each output has one line.
        made = [line["output"] for line in lines(out) if line["error"] is None]
        assert sorted(made) == sorted(expected)
        if step == "between line and name":
            assert report.before >= 1
            assert not any(name in expected for name in begun)

    def test_a_line_cut_at_any_byte_is_dropped(self, tmp_path):
        settings = {"precision": "fp32"}
        out = tmp_path / "out"
        with Journal(out / "corpus.jsonl", out, settings, restart=False) as journal:
            for name in ("a.wav", "b.wav"):
                (journal.parts / part_name(name)).write_bytes(b"audio")
                journal.add([Entry("in", name, sha256=sha256_of(journal.parts / part_name(name)))])
                journal.place(name)
        whole = (out / "corpus.jsonl").read_bytes()
        head, first, _ = whole.splitlines(keepends=True)
        for cut in {*range(0, len(whole), 7), *range(len(head + first) - 3, len(whole) + 1)}:
            (out / "corpus.jsonl").write_bytes(whole[:cut])
            with Journal(out / "corpus.jsonl", out, settings, restart=False) as journal:
                has = [journal.has(Task(name, (Recording("in", name),))) for name in ("a.wav", "b.wav")]
            assert has == [cut >= len(head + first), cut >= len(whole)], cut
            kept = head if cut < len(head + first) else head + first if cut < len(whole) else whole
            assert (out / "corpus.jsonl").read_bytes() == kept, cut

    @pytest.mark.parametrize("content", [b"precious notes", b'{"a": 1}\n', b"a\nb\n", b'{"corpus": 99}\n', b"\xff\n"])
    @pytest.mark.parametrize("restart", [False, True])
    def test_what_is_no_journal_is_left_alone(self, tmp_path, content, restart):
        (tmp_path / "corpus.jsonl").write_bytes(content)
        with pytest.raises(CorpusError, match="move it away"):
            Journal(tmp_path / "corpus.jsonl", tmp_path, {}, restart=restart)
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [content]

    def test_a_damaged_line(self, tmp_path):
        Journal(tmp_path / "corpus.jsonl", tmp_path, {}, restart=False).__exit__(None, None, None)
        with (tmp_path / "corpus.jsonl").open("a") as file:
            file.write('{"input": "a.wav"}\n')
        with pytest.raises(CorpusError, match="is damaged"):
            Journal(tmp_path / "corpus.jsonl", tmp_path, {}, restart=False)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_ctrl_c_stops_and_the_same_command_goes_on(self, run, tree, tmp_path, monkeypatch, number):
        count = CorpusReport.count

        def counting(report: CorpusReport, entry: Entry) -> None:
            count(report, entry)
            if report.done == 2:
                os.kill(os.getpid(), number)

        pytest.importorskip("onnxruntime")
        arguments = (tree, tmp_path / "out", "--backend", "ort", "--workers", 2)
        with monkeypatch.context() as patch:
            patch.setattr(CorpusReport, "count", counting)
            code, err = run(*arguments)
        assert code == 128 + number
        assert err.splitlines()[-1] == "stopped; run the same command to resume"
        assert "of 6 files done" in err
        assert multiprocessing.active_children() == []
        assert not (tmp_path / "out/.corpus").exists()
        code, err = run(*arguments)
        assert code == 1
        assert "5 of 6 files done" in err


class TestWorkersThatDie:
    @pytest.fixture
    def files(self, tmp_path, noisy) -> Path:
        """Four short files and a long one."""
        (tmp_path / "in").mkdir()
        for name, samples in (("a", 8_000), ("b", 8_000), ("long", 40_000), ("y", 8_000), ("z", 8_000)):
            soundfile.write(tmp_path / "in" / f"{name}.wav", noisy[:samples], 16_000)
        return tmp_path / "in"

    def test_once(self, files, tmp_path, monkeypatch):
        monkeypatch.setenv(MARK, str(tmp_path / "mark"))
        (tmp_path / "mark").touch()
        report = denoise(files, tmp_path / "out", options(DyingOnceBackend), workers=2)
        assert not (tmp_path / "mark").exists()
        assert (report.done, report.failed) == (5, {})
        assert list(digests(tmp_path / "out")) == ["a.wav", "b.wav", "long.wav", "y.wav", "z.wav"]
        assert len(lines(tmp_path / "out")) == 5

    def test_each_time(self, files, tmp_path):
        report = denoise(files, tmp_path / "out", options(DyingBackend), workers=2)
        assert report.done == 4
        assert report.failed == {"long.wav": "its worker process died 3 times (killed by SIGKILL: out of memory?)"}
        assert list(digests(tmp_path / "out")) == ["a.wav", "b.wav", "y.wav", "z.wav"]

    def test_while_they_load(self, files, tmp_path, monkeypatch):
        monkeypatch.setenv(FIRST, str(os.getpid()))
        with pytest.raises(CorpusError, match=r"died 3 times while it loaded the model \(.*\): .* --workers"):
            denoise(files, tmp_path / "out", options(DyingWhenLoadedBackend), **ONE)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["corpus.jsonl"]


class TestWorker:
    @pytest.fixture
    def worker(self, tmp_path):
        (tmp_path / "parts").mkdir()

        def worker(**arguments: object) -> Worker:
            return Worker(Work(PLAIN, tmp_path / "parts", **arguments))

        return worker

    def test_no_audio_in_a_file(self, worker, tmp_path):
        soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
        (entry,) = worker().do(Task("empty.wav", (Recording(str(tmp_path / "empty.wav"), "empty.wav"),))).entries
        assert (entry.error, entry.duration_s, entry.real_time_factor) == (None, 0, None)

    def test_no_audio_has_no_scores_and_is_not_clean(self, worker, tmp_path):
        pytest.importorskip("speechmos")
        soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
        task = Task("empty.wav", (Recording(str(tmp_path / "empty.wav"), "empty.wav"),))
        (entry,) = worker(dnsmos=True, skip_clean=1.0).do(task).entries
        assert (entry.error, entry.dnsmos_before, entry.dnsmos_after, entry.copied) == (None, None, None, False)

    def test_errors_name_the_files_of_the_job(self, worker, tmp_path):
        soundfile.write(tmp_path / "six.wav", np.zeros((1_000, 6)), 48_000)
        task = Task("x/six.mp3", (Recording(str(tmp_path / "six.wav"), "x/six.mp3"),))
        result = worker().do(task)
        assert result.entries[0].error.startswith("'x/six.mp3' cannot hold 6 channels: ")
        assert not result.is_made
        assert list((tmp_path / "parts").iterdir()) == []

    def test_clipped_samples(self, worker, tmp_path):
        soundfile.write(tmp_path / "loud.wav", np.full(1_000, 1.5), 16_000, subtype="FLOAT")
        (entry,) = worker().do(Task("a.flac", (Recording(str(tmp_path / "loud.wav"), "a.flac"),))).entries
        assert entry.clipped_samples > 900

    def test_a_disk_that_is_full_concerns_all(self, worker, tmp_path, noisy_path):
        """A limit on the size of files stands in for a full disk; its error differs."""
        resource = pytest.importorskip("resource")
        task = Task("a.wav", (Recording(str(noisy_path), "a.wav"),))
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        made = worker()
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        try:
            result = made.do(task)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert result.entries[0].error == f"'a.wav' cannot be written: {os.strerror(errno.EFBIG)}"
        assert list((tmp_path / "parts").iterdir()) == []

    def test_clean_files_are_copied(self, worker, tmp_path, noisy):
        pytest.importorskip("speechmos")
        from frcrn_accel.quality import dnsmos

        worse = noisy + 0.1 * np.random.default_rng(0).standard_normal(len(noisy), np.float32)
        soundfile.write(tmp_path / "one.wav", noisy, 16_000)
        soundfile.write(tmp_path / "two.wav", np.stack([noisy, worse], axis=1), 16_000)
        made = worker(skip_clean=(dnsmos(noisy).ovrl + dnsmos(worse).ovrl) / 2)
        entries = [
            made.do(Task(name, (Recording(str(tmp_path / source), name),))).entries[0]
            for source, name in (("one.wav", "a.wav"), ("one.wav", "a.flac"), ("two.wav", "b.wav"))
        ]
        assert [entry.copied for entry in entries] == [True, True, False]
        assert sha256_of(tmp_path / "one.wav") == entries[0].sha256
        assert entries[0].duration_s == entries[1].duration_s == len(noisy) / 16_000
        audio, _ = soundfile.read(tmp_path / "parts" / part_name("a.flac"), dtype="float32")
        np.testing.assert_array_equal(audio, soundfile.read(tmp_path / "one.wav", dtype="float32")[0])

    def test_scores(self, worker, noisy_path, noisy):
        pytest.importorskip("speechmos")
        from frcrn_accel.quality import dnsmos

        (entry,) = worker(dnsmos=True).do(Task("a.wav", (Recording(str(noisy_path), "a.wav"),))).entries
        assert entry.dnsmos_before == pytest.approx(dnsmos(noisy)._asdict())
        assert entry.dnsmos_after == pytest.approx(entry.dnsmos_before, abs=0.01)


class TestTars:
    def test_webdataset_shards(self, tree, expected, tmp_path):
        report = denoise(tree, tmp_path, PLAIN, files_per_tar=4, **ONE)
        assert (report.done, len(report.failed)) == (5, 1)
        assert list(digests(tmp_path)) == ["corpus-000000.tar", "corpus-000001.tar"]
        found = {}
        for path in sorted(tmp_path.glob("*.tar")):
            with tarfile.open(path) as tar:
                for member in tar:
                    found[member.name] = tar.extractfile(member).read()
        audio = {name: content for name, content in found.items() if not name.endswith(".json")}
        (tmp_path / "x").mkdir()
        for name, content in audio.items():
            (tmp_path / "x" / "one").write_bytes(content)
            assert sha256_of(tmp_path / "x" / "one") == expected[name]
        assert set(audio) == set(expected)
        assert json.loads(found["a/b/four.json"])["duration_s"] == 7_500 / 16_000
        members = {line["member"]: line for line in lines(tmp_path)}
        assert members["one.wav"]["output"] == "corpus-000001.tar"
        assert members["one.wav"]["sha256"] == sha256_of(tmp_path / "corpus-000001.tar")
        assert members["a/broken.wav"]["error"] is not None

    def test_a_tar_is_done_when_all_of_it_is(self, tree, tmp_path):
        denoise(tree, tmp_path, PLAIN, files_per_tar=4, **ONE)
        before = digests(tmp_path)
        report = denoise(tree, tmp_path, PLAIN, files_per_tar=4, **ONE)
        assert (report.before, report.done, len(report.failed)) == (2, 3, 1)  # the one with a failure is made again
        assert digests(tmp_path) == before
        journal = (tmp_path / "corpus.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "corpus.jsonl").write_text("".join(journal[:6]))  # with one of the two lines of the second tar
        report = denoise(tree, tmp_path, PLAIN, files_per_tar=4, overwrite=False, **ONE)
        assert "two.flac" in report.failed  # it exists, and the journal does not say that this job made it

    def test_names_of_samples(self):
        recordings = [Recording("", "a.b/c.d.e.wav"), Recording("", "a.b/f.wav")]
        (task,) = in_tars(recordings, 9, Shard(2, 3))
        assert task.output == "corpus-2-of-3-000000.tar"
        assert [recording.output for recording in task.recordings] == ["a.b/c_d_e.wav", "a.b/f.wav"]
        with pytest.raises(AudioError, match="would both become 'a'"):
            list(in_tars([Recording("1", "a.wav"), Recording("2", "a.flac")], 9, Shard()))

    def test_other_files_are_another_job(self, tmp_path, noisy):
        (tmp_path / "in").mkdir()
        for name in ("a.wav", "b.wav"):
            soundfile.write(tmp_path / "in" / name, noisy[:1_000], 16_000)
            arguments = {"files_per_tar": 2, **ONE}
            if name == "a.wav":
                denoise(tmp_path / "in", tmp_path / "out", PLAIN, **arguments)
        with pytest.raises(CorpusError, match="other settings: tars was '2 files each of"):
            denoise(tmp_path / "in", tmp_path / "out", PLAIN, **arguments)


class TestSizing:
    @pytest.mark.parametrize(
        ("available", "fits"), [(None, 8), (10_000, 8), (1_000, 8), (999, 7), (300, 2), (100, 1), (1, 1)]
    )
    def test_memory_limits_workers(self, available, fits):
        assert fit_workers(8, 100, available) == fits
        assert fit_workers(8, None, available) == 8

    def test_what_is_asked_for_is_taken(self, monkeypatch):
        monkeypatch.setattr("frcrn_accel.corpus.sizing.available_cpus", lambda: 8)
        assert choose_sharing(DenoiserOptions(), 100, 3) == Sharing(3, 2)
        assert choose_sharing(DenoiserOptions(threads=1), 100, 2) == Sharing(2, 1)
        assert choose_sharing(DenoiserOptions(threads=1), 2, 20) == Sharing(2, 1)
        assert choose_sharing(DenoiserOptions(batch_size=4), 100, 20) == Sharing(20, 1)

    def test_a_worker_is_tried_out(self, monkeypatch):
        pytest.importorskip("onnxruntime")
        asked = []

        def fit(workers: int, worker_bytes: int, available_bytes: int) -> int:
            asked.append(worker_bytes)
            return 2

        monkeypatch.setattr("frcrn_accel.corpus.sizing.available_cpus", lambda: 8)
        monkeypatch.setattr("frcrn_accel.corpus.sizing.fit_workers", fit)
        assert choose_sharing(DenoiserOptions(backend="ort"), 100, None) == Sharing(2, 4)
        assert 100e6 < asked[0] < 1e9

    def test_a_gpu_has_one_worker_and_no_threads(self, monkeypatch):
        monkeypatch.setattr("frcrn_accel.corpus.sizing.available_cpus", lambda: 8)
        found = choose_sharing(DenoiserOptions(backend=GpuBackend), 100, None)
        assert (found, str(found)) == (Sharing(1, None), "1 worker(s)")
        assert choose_sharing(DenoiserOptions(backend=GpuBackend), 100, 3) == Sharing(3, None)

    def test_a_backend_must_be_named_to_be_tried_out(self, monkeypatch):
        monkeypatch.setattr("frcrn_accel.corpus.sizing.available_cpus", lambda: 8)
        with pytest.raises(CorpusError, match="a worker: backend must be given by name for another process"):
            choose_sharing(PLAIN, 100, None)

    def test_few_files(self, monkeypatch):
        monkeypatch.setattr("frcrn_accel.corpus.sizing.available_cpus", lambda: 8)
        assert choose_sharing(DenoiserOptions(), 1, None) == Sharing(1, 8)

    def test_memory(self, tmp_path):
        meminfo = tmp_path / "meminfo"
        assert available_memory_bytes(tmp_path, meminfo) is None
        meminfo.write_text("MemTotal:   100 kB\nMemAvailable:    50 kB\n")
        assert available_memory_bytes(tmp_path, meminfo) == 50 * 1024
        (tmp_path / "memory.max").write_text("max\n")
        (tmp_path / "memory.current").write_text("5000\n")
        assert available_memory_bytes(tmp_path, meminfo) == 50 * 1024
        (tmp_path / "memory.max").write_text("15000\n")
        assert available_memory_bytes(tmp_path, meminfo) == 10_000
        (tmp_path / "memory.max").write_text("4000\n")
        assert available_memory_bytes(tmp_path, meminfo) == 0


class TestCommand:
    def test_report(self, run, tree, tmp_path):
        pytest.importorskip("onnxruntime")
        code, err = run(tree, tmp_path / "out", "--backend", "ort", "--json", tmp_path / "r.json", "--workers", 1)
        assert code == 1
        first, failed, last = err.splitlines()
        assert first.startswith("frcrn-small on ort, fp32 (CPUExecutionProvider, 1 thread), 1 worker(s) x ")
        assert failed.startswith(f"failed: a/broken.wav: '{tree / 'a/broken.wav'}' ")
        assert last.startswith("5 of 6 files done, 1 failed, 2.2 s of audio in ")
        assert last.endswith(", 1 not audio")
        values = json.loads((tmp_path / "r.json").read_text())
        assert (values["files"], values["done"], len(values["failed"])) == (6, 5, 1)
        assert values["real_time_factor"] == values["wall_s"] / values["audio_s"]

    def test_formats_that_are_not_written(self, run, tmp_path, noisy):
        pytest.importorskip("onnxruntime")
        folder = tmp_path / "in"
        folder.mkdir()
        soundfile.write(folder / "a.wav", noisy[:8_000], 16_000)
        ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", folder / "a.wav"]
        subprocess.run([*ffmpeg, "-c:a", "dca", "-strict", "-2", "-ar", "48000", folder / "b.dts"], check=True)
        picture = ["-f", "lavfi", "-i", "color=size=32x32:rate=5:duration=0.5", "-c:v", "mpeg4"]
        subprocess.run([*ffmpeg, *picture, folder / "b.avi"], check=True)
        code, err = run(folder, tmp_path / "out", "--backend", "ort", "--workers", 1)
        assert code == 0, err
        said = [line for line in err.splitlines() if line.startswith("not written: ")]
        assert said == [
            f"not written: .{old}: such files become .{new}" for old, new in (("avi", "mkv"), ("dts", "m4a"))
        ]
        names = {path.name for path in (tmp_path / "out").iterdir()}
        assert names == {"a.wav", "b.avi.mkv", "b.dts.m4a", "corpus.jsonl"}
        assert is_film(tmp_path / "out/b.avi.mkv")
        assert open_audio(tmp_path / "out/b.dts.m4a").subtype == "aac"

    def test_nothing_to_do(self, run, tmp_path, noisy):
        pytest.importorskip("onnxruntime")
        (tmp_path / "in").mkdir()
        soundfile.write(tmp_path / "in/a.wav", noisy[:1_000], 16_000)
        for _ in range(2):
            code, err = run(tmp_path / "in", tmp_path / "out", "--backend", "ort")
            assert code == 0
        assert err.splitlines()[-1] == "1 of 1 files done, 1 of them before"

    def test_a_bar_on_a_terminal(self, tree, tmp_path, monkeypatch):
        from rich.console import Console

        shown = io.StringIO()
        console = Console(file=shown, force_terminal=True, width=100)
        report = CorpusReport("m on e", 10, 2, done=3, audio_s=200.0, wall_s=2.0)
        with job_progress(console) as (show, _):
            show(report)
        assert "m on e" in shown.getvalue()
        assert "3/8" in shown.getvalue()
        assert "RTF 0.0100 " in shown.getvalue()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["none", "OUT"], "'none' does not exist"),
            (["IN", "OUT", "--shard", "4/3"], "invalid shard '4/3'"),
            (["IN", "OUT", "--workers-on", "slurm"], "workers cannot run on 'slurm'"),
            (["IN", "OUT", "--workers", "0"], "--workers"),
            (["IN", "OUT", "--model", "nope"], "unknown model 'nope'"),
            (["IN", "OUT", "--backend", "ort-dynamic-int8", "--batch-size", "2"], "leave batch_size out"),
            (["IN", "OUT", "--gpus", "1"], "add --workers-on ray"),
            (["IN", "FILE"], "cannot be written: "),
            (["IN", "s3://bucket/out"], "give a local file"),
            (["IN", "IN"], "the input and output folders are the same"),
            (["LIST", "OUT"], "nosuch://"),
        ],
    )
    def test_errors_are_one_line(self, run, tree, tmp_path, arguments, message):
        pytest.importorskip("onnxruntime")
        (tmp_path / "file").touch()
        (tmp_path / "list.txt").write_text("nosuch://host/a.wav\n")
        places = {"IN": tree, "OUT": tmp_path / "out", "FILE": tmp_path / "file/x", "LIST": tmp_path / "list.txt"}
        code, err = run(*(places.get(argument, argument) for argument in arguments))
        assert code == 2
        assert err.startswith("frcrn-accel: error: ")
        assert message in err
        assert err.count("\n") == 1
        assert not (tmp_path / "out").exists()

    def test_a_folder_that_is_not_writable(self, run, tree, tmp_path):
        pytest.importorskip("onnxruntime")
        if os.geteuid() == 0 and not sys.platform.startswith("linux"):
            pytest.skip("root may write everywhere but in /proc")
        (tmp_path / "closed").mkdir(mode=0o555)
        out = tmp_path / "closed/out" if os.geteuid() else Path("/proc/out")
        code, err = run(tree, out, "--backend", "ort")
        assert code == 2
        assert err.startswith(f"frcrn-accel: error: folder {str(out)!r} cannot be written: ")
        assert err.count("\n") == 1
