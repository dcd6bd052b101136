"""DNSMOS P.835: ratings of listeners, estimated by a network.

The network is a file of the package `speechmos`, whose own code needs librosa, which brings a compiler. Only the file
is used here, with the engine that is installed.

Source: C. K. A. Reddy, V. Gopal, R. Cutler, "DNSMOS P.835", ICASSP 2022.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.backends.openvino import load_openvino
from frcrn_accel.errors import AudioError, MissingExtraError
from frcrn_accel.network.topology import SAMPLE_RATE_HZ

__all__ = ["Dnsmos", "dnsmos", "load_dnsmos", "load_network"]

_HOP_SAMPLES = 160
_FRAMES = 900  # of the network's input; a frame has two hops
_SAMPLES = (_FRAMES + 1) * _HOP_SAMPLES
_CELL_FRAMES = 8  # the network halves the number of frames three times
_REACH_FRAMES = 64  # more than the ends of the input, where the network pads with zeros, reach inwards
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
    frames = _sufficient_frames(len(audio))
    network = load_dnsmos(frames)
    if not audio.size:
        raise AudioError("DNSMOS cannot score this: no audio")
    if not np.isfinite(audio).all():
        raise AudioError("DNSMOS cannot score this: the audio has NaN or infinity")
    repeated = np.resize(np.clip(audio, -1, 1), max(len(audio), _samples(frames))).astype(np.float32)
    segments = _segments(repeated) if frames == _FRAMES else [repeated]
    values = np.array([network(segment[None])[0] for segment in segments], np.float64).T
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


def _sufficient_frames(samples: int) -> int:
    """Return how many frames of repeated audio give the same score as all of them.

    The network is local along time, and ends with a maximum over all cells of time. So if the audio repeats after
    whole cells, repetitions can be left out, as long as one is left between the two ends: 4 s need 5 s.
    """
    period, rest = divmod(samples, _HOP_SAMPLES * _CELL_FRAMES)
    frames = period * _CELL_FRAMES
    if rest or not 0 < frames < _FRAMES - _REACH_FRAMES or find_spec("onnx") is None:
        return _FRAMES
    return _FRAMES - (_FRAMES - _REACH_FRAMES - frames) // frames * frames


def _samples(frames: int) -> int:
    """Return the length of the network's input."""
    return (frames + 1) * _HOP_SAMPLES


def load_dnsmos(frames: int = _FRAMES) -> _Network:
    """Load the network, or return it if it is loaded.

    Args:
        frames: Frames that it takes at a time.

    Raises:
        MissingExtraError: The `[eval]` extra is not installed, or no engine to run the network with.
    """
    try:
        import speechmos
    except ImportError as error:
        raise MissingExtraError("DNSMOS", "eval", error) from error
    return load_network(Path(str(speechmos.__file__)).with_name("dnsmos_models") / "sig_bak_ovr.onnx", frames)


@functools.lru_cache(maxsize=2)  # each keeps some 100 MB
def load_network(path: Path, frames: int = _FRAMES) -> _Network:
    """Load a network that returns three numbers for `float32 (1, samples)`, or return it if it is loaded.

    See `load_dnsmos`.
    """
    content = path.read_bytes()
    if frames != _FRAMES:
        content = _with_frames(content, frames)
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


def _with_frames(content: bytes, frames: int) -> bytes:
    """Change the number of frames that the network takes; its weights do not depend on it."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(content)
    new = {_FRAMES: frames, _FRAMES * _HOP_SAMPLES: frames * _HOP_SAMPLES}
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT64:  # shapes and ends
            values = numpy_helper.to_array(tensor)
            changed = np.array([new.get(value, value) for value in values.ravel().tolist()], np.int64)
            tensor.CopyFrom(numpy_helper.from_array(changed.reshape(values.shape), tensor.name))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = _samples(frames)
    changed_content: bytes = model.SerializeToString()
    return changed_content


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
