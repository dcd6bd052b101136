"""The commands, run in this process as the console script runs them."""

from __future__ import annotations

import dataclasses
import importlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import numpy as np
import pytest
import soundfile
import typer
from rich.console import Console

from checkpoints import save_checkpoint
from command_line import Result, run_command
from frcrn_accel import Denoiser, __version__, cli
from frcrn_accel.backends import registry
from frcrn_accel.cli.output import echo
from frcrn_accel.cli.progress import preparation, print_line, progress_bar
from frcrn_accel.digest import sha256_of
from frcrn_accel.doctor import (
    BackendReport,
    CacheReport,
    CpuReport,
    FileReport,
    GpuDevice,
    GpuReport,
    ModelReport,
    Report,
)
from frcrn_accel.models import (
    CACHE_DIR_VARIABLE,
    DEFAULT_MODEL,
    ModelFile,
    find_model,
    keep_imported,
    known_models,
    packaged_files,
    read_weights,
)
from frcrn_accel.network.topology import Config, layer_groups
from frcrn_accel.prepare import ImportedVariant, ImportReport, make_variant
from frcrn_accel.quantize import METHODS
from frcrn_accel.testing import random_weights

pytest.importorskip("onnxruntime")


@pytest.fixture
def run(monkeypatch, capsys):
    return partial(run_command, monkeypatch, capsys)


def the_error(result: Result) -> str:
    """Return the only line on stderr with an error, without its prefix."""
    lines = [line for line in result.err.splitlines() if line.startswith("frcrn-accel: error: ")]
    assert len(lines) == 1, result.err
    assert result.err.splitlines()[-1] == lines[0]
    assert result.code == 2
    return lines[0].removeprefix("frcrn-accel: error: ")


def test_version(run):
    assert run("--version") == Result(0, f"frcrn-accel {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--help",),
        ("denoise", "--help"),
        ("corpus", "--help"),
        ("live", "--help"),
        ("export", "--help"),
        ("quantize", "--help"),
        ("doctor", "--help"),
        ("bench", "--help"),
        ("models",),
        ("models", "--help"),
        *(("models", command, "--help") for command in ("list", "verify", "path", "import", "download")),
    ],
)
def test_help(run, arguments):
    result = run(*arguments)
    assert result.code == 0
    assert result.out.startswith("Usage: ")


def every_option() -> list[tuple[str, object]]:
    """Return the names and options of all commands, including those of `models`."""

    def below(name: str, command: object) -> list[tuple[str, object]]:
        found = [(f"{name} {option.name}".strip(), option) for option in command.params]
        for inner in command.list_commands(None) if hasattr(command, "list_commands") else ():
            found += below(f"{name} {inner}".strip(), command.get_command(None, inner))
        return found

    return below("", typer.main.get_command(cli.app))


@pytest.mark.parametrize(
    ("name", "option"), every_option(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_help_texts_are_sentences_with_units(name, option):
    text = option.help
    sentence, _, default = text.partition(" [default: ")
    assert sentence.endswith("."), text
    assert not default or default.endswith("]"), text
    assert len(sentence) <= 100, text
    assert "\n" not in text, text
    units = {"_per_s": ", 1/s", "_s": ", s", "_db": ", dB", "_percent": ", %", "minutes": "minutes"}
    assert next((unit for suffix, unit in units.items() if option.name.endswith(suffix)), "") in text, text
    same = {
        "model": "frcrn-small, frcrn-small-stream, frcrn-16k once imported, another import, or a file by 'export'.",
        "threads": "CPU threads",
        "backend": "auto, openvino, ort, ",
        "overwrite": "Replace ",
    }
    assert text.startswith(same.get(option.name, "")), text


def test_choices_are_in_the_help():
    """The names of models, backends and methods, without looking elsewhere."""
    options = dict(every_option())
    for name in known_models():
        assert re.search(rf"\b{name}\b", options["denoise model"].help), name
    ours = [
        point.name
        for point in entry_points(group=registry.ENTRY_POINT_GROUP)
        if point.value.startswith("frcrn_accel.")
    ]
    assert set(re.split(r", | or ", options["denoise backend"].help.rstrip("."))) == {"auto", *ours}
    assert set(options["quantize method"].metavar.split("|")) == set(METHODS)


@pytest.mark.parametrize("text", ["1_0", "+1", "\u0661", " 1", "nan", "Infinity", "1e99", "1."])
@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("denoise", "none.wav"), "--threads"),
        (("denoise", "none.wav"), "--attenuation-limit-db"),
        (("serve",), "--timeout-s"),
        (("live",), "--lookahead-s"),
        (("corpus", "none", "out"), "--workers"),
    ],
)
def test_numbers_are_plain(run, tmp_path, monkeypatch, command, option, text):
    monkeypatch.chdir(tmp_path)
    assert option in the_error(run(*command, f"{option}={text}"))


