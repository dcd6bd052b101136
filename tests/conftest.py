from __future__ import annotations

import dataclasses
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from frcrn_accel import Denoiser, ModelFile
from frcrn_accel.models import CACHE_DIR_VARIABLE, DEFAULT_MODEL, find_model
from frcrn_accel.network.topology import Config
from frcrn_accel.testing import FunctionBackend, random_weights

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


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """A cache folder that goes with the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_DIR_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def noisy_path() -> Path:
    """The ten seconds of speech in noise that come with the project."""
    return REPOSITORY / "examples" / "noisy.wav"


@pytest.fixture(scope="session")
def noisy(noisy_path: Path) -> np.ndarray:
    """The same as float32 (samples,) at 16 kHz."""
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
    from frcrn_accel.graph.forms import build_graph

    config = Config(16, 1)
    metadata = dataclasses.replace(
        find_model(DEFAULT_MODEL).metadata, name="tiny", channels=config.channels, unets=config.unets
    )
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    graph = build_graph(random_weights(config), "tiny", metadata.library_version, metadata.to_properties())
    path.write_bytes(graph.SerializeToString())
    return ModelFile(path, metadata)


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
    """As if `[eval]` were not installed: tests that are not about its measures need not wait for them."""
    monkeypatch.setitem(sys.modules, "pesq", None)
    monkeypatch.setitem(sys.modules, "speechmos", None)


@pytest.fixture
def identity() -> Denoiser:
    """A denoiser whose engine gives back what it gets."""
    return Denoiser(backend=FunctionBackend())


@pytest.fixture(scope="session")
def denoiser() -> Denoiser:
    """The packaged model on ONNX Runtime."""
    pytest.importorskip("onnxruntime")
    return Denoiser(backend="ort")


def pytest_configure() -> None:
    """Make a process what the tests take it to be, however they were started."""
    # A shell starts what is to run in the background with Ctrl-C ignored, and so would be all that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Of several processes (pytest-xdist) each has a CPU of its own: threads that wait for each other would spin.
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker and hasattr(os, "sched_setaffinity"):
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cpus[int(worker.removeprefix("gw")) % len(cpus)]})


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-lengths", action="store_true", help="exactness at every length and both sizes")
