"""One live signal."""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.audio import (
    Layout,
    check_attenuation_limit,
    check_finite,
    check_format,
    dry_share_of,
    mix_dry,
    unpack,
    whole_hz,
)
from frcrn_accel.errors import AudioError
from frcrn_accel.network.topology import HOP_SAMPLES, SAMPLE_RATE_HZ
from frcrn_accel.streaming.averaging import Averaging, Statistics
from frcrn_accel.streaming.engine import Step, StreamEngine, StreamState
from frcrn_accel.streaming.latency import Latency, delay_samples, unit_samples
from frcrn_accel.streaming.level import RunningLevel
from frcrn_accel.streaming.resampling import StreamResampler

__all__ = ["Stream", "check_stream_options", "process_streams"]

ChunkT = TypeVar("ChunkT")
_LEVEL_HORIZON_S = 20.0
_MAX_STEP_HOPS = 50


class Stream:
    """A live signal that is denoised while it comes in; `Denoiser.stream` makes it.

    Chunks of any size go in, and as many samples come out. What comes out lies `latency_s` behind what goes in: the
    first samples are silence, and `flush` gives the last ones. How the signal is cut into chunks does not change a
    bit of the result.

    >>> stream = denoiser.stream(48_000)
    >>> for chunk in microphone:
    ...     play(stream.process(chunk))
    >>> play(stream.flush())

    A stream is one signal and for one thread at a time; any number of them share a `Denoiser`.

    Args:
        engine: What computes.
        sample_rate: Rate of the signal.
        channels: Its channels; each is denoised by itself.
        step_s: How much is computed at a time.
        attenuation_limit_db: See the property.
        averaging: Rule for what the model averages over the whole signal.
        gain_db: Gain that brings the signal to the model's level; None to follow the signal.

    Attributes:
        sample_rate_hz: As given.
        channels: As given.
        latency: Where the delay comes from.
    """

    def __init__(
        self,
        engine: StreamEngine,
        sample_rate: int,
        *,
        channels: int = 1,
        step_s: float = 0.02,
        attenuation_limit_db: float | None = None,
        averaging: Averaging | None = None,
        gain_db: float | None = None,
    ) -> None:
        rate_hz = whole_hz(sample_rate)
        check_format(rate_hz, channels)
        metadata = engine.metadata
        hop_s = metadata.hop_samples / metadata.sample_rate_hz
        hops = check_stream_options(step_s, gain_db)
        self.attenuation_limit_db = attenuation_limit_db
        self.sample_rate_hz = rate_hz
        self.channels = channels
        self._engine = engine
        self._averaging = averaging or Averaging()
        self._gain = None if gain_db is None else np.full(channels, 10 ** (gain_db / 20), np.float32)
        self._step_samples = hops * metadata.hop_samples
        # The lag of the model, and the half of a window that comes before the first frame.
        self._held_back = engine.lag * metadata.hop_samples + metadata.frame_samples - metadata.hop_samples
        self._delay = delay_samples(rate_hz, metadata.sample_rate_hz, self._step_samples, self._held_back)
        model_s = self._held_back + self._step_samples - 1
        self.latency = Latency(
            lookahead_s=engine.lag * hop_s,
            window_s=(metadata.frame_samples - metadata.hop_samples) / metadata.sample_rate_hz,
            step_s=(self._step_samples - 1) / metadata.sample_rate_hz,
            resampling_s=self._delay / rate_hz - model_s / metadata.sample_rate_hz,
        )
        self._unit = 1 if rate_hz == metadata.sample_rate_hz else unit_samples(rate_hz)
        self._lock = threading.Lock()
        self.reset()

    @property
    def latency_s(self) -> float:
        """How far the output lies behind the input: a whole number of samples, the same all the time."""
        return self._delay / self.sample_rate_hz

    @property
    def latency_samples(self) -> int:
        """The same in samples."""
        return self._delay

    @property
    def attenuation_limit_db(self) -> float | None:
        """At most this much noise is taken away, by mixing in the signal as it came; None for no limit.

        It is mixed in at the model's rate, where the two are aligned to the sample: what lies above 8 kHz is not in
        the result. It can be changed at any time, from another thread too: the next step has it.
        """
        return self._attenuation_limit_db

    @attenuation_limit_db.setter
    def attenuation_limit_db(self, limit_db: float | None) -> None:
        check_attenuation_limit(limit_db)
        self._attenuation_limit_db = limit_db

    @property
    def statistics(self) -> Statistics:
        """What has been heard so far, to start another stream with: `Averaging(start=stream.statistics)`."""
        return self._engine.statistics(self._state, self._averaging)

    def process(self, chunk: ChunkT) -> ChunkT:
        """Take in the next samples and give as many out.

        Args:
            chunk: What `Denoiser` takes, `(samples,)` of a stream with one channel or `(channels, samples)`, of any
                length, 0 too; or bytes: 16-bit samples in the machine's order, channels interleaved.

        Returns:
            The same kind of object, of the same length.

        Raises:
            AudioError: Another type, dtype or number of channels; NaN or infinity. The stream is as it was.
            EngineError: The engine failed. The chunk is taken in, but not all of it is given out: `reset`.
            ValueError: The stream was flushed: `reset` it first.
            RuntimeError: Another thread is in this stream.
        """
        (result,) = process_streams([self], [chunk])
        return result

    def flush(self) -> NDArray[np.float32]:
        """The signal has ended: give out what is still inside.

        Returns:
            `float32 (channels, latency_samples)`. After that only `reset` is of use.

        Raises:
            ValueError: The stream was flushed already.
            RuntimeError: Another thread is in this stream.
            EngineError: The engine failed.
        """
        with self._alone():
            self._push(np.zeros((self.channels, self._delay), np.float32))
            _compute([self])
            out = self._pop(self._delay)
            self._is_flushed = True
        return out

    def reset(self) -> None:
        """Begin a new signal: as a new stream with the same arguments."""
        with self._alone(even_flushed=True):
            metadata = self._engine.metadata
            empty = np.zeros((self.channels, 0), np.float32)
            self._state: StreamState = self._engine.start(self.channels, self._averaging)
            horizon_hops = _LEVEL_HORIZON_S * metadata.sample_rate_hz / metadata.hop_samples
            self._level = RunningLevel.of_silence(self.channels, horizon_hops)
            self._to_model = StreamResampler(self.sample_rate_hz, metadata.sample_rate_hz, self.channels)
            self._from_model = StreamResampler(metadata.sample_rate_hz, self.sample_rate_hz, self.channels)
            self._received = empty  # not given to the resampler yet
            self._waiting = empty  # at the model's rate, less than a step after each call
            self._out = np.zeros((self.channels, self._delay), np.float32)
            # Of the hops that have gone into the model and not come out: the signal, and its gain.
            self._dry = np.zeros((self.channels, self._held_back), np.float32)
            self._gains = np.ones((self.channels, self._held_back // metadata.hop_samples), np.float32)
            self._skip = self._held_back
            self._is_flushed = False

    # The way of the samples: `_push`, `_next_step` and `_finish` as long as there are steps, `_pop`.

    def _push(self, samples: NDArray[np.float32]) -> None:
        received = np.concatenate([self._received, samples], axis=1)
        whole = received.shape[1] // self._unit * self._unit
        if self._unit == 1:
            pieces = [self._waiting, received]
        else:
            units = (received[:, first : first + self._unit] for first in range(0, whole, self._unit))
            pieces = [self._waiting, *(self._to_model.process(unit) for unit in units)]
        self._received = received[:, whole:]
        self._waiting = np.concatenate(pieces, axis=1)

    def _next_step(self) -> tuple[Step, NDArray[np.float32], RunningLevel] | None:
        """What to compute next, the gains of its hops and the level after them; None if a step is not full."""
        if self._waiting.shape[1] < self._step_samples:
            return None
        hop = self._engine.metadata.hop_samples
        audio = self._waiting[:, : self._step_samples].reshape(self.channels, -1, hop)
        level = self._level
        if self._gain is None:
            gains, level = level.heard(audio)
        else:
            gains = np.repeat(self._gain[:, None], audio.shape[1], axis=1)
        scaled = (audio * gains[..., None]).reshape(self.channels, -1)
        return Step(self._state, self._averaging, scaled), gains, level

    def _finish(
        self, out: NDArray[np.float32], state: StreamState, gains: NDArray[np.float32], level: RunningLevel
    ) -> None:
        self._state, self._level = state, level
        hops = gains.shape[1]
        gains = np.concatenate([self._gains, gains], axis=1)
        dry = np.concatenate([self._dry, self._waiting[:, : self._step_samples]], axis=1)
        self._waiting = self._waiting[:, self._step_samples :]
        self._gains, self._dry = gains[:, hops:], dry[:, self._step_samples :]
        wet = (out.reshape(self.channels, hops, -1) / gains[:, :hops, None]).reshape(self.channels, -1)
        share = dry_share_of(self._attenuation_limit_db)
        if share > 0:
            (wet,) = mix_dry([wet], [dry[:, : self._step_samples]], share)
        skipped = min(self._skip, wet.shape[1])
        self._skip -= skipped
        if skipped < wet.shape[1]:
            self._out = np.concatenate([self._out, self._from_model.process(wet[:, skipped:])], axis=1)

    def _pop(self, samples: int) -> NDArray[np.float32]:
        out, self._out = self._out[:, :samples], self._out[:, samples:]
        if out.shape[1] < samples:
            raise AssertionError(f"{samples - out.shape[1]} samples are missing: the delay is too short")
        return out

    def _unpacked(self, chunk: object) -> tuple[NDArray[np.float32], Layout | None]:
        """A chunk as `float32 (channels, samples)`; the layout is None for bytes."""
        layout = None
        if isinstance(chunk, bytes | bytearray | memoryview):
            if len(chunk) % (2 * self.channels):
                raise AudioError(
                    f"{len(chunk)} bytes are no whole number of 16-bit samples in {self.channels} channels"
                )
            samples, _ = unpack(np.ascontiguousarray(np.frombuffer(chunk, np.int16).reshape(-1, self.channels).T))
        else:
            samples, layout = unpack(chunk)
        if len(samples) != self.channels:
            raise AudioError(f"the stream has {self.channels} channel(s), the chunk {len(samples)}")
        check_finite(samples, 0)
        return samples, layout

    @contextmanager
    def _alone(self, *, even_flushed: bool = False) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("another thread is in this stream: a stream is one signal, make one for each")
        try:
            if not even_flushed and self._is_flushed:
                raise ValueError("this stream was flushed: reset it, or make a new one")
            yield
        finally:
            self._lock.release()


def check_stream_options(step_s: float, gain_db: float | None) -> int:
    """Check the options of a stream that do not depend on the model.

    Args:
        step_s: See `Denoiser.stream`.
        gain_db: See `Denoiser.stream`.

    Returns:
        The step, in hops.

    Raises:
        ValueError: A value is out of range.
    """
    hop_s = HOP_SAMPLES / SAMPLE_RATE_HZ
    hops = round(step_s / hop_s) if math.isfinite(step_s) else 0
    if not (1 <= hops <= _MAX_STEP_HOPS and abs(hops * hop_s - step_s) < 1e-9):
        raise ValueError(
            f"step_s must be a multiple of {hop_s:g} s, up to {_MAX_STEP_HOPS * hop_s:g} s, got {step_s:g} s"
        )
    if gain_db is not None and not math.isfinite(gain_db):
        raise ValueError(f"gain_db must be finite, got {gain_db}")
    return hops


def process_streams(streams: Sequence[Stream], chunks: Sequence[ChunkT]) -> list[ChunkT]:
    """`Stream.process` of many streams, their steps in common calls of the engine.

    Streams can be in one call and not in the next, in any company: the result of each is what it would be alone, up
    to rounding. Their chunks may differ in length, and they in rate and channels.

    Args:
        streams: Of one `Denoiser`, each once.
        chunks: One for each.

    Raises:
        ValueError: The streams are not of one denoiser with one look-ahead, one is there twice, or there are not as
            many chunks.
        AudioError, RuntimeError, EngineError: See `Stream.process`; of a bad chunk, all streams are as they were.
    """
    if len(streams) != len(chunks):
        raise ValueError(f"there are {len(streams)} streams and {len(chunks)} chunks")
    if len({id(stream) for stream in streams}) < len(streams):
        raise ValueError("a stream is there twice")
    if len({id(stream._engine) for stream in streams}) > 1:
        raise ValueError("the streams are not of one denoiser with one look-ahead")
    with ExitStack() as stack:
        for stream in streams:
            stack.enter_context(stream._alone())
        unpacked = [stream._unpacked(chunk) for stream, chunk in zip(streams, chunks, strict=True)]
        for stream, (samples, _) in zip(streams, unpacked, strict=True):
            stream._push(samples)
        _compute(streams)
        results: list[Any] = []
        for stream, (samples, layout) in zip(streams, unpacked, strict=True):
            out = stream._pop(samples.shape[1])
            if layout is None:
                out = Layout(np.dtype(np.int16), mono=False).pack(out)
                results.append(np.ascontiguousarray(out.T).tobytes())
            else:
                results.append(layout.pack(out))
        return results


def _compute(streams: Sequence[Stream]) -> None:
    """All steps that are full."""
    while True:
        by_length = defaultdict(list)
        for stream in streams:
            found = stream._next_step()
            if found is not None:
                by_length[found[0].audio.shape[1]].append((stream, found))
        if not by_length:
            return
        for items in by_length.values():
            results = items[0][0]._engine.run([step for _, (step, _, _) in items])
            for (stream, (_, gains, level)), (out, state) in zip(items, results, strict=True):
                stream._finish(out, state, gains, level)