def test_infinity_is_no_limit(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "does not exist" in the_error(run("denoise", "none.wav", "--attenuation-limit-db", "inf"))


def test_commands_are_listed_in_groups(run):
    sections = re.findall(r"^(\S.*):\n((?:  .*\n?)+)", run("--help").out, re.MULTILINE)
    commands = {heading: re.findall(r"^  ([a-z-]+) ", body, re.MULTILINE) for heading, body in sections}
    del commands["Options"]
    assert commands["Denoise"] == ["denoise", "corpus", "live", "serve"]
    assert sorted(itertools.chain(*commands.values())) == sorted(typer.main.get_command(cli.app).list_commands(None))
    assert "Denoise recordings and films" in run("--help").out


SUMMARIES = {
    "denoise": "Denoise recordings and films: WAV, FLAC, MP3, Ogg, M4A, MP4, MKV and more, with all their channels.",
    "backends": "List the backends: which can run here, and what the others need.",
    "export": "Convert a checkpoint to a model file for every backend, verified against PyTorch.",
    "quantize": "Quantize a model, and check that it still sounds the same. Exit code 1 if it does not.",
    "build-engine": "Build a TensorRT engine ahead of time, for this machine's card or another.",
    "models": "List, check, import and download models.",
    "models list": "List the models: origin, licence, digest and whether each is available here.",
    "models verify": "Check every model file, packaged or cached, against its digest. Exit code 1 if one is damaged.",
    "models path": "Print the path of a model's file.",
    "models import": "Import a checkpoint: export it to the cache, verified against PyTorch, and quantize it.",
    "models download": "Download a checkpoint from the model hub. This is the only command that downloads a model.",
}


@pytest.mark.parametrize("command", SUMMARIES)
def test_summaries(run, command):
    _, summary, *_ = run(*command.split(), "--help").out.split("\n\n")
    assert " ".join(summary.split()) == SUMMARIES[command]


def test_a_line_is_printed_as_it_is():
    shown = io.StringIO()
    print_line(Console(file=shown, force_terminal=True, width=20), "a:fire:[b].wav -> a:fire:[b].denoised.wav")
    assert shown.getvalue() == "a:fire:[b].wav -> a:fire:[b].denoised.wav\n"


class TestOddNames:
    """Names may hold control characters, which a terminal would obey."""

    NAME = "x\x1b[31m\nred"
    SHOWN = r"x\x1b[31m\nred"

    def test_lines_and_bars(self, capsys):
        shown = io.StringIO()
        console = Console(file=shown, width=100, force_terminal=True, color_system=None)
        print_line(console, f"{self.NAME} [/b]")
        with progress_bar(console) as show:
            show(f"{self.NAME} [/c]", 0, 3)
        assert f"{self.SHOWN} [/b]\n" in shown.getvalue()
        assert f"{self.SHOWN} [/c] " in shown.getvalue()
        assert "\x1b[31m" not in shown.getvalue()
        print_line(None, self.NAME)
        echo(self.NAME)
        echo(self.NAME, err=True)
        out, err = capsys.readouterr()
        assert (out, err) == (f"{self.SHOWN}\n", 2 * f"{self.SHOWN}\n")

    def test_of_a_model_and_its_file(self, run, tmp_path):
        pytest.importorskip("onnx")
        checkpoint = save_checkpoint(random_weights(Config(8, 1)), tmp_path / f"{self.NAME}.pt")
        result = run("export", checkpoint, tmp_path / f"{self.NAME}.onnx")
        assert result.code == 0
        assert result.out.startswith(f"{tmp_path}/{self.SHOWN}.onnx: {self.SHOWN}, 8 channels")

    @pytest.mark.parametrize("command", ["models verify", "doctor"])
    def test_of_the_cache(self, run, tmp_path, monkeypatch, command):
        monkeypatch.setenv(CACHE_DIR_VARIABLE, str(tmp_path / self.NAME))
        keep_a_copy("mine")
        out = run(*command.split()).out
        assert f"{tmp_path}/{self.SHOWN}" in out
        assert "\x1b" not in out

    def test_in_a_warning_that_is_logged(self):
        code = (
            "import logging, sys; from frcrn_accel.cli import main; sys.argv = ['frcrn-accel', '--version']\n"
            "try: main()\n"
            f"finally: logging.getLogger('frcrn_accel.models').warning('not used: %s', {self.NAME!r})"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stderr == f"not used: {self.SHOWN}\n"

    def test_in_an_error_that_is_logged(self):
        """It is one line, without the traceback."""
        code = (
            "import logging, sys; from frcrn_accel.cli import main; sys.argv = ['frcrn-accel', '--version']\n"
            "try: main()\n"
            "finally:\n"
            f"    error = RuntimeError({self.NAME!r})\n"
            "    logging.getLogger('frcrn_accel.adapters').error('%d failed', 3, exc_info=error)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stderr == f"3 failed: {self.SHOWN}\n"

    @pytest.mark.parametrize("command", ["denoise", "evaluate", "corpus"])
    def test_of_recordings(self, run, tmp_path, command):
        folder = tmp_path / self.NAME
        folder.mkdir()
        (folder / f"{self.NAME}.wav").write_bytes(b"no audio")
        result = run(
            command, folder, *{"denoise": ["-o", tmp_path / "out"], "corpus": [tmp_path / "out"]}.get(command, [])
        )
        assert result.code != 0
        assert f"{self.SHOWN}.wav" in result.err
        assert "\x1b" not in result.err


class TestPreparation:
    """Output while a file is made for a backend."""

    def make(self, model: ModelFile, console: Console) -> None:
        with preparation(console) as progress:
            make_variant(model, "dynamic", gated=False, progress=progress)

    def test_the_log_line_without_a_terminal(self, empty_cache, tiny):
        shown = io.StringIO()
        self.make(tiny, Console(file=shown, width=200))
        assert shown.getvalue() == "quantizing tiny with method 'dynamic'; this is done once and can take minutes\n"

    def test_bars_on_a_terminal(self, empty_cache, tiny):
        shown = io.StringIO()
        self.make(tiny, Console(file=shown, width=200, force_terminal=True))
        assert "quantizing tiny with method 'dynamic'" in shown.getvalue()
        assert "dynamic: build" in shown.getvalue()

    def test_a_bar_counts_only_what_has_several_units(self):
        shown = io.StringIO()
        with progress_bar(Console(file=shown, width=100, force_terminal=True, color_system=None)) as show:
            for step, total in (("build", 1), ("gate", 3), ("build", 1), ("gate", 8)):
                show(step, 0, total)
                show(step, total, total)
        counts = set(re.findall(r"(build|gate)\W*?(\d+/[\d?]+)", shown.getvalue()))
        assert {("build", "0/?"), ("gate", "0/3"), ("gate", "0/8")} <= counts
        assert {total for _, total in counts} <= {"0/?", "1/1", "0/3", "3/3", "0/8", "8/8"}

    def test_nothing_is_shown_for_a_file_that_exists_or_after_the_block(self, empty_cache, tiny):
        make_variant(tiny, "dynamic", gated=False)
        shown = io.StringIO()
        self.make(tiny, Console(file=shown, width=200))
        shutil.rmtree(empty_cache)
        make_variant(tiny, "dynamic", gated=False)
        assert shown.getvalue() == ""


class TestBuildEngine:
    def test_packages_are_checked_before_a_file_is_prepared(self, run, empty_cache, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
        out = tmp_path / "a.plan"
        for arguments in ((), ("--compute-capability", "8.9")):
            error = the_error(run("build-engine", DEFAULT_MODEL, out, *arguments))
            assert error.startswith("backend 'tensorrt-rtx' cannot run here: ")
            assert error.endswith("pip install 'frcrn-accel[tensorrt-rtx]'")
        assert not empty_cache.exists()
        assert not out.exists()


class TestDenoise:
    def test_an_option_without_effect_is_one_line(self, run, tmp_path, noisy_path):
        result = run("denoise", noisy_path, "-o", tmp_path / "a.wav", "--backend", "ort", "--calibration", tmp_path)
        assert the_error(result) == "Invalid value: backend 'ort' does not calibrate: leave calibration out"

    def test_a_file(self, run, tmp_path, noisy_path, denoised):
        result = run("denoise", noisy_path, "-o", tmp_path / "clean.wav", "--backend", "ort", "--precision", "fp32")
        assert result.code == 0
        assert "frcrn-small on ort, fp32 (CPUExecutionProvider, " in result.err
        assert "noisy.wav -> clean.wav: 10.8 s in " in result.err
        assert "real-time factor 0." in result.err
        written, rate = soundfile.read(tmp_path / "clean.wav")
        assert rate == 16_000
        np.testing.assert_allclose(written, denoised, atol=1 / 32_768)

    def test_a_precision_that_the_backend_does_not_have(self, run, tmp_path, noisy_path):
        result = run("denoise", noisy_path, "-o", tmp_path / "clean.wav", "--backend", "ort", "--precision", "int4")
        assert result.code == 2
        assert result.err == "frcrn-accel: error: backend 'ort' has no precision 'int4': it has fp32\n"

    def test_the_default_name_is_beside_the_input(self, run, tmp_path, noisy_path):
        shutil.copy(noisy_path, tmp_path / "talk.wav")
        assert run("denoise", tmp_path / "talk.wav").code == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == ["talk.denoised.wav", "talk.wav"]

    @pytest.mark.parametrize(
        ("arguments", "written"),
        [
            (("--keep", "noise"), {"talk.noise.wav"}),
            (("--keep", "both"), {"talk.denoised.wav", "talk.noise.wav"}),
            (("--keep", "both", "-o", "x.wav"), {"x.wav", "x.noise.wav"}),
            (("--keep", "noise", "-o", "x.wav"), {"x.wav"}),
            (("--keep", "both", "-o", "out/"), {"out"}),
        ],
    )
    def test_what_was_taken_away_has_a_name(self, run, tmp_path, noisy, monkeypatch, arguments, written):
        monkeypatch.chdir(tmp_path)
        soundfile.write("talk.wav", noisy[:8_000], 16_000)
        if "out/" in arguments:
            Path("out").mkdir()
        assert run("denoise", "talk.wav", *arguments).code == 0
        assert {path.name for path in tmp_path.iterdir()} == {"talk.wav", *written}
        if "both" in arguments:
            speech, taken = sorted(path for path in tmp_path.rglob("*.wav") if path != tmp_path / "talk.wav")
            whole = soundfile.read(speech, dtype="int16")[0].astype(int) + soundfile.read(taken, dtype="int16")[0]
            np.testing.assert_allclose(whole, soundfile.read("talk.wav", dtype="int16")[0], atol=1)

    def test_both_do_not_fit_into_standard_output(self, run, noisy_path):
        assert "name a file with -o" in the_error(run("denoise", noisy_path, "-o", "-", "--keep", "both"))

    def test_the_high_band_is_kept_or_dropped(self, run, tmp_path, noisy):
        hiss = (0.1 * np.random.default_rng(0).standard_normal(24_000)).astype(np.float32)
        soundfile.write(tmp_path / "a.wav", hiss, 48_000, subtype="FLOAT")
        for mode in ("follow", "drop"):
            out = tmp_path / f"{mode}.wav"
            result = run(
                *("denoise", tmp_path / "a.wav", "-o", out, "--backend", "ort", "--high-band", mode),
                *("--attenuation-limit-db", 20),
            )
            assert result.code == 0
            expected = Denoiser(backend="ort", attenuation_limit_db=20, high_band=mode)(hiss, 48_000)
            np.testing.assert_allclose(soundfile.read(out, dtype="float32")[0], expected, atol=1e-5)

    def test_options_reach_the_denoiser(self, run, tmp_path, noisy_path, noisy):
        model = tmp_path / "m.onnx"
        shutil.copy(find_model("frcrn-small").path, model)
        out = tmp_path / "o.wav"
        result = run(
            *("denoise", noisy_path, "-o", out, "--model", model, "--backend", "ort"),
            *("--threads", 1, "--attenuation-limit-db", 0),
        )
        assert "1 thread)" in result.err
        np.testing.assert_array_equal(soundfile.read(out, dtype="float32")[0], noisy)

    def test_existing_output(self, run, tmp_path, noisy_path):
        out = tmp_path / "o.wav"
        out.write_bytes(b"precious")
        assert "exists" in the_error(run("denoise", noisy_path, "-o", out))
        assert out.read_bytes() == b"precious"
        assert run("denoise", noisy_path, "-o", out, "--overwrite").code == 0

    def test_a_folder_is_mirrored_and_failures_come_last(self, run, tmp_path, noisy):
        tree = tmp_path / "in"
        (tree / "a/b").mkdir(parents=True)
        soundfile.write(tree / "one.wav", noisy[:8_000], 16_000)
        soundfile.write(tree / "a/two.flac", noisy[:8_000], 16_000)
        soundfile.write(tree / "a/b/three.MP3", noisy[:8_000], 16_000, format="MP3")
        (tree / "a/broken.wav").write_text("no audio")
        (tree / "notes.txt").write_text("no audio and no such suffix")
        result = run("denoise", tree, "-o", tmp_path / "out")
        assert result.code == 1
        *_, failed, count = result.err.splitlines()
        assert failed.startswith(f"failed: {tree / 'a/broken.wav'}: ")
        assert count == "1 of 4 files failed"
        written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
        assert written == ["a/b/three.MP3", "a/two.flac", "one.wav"]

    def test_the_output_folder_may_be_inside_the_input_folder(self, run, tmp_path, noisy):
        soundfile.write(tmp_path / "one.wav", noisy[:8_000], 16_000)
        for _ in range(2):
            assert run("denoise", tmp_path, "-o", tmp_path / "out", "--overwrite").code == 0
        assert [path.name for path in (tmp_path / "out").rglob("*.*")] == ["one.wav"]

    def test_several_files_into_a_folder(self, run, tmp_path, noisy):
        for name in ("a.wav", "b.wav"):
            soundfile.write(tmp_path / name, noisy[:8_000], 16_000)
        result = run("denoise", tmp_path / "a.wav", tmp_path / "b.wav", "-o", tmp_path / "out")
        assert result.code == 0
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.wav", "b.wav"]

    def test_two_inputs_with_one_output(self, run, tmp_path, noisy):
        for name in ("x", "y"):
            (tmp_path / name).mkdir()
            soundfile.write(tmp_path / name / "a.wav", noisy[:8_000], 16_000)
        result = run("denoise", tmp_path / "x/a.wav", tmp_path / "y/a.wav", "-o", tmp_path / "out")
        assert "would both become" in the_error(result)

    def test_standard_input_and_output(self, noisy_path, noisy, tmp_path):
        command = [sys.executable, "-c", "from frcrn_accel.cli import main; main()", "denoise", "-"]
        done = subprocess.run(command, input=noisy_path.read_bytes(), capture_output=True, check=True)
        audio, rate = soundfile.read(io.BytesIO(done.stdout))
        assert (len(audio), rate) == (len(noisy), 16_000)
        assert soundfile.info(io.BytesIO(done.stdout)).subtype == "PCM_16"
        failed = subprocess.run(command, input=b"text", capture_output=True, check=False)
        assert failed.returncode == 2
        assert failed.stdout == b""
        assert failed.stderr.splitlines()[-1].startswith(b"frcrn-accel: error: ")
        to_file = subprocess.run(
            [*command[:-1], str(noisy_path), "-o", "-"], capture_output=True, check=True, cwd=tmp_path
        )
        assert to_file.stdout == done.stdout

    @pytest.mark.parametrize(
        ("size", "message"),
        [
            (0, "error: standard input cannot be read as audio: it is empty"),
            (40, "error: standard input cannot be read as audio"),
            (20_000, "warning: standard input is cut off"),
        ],
    )
    def test_messages_name_standard_input_and_not_its_copy(
        self, run, tmp_path, monkeypatch, noisy_path, size, message
    ):
        content = noisy_path.read_bytes()[:size]
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        result = run("denoise", "-", "-o", tmp_path / "x.wav")
        assert result.code == (0 if message.startswith("warning") else 2)
        assert message in result.err
        assert tempfile.gettempdir() not in result.err.replace(str(tmp_path), "")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
    def test_messages_name_the_device_and_not_the_file_in_its_place(self, run, noisy_path):
        message = the_error(run("denoise", noisy_path, "-o", "/dev/full"))
        assert message.startswith("'/dev/full' cannot be written")

    def test_standard_input_has_a_limit(self, run, monkeypatch):
        monkeypatch.setattr("frcrn_accel.files.spool.MAX_SPOOLED_BYTES", 1_000)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(bytes(1_001))))
        assert "larger than the limit" in the_error(run("denoise", "-", "-o", "x.wav"))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["denoise"], "Missing argument 'IN'"),
            (["denoise", "none.wav"], "'none.wav' does not exist"),
            (["denoise", "none.wav", "-o", "x.wav"], "'none.wav' does not exist"),
            (["denoise", "IN", "--threads", "0"], "--threads"),
            (["denoise", "IN", "--attenuation-limit-db", "-3"], "--attenuation-limit-db"),
            (["denoise", "IN", "--backend", "nope"], "unknown backend 'nope'"),
            (["denoise", "IN", "--model", "nope"], "unknown model 'nope'"),
            (["denoise", "IN", "--model", "frcrn-16k"], "not in this package"),
            (["denoise", "IN", "--model", "IN"], "is not a"),
            (["denoise", "IN", "-o", "x.xyz"], "unknown audio format '.xyz'"),
            (["denoise", "IN", "-", "-o", "x"], "- cannot be combined with other inputs"),
            (["denoise", "IN", "IN", "-o", "IN"], "is a file: several inputs need a folder"),
            (["denoise", "."], "give an output folder with -o"),
            (["denoise", ".", "-o", "x"], "contains no audio files"),
            (["denoise", "IN", "--nonsense"], "--nonsense"),
            (["nonsense"], "nonsense"),
        ],
    )
    def test_errors_are_one_line(self, run, tmp_path, monkeypatch, noisy_path, arguments, message):
        monkeypatch.chdir(tmp_path)
        result = run(*(str(noisy_path) if argument == "IN" else argument for argument in arguments))
        assert message in the_error(result)
        assert list(tmp_path.rglob("*.*")) == []

    @pytest.mark.parametrize(
        ("name", "audio", "rate", "subtype", "message"),
        [
            (
                "nan.wav",
                np.array([0.0, np.nan, 0.0]),
                16_000,
                "FLOAT",
                "NaN or infinity, first in channel 0 at sample 1",
            ),
            ("inf.wav", np.array([0.0, np.inf]), 16_000, "FLOAT", "NaN or infinity"),
            ("slow.wav", np.zeros(10), 4_000, "PCM_16", "8000 to 192000 Hz, got 4000"),
            ("fast.wav", np.zeros(10), 384_000, "PCM_16", "8000 to 192000 Hz, got 384000"),
            ("wide.wav", np.zeros((10, 65)), 16_000, "PCM_16", "1 to 64 channels, got 65"),
        ],
    )
    def test_bad_audio_is_an_error(self, run, tmp_path, name, audio, rate, subtype, message):
        soundfile.write(tmp_path / name, audio, rate, subtype=subtype)
        assert message in the_error(run("denoise", tmp_path / name))
        assert [path.name for path in tmp_path.iterdir()] == [name]

    @pytest.mark.parametrize("content", [b"", b"hello", b"RIFF\x24\0\0\0WAVEfmt "])
    def test_no_audio_is_an_error(self, run, tmp_path, content):
        (tmp_path / "bad.wav").write_bytes(content)
        assert "cannot be read as audio" in the_error(run("denoise", tmp_path / "bad.wav"))
        assert [path.name for path in tmp_path.iterdir()] == ["bad.wav"]

    @pytest.mark.parametrize(
        ("audio", "rate", "subtype"),
        [
            (np.zeros(0), 16_000, "PCM_16"),
            (np.full(1, 0.5), 44_100, "PCM_16"),
            (np.zeros(9_000), 16_000, "PCM_16"),
            (np.clip(np.random.default_rng(0).standard_normal(9_000) * 5, -1, 1), 16_000, "PCM_16"),
            (np.random.default_rng(0).uniform(-0.5, 0.5, (9_000, 8)), 8_000, "PCM_32"),
            (np.random.default_rng(0).uniform(-0.5, 0.5, 50_000), 192_000, "DOUBLE"),
        ],
        ids=["empty", "one sample", "silence", "clipped", "8 channels at 8 kHz", "192 kHz float64"],
    )
    def test_odd_audio_comes_out_in_its_own_form(self, run, tmp_path, audio, rate, subtype):
        soundfile.write(tmp_path / "in.wav", audio, rate, subtype=subtype)
        assert run("denoise", tmp_path / "in.wav", "-o", tmp_path / "out.wav").code == 0
        before, after = (soundfile.info(tmp_path / name) for name in ("in.wav", "out.wav"))
        for what in ("frames", "samplerate", "channels", "subtype", "format"):
            assert getattr(after, what) == getattr(before, what)
        assert np.isfinite(soundfile.read(tmp_path / "out.wav")[0]).all()

    def test_an_unwritable_folder(self, run, tmp_path, noisy_path):
        (tmp_path / "file").write_text("in the way")
        assert "cannot create folder" in the_error(run("denoise", noisy_path, "-o", tmp_path / "file" / "x.wav"))

    def test_an_interrupt_leaves_nothing_behind(self, tmp_path, noisy):
        soundfile.write(tmp_path / "long.wav", np.tile(noisy, 60), 16_000)
        command = [sys.executable, "-c", "from frcrn_accel.cli import main; main()", "denoise", "long.wav"]
        with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr.readline().startswith("frcrn-small on ")  # the next thing it does is denoise
            process.send_signal(signal.SIGINT)
            _, rest = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Traceback" not in rest
        assert [path.name for path in tmp_path.iterdir()] == ["long.wav"]


