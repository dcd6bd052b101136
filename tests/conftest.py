from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from frcrn_accel import Denoiser
from frcrn_accel.testing import FunctionBackend

REPOSITORY = Path(__file__).parents[1]
DEV_AUDIO = REPOSITORY.parent / "shared" / "audio" / "dev"


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


@pytest.fixture
def identity() -> Denoiser:
    """A denoiser whose engine gives back what it gets."""
    return Denoiser(backend=FunctionBackend())


@pytest.fixture(scope="session")
def denoiser() -> Denoiser:
    """The packaged model on ONNX Runtime."""
    pytest.importorskip("onnxruntime")
    return Denoiser(backend="ort")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-lengths", action="store_true", help="test parity with upstream at every length")
