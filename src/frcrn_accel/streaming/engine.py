"""Steps of streams: many in one call of the engine, each with a state of its own."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.backends import StepSession
from frcrn_accel.errors import EngineError
from frcrn_accel.models import ModelMetadata
from frcrn_accel.network.topology import AVERAGING_INPUT, SE_LAYERS, Config
from frcrn_accel.streaming.averaging import Averaging, Statistics, shares

__all__ = ["Step", "StreamEngine", "StreamState"]

START_S = 1.0  # audio that the initial means count for; half or three times as much makes no audible difference


@dataclass(frozen=True, eq=False)
class StreamState:
    """Where a stream is.

    Attributes:
        frames: Frames it has taken in.
        tensors: The states of the graph, `(channels, ...)` each.
    """

    frames: int
    tensors: tuple[NDArray[np.float32], ...]


@dataclass(frozen=True, eq=False)
class Step:
    """What a stream wants computed.

    Attributes:
        state: Where it is.
        averaging: Its rule for the means of squeeze-and-excitation.
        audio: The next hops, `(channels, samples)`.
    """

    state: StreamState
    averaging: Averaging
    audio: NDArray[np.float32]


class StreamEngine:
    """A loaded model that streams share.

    Args:
        session: The model in an engine.
        metadata: What the model says of itself.

    Attributes:
        lag: Frames by which the output lags behind the input.
    """

    def __init__(self, session: StepSession, metadata: ModelMetadata) -> None:
        self.session = session
        self.metadata = metadata
        self.lag = session.inputs[AVERAGING_INPUT][1] - 1
        audio, *others = session.inputs
        self._audio = audio
        self._states = [name for name in others if name != AVERAGING_INPUT]
        self._means = [i for i, name in enumerate(self._states) if SE_LAYERS in name]
        self._beginning = self._states_by_first_frame()
        self._is_single = session.inputs[audio][0] == 1
        self._mean_values = sum(int(np.prod(session.inputs[self._states[i]][1:])) for i in self._means)
        means = session.metadata.start_means
        # What is made to find it out has none yet.
        nothing = Statistics(np.zeros((1, self._mean_values), np.float32), 0.0)
        self._typical = Statistics(_start_means(means), START_S) if means else nothing
        self._frames_per_second = metadata.sample_rate_hz / metadata.hop_samples

    def start(self, channels: int, averaging: Averaging) -> StreamState:
        """The state before the first sample.

        Raises:
            ValueError: The statistics to start with are of another model or of another number of channels.
        """
        shapes = [(channels, *self.session.inputs[name][1:]) for name in self._states]
        tensors = [np.zeros(shape, np.float32) for shape in shapes]
        means = (averaging.start or self._typical).means
        if means.shape not in {(1, self._mean_values), (channels, self._mean_values)}:
            raise ValueError("the statistics to start with are of another model, or of other channels")
        first = 0
        for i in self._means:
            last = first + tensors[i][0].size
            tensors[i][:] = means[:, first:last].reshape(-1, *shapes[i][1:])
            first = last
        return StreamState(0, tuple(tensors))

    def _start_s(self, averaging: Averaging) -> float:
        start = averaging.start or self._typical
        return start.heard_s if averaging.start_s is None else averaging.start_s

    def statistics(self, state: StreamState, averaging: Averaging) -> Statistics:
        """What a stream has heard."""
        means = [state.tensors[i].reshape(len(state.tensors[i]), -1) for i in self._means]
        heard_s = self._start_s(averaging) + state.frames / self._frames_per_second
        return Statistics(np.concatenate(means, axis=1) if means else self._typical.means, heard_s)

    def run(self, steps: Sequence[Step]) -> list[tuple[NDArray[np.float32], StreamState]]:
        """Compute steps of one length: for each the audio, `(channels, samples)`, and the state after it.

        Raises:
            EngineError: The engine failed or gave numbers that are not finite; all states are as they were.
        """
        if self._is_single:
            results = [
                self._run([Step(_row(step.state, channel), step.averaging, step.audio[channel : channel + 1])])[0]
                for step in steps
                for channel in range(len(step.audio))
            ]
            return _regrouped(results, [len(step.audio) for step in steps])
        return self._run(steps)

    def _states_by_first_frame(self) -> dict[int, list[int]]:
        """Frames with which a further U-Net begins, and the numbers of its states, see `graph.timeline.Stepwise`."""
        unets = self.metadata.unets
        of_unet = [name.split("/")[1].split(".")[0] for name in self._states]
        return {
            number * self.lag // unets: [i for i, name in enumerate(of_unet) if name == unet and i not in self._means]
            for number, unet in enumerate(Config(self.metadata.channels, unets).unet_names)
            if number > 0
        }

    def _run(self, steps: Sequence[Step]) -> list[tuple[NDArray[np.float32], StreamState]]:
        """In one call those steps in which no U-Net begins, the others in two each."""
        frames = steps[0].audio.shape[1] // self.metadata.hop_samples
        cuts = [
            next((first for first in self._beginning if 0 < first - step.state.frames < frames), None)
            for step in steps
        ]
        uncut = [step for step, cut in zip(steps, cuts, strict=True) if cut is None]
        results = iter(self._call(uncut) if uncut else [])
        return [
            next(results) if cut is None else self._run_cut(step, cut - step.state.frames)
            for step, cut in zip(steps, cuts, strict=True)
        ]

    def _run_cut(self, step: Step, frames: int) -> tuple[NDArray[np.float32], StreamState]:
        """A step of so many frames, and one of the rest."""
        samples = frames * self.metadata.hop_samples
        ((before, state),) = self._run([replace(step, audio=step.audio[:, :samples])])
        ((after, state),) = self._run([replace(step, audio=step.audio[:, samples:], state=state)])
        return np.concatenate([before, after], axis=1), state

    def _call(self, steps: Sequence[Step]) -> list[tuple[NDArray[np.float32], StreamState]]:
        counts = [len(step.audio) for step in steps]
        frames = steps[0].audio.shape[1] // self.metadata.hop_samples
        feeds = {self._audio: _joined([step.audio for step in steps])}
        rows = [
            shares(
                step.averaging,
                self._start_s(step.averaging),
                step.state.frames,
                frames,
                self.lag + 1,
                self._frames_per_second,
            )
            for step in steps
        ]
        feeds[AVERAGING_INPUT] = rows[0][None] if sum(counts) == 1 else np.repeat(np.stack(rows), counts, axis=0)
        states = [step.state.tensors for step in steps]
        # There are many: for one stream they are not even looked at.
        joined = states[0] if len(states) == 1 else map(np.concatenate, zip(*states, strict=True))
        feeds.update(zip(self._states, joined, strict=True))
        audio, *after = self.session.run(feeds)
        if audio.shape != feeds[self._audio].shape:
            raise EngineError(f"the engine gave {audio.shape} for a step of {feeds[self._audio].shape}")
        if not np.isfinite(np.add.reduce(audio, axis=None)):  # a sum with one of them is one
            raise EngineError("the engine gave NaN or infinity for audio that has none")
        results = []
        first = 0
        for step, count in zip(steps, counts, strict=True):
            rows_of_step = slice(first, first + count)
            tensors_of_step = [tensor[rows_of_step] for tensor in after] if len(steps) > 1 else after
            number = step.state.frames + frames
            for i in self._beginning.get(number, ()):
                tensors_of_step[i] = np.zeros_like(tensors_of_step[i])
            results.append((audio[rows_of_step], StreamState(number, tuple(tensors_of_step))))
            first += count
        return results


def _start_means(text: str) -> NDArray[np.float32]:
    """Decode `ModelMetadata.start_means` to `(1, values)`."""
    return np.frombuffer(base64.b64decode(text), np.float32)[None]


def _row(state: StreamState, channel: int) -> StreamState:
    """The state of one channel."""
    return StreamState(state.frames, tuple(tensor[channel : channel + 1] for tensor in state.tensors))


def _joined(arrays: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _regrouped(
    results: Sequence[tuple[NDArray[np.float32], StreamState]], counts: Sequence[int]
) -> list[tuple[NDArray[np.float32], StreamState]]:
    """Results of single channels as those of streams."""
    grouped = []
    remaining = iter(results)
    for count in counts:
        audio, states = zip(*(next(remaining) for _ in range(count)), strict=True)
        tensors = tuple(_joined(parts) for parts in zip(*(state.tensors for state in states), strict=True))
        grouped.append((_joined(audio), StreamState(states[0].frames, tensors)))
    return grouped