class TestWhatIsImported:
    """A cold command waits for all that it imports, so each imports what it uses; `nox -s cold-start` measures it."""

    TOOLS = ("archspec", "av", "google", "onnx", "pynvml", "rich", "scipy", "soxr", "torch")

    def imported(self, *arguments: object, forced: bool = False) -> set[str]:
        """Return the modules that a command has imported when it ends; `forced`: as if on a terminal."""
        code = (
            "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=open('modules', 'w')))\n"
            "from frcrn_accel.cli import main; main()"
        )
        environment = {
            name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "TTY_COMPATIBLE")
        }
        if forced:
            environment["FORCE_COLOR"] = "1"
        command = [sys.executable, "-c", code, *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True, env=environment, cwd=self.folder)
        return set((self.folder / "modules").read_text().split())

    @pytest.fixture(autouse=True)
    def _in_folder(self, tmp_path, noisy):
        self.folder = tmp_path
        soundfile.write(tmp_path / "x.wav", noisy[:4_000], 16_000)

    @pytest.mark.parametrize(("backend", "engine"), [("ort", "onnxruntime"), ("openvino", "openvino")])
    def test_a_wav_file(self, backend, engine):
        pytest.importorskip(engine)
        with Denoiser(backend=backend):  # the files that are made once are there
            pass
        found = self.imported("denoise", "x.wav", "-o", "y.wav", "--backend", backend)
        other = {"onnxruntime", "openvino"} - {engine}
        assert engine in found
        assert sorted(found & {*self.TOOLS, *other}) == []
        ours = {name.removeprefix("frcrn_accel.") for name in found if name.startswith("frcrn_accel.")}
        assert {name for name in ours if name.startswith("cli.")} == {
            f"cli.{name}" for name in ("denoise", "groups", "inputs", "options", "progress", "usage")
        }
        layers = (
            "adapters",
            "bench",
            "corpus",
            "doctor",
            "evaluate",
            "export",
            "graph",
            "quality",
            "quantize",
            "serve",
        )
        assert sorted(name for name in ours if name.partition(".")[0] in layers) == []
        assert {name for name in ours if name.startswith("network")} == {"network", "network.topology"}

    def test_other_files_and_terminals_bring_what_they_need(self, noisy):
        soundfile.write(self.folder / "x.flac", noisy[:4_000], 24_000)
        found = self.imported("denoise", "x.flac", "-o", "y.flac", "--backend", "ort", forced=True)
        assert found & set(self.TOOLS) == {"av", "rich", "soxr"}

    def test_auto_leaves_what_it_does_not_take(self):
        """PyTorch, the last choice, is the largest."""
        pytest.importorskip("torch")
        found = self.imported("denoise", "x.wav", "-o", "y.wav")
        assert "torch" not in found
        assert found & {"onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"}

    def test_the_version(self):
        found = self.imported("--version")
        assert found & {*self.TOOLS, "onnxruntime", "openvino", "soundfile"} == set()
        assert "frcrn_accel.cli.denoise" not in found


