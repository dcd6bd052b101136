"""The tutorial, the pictures and what the pages measure: they are what their sources make."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from frcrn_accel import Denoiser, backend_statuses

REPOSITORY = Path(__file__).parents[1]


class TestTutorial:
    def test_it_runs(self, tiny, noisy, tmp_path):
        """All of it, on a tiny model and a second of audio, in a process of its own."""
        for module in ("nbclient", "ipykernel", "matplotlib", "torch", "onnx", "starlette", "uvicorn"):
            pytest.importorskip(module)
        if "ort-dynamic-int8" not in [status.name for status in backend_statuses() if status.usable]:
            pytest.skip("this CPU has no exact 8-bit products")
        soundfile.write(tmp_path / "short.wav", noisy[:16_000], 16_000)
        names = {"model": str(tiny.path), "recording": str(tmp_path / "short.wav"), "gate": None}
        parameters = tmp_path / "parameters.py"
        parameters.write_text("".join(f"{name} = {value!r}\n" for name, value in names.items()))
        command = [sys.executable, "scripts/tutorial.py", "--dry-run", "--parameters", str(parameters)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert "gate skipped" in done.stdout
        assert "200 model tutorial on ort" in done.stdout
        [difference] = re.findall(r"differs from the result above by (\S+),", done.stdout)
        assert float(difference) <= 2 / 32768

    def test_the_page_is_that_of_the_notebook(self):
        tutorial = pytest.importorskip("tutorial")
        pytest.importorskip("nbformat")
        page = tutorial.PAGE.read_text(encoding="utf-8")
        place = 0
        for cell in tutorial.read().cells:
            found = page.find(tutorial.page_source(cell), place)
            assert found >= place, f"run 'nox -s tutorial': {cell.source[:60]!r}"
            place = found

    def test_the_notebook_is_small_and_was_run(self):
        notebook = json.loads((REPOSITORY / "examples" / "tutorial.ipynb").read_text(encoding="utf-8"))
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
        assert (REPOSITORY / "examples" / "tutorial.ipynb").stat().st_size < 1_000_000


@pytest.mark.parametrize("name", ["before-after.png", "speed-and-sound.png"])
def test_pictures_are_made_from_what_is_there(name):
    pictures = pytest.importorskip("pictures")
    text = f"{pictures.KEY}\0{pictures.digest(pictures.sources()[name])}".encode("latin-1")
    assert text in (pictures.DOCS / name).read_bytes(), f"{name}: run 'python scripts/pictures.py'"


def test_the_logo_is_that_of_the_page():
    page = REPOSITORY / "src" / "frcrn_accel" / "serve" / "page" / "icon.svg"
    assert (REPOSITORY / "docs" / "icon.svg").read_bytes() == page.read_bytes()


def test_the_latencies_are_those_of_streams():
    """A row with two rates is about all from one to the other."""
    pytest.importorskip("onnxruntime")
    page = (REPOSITORY / "docs" / "streaming.md").read_text(encoding="utf-8")
    [table] = re.findall(r"\| rate, Hz \| latency of `frcrn-small-stream`, ms \|\n\|---\|---\|\n((?:\|.*\n)+)", page)
    rows = [[cell.split(" to ") for cell in row.strip("|").split("|")] for row in table.splitlines()]
    assert len(rows) == 5
    with (
        Denoiser("frcrn-small-stream", backend="ort", threads=1) as denoiser,
        Denoiser("frcrn-small", backend="ort", threads=1) as larger,
    ):
        for rates, latencies in rows:
            first, last = (int(rates[end].replace(",", "")) for end in (0, -1))
            least, most = (float(latencies[end]) for end in (0, -1))
            for rate in np.linspace(first, last, 1 if first == last else 15, dtype=int):
                latency_ms = 1000 * denoiser.stream(int(rate)).latency_s
                assert least <= round(latency_ms, 1) <= most
                assert 1000 * larger.stream(int(rate)).latency_s == pytest.approx(latency_ms + 200, abs=0.1)


class TestSimulation:
    def test_constant_times(self):
        """One stream is answered after the time of a call; two that share calls after that of a call for two."""
        simulate_node = pytest.importorskip("simulate_node")
        times = {1: (5.0, 5.0), 2: (8.0, 8.0)}
        one = simulate_node.answer_times_ms(times, 1, 20, 0.05)
        np.testing.assert_allclose(one, 5.0)
        assert 150 <= len(one) <= 151  # the last may arrive at the end
        two = simulate_node.answer_times_ms(times, 2, 20, 0.05)
        assert two.min() >= 5.0 - 1e-9
        assert two.max() <= 5.0 + 8.0 + 1e-9

    def test_it_finds_where_the_limit_is(self):
        simulate_node = pytest.importorskip("simulate_node")
        times = {1: (5.0, 5.0), 4: (20.0, 20.0), 8: (40.0, 40.0)}  # a thread is full with four
        streams, p99_ms = simulate_node.most_streams(times, 20, 100, 0.5)
        assert streams in (3, 4)
        assert p99_ms <= 100
        assert simulate_node.most_streams(times, 20, 4, 0.5)[0] == 0

    def test_the_page_has_its_table(self):
        simulate_node = pytest.importorskip("simulate_node")
        page = (REPOSITORY / "docs" / "scale.md").read_text(encoding="utf-8")
        times = simulate_node.read_times(simulate_node.REPORT, "ort")
        streams, p99_ms = simulate_node.most_streams({**times["20 ms"]}, 20, 20, 0.2)
        [shown] = re.findall(r"^\| 20 ms \| (\d+) \(", page, re.MULTILINE)
        assert abs(streams - int(shown)) <= 1
        assert p99_ms <= 20


class TestRecognition:
    @pytest.mark.parametrize(
        ("reference", "found", "errors"),
        [("a b c", "a b c", 0), ("a b c", "", 3), ("", "a", 1), ("a b c", "a x c", 1), ("a b c", "b c d", 2)],
    )
    def test_word_errors(self, reference, found, errors):
        recognition = pytest.importorskip("recognition")
        assert recognition.word_errors(reference.split(), found.split()) == errors

    def test_words(self):
        recognition = pytest.importorskip("recognition")
        assert recognition.words("Broken-Tooth yelled \u2013 \u201cI can\u2019t!\u201d") == [
            *("broken", "tooth", "yelled", "i", "can't")
        ]

    @pytest.mark.parametrize("snr_db", [0.0, 10.0])
    def test_mixtures_have_their_snr(self, snr_db):
        recognition = pytest.importorskip("recognition")
        rng = np.random.default_rng(0)
        speech = np.sign(np.sin(np.arange(16_000) / 10)).astype(np.float32)  # all of it is active
        noise = rng.standard_normal(32_000).astype(np.float32)
        mixed = recognition.mixed(speech, noise, snr_db)
        edge = mixed[:8_000]  # noise alone
        scale = np.std(edge) / np.std(noise[:8_000])
        level = np.std((mixed - scale * noise)[8_000:24_000])
        assert 20 * np.log10(level / np.std(scale * noise)) == pytest.approx(snr_db, abs=0.2)
        assert np.abs(mixed).max() == pytest.approx(recognition.PEAK)

    def test_the_change_is_paired(self):
        recognition = pytest.importorskip("recognition")
        lines = [
            {
                "recognizer": "r",
                "snr_db": 0.0,
                "treatment": treatment,
                "file": str(k),
                "words": 10,
                "errors": k + more,
            }
            for treatment, more in (("noisy", 1), ("denoised", 0))
            for k in range(8)
        ]
        noisy, denoised = recognition.summary(recognition.complete([*lines, {**lines[0], "file": "half"}]))
        assert noisy["sentences"] == 8
        assert noisy["wer"][0] == pytest.approx(45)
        assert denoised["change"] == pytest.approx((-10, -10, -10))
