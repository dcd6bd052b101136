"""Measure the ranges of activations by running the network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from frcrn_accel._version import __version__
from frcrn_accel.backends.ort import cpu_session
from frcrn_accel.errors import MissingExtraError
from frcrn_accel.graph.common import Pair
from frcrn_accel.network.checkpoint import Weights
from frcrn_accel.network.topology import required_config
from frcrn_accel.progress import Progress, no_progress
from frcrn_accel.quantize.channels_last import Activation
from frcrn_accel.quantize.integer import IntegerNetwork, group_names
from frcrn_accel.quantize.parallel import map_parallel, plan_threads, workers
from frcrn_accel.quantize.ranges import FsmnRanges, Ranges

__all__ = ["measure_ranges"]

# Share of the frames whose peak at a convolution is within its range. Larger values are clipped, and a wider range is
# coarser for all frames. Of the values from 80 to 100 this gave the smallest difference from fp32.
INPUT_PERCENTILE = 90.0
_LEAST_SHARE = 1e-3  # the range of a silent channel, as a share of the loudest channel's


def measure_ranges(
    weights: Weights,
    clips: Iterable[NDArray[np.float32]],
    progress: Progress = no_progress,
    *,
    inside: bool = True,
    inputs: bool = True,
) -> Ranges:
    """Run the network on clips and measure ranges relative to the peaks of frames.

    Args:
        weights: As `models.read_weights` returns them.
        clips: `(samples,)` each, at the model's rate and level; read once.
        progress: Called after each clip, as "measure ranges".
        inside: Whether to measure the ranges inside FSMN blocks.
        inputs: Whether to measure the ranges at the inputs of convolutions.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
    """
    peaks = _observed(_Observer(weights, inside=inside, inputs=inputs), list(clips), progress)
    blocks: dict[str, dict[str, NDArray[np.float32]]] = defaultdict(dict)
    shares: dict[str, list[float]] = defaultdict(list)
    for (name, what), values in peaks.items():
        if what.startswith("input"):
            shares[name].append(float(np.percentile(values, INPUT_PERCENTILE)))
        else:
            blocks[name][what] = values.max(axis=0)
    return Ranges(
        {name: _fsmn_ranges(found) for name, found in blocks.items()},
        {name: tuple(found) for name, found in shares.items()},
    )


def _fsmn_ranges(found: Mapping[str, NDArray[np.float32]]) -> FsmnRanges:
    memory = _widened(found["memory"])
    filtered, memories, filtered_sum, total = (
        float(np.max(found[what] / memory)) for what in ("filtered", "memories", "filtered_sum", "total")
    )
    hidden = np.stack([_widened(found[f"hidden/{net}"]) for net in (0, 1)])
    return FsmnRanges(hidden, memory, filtered, memories, filtered_sum, total)


def _widened(peaks: NDArray[np.float32]) -> NDArray[np.float32]:
    least = max(float(peaks.max()) * _LEAST_SHARE, float(np.finfo(np.float32).tiny))
    return np.maximum(peaks, np.float32(least))


class _Observer(IntegerNetwork):
    """The network with its FSMN blocks in float, and with the peaks of observed tensors as further outputs.

    Reductions along the last axes are the fastest, so the sums of an FSMN block are computed with channels first, as
    its filters are anyway.

    Args:
        weights: See `IntegerNetwork`.
        inside: Whether to observe FSMN blocks.
        inputs: Whether to observe the inputs of convolutions.

    Attributes:
        seen: For each further output, the name of the layer and of the tensor.
    """

    def __init__(self, weights: Weights, *, inside: bool, inputs: bool) -> None:
        blocks = frozenset(name for name in group_names(required_config(weights)) if "fsmn" in name)
        super().__init__(weights, Ranges({}), blocks)
        self._inside = inside
        self._inputs = inputs
        self.seen: dict[str, tuple[str, str]] = {}

    def observe(self, name: str, what: str, tensor: str) -> None:
        if self._observes(name):  # after ReLU
            self.seen[self.graph.op("ReduceMax", tensor, axes=[0, 2], keepdims=0)] = (name, what)

    def total_memory(self, name: str, memories: Sequence[Pair], filtered: Sequence[Pair]) -> str:
        if not self._observes(name):
            return super().total_memory(name, memories, filtered)
        g = self.graph
        sums = [g.op("Add", *[first for _, first in tensors]) for tensors in (memories, filtered)]
        total = g.op("Add", *sums)
        for what, tensors in (
            ("memory", [first for _, first in memories]),
            ("filtered", [first for _, first in filtered]),
            ("memories", sums[:1]),
            ("filtered_sum", sums[1:]),
            ("total", [total]),
        ):
            for tensor in tensors:
                high = g.op("ReduceMax", tensor, axes=[2, 3], keepdims=0)
                low = g.op("ReduceMin", tensor, axes=[2, 3], keepdims=0)
                self.seen[g.op("Max", high, g.op("Neg", low))] = (name, what)
        return self.channels_last(total)

    def observe_input(self, name: str, source: Activation, peaks: Sequence[str]) -> None:
        g = self.graph
        if self._inputs and source.scale:
            number = sum(seen == name for seen, _ in self.seen.values())
            relative = g.op("Unsqueeze", g.op("Div", g.op("Max", *peaks), source.scale), g.ints(1))
            self.seen[relative] = (name, f"input/{number}")

    def _observes(self, name: str) -> bool:
        return self._inside and name in self.keep_float


def _observed(
    observer: _Observer, clips: Sequence[NDArray[np.float32]], progress: Progress
) -> dict[tuple[str, str], NDArray[np.float32]]:
    """Run the observer on clips and return its outputs, `(frames of all clips, channels)` each."""
    observer.waveform_to_waveform("audio")
    model = observer.graph.build(
        "audio",
        "denoised",
        "observer",
        __version__,
        {},
        batch=1,
        more_outputs=dict.fromkeys(observer.seen, (None, None)),
    )
    del model.graph.output[0]  # the engine then skips what only the denoised signal needs
    threads = plan_threads([len(clip) for clip in clips])
    try:
        session = cpu_session(model.SerializeToString(), threads.each, in_written_order=True)
    except ImportError as error:
        raise MissingExtraError("Measuring the ranges of activations", "quantize", error) from error

    def run(clip: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        return session.run(list(observer.seen), {"audio": clip[None]})  # type: ignore[no-any-return]

    progress("measure ranges", 0, len(clips))
    with workers(threads.clips) as pool:
        found = map_parallel(run, clips, pool, lambda done: progress("measure ranges", done, len(clips)))
    peaks: dict[tuple[str, str], list[NDArray[np.float32]]] = defaultdict(list)
    for values in found:
        for seen, value in zip(observer.seen.values(), values, strict=True):  # both parts have the same names
            peaks[seen].append(value)
    return {seen: np.concatenate(values) for seen, values in peaks.items()}
