from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import frcrn_accel
from frcrn_accel import errors

ENGINES = ["onnxruntime", "torch", "openvino", "tensorrt", "tensorrt_rtx", "onnx", "scipy", "typer", "rich"]

PUBLIC_NAMES = """
    AudioError AudioTooLongError AudioWarning
    Backend BackendError BackendStatus BackendUnavailable BenchError CorpusError
    Denoiser DenoiserOptions EngineError ExportError FileReport FrcrnAccelError KnownModel MissingExtraError
    ModelError ModelFile ModelMetadata OutputExistsError QualityError QuantizeError Recipe ServeError Session
    SoundCardError Stream StreamOptions TrainingError UnknownBackendError UnsupportedPrecisionError Windowing
    __version__ backend_statuses known_models
"""


def run(code: str, without: str = "") -> str:
    """Run code in a new process, without this variable of the environment; return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != without}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def test_import_loads_no_engine():
    loaded = run(f"import sys, frcrn_accel; print([name for name in {ENGINES} if name in sys.modules])")
    assert loaded.strip() == "[]"


@pytest.mark.parametrize("package", ["onnxruntime", "openvino"])
def test_engines_do_not_report(tmp_path: Path, package: str):
    """Otherwise they keep an identifier in the user's home, ONNX Runtime from 1.29 on, and report what is run."""
    pytest.importorskip(package)
    backend = {"onnxruntime": "ort"}.get(package, package)
    code = f"import numpy, frcrn_accel; frcrn_accel.Denoiser(backend={backend!r})(numpy.full(800, 0.1), 16_000)"
    unset = ("XDG_CACHE_HOME", "CI", "GITHUB_ACTIONS", "ORT_DISABLE_TELEMETRY")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"HOME": str(tmp_path), "FRCRN_ACCEL_CACHE_DIR": str(tmp_path / "ours")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert {path.name for path in tmp_path.iterdir()} <= {"ours"}


def test_who_wants_reports_may_have_them():
    code = "import os; os.environ['ORT_DISABLE_TELEMETRY'] = '0'; import frcrn_accel; print(os.environ['{}'])"
    assert run(code.format("ORT_DISABLE_TELEMETRY")).strip() == "0"


def test_import_takes_less_than_three_times_as_long_as_numpy():
    """The fastest of seven each, in turns, since other processes can only make it slower.

    Where Python may not write bytecode, this package would be compiled each time, and numpy, once installed, not.
    """
    code = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
    unset = "PYTHONDONTWRITEBYTECODE"
    times_s = [[float(run(code.format(name), unset)) for name in ("frcrn_accel", "numpy")] for _ in range(7)]
    ours_s, numpys_s = (min(column) for column in zip(*times_s, strict=True))
    assert ours_s < 3 * numpys_s


def test_every_public_name_is_there_and_documented():
    for name in frcrn_accel.__all__:
        public = getattr(frcrn_accel, name)
        assert name == "__version__" or inspect.getdoc(public), name


def test_public_names():
    assert frcrn_accel.__all__ == PUBLIC_NAMES.split()


@pytest.mark.parametrize(
    ("error", "options", "line"),
    [
        (RuntimeError("\n  out of memory \nat node 7"), {}, "out of memory"),
        (RuntimeError(), {}, "RuntimeError"),
        (RuntimeError("Exception from a.cpp:5:\nno such layer"), {"skip": "Exception from "}, "no such layer"),
        (RuntimeError("Exception from a.cpp:5:"), {"skip": "Exception from "}, "RuntimeError"),
        (OSError("no space"), {"with_type": True}, "OSError: no space"),
        (OSError(), {"with_type": True}, "OSError"),
    ],
)
def test_errors_on_one_line(error, options, line):
    assert errors.one_line(error, **options) == line


def test_every_error_has_the_common_base():
    for name in errors.__all__:
        base = UserWarning if name == "AudioWarning" else errors.FrcrnAccelError
        assert issubclass(getattr(errors, name), base)
        assert name in errors.__doc__