class TestBackends:
    @staticmethod
    def lines(run) -> dict[str, str]:
        result = run("backends")
        assert result.code == 0
        return dict(line.split(maxsplit=1) for line in result.out.splitlines() if not line.startswith(" "))

    def test_what_runs(self, run):
        lines = self.lines(run)
        assert re.fullmatch(r"runs in fp32( \(auto\))?", lines["ort"])
        with Denoiser() as denoiser:
            assert [name for name, line in lines.items() if line.endswith(" (auto)")] == [denoiser.backend]

    def test_it_says_what_to_install(self, run, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        assert self.lines(run)["ort"].startswith("cannot run: ")
        assert self.lines(run)["ort"].endswith("; pip install 'frcrn-accel[ort]'")

    def test_the_reason_of_a_broken_plug_in_is_whole(self, run, monkeypatch):
        broken = EntryPoint("broken", "frcrn_accel.windows:Windowing[extra]", "frcrn_accel.backends")
        monkeypatch.setattr(registry, "entry_points", lambda group: [broken])
        assert "frcrn_accel.windows:Windowing[extra] is not a subclass" in run("backends").out

    def test_none_installed(self, run, monkeypatch):
        monkeypatch.setattr(registry, "entry_points", lambda group: [])
        assert run("backends").code == 0


class TestExport:
    def test_it_writes_a_model(self, run, tmp_path):
        pytest.importorskip("onnx")
        save_checkpoint(read_weights(find_model("frcrn-small").path), tmp_path / "mine.pt")
        result = run("export", tmp_path / "mine.pt", tmp_path / "mine.onnx")
        assert result.code == 0
        assert "mine, 32 channels, 2 U-Net(s), 3.9 MB" in result.out
        assert "exists" in the_error(run("export", tmp_path / "mine.pt", tmp_path / "mine.onnx"))
        assert "No such file" in the_error(run("export", tmp_path / "none.pt", tmp_path / "x.onnx"))
        bad = run("export", tmp_path / "mine.pt", tmp_path / "other.onnx", "--name", "frcrn-16k")
        assert "is not the known checkpoint of 'frcrn-16k'" in the_error(bad)


@pytest.mark.usefixtures("no_eval")
class TestQuantize:
    def test_it_writes_a_model_and_a_report(self, run, tiny, short_audio, tmp_path, monkeypatch):
        monkeypatch.setenv("COLUMNS", "200")
        out, report = tmp_path / "half.onnx", tmp_path / "r.json"
        result = run(
            *("quantize", tiny.path, out, "--method", "fp16", "--gate-audio", short_audio, "--json", report),
            *("--keep-float", "unet.fsmn", "--keep-float", "unet.linear"),
        )
        assert result.code == 0
        assert result.err == ""  # no bar where there is no terminal
        first, *rows = result.out.splitlines()
        assert first.startswith("tiny, fp16, in float: unet.fsmn, unet.linear: 0.")
        assert first.endswith(", gate passed")
        assert any("SI-SDR to the source's output" in row and "passed" in row for row in rows)
        assert any("PESQ-WB" in row and "not measured" in row for row in rows)
        assert rows[-1].startswith("DNSMOS OVRL: DNSMOS needs more packages (")
        assert rows[-1].endswith("pip install 'frcrn-accel[eval]'")
        assert any("real-time factor" in row and " x " in row for row in rows)
        assert find_model(out).metadata.kept_float == ("unet.fsmn", "unet.linear")
        assert json.loads(report.read_text())["output_sha256"] == sha256_of(out)

    def test_refused_is_exit_code_1_and_the_report_is_there(self, run, tiny, short_audio, tmp_path, monkeypatch):
        # Few groups: each is measured.
        few = dataclasses.replace(METHODS["fp16"], groups=lambda config: layer_groups(config)[:3])
        monkeypatch.setitem(METHODS, "fp16", few)
        out, report = tmp_path / "half.onnx", tmp_path / "r.json"
        result = run(
            *("quantize", tiny.path, out, "--method", "fp16", "--gate-audio", short_audio, "--json", report),
            *("--min-si-sdr-db", 119, "--max-pesq-drop-percent", 2, "--max-dnsmos-drop", 0.5, "--max-rescued", 0),
        )
        assert result.code == 1
        assert result.err.startswith(f"refused: {str(out)!r} was not written")
        assert "keep them in float with --keep-float unet." in result.err
        assert "layer group, quantized alone" in result.out
        values = json.loads(report.read_text())
        assert values["verdict"] == "refused"
        assert values["thresholds"] == {"min_si_sdr_db": 119, "max_pesq_drop_percent": 2, "max_dnsmos_drop": 0.5}
        assert len(values["sensitivity"]) == 3
        assert list(tmp_path.iterdir()) == [report]

    def test_without_the_gate(self, run, tiny, tmp_path):
        result = run("quantize", tiny.path, tmp_path / "a.onnx", "--method", "dynamic", "--no-gate")
        assert result.code == 0
        assert "gate skipped" in result.out
        assert find_model(tmp_path / "a.onnx").metadata.gate == "skipped"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--method", "static"], "give --calibration DIR"),
            (["--method", "int4"], "unknown method 'int4'"),
            ([], "--method"),
            (["--method", "dynamic", "--keep-float", "unet.x"], "unknown layer group 'unet.x'"),
            (["--method", "dynamic", "--gate-audio", "none"], "'none' is not a folder"),
            (["--method", "dynamic", "--max-pesq-drop-percent", "-1"], "--max-pesq-drop-percent"),
            (["--method", "dynamic", "--min-si-sdr-db", "-130"], "the SI-SDR above -120 dB"),
            (["--method", "dynamic", "--json", "no/r.json"], "No such file"),
        ],
    )
    def test_errors_are_exit_code_2(self, run, tiny, tmp_path, monkeypatch, arguments, message):
        monkeypatch.chdir(tmp_path)
        assert message in the_error(run("quantize", tiny.path, "a.onnx", *arguments))
        assert list(tmp_path.iterdir()) == []

    def test_an_existing_report_is_refused_at_once(self, run, tiny, tmp_path):
        report = tmp_path / "r.json"
        report.write_text("precious")
        arguments = ("quantize", tiny.path, tmp_path / "a.onnx", "--method", "fp16", "--no-gate", "--json", report)
        assert "r.json' exists" in the_error(run(*arguments))
        assert list(tmp_path.iterdir()) == [report]
        assert run(*arguments, "--overwrite").code == 0
        assert json.loads(report.read_text())["verdict"] == "skipped"


