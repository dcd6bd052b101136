"""The examples in docstrings run, and give what they say.

An example need not define what its reader has: the names in `GIVEN`, those of `frcrn_accel`, numpy and `Path`. A line
without an expected result only has to run.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import frcrn_accel
from frcrn_accel import BackendUnavailable, Denoiser, MissingExtraError

SOURCE = Path(frcrn_accel.__file__).parent
NOT_RUN = {"frcrn_accel.adapters.livekit.FrcrnProcessor": "a track comes from a LiveKit room"}


def noise(*shape: int) -> np.ndarray:
    return (0.05 * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)


def transport_params() -> Any:
    return pytest.importorskip("pipecat.transports.base_transport").TransportParams


GIVEN: dict[str, Callable[[], Any]] = {
    "noisy": lambda: noise(16_000),
    "recording": lambda: Path(__file__).parents[1] / "examples" / "noisy.wav",
    "samples": lambda: noise(1, 480),
    "chunk": lambda: noise(777),
    "chunks": lambda: [noise(1, 480), noise(1, 960)],
    "microphone": lambda: [noise(480), noise(777)],
    "denoiser": lambda: Denoiser("frcrn-small-stream", backend="ort"),
    "stream": lambda: Denoiser("frcrn-small-stream", backend="ort").stream(48_000),
    "play": lambda: lambda audio: None,
    "write": lambda: lambda audio: None,
    "TransportParams": transport_params,
}


class Checker(doctest.OutputChecker):
    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(want, got, optionflags)


def docstrings() -> Iterator[tuple[str, str, str]]:
    """Yield the module, the name and the text of each docstring with an example."""
    for path in sorted(SOURCE.rglob("*.py")):
        module = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
        yield from ((module, *found) for found in examples_in(ast.parse(path.read_text(encoding="utf-8")), module))


def examples_in(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node) or ""
        if ">>>" in text:
            yield name, text
        for child in node.body:
            yield from examples_in(child, f"{name}.{getattr(child, 'name', '')}")


EXAMPLES = list(docstrings())


def test_examples_are_found():
    assert {"frcrn_accel", "frcrn_accel.denoiser.Denoiser", "frcrn_accel.streaming.stream.Stream"} <= {
        name for _, name, _ in EXAMPLES
    }


@pytest.mark.parametrize(("module", "name", "text"), EXAMPLES, ids=[name for _, name, _ in EXAMPLES])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the frameworks that adapters import
def test_examples_run(module, name, text, tmp_path, monkeypatch):
    if name in NOT_RUN:
        pytest.skip(NOT_RUN[name])
    monkeypatch.chdir(tmp_path)
    try:
        names = {**vars(frcrn_accel), "np": np, "Path": Path, **vars(importlib.import_module(module))}
        given = {given: make() for given, make in GIVEN.items() if re.search(rf"\b{given}\b", text)}
        test = doctest.DocTestParser().get_doctest(text, {**names, **given}, name, module, 0)
        assert test.examples
        doctest.DebugRunner(Checker()).run(test)
    except doctest.DocTestFailure as failure:
        pytest.fail(f"{failure.example.source}expected {failure.example.want}got {failure.got}")
    except doctest.UnexpectedException as failure:
        skip_if_absent(failure.exc_info[1])
        raise failure.exc_info[1] from None
    except (ImportError, BackendUnavailable) as error:
        skip_if_absent(error)
        raise


def skip_if_absent(error: BaseException) -> None:
    """Skip the test if a package of an extra is not installed."""
    if isinstance(error, MissingExtraError | BackendUnavailable) or (
        isinstance(error, ImportError) and not (error.name or "").startswith("frcrn_accel")
    ):
        pytest.skip(str(error))
