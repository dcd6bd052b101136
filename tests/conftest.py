from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest


def pin_worker() -> None:
    """Give each process of pytest-xdist a CPU of its own: threads that wait for each other would spin."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker and hasattr(os, "sched_setaffinity"):
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cpus[int(worker.removeprefix("gw")) % len(cpus)]})


pin_worker()  # before numpy is imported, whose BLAS starts a thread for each CPU

import numpy as np
import soundfile
from filelock import FileLock

from example_counts import load_profile
from frcrn_accel import Denoiser, ModelFile
from frcrn_accel.export import write_random_model
from frcrn_accel.models import CACHE_DIR_VARIABLE, DEFAULT_MODEL
from frcrn_accel.network.topology import Config
from frcrn_accel.testing import FunctionBackend

if TYPE_CHECKING:
    from frcrn_accel.quantize import QuantizeReport

REPOSITORY = Path(__file__).parents[1]
DEV_AUDIO = REPOSITORY.parent / "shared" / "audio" / "dev"

TRAINING_CONFIG = """
[model]
channels = 8
[data]
speech = [{ path = "speech" }]
noise = [{ path = "noise.wav", weight = 2 }]
held_out_share = 0.25
[mixing]
clip_s = 0.5
[optimisation]
steps = 6
batch_size = 2
warmup_steps = 2
decay_steps = 2
precision = "fp32"
save_every_steps = 2
validate_every_steps = 3
[validation]
clips = 2
clip_s = 0.5
"""


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Path:
    """A folder that all processes of the tests share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def own_cache(shared_folder):
    """A cache folder that goes with the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_DIR_VARIABLE, str(shared_folder / "cache"))
        yield


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> Path:
    """A cache folder for one test, which does not exist yet."""
    monkeypatch.setenv(CACHE_DIR_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def noisy_path() -> Path:
    """The ten seconds of speech in noise that come with the project."""
    return REPOSITORY / "examples" / "noisy.wav"


@pytest.fixture(scope="session")
def noisy(noisy_path: Path) -> np.ndarray:
    """The example recording as float32 (samples,) at 16 kHz."""
    audio, _ = soundfile.read(noisy_path, dtype="float32")
    return audio


@pytest.fixture(scope="session")
def dev_audio() -> Path:
    """Noisy/clean pairs that are not part of the project."""
    if not DEV_AUDIO.is_dir():
        pytest.skip(f"no development audio at {DEV_AUDIO}")
    return DEV_AUDIO


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> ModelFile:
    """An fp32 model file: one U-Net of 16 channels with random weights."""
    pytest.importorskip("onnx")
    return write_random_model(tmp_path_factory.mktemp("tiny") / "tiny.onnx", Config(16, 1), "tiny")


@pytest.fixture(scope="session")
def quantized_once(shared_folder) -> Callable[..., QuantizeReport]:
    """Quantize the packaged model with the packaged audio: once a run, for all files and processes of the tests.

    The function takes a method and the layers that stay in float. The gate measures SI-SDR only, as it does without
    `[eval]`.
    """
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from frcrn_accel.quantize import CALIBRATION_AUDIO, quantize_model

    def quantized(method: str, *keep_float: str) -> QuantizeReport:
        path = shared_folder / "-".join(["quantized", method, *keep_float])
        saved = path.with_name(f"{path.name}.report")
        with FileLock(f"{path}.lock"), pytest.MonkeyPatch.context() as patch:
            if not saved.exists():
                without_eval(patch)
                out = path.with_name(f"{path.name}.onnx")
                report = quantize_model(
                    DEFAULT_MODEL, out, method, calibration=CALIBRATION_AUDIO, keep_float=keep_float
                )
                saved.write_bytes(pickle.dumps(report))
            return pickle.loads(saved.read_bytes())

    return quantized


@pytest.fixture(scope="session")
def short_audio(tmp_path_factory, noisy) -> Path:
    """A folder with two noisy files of 2 s."""
    folder = tmp_path_factory.mktemp("short")
    for name, start in (("a.wav", 1), ("b.flac", 5)):
        soundfile.write(folder / name, noisy[start * 16_000 : (start + 2) * 16_000], 16_000)
    return folder


@pytest.fixture(scope="session")
def training_data(tmp_path_factory):
    """A config and its audio: tones that come and go as speech, white noise as noise."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    time_s = np.arange(8 * 16_000) / 16_000
    speech = 0.3 * np.sin(2 * np.pi * 220 * time_s) * (np.sin(2 * np.pi * 3 * time_s) > -0.5)
    (folder / "speech").mkdir()
    soundfile.write(folder / "speech" / "a.wav", speech, 16_000)
    soundfile.write(folder / "noise.wav", 0.1 * rng.standard_normal(8 * 16_000), 16_000)
    (folder / "run.toml").write_text(TRAINING_CONFIG)
    return folder


@pytest.fixture
def no_eval(monkeypatch) -> None:
    """Hide `[eval]`: tests that are not about its measures need not wait for them."""
    without_eval(monkeypatch)


def without_eval(patch: pytest.MonkeyPatch) -> None:
    for package in ("pesq", "speechmos"):
        patch.setitem(sys.modules, package, None)


@pytest.fixture
def identity() -> Denoiser:
    """A denoiser whose engine gives back what it gets."""
    return Denoiser(backend=FunctionBackend())


@pytest.fixture(scope="session")
def denoiser() -> Denoiser:
    """The packaged model on ONNX Runtime."""
    pytest.importorskip("onnxruntime")
    return Denoiser(backend="ort")


@pytest.fixture(scope="session")
def denoised(denoiser: Denoiser, noisy: np.ndarray) -> np.ndarray:
    """The example recording, denoised by the packaged model on ONNX Runtime."""
    return denoiser(noisy, 16_000)


def pytest_configure(config: pytest.Config) -> None:
    """Make a process what the tests take it to be, however they were started."""
    load_profile(config.getoption("examples_times"))
    # A shell starts what is to run in the background with Ctrl-C ignored, and so would be all that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):  # ignored below nohup
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--examples-times", type=int, default=1, metavar="N", help="N times the random examples")
    parser.addoption("--thorough", action="store_true", help="also the tests that take long")
    parser.addoption("--alone", metavar="EXTRA", help="run test_alone.py: this extra is installed without the others")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("thorough"):
        for item in items:
            if item.get_closest_marker("thorough"):
                item.add_marker(pytest.mark.skip(reason="takes long: nox -s thorough"))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if collection_path.name == "test_alone.py" and not config.getoption("alone"):
        return True
    return None
