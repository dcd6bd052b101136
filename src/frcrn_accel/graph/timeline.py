"""The network along time: over a whole signal at once, or a few frames at a time with states in between.

A form of the network leaves everything that reaches beyond a frame to a timeline. An encoder stage also takes the
previous frame, a decoder stage the next frame, and the memory at the bottleneck the previous 19 frames.
Squeeze-and-excitation takes the mean over all frames, and the STFT half a frame.

A step of a stream cannot take frames that have not arrived. A decoder stage therefore outputs the previous frame: it
lags by a frame, and everything that it is combined with (a skip connection, at the end the spectrum) is delayed by as
much. With the full look-ahead, the output of each U-Net thus lags by seven frames. Apart from the lag, and from means
that run over the signal so far, it is that of the whole signal.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import ClassVar

import numpy as np
import onnx

from frcrn_accel.graph.writer import GraphWriter, Shape
from frcrn_accel.network.topology import (
    AVERAGING_INPUT,
    FRAME_SAMPLES,
    HOP_SAMPLES,
    LOOKAHEAD_FRAMES,
    STAGES,
    STFT_BINS,
    stft_window,
)

__all__ = ["TIME", "MakeTimeline", "Stepwise", "Timeline", "WholePass"]

TIME = "frames"  # the time axis in a shape


class Timeline(abc.ABC):
    """Writes the operators that reach beyond a frame. Methods take and return names of tensors.

    A shape argument is that of the tensor, with `TIME` for the time axis.

    Args:
        graph: Writer of the graph.

    Attributes:
        is_stepwise: Whether the graph is a step of a stream.
        lag: Frames by which the current layer lags behind the input.
    """

    is_stepwise: ClassVar[bool]
    lag: int = 0

    def __init__(self, graph: GraphWriter) -> None:
        self.graph = graph

    @property
    @abc.abstractmethod
    def inputs(self) -> Mapping[str, Shape]:
        """Inputs of the graph besides the audio, with their shapes."""

    @property
    @abc.abstractmethod
    def outputs(self) -> Mapping[str, Shape]:
        """Outputs of the graph besides the audio, with their shapes."""

    @abc.abstractmethod
    def padding(self, frames: int) -> int:
        """Return the number of zero frames to pad for an operator that takes this many earlier frames."""

    @abc.abstractmethod
    def with_last(self, x: str, frames: int, shape: Shape) -> str:
        """Prepend the previous step's last frames, so that a valid convolution yields one output per new frame."""

    @abc.abstractmethod
    def delayed(self, x: str, since: int, shape: Shape) -> str:
        """Delay a tensor that was written when the lag was `since`, for use at the current lag."""

    @abc.abstractmethod
    def looks_ahead(self, stage: int) -> bool:
        """Return whether a decoder stage takes the next frame; otherwise it takes the current one twice."""

    @abc.abstractmethod
    def decoded(self, stage: int) -> None:
        """Update the lag. Call it after each decoder stage."""

    @abc.abstractmethod
    def mean(self, x: str) -> str:
        """Write the mean of `(batch, channels, frames, bins)` over bins; in a whole signal also over frames."""

    @abc.abstractmethod
    def averaged(self, means: str, channels: int) -> str:
        """Write the means over time of a result of `mean`, `(batch, channels, frames or 1, 1)` both."""

    @abc.abstractmethod
    def synthesis(self, frames: str, kernel: str) -> str:
        """Write the inverse transform of frames, `(batch, 642, frames)`, to `(batch, samples)`."""


class WholePass(Timeline):
    """A whole signal at once."""

    is_stepwise = False
    inputs: Mapping[str, Shape] = MappingProxyType({})
    outputs: Mapping[str, Shape] = MappingProxyType({})

    def padding(self, frames: int) -> int:
        """Pad all of them: there are no earlier frames."""
        return frames

    def with_last(self, x: str, frames: int, shape: Shape) -> str:
        """Return the tensor: there are no earlier frames."""
        return x

    def delayed(self, x: str, since: int, shape: Shape) -> str:
        """Return the tensor: nothing lags."""
        return x

    def looks_ahead(self, stage: int) -> bool:
        """Return True: all frames are there."""
        return True

    def decoded(self, stage: int) -> None:
        """Do nothing: nothing lags."""

    def mean(self, x: str) -> str:
        """Write the mean over bins and frames."""
        return self.graph.op("GlobalAveragePool", x)

    def averaged(self, means: str, channels: int) -> str:
        """Return the means: `mean` includes the time axis."""
        return means

    def synthesis(self, frames: str, kernel: str) -> str:
        """See `Timeline.synthesis`."""
        g = self.graph
        signal = g.op("ConvTranspose", frames, kernel, strides=[HOP_SAMPLES])
        # The sum of the squared windows at each sample: 1 except in the first and the last hop.
        shape = g.op("Concat", g.ints(1, 1), g.op("Shape", frames, start=2), axis=0)
        window = g.constant((stft_window() ** 2)[None, None])
        ones = g.op("ConstantOfShape", shape, value=onnx.numpy_helper.from_array(np.ones(1, np.float32)))
        overlap = g.op("ConvTranspose", ones, window, strides=[HOP_SAMPLES])
        # The 1e-8 is upstream's; without it the very first sample, where the window is 0, would be 0 / 0.
        signal = g.op("Div", signal, g.op("Add", overlap, g.constant(1e-8)))
        return g.op("Squeeze", signal, g.ints(1))


