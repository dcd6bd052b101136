"""Run steps of many streams in one call of the engine, each with its own state."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.backends import StepSession
from frcrn_accel.errors import EngineError
from frcrn_accel.in_use import InUse
from frcrn_accel.models import ModelMetadata
from frcrn_accel.network.topology import AVERAGING_INPUT, SE_LAYERS, Config
from frcrn_accel.streaming.averaging import Averaging, Statistics, shares

__all__ = ["Step", "StreamEngine", "StreamState"]

START_S = 1.0  # audio that the initial means count for; 0.5 s or 3 s sound the same


@dataclass(frozen=True, eq=False)
class StreamState:
    """The state of a stream between two steps.

    Attributes:
        frames: Frames processed so far.
        tensors: States of the graph, `(channels, ...)` each.
    """

    frames: int
    tensors: tuple[NDArray[np.float32], ...]


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a stream, as input of the engine.

    Attributes:
        state: State of the stream before the step.
        averaging: How the stream averages.
        audio: The next hops, `(channels, samples)`.
    """

    state: StreamState
    averaging: Averaging
    audio: NDArray[np.float32]


class StreamEngine:
    """A loaded model that streams share.

    Args:
        session: The loaded step.
        metadata: Metadata of the model.
        in_use: Counts the calls that use the session, so that it is closed after them.

    Attributes:
        session, metadata, in_use: See above.
        lag: Frames by which the output lags behind the input: the look-ahead of all U-Nets.
    """

    def __init__(self, session: StepSession, metadata: ModelMetadata, in_use: InUse | None = None) -> None:
        self.session = session
        self.in_use = in_use or InUse("this engine is closed")
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
        # A step that `prepare` runs to measure the means has none yet.
        nothing = Statistics(np.zeros((1, self._mean_values), np.float32), 0.0)
        self._typical = Statistics(_start_means(means), START_S) if means else nothing
        self._frames_per_second = metadata.sample_rate_hz / metadata.hop_samples

    def start(self, channels: int, averaging: Averaging) -> StreamState:
        """Return the state before the first sample.

        Raises:
            ValueError: `averaging.start` belongs to another model, has another number of channels, or is not finite.
        """
        shapes = [(channels, *self.session.inputs[name][1:]) for name in self._states]
        tensors = [np.zeros(shape, np.float32) for shape in shapes]
        start = averaging.start or self._typical
        means = np.asarray(start.means)
        if start.model and start.model != self.metadata.checkpoint_sha256:
            raise ValueError("averaging.start belongs to another model: its means do not fit this one")
        if means.shape not in {(1, self._mean_values), (channels, self._mean_values)}:
            raise ValueError(
                f"averaging.start belongs to another model or has other channels: its means are {means.shape}, "
                f"expected {(1, self._mean_values)}"
                + (f" or {(channels, self._mean_values)}" if channels > 1 else "")
            )
        if not np.isfinite(means).all():
            raise ValueError("averaging.start has NaN or infinity in its means")
        first = 0
        for i in self._means:
            last = first + tensors[i][0].size
            tensors[i][:] = means[:, first:last].reshape(-1, *shapes[i][1:])
            first = last
        return StreamState(0, tuple(tensors))

    def _start_s(self, averaging: Averaging) -> float:
        start = averaging.start or self._typical
        return start.duration_s if averaging.start_s is None else averaging.start_s

    def statistics(self, state: StreamState, averaging: Averaging) -> Statistics:
        """Return the running means of a stream."""
        means = [state.tensors[i].reshape(len(state.tensors[i]), -1) for i in self._means]
        duration_s = self._start_s(averaging) + state.frames / self._frames_per_second
        joined = np.concatenate(means, axis=1) if means else self._typical.means
        return Statistics(joined, duration_s, self.metadata.checkpoint_sha256)

    def run(self, steps: Sequence[Step]) -> list[tuple[NDArray[np.float32], StreamState]]:
        """Run steps of equal length.

        Returns:
            For each step the denoised audio, `(channels, samples)`, and the state after it.

        Raises:
            EngineError: The engine failed or returned NaN or infinity. The given states remain valid.
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
        """Map the frame at which each further U-Net begins to the indices of its states.

        A U-Net begins when the one before it has produced its first frame; see `graph.timeline.Stepwise`.
        """
        unets = self.metadata.unets
        of_unet = [name.split("/")[1].split(".")[0] for name in self._states]
        return {
            number * self.lag // unets: [i for i, name in enumerate(of_unet) if name == unet and i not in self._means]
            for number, unet in enumerate(Config(self.metadata.channels, unets).unet_names)
            if number > 0
        }

    def _run(self, steps: Sequence[Step]) -> list[tuple[NDArray[np.float32], StreamState]]:
        """Run the steps in one call, except those during which a U-Net begins: these are cut in two."""
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
        """Run the first frames of a step, then the rest."""
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
        # A graph has many states: for a single stream, pass them on as they are.
        joined = states[0] if len(states) == 1 else map(np.concatenate, zip(*states, strict=True))
        feeds.update(zip(self._states, joined, strict=True))
        audio, *after = self.session.run(feeds)
        if audio.shape != feeds[self._audio].shape:
            raise EngineError(f"the engine returned {audio.shape} for a step of {feeds[self._audio].shape}")
        if not np.isfinite(np.add.reduce(audio, axis=None)):  # a sum with NaN or infinity is not finite
            raise EngineError("the engine returned NaN or infinity for finite audio")
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
    """Return the state of one channel."""
    return StreamState(state.frames, tuple(tensor[channel : channel + 1] for tensor in state.tensors))


def _joined(arrays: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _regrouped(
    results: Sequence[tuple[NDArray[np.float32], StreamState]], counts: Sequence[int]
) -> list[tuple[NDArray[np.float32], StreamState]]:
    """Join the results of single channels to those of streams with `counts` channels."""
    grouped = []
    remaining = iter(results)
    for count in counts:
        audio, states = zip(*(next(remaining) for _ in range(count)), strict=True)
        tensors = tuple(_joined(parts) for parts in zip(*(state.tensors for state in states), strict=True))
        grouped.append((_joined(audio), StreamState(states[0].frames, tensors)))
    return grouped