class TestEvaluate:
    def test_a_table_and_all_scores(self, run, short_audio, tmp_path):
        pytest.importorskip("speechmos")
        report = tmp_path / "r.json"
        result = run("evaluate", short_audio, "--backend", "ort", "--processes", 1, "--json", report)
        assert result.code == 0
        assert "frcrn-small on ort, fp32, 2 recordings, mean (95 % interval)" in result.out
        assert "DNSMOS OVRL" in result.out
        assert "PESQ" not in result.out  # there is no clean speech
        content = json.loads(report.read_text())
        assert [clip["name"] for clip in content["clips"]] == ["a.wav", "b.flac"]
        overall = content["summary"]["DNSMOS OVRL"]
        assert overall["denoised"]["mean"] > overall["noisy"]["mean"]
        assert "exists" in the_error(run("evaluate", short_audio, "--json", report))

    def test_what_is_missing_is_told_and_nothing_is_written(self, run, short_audio, tmp_path, no_eval):
        report = tmp_path / "r.json"
        error = the_error(run("evaluate", short_audio, "--backend", "ort", "--processes", 1, "--json", report))
        assert error.startswith("DNSMOS needs more packages")
        assert error.endswith("pip install 'frcrn-accel[eval]'")
        assert not report.exists()
        assert "is not a folder" in the_error(run("evaluate", tmp_path / "none"))


