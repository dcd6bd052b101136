"""DNSMOS P.835: ratings of listeners, estimated by a network.

The network is a file of the package `speechmos`, whose own code needs librosa, which brings a compiler. Only the file
is used here, with the engine that is installed.

Source: C. K. A. Reddy, V. Gopal, R. Cutler, "DNSMOS P.835", ICASSP 2022.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.backends.openvino import load_openvino
from frcrn_accel.errors import AudioError, MissingExtraError
from frcrn_accel.network.topology import SAMPLE_RATE_HZ

__all__ = ["Dnsmos", "dnsmos", "load_dnsmos", "load_network"]

_SAMPLES = 144_160  # length of the network's input
# What the network gives is mapped to ratings by a polynomial for each, the highest power first.
_RATINGS = (
    (-0.08397278, 1.22083953, 0.0052439),
    (-0.13166888, 1.60915514, -0.39604546),
    (-0.06766283, 1.11546468, 0.04602535),
)

_Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class Dnsmos(NamedTuple):
    """DNSMOS P.835, 1 to 5 each.

    Attributes:
        sig: Quality of the speech.
        bak: Quality of the background: higher is less intrusive.
        ovrl: Overall quality.
    """

    sig: float
    bak: float
    ovrl: float


def dnsmos(audio: NDArray[Any]) -> Dnsmos:
    """Return DNSMOS P.835: ratings of listeners as estimated by a network, without a reference.

    The network takes 9 s at a time, in steps of 1 s; shorter audio is repeated to that length.

    Args:
        audio: Speech at 16 kHz, `(samples,)`; values beyond full scale are clipped.

    Raises:
        MissingExtraError: The `[eval]` extra is not installed, or no engine to run the network with.
        AudioError: The audio is empty, or holds NaN.
    """
    network = load_dnsmos()
    if not audio.size:
        raise AudioError("DNSMOS cannot score this: no audio")
    if not np.isfinite(audio).all():
        raise AudioError("DNSMOS cannot score this: the audio has NaN or infinity")
    repeated = np.resize(np.clip(audio, -1, 1), max(len(audio), _SAMPLES)).astype(np.float32)
    values = np.array([network(segment[None])[0] for segment in _segments(repeated)], np.float64).T
    return Dnsmos(*(float(np.polyval(rating, raw).mean()) for rating, raw in zip(_RATINGS, values, strict=True)))


def _segments(audio: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Yield the same segments as the package, so that scores are comparable with published ones.

    The package computes the end of a segment in seconds, and skips a segment that rounding makes a sample too short.
    """
    seconds = _SAMPLES / SAMPLE_RATE_HZ
    for start_s in range(int(len(audio) // SAMPLE_RATE_HZ - seconds) + 1):
        segment = audio[start_s * SAMPLE_RATE_HZ : int((start_s + seconds) * SAMPLE_RATE_HZ)]
        if len(segment) == _SAMPLES:
            yield segment


def load_dnsmos() -> _Network:
    """Load the network, or return it if it is loaded.

    Raises:
        MissingExtraError: The `[eval]` extra is not installed, or no engine to run the network with.
    """
    try:
        import speechmos
    except ImportError as error:
        raise MissingExtraError("DNSMOS", "eval", error) from error
    return load_network(Path(str(speechmos.__file__)).with_name("dnsmos_models") / "sig_bak_ovr.onnx")


@functools.cache
def load_network(path: Path) -> _Network:
    """Load, once, a network that returns three numbers for `float32 (1, samples)`; see `load_dnsmos` for errors."""
    content = path.read_bytes()
    try:
        import onnxruntime
    except ImportError:
        return _load_with_openvino(content)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the scores do not depend on the number of CPUs
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(audio: NDArray[np.float32]) -> NDArray[np.float32]:
        ratings: NDArray[np.float32] = session.run(None, {name: audio})[0]
        return ratings

    return run


def _load_with_openvino(content: bytes) -> _Network:
    try:
        openvino = load_openvino()
    except ImportError as error:
        raise MissingExtraError("DNSMOS", "ort", error) from error
    core = openvino.Core()
    model = core.compile_model(core.read_model(content), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(audio: NDArray[np.float32]) -> NDArray[np.float32]:
        ratings: NDArray[np.float32] = model(audio)[0]
        return ratings

    return run
