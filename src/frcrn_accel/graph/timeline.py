"""What the network does along time: over a whole signal at once, or a few frames at a time, with a state between.

The forms of the network leave to a timeline all that reaches beyond a frame: an encoder stage takes in the frame
before, a decoder stage the frame after, the memory at the bottleneck the 19 before, squeeze-and-excitation the mean
over all there are, and the STFT half a window.

In a stream nothing can be taken in that has not come yet. A decoder stage therefore gives its output for the frame
before: it lags by one frame, and what it is put beside (a skip connection, at the end the spectrum) waits as long. So
the output of each U-Net lags by seven frames. Otherwise it is that of the whole signal.
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

TIME = "frames"  # in the shape of a state: the axis of time


class Timeline(abc.ABC):
    """Writes what reaches beyond a frame. Methods take and return names of tensors.

    A shape given to them is that of the tensor, with `TIME` for the axis along which the frames follow each other.

    Args:
        graph: Where to write it.

    Attributes:
        is_stepwise: Whether it is a step of a stream.
        lag: Frames by which what is being written lags behind the input.
    """

    is_stepwise: ClassVar[bool]
    lag: int = 0

    def __init__(self, graph: GraphWriter) -> None:
        self.graph = graph

    @property
    @abc.abstractmethod
    def inputs(self) -> Mapping[str, Shape]:
        """What the graph takes besides the audio."""

    @property
    @abc.abstractmethod
    def outputs(self) -> Mapping[str, Shape]:
        """What it gives besides the audio."""

    @abc.abstractmethod
    def padding(self, frames: int) -> int:
        """Frames of zeros that stand for so many before the first."""

    @abc.abstractmethod
    def with_last(self, x: str, frames: int, shape: Shape) -> str:
        """With the last frames of before in front: so many that there are as many outputs as new frames."""

    @abc.abstractmethod
    def delayed(self, x: str, since: int, shape: Shape) -> str:
        """What was written when the lag was `since`, for use at the lag there is now."""

    @abc.abstractmethod
    def looks_ahead(self, stage: int) -> bool:
        """Whether a decoder stage takes in the next frame; if not, it takes the same one twice."""

    @abc.abstractmethod
    def decoded(self, stage: int) -> None:
        """To be called after each decoder stage."""

    @abc.abstractmethod
    def mean(self, x: str) -> str:
        """Of `(batch, channels, frames, bins)` the mean over the bins; of a whole signal, over the frames as well."""

    @abc.abstractmethod
    def averaged(self, means: str, channels: int) -> str:
        """Means over time of what `mean` gave, `(batch, channels, frames or 1, 1)` both."""

    @abc.abstractmethod
    def synthesis(self, frames: str, kernel: str) -> str:
        """Inverse transform of the frames, `(batch, 642, frames)`, to `(batch, samples)`."""


class WholePass(Timeline):
    """The whole signal at once."""

    is_stepwise = False
    inputs: Mapping[str, Shape] = MappingProxyType({})
    outputs: Mapping[str, Shape] = MappingProxyType({})

    def padding(self, frames: int) -> int:
        """All of them."""
        return frames

    def with_last(self, x: str, frames: int, shape: Shape) -> str:
        """There is no before."""
        return x

    def delayed(self, x: str, since: int, shape: Shape) -> str:
        """There is no lag."""
        return x

    def looks_ahead(self, stage: int) -> bool:
        """It does."""
        return True

    def decoded(self, stage: int) -> None:
        """There is no lag."""

    def mean(self, x: str) -> str:
        """Over bins and frames."""
        return self.graph.op("GlobalAveragePool", x)

    def averaged(self, means: str, channels: int) -> str:
        """They are already."""
        return means

    def synthesis(self, frames: str, kernel: str) -> str:
        """See `Timeline.synthesis`."""
        g = self.graph
        signal = g.op("ConvTranspose", frames, kernel, strides=[HOP_SAMPLES])
        # The sum of the squared windows over each sample: 1 but in the first and the last hop.
        shape = g.op("Concat", g.ints(1, 1), g.op("Shape", frames, start=2), axis=0)
        window = g.constant((stft_window() ** 2)[None, None])
        ones = g.op("ConstantOfShape", shape, value=onnx.numpy_helper.from_array(np.ones(1, np.float32)))
        overlap = g.op("ConvTranspose", ones, window, strides=[HOP_SAMPLES])
        # The 1e-8 is upstream's; without it the very first sample, where the window is 0, would be 0 / 0.
        signal = g.op("Div", signal, g.op("Add", overlap, g.constant(1e-8)))
        return g.op("Squeeze", signal, g.ints(1))


class Stepwise(Timeline):
    """A few frames at a time: any number, the same for all rows of a batch.

    The graph takes, after the audio of the new hops:

    - `averaging`, `(batch, lag + 1, frames, frames + 1)`: how the means of squeeze-and-excitation follow from those
      before and those of the new frames, for what lags by 0, 1, ... frames. A row holds the share of the mean before
      the step, and of each new frame. The rule is up to whoever runs the graph.
    - the states, zeros at the start. Their names end in the layer that they are of.

    After the audio it gives the states of the next step, in the same order.

    What a U-Net gives ahead of its first frame is nothing that the next one may look back on. So a step must end
    where that first frame goes into the next one, `lookahead` frames for each U-Net before it, and from there on the
    states of the next one, but for its means, are zeros again.

    Args:
        graph: Where to write it.
        lookahead: Frames that each U-Net looks ahead. With fewer than it was trained with, the deeper decoder
            stages take the frame at hand in the place of the next.

    Attributes:
        lookahead: As given.
    """

    is_stepwise = True

    def __init__(self, graph: GraphWriter, lookahead: int = LOOKAHEAD_FRAMES) -> None:
        super().__init__(graph)
        self.lookahead = lookahead
        self._states: dict[str, Shape] = {}
        self._next: dict[str, Shape] = {}
        self._by_lag: dict[str, str] = {}
        self._count = ""

    @property
    def inputs(self) -> Mapping[str, Shape]:
        """See the class."""
        return {AVERAGING_INPUT: ("batch", self.lag + 1, "frames", "frames_and_state"), **self._states}

    @property
    def outputs(self) -> Mapping[str, Shape]:
        """The states of the next step."""
        return self._next

    def padding(self, frames: int) -> int:
        """None: they are there."""
        return 0

    def with_last(self, x: str, frames: int, shape: Shape) -> str:
        """See `Timeline.with_last`. The last frames of both are the next step's state."""
        state, state_shape = self._state(frames, shape)
        axis = shape.index(TIME)
        joined = self.graph.op("Concat", state, x, axis=axis)
        self._next[self._last(joined, frames, axis)] = state_shape
        return joined

    def delayed(self, x: str, since: int, shape: Shape) -> str:
        """See `Timeline.delayed`."""
        g = self.graph
        frames = self.lag - since
        if not frames:
            return x
        state, state_shape = self._state(frames, shape)
        axis = shape.index(TIME)
        joined = g.op("Concat", state, x, axis=axis)
        out, after = g.ops("Split", 2, joined, g.op("Concat", self._frames(), g.ints(frames), axis=0), axis=axis)
        self._next[after] = state_shape
        return out

    def looks_ahead(self, stage: int) -> bool:
        """The shallowest stages do, as many as there are frames of look-ahead: they need it most."""
        return stage >= STAGES - self.lookahead

    def decoded(self, stage: int) -> None:
        """The output of one that looks ahead is for the frame before."""
        self.lag += self.looks_ahead(stage)

    def mean(self, x: str) -> str:
        """Over the bins."""
        return self.graph.op("ReduceMean", x, axes=[3], keepdims=1)

    def averaged(self, means: str, channels: int) -> str:
        """See `Timeline.averaged`."""
        g = self.graph
        rows = self.averaged_rows(g.op("Transpose", means, perm=[0, 3, 2, 1]), 1, channels, g.current_scope)
        return g.op("Transpose", rows, perm=[0, 3, 2, 1])

    def averaged_rows(self, means: str, layers: int, channels: int, name: str) -> str:
        """The same of several layers with one lag, channels last: `(batch, layers, frames, channels)` both.

        Args:
            means: Of the new frames.
            layers: How many.
            channels: Of each.
            name: Of the layers, for their state.
        """
        g = self.graph
        before, shape = self._state(1, ("batch", layers, TIME, channels), name)
        key = f"{AVERAGING_INPUT}/{self.lag}"
        if key not in self._by_lag:
            self._by_lag[key] = g.op("Slice", AVERAGING_INPUT, g.ints(self.lag), g.ints(self.lag + 1), g.ints(1))
        averaged = g.op("MatMul", self._by_lag[key], g.op("Concat", before, means, axis=2))
        self._next[self._last(averaged, 1, axis=2)] = shape
        return averaged

    def synthesis(self, frames: str, kernel: str) -> str:
        """The two halves of each window; the second is added to the first of the next."""
        g = self.graph
        kernel = g.op("Reshape", kernel, g.ints(2 * STFT_BINS, FRAME_SAMPLES))
        samples = g.op("MatMul", g.op("Transpose", frames, perm=[0, 2, 1]), kernel)
        return self.overlapped(*g.ops("Split", 2, samples, axis=2))

    def overlapped(self, first: str, second: str) -> str:
        """The halves of windows, `(batch, frames, 320)` each, to `(batch, samples)`."""
        g = self.graph
        joined = self.with_last(second, 1, ("batch", TIME, HOP_SAMPLES))
        before = g.op("Slice", joined, g.ints(0), g.ints(-1), g.ints(1))
        return g.op("Reshape", g.op("Add", first, before), g.ints(0, -1))

    def _state(self, frames: int, shape: Shape, layer: str = "") -> tuple[str, Shape]:
        """A new state of so many frames, of a layer or of the one in scope: its name, and its shape."""
        name = f"state_{len(self._states)}/{layer or self.graph.current_scope}"
        self._states[name] = tuple(frames if size == TIME else size for size in shape)
        return name, self._states[name]

    def _last(self, x: str, frames: int, axis: int) -> str:
        """The last frames, for a state of the next step. Those must be in the order of the states."""
        g = self.graph
        return g.op("Slice", x, g.ints(-frames), g.ints(np.iinfo(np.int64).max), g.ints(axis))

    def _frames(self) -> str:
        """How many new frames there are, `(1,)`."""
        if not self._count:
            self._count = self.graph.op("Shape", AVERAGING_INPUT, start=2, end=3)
        return self._count


MakeTimeline = Callable[[GraphWriter], Timeline]