class TestTrain:
    def test_a_run_to_a_checkpoint_and_from_there_to_a_model(self, run, training_data, tmp_path):
        pytest.importorskip("torch")
        pytest.importorskip("matplotlib")
        folder = tmp_path / "run"
        result = run("train", training_data / "run.toml", folder, "--loaders", 0)
        assert result.code == 0
        assert "step 6: complex_spectrum" in result.err
        assert result.err.splitlines()[-1].startswith("6 of 6 steps: ")
        assert {path.name for path in folder.iterdir()} == {
            "audio",
            "checkpoint.pt",
            "curve.png",
            "last.pt",
            "log.jsonl",
        }
        assert run("export", folder / "checkpoint.pt", tmp_path / "mine.onnx").code == 0

    def test_what_is_wrong_is_one_line(self, run, tmp_path):
        assert "cannot be read: No such file" in the_error(run("train", tmp_path / "none.toml", tmp_path / "run"))
        (tmp_path / "run.toml").write_text("[data]\nspeech = 1\n[optimisation]\nsteps = 1")
        error = the_error(run("train", tmp_path / "run.toml", tmp_path / "run"))
        assert error == f"config '{tmp_path / 'run.toml'}': 'data.noise' is missing"
        assert not (tmp_path / "run").exists()


def keep_a_copy(name: str) -> Path:
    """Import the packaged model under another name."""
    return keep_imported(name, lambda path: path.write_bytes(find_model(DEFAULT_MODEL).path.read_bytes())).path


