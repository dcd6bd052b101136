"""Names, lists, journals and outputs of a job that are made to confuse it, or damaged."""

from __future__ import annotations

import json
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from frcrn_accel import AudioError, CorpusError
from frcrn_accel.corpus import CorpusJob, CorpusReport, Shard, denoise_corpus
from frcrn_accel.corpus.journal import Journal, part_name
from frcrn_accel.corpus.plan import Recording, Task, in_tars, one_by_one, read_inputs
from frcrn_accel.corpus.storage import key_of
from frcrn_accel.corpus.work import Work, Worker
from frcrn_accel.denoiser import DenoiserOptions
from frcrn_accel.printable import printable
from frcrn_accel.testing import FunctionBackend

AUDIO = 0.1 * np.random.default_rng(0).standard_normal(800)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.wav"
    soundfile.write(path, AUDIO, 16_000)
    return path


def denoise(inputs: Path | str, out: Path, **more: object) -> CorpusReport:
    options = DenoiserOptions(backend=FunctionBackend, threads=1)
    return denoise_corpus(CorpusJob(inputs, out, options, **{"workers": 1, **more}))


def manifest(folder: Path, source: Path, outputs: list[str]) -> Path:
    path = folder / "files.jsonl"
    path.write_text("".join(json.dumps({"input": str(source), "output": name}) + "\n" for name in outputs))
    return path


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


class TestStorageKeys:
    HOSTILE = ("../../../x.wav", "/abs.wav", "a/../../b.wav", "a//b.wav", ".corpus/c.wav")
    GOOD = ("take #3.wav", "take #4.wav", "is it?.wav", "100%.wav", "a/b.wav", "%2e%2e/x.wav")

    @pytest.fixture
    def bucket(self, source: Path):
        fsspec = pytest.importorskip("fsspec")
        files = fsspec.filesystem("memory")
        keys = [f"/bucket/in/{name}" for name in (*self.HOSTILE, *self.GOOD)]
        for key in keys:
            with files.open("/bucket/plain", "wb") as file:
                file.write(source.read_bytes())
            files.store[key] = files.store.pop("/bucket/plain")
        yield "memory://bucket/in"
        files.store.clear()

    @pytest.mark.parametrize("per_tar", [None, 100])
    def test_outputs_stay_in_the_output_folder_under_their_names(self, bucket: str, tmp_path: Path, per_tar) -> None:
        out = tmp_path / "deep/er/out"
        before = files(tmp_path)
        report = denoise(bucket, out, files_per_tar=per_tar)  # its processes do not see this memory: the rest fails
        assert {"../../../x.wav", "/abs.wav", "a/../../b.wav", "a//b.wav"} <= set(report.failed)
        assert {name for name in files(tmp_path) - before if not name.startswith("deep/er/out/")} == set()
        recordings = read_inputs(bucket, str(out)).recordings
        tasks = one_by_one(recordings) if per_tar is None else in_tars(recordings, per_tar, Shard())
        worker = Worker(Work(DenoiserOptions(backend=FunctionBackend(), threads=1), tmp_path))
        made = set()
        for task in tasks:
            assert worker.do(task).is_made
            if task.is_tar:
                with tarfile.open(tmp_path / part_name(task.output)) as tar:
                    made |= {name for name in tar.getnames() if name.endswith(".wav")}
            else:
                made.add(task.output)
        assert made == set(self.GOOD)

    @pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
    def test_a_list_of_them(self, tmp_path: Path, suffix: str) -> None:
        hostile = [f"s3://bucket/in/{name}" for name in self.HOSTILE if ".." in name]
        urls = [*hostile, *(f"s3://bucket/in/{name}" for name in self.GOOD)]
        lines = urls if suffix == ".txt" else [json.dumps({"input": url}) for url in urls]
        (tmp_path / f"list{suffix}").write_text("".join(f"{line}\n" for line in lines))
        recordings = read_inputs(str(tmp_path / f"list{suffix}"), str(tmp_path / "out")).recordings
        accepted = {recording.source: recording.output for recording in recordings if recording.refusal is None}
        assert accepted == {f"s3://bucket/in/{name}": f"bucket/in/{name}" for name in self.GOOD}
        assert len(recordings) == len(urls)

    @given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
    @settings(max_examples=50, derandomize=True, database=None)
    def test_keys_are_taken_as_they_are(self, name: str) -> None:
        assert key_of(f"s3://bucket/{name}.wav") == f"bucket/{name}.wav"

    def test_an_address_that_is_not_valid_fails_alone(self, source: Path, tmp_path: Path) -> None:
        assert key_of("http://[bad/a.wav") == "[bad/a.wav"
        pytest.importorskip("fsspec")
        pytest.importorskip("aiohttp")  # fsspec's package for the web
        (tmp_path / "files.txt").write_text(f"http://[bad/a.wav\n{source.name}\n")
        report = denoise(tmp_path / "files.txt", tmp_path / "out")
        assert (report.done, list(report.failed)) == (1, ["[bad/a.wav"])

    def test_markers_of_folders_fail_by_name(self, bucket: str, tmp_path: Path) -> None:
        """Consoles of object stores keep an empty folder as a key that ends with a slash."""
        fsspec = pytest.importorskip("fsspec")
        files = fsspec.filesystem("memory")
        for key in ("a.wav", "b.wav"):
            files.pipe_file(f"/bucket/marked/{key}", b"")
        files.store["/bucket/marked/x.wav/"] = files.store.pop("/bucket/marked/b.wav")
        recordings = read_inputs("memory://bucket/marked", str(tmp_path / "out")).recordings
        refusals = {recording.output: str(recording.refusal) for recording in recordings}
        assert refusals == {"a.wav": "None", "x.wav/": "'x.wav/' is another spelling of 'x.wav'"}


