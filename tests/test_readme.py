"""The README and the documentation: their commands run, and their figures are those that were measured."""

from __future__ import annotations

import ast
import io
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from checkpoints import save_checkpoint
from frcrn_accel import cli
from frcrn_accel.network.topology import Config
from frcrn_accel.testing import random_weights

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


# Pages whose commands and code run too; what is in blocks of "console" is only checked for its names and options.
TAUGHT = [REPOSITORY / "docs" / name for name in ("start.md", "faq.md")]
TAUGHT += sorted((REPOSITORY / "docs" / "howto").glob("*.md"))


def code_blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


# The same command, on less: what is added to a line of the README so that it takes seconds.
SHORTER = {
    "bench": ["--configuration", "ort", "--length-s", "0.2", "--rounds", "6", "--no-quality"],
    "evaluate": ["--backend", "ort", "--processes", "1"],
    "train": ["--loaders", "0"],
}
# What a command needs that is not in every environment.
NEEDS = {"export": ["torch"], "evaluate": ["pesq", "pystoi", "speechmos"], "train": ["torch"], "quantize": ["onnx"]}
TEXTS = [README, *(page.read_text(encoding="utf-8") for page in TAUGHT)]
BLOCKS = [block for text in TEXTS for block in code_blocks("sh", text)]
FOUND = [line.partition("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
LINES = list(dict.fromkeys(FOUND))
# Not run here: the first installs the project and runs these very tests, the second does not end by itself.
NOT_HERE = ['pip install "nox[uv]" && nox', 'pip install ".[ort,serve]" && frcrn-accel serve']


@pytest.fixture
def folder(tmp_path, monkeypatch, noisy, short_audio, training_data, tiny) -> Path:
    """A folder with all that the commands name."""
    monkeypatch.chdir(tmp_path)
    soundfile.write("talk.mp3", noisy[:32_000], 16_000)
    make_film("talk.mp3", "film.mp4")
    shutil.copytree(short_audio, "recordings")
    shutil.copytree(REPOSITORY / "examples", "examples", ignore=shutil.ignore_patterns("train", "plugin"))
    shutil.copy(tiny.path, "frcrn-16k.onnx")
    for name, audio in (("noisy", noisy), ("clean", 0.5 * noisy)):
        (tmp_path / "pairs" / name).mkdir(parents=True)
        soundfile.write(tmp_path / "pairs" / name / "a.wav", audio[16_000:64_000], 16_000)
    for path in training_data.iterdir():
        (shutil.copytree if path.is_dir() else shutil.copy)(path, path.name)
    return tmp_path


def make_film(sound: str, path: str) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    picture = ("-f", "lavfi", "-i", "testsrc=size=32x32:rate=5:duration=2")
    subprocess.run([ffmpeg, "-v", "error", *picture, "-i", sound, path], check=True)


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["frcrn-accel", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    # Of doctor, 1 says that something in this environment is to be repaired.
    assert exit_.value.code in ((0, 1) if arguments[0] == "doctor" else (0,)), arguments


@pytest.mark.parametrize("line", [line for line in LINES if line not in NOT_HERE])
def test_the_commands_run(line, folder, monkeypatch, no_eval_for_quantize):
    pytest.importorskip("onnxruntime")
    before, _, command = line.rpartition("frcrn-accel ")
    command, _, redirected = command.partition(" > ")
    arguments = shlex.split(command)
    name = arguments[0]
    for module in NEEDS.get(name, []):
        pytest.importorskip(module)
    if name == "export":
        save_checkpoint(random_weights(Config(8, 1)), folder / "pytorch_model.bin")
        (folder / "frcrn-16k.onnx").unlink()
    if name == "quantize":
        no_eval_for_quantize()
    if before.endswith("| "):  # what another program would write
        written = io.BytesIO()
        soundfile.write(written, np.zeros(16_000), 16_000, format="WAV")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(written.getvalue())))
    else:
        assert before in ("", 'pip install ".[ort]" && '), line
    if redirected:
        monkeypatch.setattr(sys, "stdout", (folder / redirected).open("w"))
    run([*arguments, *SHORTER.get(name, [])], monkeypatch)
    if redirected:
        sys.stdout.close()
        assert soundfile.info(folder / redirected).frames == 16_000
    made = {"export": "frcrn-16k.onnx", "quantize": "small.onnx", "train": "run/checkpoint.pt"}
    if name in made:
        assert (folder / made[name]).exists()


@pytest.fixture
def no_eval_for_quantize(request):
    """The gate's scores take seconds, and are tested elsewhere."""
    return lambda: request.getfixturevalue("no_eval")


def test_the_python_code_runs(folder, noisy):
    pytest.importorskip("onnxruntime")
    values: dict[str, Any] = {"noisy": noisy[:24_000], "chunk": noisy[:777]}
    for code in code_blocks("python"):
        exec(compile(code, "README.md", "exec"), values)
    assert values["clean"].shape == (24_000,)
    assert values["out"].shape == (777,)
    assert soundfile.info("talk-clean.flac").samplerate == 16_000


@pytest.mark.parametrize("page", TAUGHT, ids=lambda path: path.name)
def test_the_python_code_of_pages_runs(page, folder, noisy):
    pytest.importorskip("onnxruntime")
    values: dict[str, Any] = {"noisy": noisy[:16_000], "chunk": noisy[:777]}
    for code in code_blocks("python", page.read_text(encoding="utf-8")):
        exec(compile(code, page.name, "exec"), values)
    assert len(values.get("out", values["chunk"])) == 777


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_nox_sessions_that_are_named_are_there(page):
    tree = ast.parse((REPOSITORY / "noxfile.py").read_text(encoding="utf-8"))
    sessions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    named = re.findall(r"\bnox -s\s+([a-z0-9_-]*[a-z0-9])", page.read_text(encoding="utf-8"))
    assert {name.replace("-", "_") for name in named} <= sessions


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_and_options_that_are_named_are_there(page, monkeypatch, capsys):
    text = page.read_text(encoding="utf-8")
    lines = re.findall(r"\$ (frcrn-accel [a-z].*)|`(frcrn-accel\s[a-z][^`]*)`", text)
    for line in (re.sub(r"\s+", " ", "".join(found)).partition(" #")[0] for found in lines):
        words = line.split()[1:]
        command = words[:2] if words[0] == "models" and len(words) > 1 and words[1].islower() else words[:1]
        run_help = [*command, "--help"]
        monkeypatch.setattr(sys, "argv", ["frcrn-accel", *run_help])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        assert exit_.value.code in (0, None), f"{line}: {captured.err}"
        for option in re.findall(r"(?<=\s)--?[a-z][a-z-]*", line):
            assert re.search(rf"(?<!\w){option}\b", captured.out), f"{line}: {option}"


def test_the_figures_are_those_of_the_reports():
    figures = pytest.importorskip("figures")
    for page in figures.pages():
        text = page.read_text(encoding="utf-8")
        assert figures.filled(text, figures.RESULTS) == text, f"{page.name}: run 'python scripts/figures.py'"


def test_figures_fill_their_section_only(tmp_path):
    figures = pytest.importorskip("figures")
    interval = {"mean": 1.234, "interval": [1.2, 1.3]}
    summary = {"STOI": {"noisy": interval, "denoised": interval}, "Level": {"noisy": None, "denoised": interval}}
    report = {"model": "m", "backend": "ort", "precision": "fp32", "summary": summary, "clips": [{}, {}]}
    (tmp_path / "quality.json").write_text(figures.json.dumps(report))
    text = "a\n<!-- figures: quality -->\nold\n<!-- end -->\nb\n<!-- figures: speed-small -->\nkept\n<!-- end -->\n"
    lines = figures.filled(text, tmp_path).splitlines()
    assert lines[:2] == ["a", "<!-- figures: quality -->"]
    assert "| STOI | 1.234 (1.200 to 1.300) | 1.234 (1.200 to 1.300) |" in lines
    assert "| Level |  | 1.23 (1.20 to 1.30) |" in lines
    assert lines[-5:] == ["<!-- end -->", "b", "<!-- figures: speed-small -->", "kept", "<!-- end -->"]
    again = figures.filled("\n".join(lines), tmp_path)
    assert again.splitlines() == lines
    with pytest.raises(KeyError):
        figures.filled("<!-- figures: nonsense -->\n<!-- end -->", tmp_path)


class TestAgreement:
    @staticmethod
    def report(median: float, half_width: float = 0.01, other_cpus: float | None = None) -> dict:
        ratio = {"median": median, "low": median - half_width, "high": median + half_width}
        rows = [
            {"configuration": "ort", "times_faster": {"ort": {"median": 1, "low": 1, "high": 1}}},
            {"configuration": "openvino", "times_faster": {"ort": ratio}},
        ]
        group = {"model": "m", "length_s": 5.0, "threads": 2, "other_cpus": other_cpus, "rows": rows}
        return {"groups": [group]}

    @pytest.mark.parametrize(
        ("second", "half_width", "verdict"), [(2.1, 0.01, "agree"), (2.4, 0.3, "noise"), (2.4, 0.01, "DIFFER")]
    )
    def test_verdicts(self, second, half_width, verdict):
        agreement = pytest.importorskip("agreement")
        rows, agree = agreement.compare(self.report(2.0, half_width), self.report(second, half_width), 10)
        assert [row[1] for row in rows] == ["openvino"]
        assert rows[0][-1] == verdict
        assert agree == (verdict != "DIFFER")

    @pytest.mark.parametrize(("other_cpus", "verdict"), [(0.02, "DIFFER"), (0.9, "other work")])
    def test_other_work_explains_a_difference(self, other_cpus, verdict):
        agreement = pytest.importorskip("agreement")
        rows, agree = agreement.compare(self.report(2.0), self.report(2.4, other_cpus=other_cpus), 10)
        assert (rows[0][-1], agree) == (verdict, verdict != "DIFFER")


class TestRegression:
    class Fake:
        """A process whose runs take as long as is said, one after the other."""

        def __init__(self, *times_s: float) -> None:
            self.times_s = [0.0, 0.0, *times_s]  # the first two warm it up

        def run(self, length_s: float, step_s: float | None):
            from frcrn_accel.processes.denoiser_process import Run

            return Run(self.times_s.pop(0), 0.0, 0.0)

    def test_it_takes_more_rounds_only_if_noise_leaves_it_open(self):
        regression = pytest.importorskip("regression")
        old, new = self.Fake(*[1.0] * 20), self.Fake(*[0.5] * 20)
        assert regression.measure(old, new, 5.0, None, 0.9, 6, 20).median == 2
        assert len(new.times_s) == 20 - 6
        old, new = self.Fake(*[1.0] * 20), self.Fake(*[0.8, 1.6] * 10)
        assert regression.measure(old, new, 5.0, None, 0.9, 6, 10).median == pytest.approx((1 / 0.8 + 1 / 1.6) / 2)
        assert len(new.times_s) == 20 - 10