class TestModels:
    def test_list(self, run, empty_cache):
        keep_a_copy("mine")
        result = run("models", "list")
        assert result.code == 0
        lines = result.out.splitlines()
        assert [line for line in lines if not line.startswith(" ")] == [
            "frcrn-small: in the package, 3.9 MB, verified",
            "frcrn-small-stream: in the package, 3.9 MB, verified",
            "frcrn-16k: not available: run 'frcrn-accel models download frcrn-16k', then 'models import'",
            "mine: imported, 3.9 MB, verified",
        ]
        known = known_models()["frcrn-16k"]
        for line in (
            f"  what        {known.description}",
            f"  source      {known.source}",
            "  licence     Apache-2.0",
            f"  checkpoint  sha256 {known.checkpoint_sha256}",
            "  quantized   dynamic, static, openvino-int8",
        ):
            assert line in lines

    def test_a_damaged_one_is_listed_and_verified_as_such(self, run, empty_cache):
        path = keep_a_copy("mine")
        count = len(packaged_files()) + 1
        whole = run("models", "verify")
        assert (whole.code, whole.err) == (0, "")
        assert f"ok  3.9 MB  {path}" in whole.out.splitlines()
        assert whole.out.splitlines()[-1] == f"{count} of {count} files are intact"
        path.write_bytes(path.read_bytes()[:-1])
        damaged = run("models", "verify")
        assert damaged.code == 1
        assert f"damaged  3.9 MB  {path}" in damaged.out.splitlines()
        assert damaged.out.splitlines()[-1] == f"{count - 1} of {count} files are intact"
        assert damaged.err == f"{path}: damaged: import it again\n"
        listed = run("models", "list").out.splitlines()
        assert "mine: imported, damaged" in listed
        assert listed[-1].startswith("  problem     the imported model '")

    def test_path(self, run, empty_cache):
        assert run("models", "path", DEFAULT_MODEL).out == f"{find_model(DEFAULT_MODEL).path}\n"
        path = keep_a_copy("mine")
        assert run("models", "path", "mine").out == f"{path}\n"
        assert "'frcrn-accel models import CHECKPOINT' once" in the_error(run("models", "path", "frcrn-16k"))
        assert "unknown model 'nope'" in the_error(run("models", "path", "nope"))

    def test_import(self, run, empty_cache, tmp_path, monkeypatch, noisy_path):
        pytest.importorskip("onnx")
        monkeypatch.setattr("frcrn_accel.prepare.importing.VARIANT_METHODS", ())
        save_checkpoint(random_weights(Config(8, 1)), tmp_path / "mine.pt")
        result = run("models", "import", tmp_path / "mine.pt", "--name", "ours")
        assert (result.code, result.err) == (0, "")
        first, last = result.out.splitlines()
        assert first.startswith("ours: 8 channels, 1 U-Net(s), 0.4 MB, differs from PyTorch by ")
        assert last == "Use it with: frcrn-accel denoise IN --model ours"
        done = run("denoise", noisy_path, "-o", tmp_path / "a.wav", "--model", "ours", "--backend", "ort")
        assert done.code == 0
        assert "ours on ort, fp32" in done.err
        known = run("models", "import", tmp_path / "mine.pt", "--name", "frcrn-16k")
        assert "is not the known checkpoint of 'frcrn-16k'" in the_error(known)
        assert "No such file" in the_error(run("models", "import", tmp_path / "none.pt"))

    def test_what_import_says_of_variants(self, run, monkeypatch):
        model = find_model(DEFAULT_MODEL)
        report = ImportReport(
            model,
            None,
            (
                ImportedVariant("dynamic", model),
                ImportedVariant("static", None, refusal="too far"),
                ImportedVariant("openvino-int8", None, missing="no engine"),
            ),
        )
        asked: list[object] = []

        def import_model(checkpoint, *, name, overwrite, progress):
            asked.extend((str(checkpoint), name, overwrite))
            return report

        monkeypatch.setattr("frcrn_accel.prepare.importing.import_model", import_model)
        result = run("models", "import", "a.pt", "--overwrite")
        assert asked == ["a.pt", None, True]
        assert result.code == 1
        assert result.out.splitlines() == [
            "frcrn-small: 32 channels, 2 U-Net(s), 3.9 MB",
            "  dynamic: 3.9 MB, gate passed",
            "  static: refused",
            "  openvino-int8: left out",
            "Use it with: frcrn-accel denoise IN --model frcrn-small",
        ]
        assert result.err.splitlines() == ["static: too far", "openvino-int8: no engine"]

    def test_download(self, run, tmp_path, monkeypatch):
        asked: list[object] = []

        def download_checkpoint(name, out, *, overwrite, progress):
            asked.extend((name, overwrite))
            progress(0, 5)
            out.write_bytes(bytes(57_991_225))

        monkeypatch.chdir(tmp_path)
        module = importlib.import_module("frcrn_accel.cli.models")
        monkeypatch.setattr(module, "download_checkpoint", download_checkpoint)
        result = run("models", "download", "frcrn-16k")
        assert asked == ["frcrn-16k", False]
        assert result.code == 0
        assert result.err == f"{known_models()['frcrn-16k'].checkpoint_url} -> frcrn-16k.bin\n"
        assert result.out.splitlines() == [
            "frcrn-16k.bin: 58.0 MB, the known checkpoint of frcrn-16k",
            "Import it with: frcrn-accel models import frcrn-16k.bin",
        ]
        run("models", "download", "frcrn-16k", "-o", "other.bin", "--overwrite")
        assert asked[2:] == ["frcrn-16k", True]
        assert (tmp_path / "other.bin").stat().st_size == 57_991_225

    def test_download_errors(self, run, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        here = dataclasses.replace(known_models()["frcrn-16k"], checkpoint_url="http://127.0.0.1:1/a")
        monkeypatch.setitem(known_models(), "frcrn-16k", here)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert "http://127.0.0.1:1/a cannot be downloaded: " in the_error(run("models", "download", "frcrn-16k"))
        assert "no checkpoint of 'nope' can be downloaded" in the_error(run("models", "download", "nope"))
        (tmp_path / "frcrn-16k.bin").write_bytes(b"precious")
        assert "'frcrn-16k.bin' exists" in the_error(run("models", "download", "frcrn-16k"))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["path"], "Missing argument 'NAME'"),
            (["import"], "Missing argument 'FILE'"),
            (["download"], "Missing argument 'NAME'"),
            (["list", "--nonsense"], "--nonsense"),
            (["nonsense"], "nonsense"),
        ],
    )
    def test_errors_in_arguments_are_one_line(self, run, arguments, message):
        assert message in the_error(run("models", *arguments))


