"""Names, places and signals: what `denoise` reads, where it writes, and what it leaves behind."""

from __future__ import annotations

import io
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from command_line import run_command
from example_counts import few
from frcrn_accel.atomic import remove_leftovers, replacing
from frcrn_accel.errors import OutputExistsError
from frcrn_accel.files import audio_suffixes, scan_folder
from frcrn_accel.printable import printable

pytest.importorskip("onnxruntime")

COMMAND = [sys.executable, "-c", "from frcrn_accel.cli import main; main()"]
CHILD = (
    "import pathlib, sys, time, frcrn_accel.atomic as a\nwith a.replacing(pathlib.Path(sys.argv[1]), overwrite=True)"
)


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments: object) -> tuple[int, str]:
        result = run_command(monkeypatch, capsys, *arguments)
        return result.code, result.err

    return run


@pytest.fixture
def talk(tmp_path) -> Path:
    """Half a second of noise."""
    path = tmp_path / "talk.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 8_000), 16_000)
    return path


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


class TestNames:
    @given(st.binary(max_size=20).map(os.fsdecode))
    def test_nothing_from_a_name_reaches_the_terminal_raw(self, name):
        assert printable(name).isprintable()

    @pytest.mark.parametrize(
        "name", [b"\xff\xfe.wav", b"\x1b[31m.wav", b"a\nb.wav", "a\u2028b.wav".encode(), b"x" * 251 + b".wav"]
    )
    def test_any_name_is_denoised(self, run, talk, tmp_path, name):
        source = tmp_path / os.fsdecode(name)
        talk.rename(source)
        code, err = run("denoise", source, "-o", f"{tmp_path}/out/")
        assert code == 0
        assert err.count("\n") == 2
        assert err.isascii()
        assert "\x1b" not in err
        assert [os.fsencode(path.name) for path in (tmp_path / "out").iterdir()] == [name]
        assert run("denoise", source)[0] == 0  # the name beside the input fits, too

    def test_names_that_look_like_options(self, run, talk, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        shutil.copy(talk, "-")
        shutil.copy(talk, "-x.wav")
        assert run("denoise", "./-", "-o", "out/")[0] == 0
        assert run("denoise", "-o", "out/", "--", "-x.wav")[0] == 0
        assert names_in(tmp_path / "out") == ["-.wav", "-x.wav"]

    def test_a_name_without_a_suffix_gets_that_of_its_format(self, run, talk, tmp_path):
        talk.rename(tmp_path / "talk")
        assert run("denoise", tmp_path / "talk")[0] == 0
        assert soundfile.info(tmp_path / "talk.denoised.wav").format == "WAV"

    def test_a_format_that_is_not_written_becomes_the_nearest(self, run, talk, tmp_path):
        """AVI is read only: its PCM becomes FLAC, and no output replaces that of another input."""
        with av.open(str(tmp_path / "talk.avi"), "w", format="avi") as film:
            stream = film.add_stream("pcm_s16le", rate=16_000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.full((1, 1_600), 99, np.int16), format="s16", layout="mono")
            frame.sample_rate = 16_000
            film.mux(stream.encode(frame))
        code, err = run("denoise", tmp_path / "talk.avi", "-o", f"{tmp_path}/out/")
        assert (code, names_in(tmp_path / "out")) == (0, ["talk.flac"]), err
        soundfile.write(tmp_path / "talk.flac", soundfile.read(talk)[0], 16_000)
        code, err = run(
            "denoise", tmp_path / "talk.avi", tmp_path / "talk.flac", "-o", f"{tmp_path}/both/", "--overwrite"
        )
        assert (code, names_in(tmp_path / "both")) == (1, ["talk.flac"])
        assert "would both become" in err
        assert soundfile.info(tmp_path / "both" / "talk.flac").frames == 1_600

    def test_an_ascii_terminal(self, talk, tmp_path):
        source = talk.rename(tmp_path / "Käse.wav")
        environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
        done = subprocess.run([*COMMAND, "denoise", source], env=environment, capture_output=True, check=True)
        assert b"K\\xe4se.wav -> K\\xe4se.denoised.wav" in done.stderr


class TestFolders:
    def test_what_is_left_out_is_named(self, run, talk, tmp_path):
        tree = tmp_path / "in"
        (tree / ".Trash").mkdir(parents=True)
        (tree / "circle").symlink_to(tree)
        for name in ("a.wav", "a.denoised.wav", "b.denoised.wav", "._a.wav", ".Trash/c.wav"):
            shutil.copy(talk, tree / name)
        (tree / "notes.txt").touch()
        code, err = run("denoise", tree, "-o", tmp_path / "out")
        assert code == 0
        assert names_in(tmp_path / "out") == ["a.wav", "b.denoised.wav"]
        assert err.splitlines()[-6:] == [
            f"left out: {tree / '.Trash'}: hidden",
            f"left out: {tree / '._a.wav'}: hidden",
            f"left out: {tree / 'a.denoised.wav'}: output of an earlier run",
            f"left out: {tree / 'circle'}: symbolic link to a folder",
            "4 left out",
            "not audio: .txt 1",
        ]

    def test_what_cannot_be_read_is_a_failure(self, run, talk, tmp_path):
        tree = tmp_path / "in"
        tree.mkdir()
        shutil.copy(talk, tree / "a.wav")
        (tree / "gone.wav").symlink_to("nowhere.wav")
        code, err = run("denoise", tree, "-o", tmp_path / "out")
        assert code == 1
        assert f"left out: {tree / 'gone.wav'}: cannot be read: No such file or directory" in err
        assert names_in(tmp_path / "out") == ["a.wav"]

    @pytest.mark.parametrize("link", ["out/deep", "out/deep/a.wav", "out/deep/b.wav"])
    @pytest.mark.parametrize("overwrite", [False, True])
    def test_links_below_the_output_folder_are_not_followed(self, run, talk, tmp_path, link, overwrite):
        tree, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
        for name in ("in/a.wav", "in/deep/a.wav", "in/deep/b.wav", "elsewhere/a.wav", "elsewhere/b.wav"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(talk, tmp_path / name)
        precious = {path: path.read_bytes() for path in elsewhere.iterdir()}
        (tmp_path / link).parent.mkdir(parents=True)
        (tmp_path / link).symlink_to(elsewhere / Path(link).name if link.endswith(".wav") else elsewhere)
        code, err = run("denoise", tree, "-o", tmp_path / "out", *(["--overwrite"] * overwrite))
        refused = [name for name in ("a.wav", "b.wav") if link in ("out/deep", f"out/deep/{name}")]
        assert (code, err.count(f"{str(tmp_path / link)!r} is a symbolic link")) == (1, len(refused))
        assert {path: path.read_bytes() for path in elsewhere.iterdir()} == precious
        written = {"a.wav"} | {f"deep/{name}" for name in ("a.wav", "b.wav") if name not in refused}
        assert {name for name in names_in(tmp_path / "out") if (tmp_path / "out" / name).is_file()} >= written

    def test_the_output_folder_may_be_a_link(self, run, talk, tmp_path):
        (tmp_path / "in").mkdir()
        talk.rename(tmp_path / "in/talk.wav")
        (tmp_path / "disk").mkdir()
        (tmp_path / "out").symlink_to(tmp_path / "disk")
        assert run("denoise", tmp_path / "in", "-o", tmp_path / "out")[0] == 0
        assert names_in(tmp_path / "disk") == ["talk.wav"]

    def test_an_unreadable_folder_is_named(self, tmp_path):
        (tmp_path / "locked").mkdir()
        (tmp_path / "locked").chmod(0)
        (tmp_path / "a.wav").touch()
        tmp_path.chmod(0o755)
        code = (
            "import os; from pathlib import Path\n"
            "from frcrn_accel.corpus.plan import read_inputs; from frcrn_accel.files import scan_folder\n"
            "os.geteuid() or os.seteuid(65_534)  # root may read everything\n"
            "print([(str(item.path), item.is_error) for item in scan_folder(Path('.')).left_out])\n"
            "print([(one.output, one.refusal) for one in read_inputs('.', '/out').recordings])"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        (tmp_path / "locked").chmod(0o755)
        scanned, read = done.stdout.splitlines()
        assert scanned == "[('locked', True)]"
        assert read == "[('a.wav', None), ('locked', \"'locked' cannot be read: Permission denied\")]"

    @few(50)
    @given(
        st.lists(
            st.tuples(st.binary(min_size=1, max_size=8), st.sampled_from(["", ".wav", ".M4A", ".txt", "/x.wav"]))
        )
    )
    def test_every_file_is_found_or_left_out(self, tmp_path_factory, entries):
        folder = tmp_path_factory.mktemp("tree")
        for stem, suffix in entries:
            path = folder / (os.fsdecode(stem.replace(b"/", b"_").replace(b"\0", b"_")) + suffix)
            if path.parent.is_file() or path.name in (".", "..") or path.is_dir():
                continue
            path.parent.mkdir(exist_ok=True)
            path.touch()
        scan = scan_folder(folder)
        left_out = {item.path for item in scan.left_out}
        files = {path for path in folder.rglob("*") if path.is_file()}
        in_left_out = {path for path in files if left_out & {path, *path.parents}}
        assert not in_left_out & set(scan.files)
        assert len(in_left_out) + len(scan.files) + sum(scan.other_suffixes.values()) == len(files)
        assert all(path.suffix.lower() in audio_suffixes() for path in scan.files)

    def test_suffixes_that_people_have(self):
        names = {"m4a", "webm", "sph", "aifc", "snd", "wave", "bwf", "mp2", "3gp", "amr", "opus", "oga", "mka", "mp4"}
        assert audio_suffixes() >= {f".{name}" for name in names}


class TestChecks:
    """One line, before the model is loaded: the model that is named does not exist, and that is never reported."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["gone.wav"], "'gone.wav' does not exist"),
            (["talk.wav", "-o", "x.xyz"], "unknown audio format '.xyz'"),
            (["talk.wav", "-o", "there.wav"], "replace it with --overwrite"),
            (["talk.wav", "-o", "talk.wav", "--overwrite"], "is the input itself"),
            (["talk.wav", "there.wav", "-o", "one.wav"], "several inputs need a folder: end 'one.wav' with /"),
            (["talk.wav", "there.wav", "-o", ".", "--overwrite"], "is also an input"),
            (["talk.wav", "talk.wav", "-o", "new/"], "would both become"),
            (["rec", "-o", "rec"], "is the input folder itself"),
            (["rec", "-o", "there.wav/x"], "is a file"),
            (["six.wav", "-o", "x.mp3"], "channels"),
            (["text.wav"], "cannot be read as audio"),
            (["rec"], "give an output folder with -o"),
            (["empty", "-o", "x"], "contains no audio files"),
        ],
    )
    def test_it_is_one_line(self, run, talk, tmp_path, monkeypatch, arguments, message):
        monkeypatch.chdir(tmp_path)
        Path("rec").mkdir()
        Path("empty").mkdir()
        shutil.copy(talk, "rec/a.wav")
        shutil.copy(talk, "there.wav")
        Path("text.wav").write_text("no audio")
        soundfile.write("six.wav", np.zeros((800, 6)), 16_000)
        before = names_in(tmp_path)
        code, err = run("denoise", *arguments, "--model", "nope")
        assert code in (1, 2)
        assert message in err
        assert "nope" not in err
        assert names_in(tmp_path) == before

    def test_a_bad_file_among_good_ones(self, run, talk, tmp_path):
        code, err = run("denoise", talk, tmp_path / "gone.wav", "-o", f"{tmp_path}/out/")
        assert code == 1
        assert err.splitlines()[-1] == "1 of 2 files failed"
        assert names_in(tmp_path / "out") == ["talk.wav"]

    @pytest.mark.parametrize("option", ["--duration-s", "--lookahead-s", "--attenuation-limit-db"])
    @pytest.mark.parametrize("value", ["nan", "-inf", "-1", "1e30"])
    def test_numbers_that_are_of_no_use(self, run, option, value):
        code, err = run("live", option, value)
        assert (code, err.count("\n")) == (2, 1)
        assert option in err

    def test_a_sample_rate_of_0(self, run):
        assert run("live", "--sample-rate", 0) == (
            2,
            "frcrn-accel: error: sample rate must be 8000 to 192000 Hz, got 0\n",
        )

    def test_every_number_of_every_command(self, run):
        for command in (["denoise", "x"], ["serve"], ["corpus", "x", "y"], ["evaluate", "x"]):
            code, err = run(*command, "--threads", 10**30)
            assert (code, err.count("\n")) == (2, 1)


class TestOutputs:
    def test_a_link_is_written_through(self, tmp_path):
        (tmp_path / "deep").mkdir()
        (tmp_path / "deep/x.wav").write_text("old")
        (tmp_path / "link.wav").symlink_to("deep/x.wav")
        with pytest.raises(OutputExistsError), replacing(tmp_path / "link.wav", overwrite=False):
            pass
        with replacing(tmp_path / "link.wav", overwrite=True) as temporary:
            assert temporary.parent == tmp_path / "deep"
            temporary.write_text("new")
        assert (tmp_path / "link.wav").is_symlink()
        assert (tmp_path / "deep/x.wav").read_text() == "new"
        assert names_in(tmp_path / "deep") == ["x.wav"]

    @pytest.mark.parametrize("source", [0o600, 0o640, 0o644, 0o666, 0o755, 0o400])
    @pytest.mark.parametrize("umask", [0o022, 0o077])
    def test_permissions_are_never_widened(self, tmp_path, source, umask):
        (tmp_path / "in").touch()
        (tmp_path / "in").chmod(source)
        before = os.umask(umask)
        try:
            with replacing(tmp_path / "out", overwrite=False, like=tmp_path / "in") as temporary:
                temporary.write_text("x")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == source & 0o666 & ~umask

    def test_denoise_keeps_a_recording_private(self, run, talk, tmp_path):
        talk.chmod(0o600)
        assert run("denoise", talk)[0] == 0
        assert stat.S_IMODE((tmp_path / "talk.denoised.wav").stat().st_mode) == 0o600

    def test_devices_and_fifos_stay(self, run, talk, tmp_path):
        assert run("denoise", talk, "-o", "/dev/null")[0] == 0
        assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        read: list[bytes] = []
        reader = threading.Thread(target=lambda: read.append(fifo.read_bytes()), daemon=True)
        reader.start()
        assert run("denoise", talk, "-o", fifo)[0] == 0
        reader.join(60)
        assert soundfile.info(io.BytesIO(read[0])).frames == 8_000
        assert names_in(tmp_path) == ["fifo", "talk.wav"]
        assert fifo.is_fifo()

    def test_a_full_device_is_one_line(self, run, talk, tmp_path):
        assert run("denoise", talk, "-o", "/dev/full")[1].splitlines()[-1] == (
            "frcrn-accel: error: '/dev/full' cannot be written: No space left on device"
        )
        assert names_in(tmp_path) == ["talk.wav"]

    @pytest.mark.skipif(os.name != "posix", reason="needs a shell of POSIX")
    @pytest.mark.parametrize(
        ("command", "code", "message"),
        [
            ("denoise - -o out.wav <&-", 2, "standard input is closed: name a file"),
            ("denoise talk.wav -o - >&-", 2, "standard output is closed: name a file with -o"),
            ("denoise talk.wav -o out.wav 2>&-", 0, ""),
            ("denoise talk.wav -o out.wav <&- >&- 2>&-", 0, ""),
        ],
    )
    def test_closed_streams(self, talk, tmp_path, command, code, message):
        script = f'"$0" -c "from frcrn_accel.cli import main; main()" {command}'
        done = subprocess.run(
            ["/bin/sh", "-c", script, sys.executable], cwd=tmp_path, capture_output=True, check=False
        )
        assert (done.returncode, message.encode() in done.stderr, b"Traceback" in done.stderr) == (code, True, False)
        assert (tmp_path / "out.wav").exists() == (code == 0)

    def test_a_fifo_as_input(self, run, talk, tmp_path):
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        writer = threading.Thread(target=lambda: fifo.write_bytes(talk.read_bytes()), daemon=True)
        writer.start()
        assert run("denoise", fifo, "-o", tmp_path / "x.wav")[0] == 0
        writer.join(60)
        assert soundfile.info(tmp_path / "x.wav").frames == 8_000

    @pytest.mark.skipif(not Path("/dev/fd").exists(), reason="about systems that name open files")
    @pytest.mark.parametrize("name", ["/dev/fd/{}", "/dev/stdin"])
    def test_process_substitution_and_standard_input_by_name(self, run, talk, tmp_path, name):
        """A shell passes `<(command)` as the name of an open pipe."""
        reading, writing = os.pipe()
        stdin = os.dup(0)
        try:
            os.dup2(reading, 0)
            os.write(writing, talk.read_bytes())  # it fits into the pipe
            os.close(writing)
            assert run("denoise", name.format(reading), "-o", tmp_path / "x.wav")[0] == 0
        finally:
            os.dup2(stdin, 0)
            os.close(stdin)
            os.close(reading)
        assert soundfile.info(tmp_path / "x.wav").frames == 8_000

    def test_a_closed_pipe_ends_quietly(self, talk):
        with subprocess.Popen(
            [*COMMAND, "denoise", talk, "-o", "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            process.stdout.close()
            err = process.stderr.read()
        assert process.returncode == 1
        assert err.count(b"\n") == 1  # the line about the model


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
    def test_nothing_is_left_behind(self, tmp_path, noisy, number):
        (tmp_path / "tmp").mkdir()
        soundfile.write(tmp_path / "long.wav", np.tile(noisy, 60), 16_000)
        environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
        command = [*COMMAND, "denoise", "long.wav"]
        with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr.readline().startswith("frcrn-small on ")
            process.send_signal(number)
            _, rest = process.communicate(timeout=60)
        assert process.returncode == 128 + number
        assert rest.count("\n") <= 1
        assert "Traceback" not in rest
        assert sorted(path.name for path in tmp_path.iterdir()) == ["long.wav", "tmp"]
        assert list((tmp_path / "tmp").glob("frcrn-accel-*")) == []

    @pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are told apart by /proc")
    def test_the_file_of_a_killed_process_is_removed(self, tmp_path):
        code = f"{CHILD}:\n    print('ready', flush=True)\n    time.sleep(60)"
        for name in (".x-1234.wav", ".x-frcrn-0123abcd-1-1-0123abcd.wav"):
            (tmp_path / name).touch()  # of others
        with subprocess.Popen([sys.executable, "-c", code, tmp_path / "x.wav"], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            alive = names_in(tmp_path)
            remove_leftovers(tmp_path)
            assert names_in(tmp_path) == alive
            process.kill()
        assert len(alive) == 3
        remove_leftovers(tmp_path)
        assert names_in(tmp_path) == [".x-1234.wav", ".x-frcrn-0123abcd-1-1-0123abcd.wav"]
        assert scan_folder(tmp_path).files == []

    @given(
        st.text(min_size=1, max_size=255).filter(lambda s: "/" not in s and "\0" not in s and s not in (".", ".."))
    )
    @few(50)
    def test_temporary_names_fit(self, tmp_path_factory, name):
        try:
            name = os.fsdecode(os.fsencode(name)[:255])
        except UnicodeEncodeError:
            return
        path = tmp_path_factory.mktemp("names") / name
        with replacing(path, overwrite=False) as temporary:
            temporary.write_text("x")
        assert [entry.name for entry in path.parent.iterdir()] == [name]
