"""Test the parts of `install_sizes`, `aarch64` and `cold_start`; nox sessions run the scripts themselves."""

from __future__ import annotations

import doctest
import json
import sys
from collections import Counter
from pathlib import Path

import aarch64
import cold_start
import install_sizes
import numpy as np
import pytest
import soundfile

NOISE = (0.1 * np.random.default_rng(0).standard_normal(16_000)).astype(np.float32)


class TestInstallSizes:
    def test_examples(self):
        assert doctest.testmod(install_sizes, raise_on_error=True).attempted > 1

    def test_files_are_those_of_the_record(self, tmp_path: Path):
        for name, sizes in {"one": (1000, 500), "Two": (20,)}.items():
            info = tmp_path / f"{name}-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            lines = [f"{name}/{size}.py,," for size in sizes]
            (info / "RECORD").write_text("\n".join([*lines, f"{name}/gone.py,,"]))
            (tmp_path / name).mkdir()
            for size in sizes:
                (tmp_path / name / f"{size}.py").write_bytes(bytes(size))
        assert install_sizes.measure(tmp_path) == Counter({"one": 1500, "two": 20})

    def test_the_first_line(self):
        found = Counter({"av": 106_000_000, "rich": 1_000_000})
        assert install_sizes.row("none", found, Counter()) == "| none | 2 | 107 | 107 | av 106 |"
        assert install_sizes.row("pesq", found, found) == "| `pesq` | 2 | 107 | 0 |  |"


class TestAarch64:
    @pytest.mark.parametrize(
        ("name", "steps", "is_close"),
        [
            ("frcrn-small, ort", 0.9, True),
            ("frcrn-small, ort", 1.1, False),
            ("frcrn-small, ort-static-int8", 20, True),
            ("frcrn-small, ort-static-int8", 32_000, False),
        ],
    )
    def test_limits(self, capsys: pytest.CaptureFixture[str], name: str, steps: float, is_close: bool):
        here = {"place": np.array(json.dumps({})), name: NOISE}
        other = NOISE.astype(np.float64)
        other[100] += steps / 32_768
        assert aarch64.compare(here, {**here, name: other}) is is_close
        assert f"| {name} | {steps:.3f} |" in capsys.readouterr().out

    def test_a_value_that_is_no_number(self):
        there = NOISE.copy()
        there[0] = np.nan
        assert not aarch64.compare({"frcrn-small, ort": NOISE}, {"frcrn-small, ort": there})


class TestColdStart:
    def test_examples(self):
        assert doctest.testmod(cold_start, raise_on_error=True).attempted == 1

    def test_the_cost_of_a_process(self):
        code = "import time; block = bytearray(200_000_000); end = time.process_time() + 0.1\n"
        cost = cold_start.run([sys.executable, "-c", f"{code}while time.process_time() < end: pass"])
        assert 0.1 < cost.cpu_s < 2
        assert cost.wall_s > 0.1
        assert cost.peak_bytes > 200_000_000  # or the size of this process, from which it is started

    def test_a_command_that_fails_ends_it(self):
        with pytest.raises(SystemExit, match=r"failed: no such thing"):
            cold_start.run([sys.executable, "-c", "raise SystemExit('no such thing')"])

    @pytest.mark.parametrize("backend", ["ort", "openvino"])
    def test_the_steps_run(self, backend, tmp_path, capsys):
        pytest.importorskip(cold_start.ENGINES[backend])
        paths = [str(tmp_path / name) for name in ("a.wav", "b.wav")]
        soundfile.write(paths[0], NOISE, 16_000)
        cold_start.print_parts("frcrn-small", backend, paths, 1)
        steps = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()[3:]]
        assert steps[0] == "| start Python"
        assert steps[-3:] == ["| read, measure and write", "| close the model", "| end the process"]
        assert soundfile.info(paths[1]).frames == len(NOISE)