class TestDoctor:
    @pytest.fixture
    def found(self, monkeypatch) -> Report:
        """A report in which everything is there once."""
        cpu = CpuReport("A CPU", "x86_64", {"AVX2": True, "AMX INT8": False}, "no", "yes", 8, 4, 2, 2)
        gpu = GpuReport(
            *("575.57", "12.9", None, (GpuDevice("H100", 85_521, "9.0"),)),
            *({"tensorrt": "10.3"}, {"cudnn": None, "cudart": "libcudart.so.12"}),
        )
        found = Report(
            version="1.2.3",
            python="3.13.0 CPython",
            system="Linux 6.1 x86_64",
            packages={"numpy": "2.4", "torch": None},
            backends=(
                BackendReport("ort", "-", True, True, "fp32", "CPU, 2 threads", None, None),
                BackendReport("torch", "-", False, False, None, None, "No module 'torch'", "pip install it"),
            ),
            cpu=cpu,
            gpu=gpu,
            cache=CacheReport("/c", True, True, 2_500_000, (FileReport("a.onnx", 1, "damaged"),)),
            models=(
                ModelReport("small", "packaged", "MIT", "", True, ("dynamic",), None),
                ModelReport("large", "absent", "MIT", "", None, (), None),
                ModelReport("mine", "imported", "", "", False, (), "damaged"),
            ),
            problems=("cached file a.onnx: damaged",),
        )
        monkeypatch.setattr("frcrn_accel.doctor.examine", lambda tell: found)
        return found

    def test_for_a_person(self, run, found):
        result = run("doctor")
        assert (result.code, result.err) == (1, "")
        assert result.out.splitlines() == [
            "frcrn-accel 1.2.3, Python 3.13.0 CPython, Linux 6.1 x86_64",
            "packages: numpy 2.4",
            "  not installed: torch",
            "backends:",
            "  ort               runs in fp32 on CPU, 2 threads (auto)",
            "  torch             cannot run: No module 'torch'; pip install it",
            "CPU: A CPU, x86_64",
            "  8 CPU(s), affinity 4, container quota 2 CPU(s): 2 thread(s)",
            "  has AVX2",
            "  lacks AMX INT8",
            "  INT8: no",
            "  bfloat16: yes",
            "GPU: driver 575.57, CUDA up to 12.9",
            "  H100, 86 GB, compute capability 9.0",
            "  packages: tensorrt 10.3",
            "  libraries of the system: cudnn not found, cudart libcudart.so.12",
            "cache: /c, 1 file(s), 1 damaged, 2.5 MB",
            "models:",
            "  small             packaged, verified, quantized: dynamic",
            "  large             not here",
            "  mine              imported, damaged",
            "problems:",
            "  cached file a.onnx: damaged",
        ]

    def test_for_a_bug_report(self, run, found, monkeypatch):
        result = run("doctor", "--json")
        assert (result.code, result.err) == (1, "")
        assert json.loads(result.out) == json.loads(json.dumps(found.to_json()))
        fine = dataclasses.replace(found, problems=())
        monkeypatch.setattr("frcrn_accel.doctor.examine", lambda tell: fine)
        assert run("doctor", "--json").code == 0
        assert run("doctor").out.splitlines()[-1] == "problems: none"

    def test_it_brings_no_engine_before_it_is_asked(self):
        code = "import sys, frcrn_accel.cli; print([n for n in ('archspec', 'pynvml', 'torch') if n in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert done.stdout == "[]\n"


class TestBench:
    SHORT = ("--configuration", "ort", "--length-s", 0.2, "--threads", 1, "--rounds", 6)

    def test_tables(self, run, tmp_path):
        files = [tmp_path / name for name in ("r.json", "t.md")]
        result = run("bench", *self.SHORT, "--no-quality", "--json", files[0], "--markdown", files[1])
        assert (result.code, result.err) == (0, "")
        lines = result.out.splitlines()
        assert f", frcrn-accel {__version__}, onnxruntime " in lines[0]
        assert lines[1].startswith("frcrn-small (32 channels, 2 U-Net(s)), 0.2 s clip, 1 thread(s), 6 rounds, noise ")
        found = json.loads(files[0].read_text())
        assert [row["configuration"] for row in found["groups"][0]["rows"]] == ["ort"]
        assert found["groups"][0]["rows"][0]["device"] == "CPUExecutionProvider, 1 thread"
        assert f"| `ort` | {found['groups'][0]['rows'][0]['median_s']:.3f} | " in files[1].read_text()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["nope"], "unknown model 'nope'"),
            (["--configuration", "nope"], "unknown backend 'nope': installed are "),
            (
                ["--configuration", "ort", "--baseline", "torch"],
                "baseline 'torch' is not measured; choose one of: ort",
            ),
            (["--rounds", "5"], "--rounds"),
            (["--no-quality", "--plot", "p.png"], "--plot has no effect with --no-quality"),
            (["--throughput", "--threads", "2"], "--threads has no effect with --throughput"),
            (["--throughput", "--no-quality"], "--no-quality has no effect with --throughput"),
            (["--throughput", "--length-s", "1", "--length-s", "2"], "--throughput takes one --length-s"),
            (["--pairs", "none"], "'none' is not a folder"),
        ],
    )
    def test_errors(self, run, tmp_path, monkeypatch, arguments, message):
        monkeypatch.chdir(tmp_path)
        assert message in the_error(run("bench", *arguments))
        assert list(tmp_path.iterdir()) == []

    def test_a_file_that_is_there(self, run, tmp_path):
        (tmp_path / "r.json").write_text("precious")
        assert "'r.json' exists" in the_error(run("bench", "--json", tmp_path / "r.json")).replace(f"{tmp_path}/", "")
        assert (tmp_path / "r.json").read_text() == "precious"

    def test_a_plot_without_matplotlib(self, run, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        error = the_error(run("bench", "--plot", tmp_path / "p.png"))
        assert error.startswith("A plot needs more packages (")
        assert error.endswith("): pip install 'frcrn-accel[eval]'")