class Stepwise(Timeline):
    """A few frames at a time. Their number can differ from step to step, but not between rows of a batch.

    Inputs of the graph, after the audio of the new hops:

    - `averaging`, `(batch, lag + 1, frames, frames + 1)`: weights for the running means of squeeze-and-excitation,
      for layers that lag by 0, 1, ... frames. A row holds the weight of the mean before the step, then those of the
      new frames. The caller chooses the rule of averaging.
    - the states, zeros at the start. Their names end in the name of their layer.

    Outputs of the graph, after the audio, are the states for the next step, in the same order.

    A U-Net's outputs before its first frame must not reach the memories of the next U-Net. A step must therefore end
    just before that first frame enters the next U-Net, after `lookahead` frames for each U-Net before it. From there
    on the caller sets the states of the next U-Net, except its means, to zero again.

    Args:
        graph: Writer of the graph.
        lookahead: Frames that each U-Net looks ahead. With fewer than in training, the deeper decoder stages take the
            current frame instead of the next one.

    Attributes:
        lookahead: As given.
    """

    is_stepwise = True

    def __init__(self, graph: GraphWriter, lookahead: int = LOOKAHEAD_FRAMES) -> None:
        super().__init__(graph)
        self.lookahead = lookahead
        self._states: dict[str, Shape] = {}
        self._next: dict[str, str] = {}
        self._by_lag: dict[str, str] = {}
        self._count = ""

    @property
    def inputs(self) -> Mapping[str, Shape]:
        """The averaging weights and the states, see the class."""
        return {AVERAGING_INPUT: ("batch", self.lag + 1, "frames", "frames_and_state"), **self._states}

    @property
    def outputs(self) -> Mapping[str, Shape]:
        """The states for the next step."""
        return {self._next[state]: shape for state, shape in self._states.items()}

    def padding(self, frames: int) -> int:
        """Pad none: a state holds the earlier frames."""
        return 0

    def with_last(self, x: str, frames: int, shape: Shape) -> str:
        """Prepend a state, see `Timeline.with_last`; the last frames of the result are the next state."""
        state = self.state(frames, shape)
        axis = shape.index(TIME)
        joined = self.graph.op("Concat", state, x, axis=axis)
        self.keep(state, joined, frames, axis)
        return joined

    def delayed(self, x: str, since: int, shape: Shape) -> str:
        """See `Timeline.delayed`."""
        g = self.graph
        frames = self.lag - since
        if not frames:
            return x
        state = self.state(frames, shape)
        axis = shape.index(TIME)
        joined = g.op("Concat", state, x, axis=axis)
        out, self._next[state] = g.ops(
            "Split", 2, joined, g.op("Concat", self._frames(), g.ints(frames), axis=0), axis=axis
        )
        return out

    def looks_ahead(self, stage: int) -> bool:
        """Return True for the shallowest stages, which need it most, one for each frame of look-ahead."""
        return stage >= STAGES - self.lookahead

    def decoded(self, stage: int) -> None:
        """Increase the lag after a stage that looks ahead: its output is for the frame before."""
        self.lag += self.looks_ahead(stage)

    def mean(self, x: str) -> str:
        """Write the mean over bins."""
        return self.graph.op("ReduceMean", x, axes=[3], keepdims=1)

    def averaged(self, means: str, channels: int) -> str:
        """See `Timeline.averaged`."""
        g = self.graph
        means = g.op("Transpose", means, perm=[0, 3, 2, 1])
        before = self.state(1, ("batch", 1, TIME, channels))
        key = f"{AVERAGING_INPUT}/{self.lag}"
        if key not in self._by_lag:
            self._by_lag[key] = g.op("Slice", AVERAGING_INPUT, g.ints(self.lag), g.ints(self.lag + 1), g.ints(1))
        averaged = g.op("MatMul", self._by_lag[key], g.op("Concat", before, means, axis=2))
        self.keep(before, averaged, 1, axis=2)
        return g.op("Transpose", averaged, perm=[0, 3, 2, 1])

    def synthesis(self, frames: str, kernel: str) -> str:
        """Write the inverse transform: the second half of each frame is added to the first half of the next."""
        g = self.graph
        kernel = g.op("Reshape", kernel, g.ints(2 * STFT_BINS, FRAME_SAMPLES))
        samples = g.op("MatMul", g.op("Transpose", frames, perm=[0, 2, 1]), kernel)
        return self.overlapped(*g.ops("Split", 2, samples, axis=2))

    def overlapped(self, first: str, second: str) -> str:
        """Overlap and add halves of frames, `(batch, frames, 320)` each, to `(batch, samples)`."""
        g = self.graph
        joined = self.with_last(second, 1, ("batch", TIME, HOP_SAMPLES))
        before = g.op("Slice", joined, g.ints(0), g.ints(-1), g.ints(1))
        return g.op("Reshape", g.op("Add", first, before), g.ints(0, -1))

    def state(self, frames: int, shape: Shape, layer: str = "") -> str:
        """Add a state of this many frames for a layer, by default the one in scope; `keep` sets its next value."""
        name = f"state_{len(self._states)}/{layer or self.graph.current_scope}"
        self._states[name] = tuple(frames if size == TIME else size for size in shape)
        return name

    def keep(self, state: str, x: str, frames: int, axis: int) -> None:
        """Keep the last frames of a tensor as the next value of a state."""
        g = self.graph
        self._next[state] = g.op("Slice", x, g.ints(-frames), g.ints(np.iinfo(np.int64).max), g.ints(axis))

    def _frames(self) -> str:
        """Return the number of new frames, `(1,)`."""
        if not self._count:
            self._count = self.graph.op("Shape", AVERAGING_INPUT, start=2, end=3)
        return self._count


MakeTimeline = Callable[[GraphWriter], Timeline]
