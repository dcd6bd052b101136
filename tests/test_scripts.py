"""What `scripts/install_sizes.py` and `scripts/aarch64.py` compute; `nox` runs them whole."""

from __future__ import annotations

import doctest
import json
from collections import Counter
from pathlib import Path

import aarch64
import install_sizes
import numpy as np
import pytest

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
