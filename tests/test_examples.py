"""The examples in docstrings run, and print what they show."""

from __future__ import annotations

import doctest
import importlib
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile

import frcrn_accel

pytest.importorskip("onnxruntime")

PACKAGE = Path(frcrn_accel.__file__).parent
# Connected to a room on a server.
NOT_HERE = {"frcrn_accel.adapters.livekit.FrcrnProcessor"}


class Checker(doctest.OutputChecker):
    """Checks the output that an example shows; one that shows none only has to run."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(want, got, optionflags)


def documented_modules() -> list[str]:
    """Return the modules with examples, without importing any."""
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]
    parts = [path.relative_to(PACKAGE.parent).with_suffix("").parts for path in paths]
    return [".".join(part).removesuffix(".__init__") for part in parts]


@pytest.fixture
def names(denoiser, noisy) -> dict[str, object]:
    """What a reader has at hand."""
    return {
        "np": np,
        **{name: getattr(frcrn_accel, name) for name in frcrn_accel.__all__},
        "denoiser": denoiser,
        "noisy": noisy[:16_000],
        "samples": noisy[:480],
        "chunks": [noisy[None, :480]],
        "microphone": [noisy[:480]],
        "play": len,
    }


@pytest.mark.parametrize("name", documented_modules())
def test_examples_in_docstrings(name, names, tmp_path, monkeypatch, noisy):
    monkeypatch.chdir(tmp_path)
    soundfile.write("noisy.wav", noisy[:16_000], 16_000)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of other packages, about themselves
            module = importlib.import_module(name)
            if name == "frcrn_accel.adapters.pipecat":
                names |= vars(importlib.import_module("pipecat.transports.base_transport"))
    except ImportError as error:
        pytest.skip(str(error))
    runner = doctest.DocTestRunner(Checker(), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        if test.name not in NOT_HERE:
            # The module's own names win, so that an example tests what it documents.
            test.globs = {**names, **test.globs}
            runner.run(test, out=report.append)
    assert not runner.summarize(verbose=False).failed, "".join(report)