class TestBadNames:
    def test_each_fails_alone_and_a_mended_list_goes_on(self, source: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        bad = ["x.wav/y.wav", "n" * 300 + ".wav", "../z.wav", "corpus.jsonl"]
        path = manifest(tmp_path, source, ["x.wav", *bad, "good.wav"])
        path.write_text(path.read_text() + "no json\n")
        for before in (0, 2):
            report = denoise(path, out)
            assert (report.before, report.before + report.done, len(report.failed)) == (before, 2, 5), report.failed
            # The file system refuses it too, but not in a tar or an object store, and not always this one of the two.
            assert report.failed["x.wav/y.wav"] == "'x.wav/y.wav' is below 'x.wav', which is an output too"
        manifest(tmp_path, source, ["x.wav", "y.wav", "good.wav"])
        report = denoise(path, out)
        assert (report.before, report.done, report.failed) == (2, 1, {})
        assert files(out) == {"x.wav", "y.wav", "good.wav", "corpus.jsonl"}

    def test_unfinished_files_of_a_killed_job_are_no_inputs(self, source: Path, tmp_path: Path) -> None:
        folder = tmp_path / "in"
        for name in ("a.wav", ".corpus/b.wav", "sub/.corpus-3-of-16/task-1/c.wav"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(source.read_bytes())
        assert [recording.output for recording in read_inputs(str(folder), "out").recordings] == ["a.wav"]

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
    def test_pipes_and_devices_fail_at_once(self, tmp_path: Path) -> None:
        """Nobody writes to the pipe, and the device never ends."""
        os.mkfifo(tmp_path / "pipe.wav")
        worker = Worker(Work(DenoiserOptions(backend=FunctionBackend(), threads=1), tmp_path))
        for path in (str(tmp_path / "pipe.wav"), "/dev/zero"):
            (entry,) = worker.do(Task("a.wav", (Recording(path, "a.wav"),))).entries
            assert entry.error == f"{path!r} is not a regular file"

    @pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
    def test_lists_end_lines_only_where_files_do(self, tmp_path: Path, character: str) -> None:
        for name, text in (("f.txt", f"a{character}b.wav\r\n"), ("f.jsonl", f'{{"input": "a{character}b.wav"}}\n')):
            (tmp_path / name).write_bytes(text.encode() * 1)
            if name == "f.txt" or character in "\u2028\u2029\x85":
                (found,) = read_inputs(str(tmp_path / name), "out").recordings
                assert found.output == f"a{character}b.wav"

    def test_no_control_character_reaches_the_terminal(self) -> None:
        assert printable("a\x1b[31m\u202e\x9b\udcff\nö.wav") == r"a\x1b[31m\u202e\x9b\udcff\nö.wav"


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
class TestLinks:
    """In an output folder of others, links must not make the job write or delete elsewhere."""

    @pytest.mark.parametrize("name", ["corpus.jsonl", ".corpus", ".corpus/lock"])
    @pytest.mark.parametrize("restart", [False, True])
    def test_in_place_of_what_the_job_writes(self, tmp_path: Path, name: str, restart: bool) -> None:
        elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
        for folder in (elsewhere, out / name):
            folder.parent.mkdir(parents=True, exist_ok=True)
        if name == ".corpus":
            elsewhere.mkdir()
        precious = elsewhere / "precious" if name == ".corpus" else elsewhere
        precious.write_text("precious")
        (out / name).symlink_to(elsewhere)
        with pytest.raises(CorpusError, match="is a link: remove it"):
            Journal(out / "corpus.jsonl", out, {}, restart=restart)
        assert precious.read_text() == "precious"

    def test_in_the_folder_of_unfinished_outputs(self, tmp_path: Path) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "precious").touch()
        (tmp_path / "out/.corpus").mkdir(parents=True)
        (tmp_path / "out/.corpus/folder").symlink_to(elsewhere)
        (tmp_path / "out/.corpus/file").symlink_to(elsewhere / "precious")
        with Journal(tmp_path / "out/corpus.jsonl", tmp_path / "out", {}, restart=False):
            assert [path.name for path in (tmp_path / "out/.corpus").iterdir()] == ["lock"]
        assert [path.name for path in elsewhere.iterdir()] == ["precious"]
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["corpus.jsonl"]

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_below_the_output_folder(self, source: Path, tmp_path: Path, overwrite: bool) -> None:
        elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
        (elsewhere / "deeper").mkdir(parents=True)
        (elsewhere / "b.wav").write_text("precious")
        (out / "a").mkdir(parents=True)
        (out / "a/link").symlink_to(elsewhere)
        names = ["a/x.wav", "a/link/b.wav", "a/link/deeper/c.wav", "a/link/new/d.wav"]
        report = denoise(manifest(tmp_path, source, names), out, overwrite=overwrite)
        assert (report.done, sorted(report.failed)) == (1, sorted(names[1:]))
        assert all(f"{str(out / 'a/link')!r} is a symbolic link" in error for error in report.failed.values())
        assert files(elsewhere) == {"b.wav"}
        assert (elsewhere / "b.wav").read_text() == "precious"
        (out / "a/link").unlink()
        assert denoise(manifest(tmp_path, source, names), out).done == 3
        assert files(out) == {*names, "corpus.jsonl"}

    def test_one_that_appears_while_the_job_runs(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        out = tmp_path / "out"
        with Journal(out / "corpus.jsonl", out, {}, restart=False) as journal:
            assert not journal.would_overwrite("a/b.wav")
            (journal.parts / part_name("a/b.wav")).write_bytes(b"made")
            (out / "a").symlink_to(tmp_path / "elsewhere")
            with pytest.raises(AudioError, match=r"a/b\.wav' is not written: '.*out/a' is a symbolic link"):
                journal.place("a/b.wav")
        assert files(tmp_path / "elsewhere") == set()

    def test_the_output_folder_itself(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "disk").mkdir()
        (tmp_path / "out").symlink_to(tmp_path / "disk")
        assert denoise(manifest(tmp_path, source, ["a/b.wav"]), tmp_path / "out").done == 1
        assert files(tmp_path / "disk") == {"a/b.wav", "corpus.jsonl"}


class TestDamage:
    def test_cut_outputs_are_made_again(self, source: Path, tmp_path: Path) -> None:
        path, out = manifest(tmp_path, source, ["a.wav", "b.wav", "c.wav"]), tmp_path / "out"
        denoise(path, out)
        whole = (out / "a.wav").read_bytes()
        (out / "a.wav").write_bytes(b"")
        (out / "b.wav").write_bytes(whole[:-2])
        report = denoise(path, out)
        assert (report.before, report.done, report.damaged, report.failed) == (1, 2, ["a.wav", "b.wav"], {})
        assert (out / "b.wav").read_bytes() == whole

    def test_damaged_outputs_are_found_by_their_digests(self, source: Path, tmp_path: Path) -> None:
        path, out = manifest(tmp_path, source, ["a.wav", "b.wav"]), tmp_path / "out"
        denoise(path, out)
        whole = (out / "a.wav").read_bytes()
        (out / "a.wav").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert denoise(path, out).damaged == []
        assert denoise(path, out, verify=True).damaged == ["a.wav"]
        assert (out / "a.wav").read_bytes() == whole

    def test_outputs_that_cannot_be_read_are_damaged(self, tmp_path: Path) -> None:
        """Without permission, a folder instead, or under a name that this file system does not take."""
        names = ["lost.wav", "folder.wav", f"{'x' * 300}.wav", "link.wav"]
        (tmp_path / "folder.wav").mkdir()
        (tmp_path / "link.wav").symlink_to("link.wav")
        lines = [self.HEAD, *(self.LINE.replace("null", '"0"', 1).replace("a.wav", name) for name in names)]
        (tmp_path / "corpus.jsonl").write_text("\n".join(lines) + "\n")
        with Journal(tmp_path / "corpus.jsonl", tmp_path, {}, restart=False) as journal:
            journal.verify()
            assert [journal.is_damaged(name) for name in names] == [True] * 4

    HEAD = '{"corpus": 1, "replaces": false, "others": [], "settings": {}}'
    LINE = '{"output": "a.wav", "sha256": null, "member": null, "members": null, "error": "x"}'

    @pytest.mark.parametrize(
        "lines",
        [
            [HEAD, HEAD],
            [HEAD, LINE, HEAD],
            [HEAD, "[" * 100_000],
            ["[" * 100_000],
            [HEAD.replace("[]", "3")],
            [HEAD.replace("{}", "[]")],
            [HEAD.replace("false", '"no"')],
            [HEAD, LINE.replace('"a.wav"', "3")],
            [HEAD, LINE.replace('"sha256": null', '"sha256": []')],
            [HEAD, LINE.replace('"members": null', '"members": "2"')],
            [HEAD, LINE.replace('"member": null', '"member": "m"')],
            [HEAD, LINE.replace('"member": null', '"member": {}')],
            [HEAD, LINE.replace('"sha256": null', '"sha256": ""').replace("a.wav", r"\ud800.wav")],
        ],
    )
    def test_journals_that_are_none(self, tmp_path: Path, lines: list[str]) -> None:
        (tmp_path / "corpus.jsonl").write_text("\n".join(lines) + "\n")
        with pytest.raises(CorpusError, match=re.escape("move it away")):
            Journal(tmp_path / "corpus.jsonl", tmp_path, {}, restart=False)
