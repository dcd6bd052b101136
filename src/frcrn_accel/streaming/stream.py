"""Denoise one live signal."""

from __future__ import annotations

import threading
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, NoReturn, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.arguments import real_number
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
from frcrn_accel.high_band import HighBand, HighBandMode, has_high_band
from frcrn_accel.network.topology import HOP_SAMPLES, SAMPLE_RATE_HZ
from frcrn_accel.pcm import check_interleaved, from_pcm, to_pcm
from frcrn_accel.streaming.averaging import Averaging, Statistics
from frcrn_accel.streaming.engine import Step, StreamEngine, StreamState
from frcrn_accel.streaming.latency import Latency, delay_samples
from frcrn_accel.streaming.level import RunningLevel
from frcrn_accel.streaming.offset import RunningOffset
from frcrn_accel.streaming.resampling import StreamResampler

__all__ = ["Stream", "check_stream_options", "process_streams"]

ChunkT = TypeVar("ChunkT")
Pack = Callable[[NDArray[np.float32]], Any]
_MAX_STEP_HOPS = 50
_MAX_GAIN_DB = 200  # beyond, float32 samples would overflow or vanish


class _InputState(NamedTuple):
    """The offset and the level of the input after a hop."""

    offset: RunningOffset
    level: RunningLevel


class Stream:
    """Denoise a live signal, chunk by chunk. Create it with `Denoiser.stream`.

    Chunks can have any size; each call returns as many samples as it gets. The output is delayed by `latency_s`: it
    starts with silence, and `flush` returns the end. The result is the same, bit for bit, however the signal is cut
    into chunks.

    >>> stream = denoiser.stream(48_000)
    >>> for chunk in microphone:
    ...     play(stream.process(chunk))
    >>> play(stream.flush())

    A stream processes one signal, in one thread at a time. Any number of streams share a `Denoiser`.

    Args:
        engine: The loaded model.
        sample_rate: Rate of the signal, Hz.
        channels: Number of channels; each is denoised independently.
        step_s: Audio to compute at a time, s.
        attenuation_limit_db: See the property.
        averaging: How to average for the squeeze-and-excitation layers; None for `Averaging()`.
        gain_db: Gain that brings active speech to the model's level; None to follow the level of the signal.
        high_band: What to do with the band above the model's: `"follow"` attenuates noise in it, `"drop"` leaves it
            out.

    Attributes:
        sample_rate_hz, channels: See above.
        latency: The parts of the delay.
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
        high_band: HighBandMode = "follow",
    ) -> None:
        rate_hz = whole_hz(sample_rate)
        check_format(rate_hz, channels)
        channels = int(channels)  # a bool, say
        metadata = engine.metadata
        hop_s = metadata.hop_samples / metadata.sample_rate_hz
        hops = check_stream_options(step_s, gain_db, averaging)
        self.attenuation_limit_db = attenuation_limit_db
        self.sample_rate_hz = rate_hz
        self.channels = channels
        self._engine = engine
        self._averaging = Averaging() if averaging is None else averaging
        self._gain = None if gain_db is None else np.full(channels, 10 ** (gain_db / 20), np.float32)
        self._step_samples = hops * metadata.hop_samples
        # The lag of the model, and the half of an STFT frame that precedes the first hop.
        self._held_back = engine.lag * metadata.hop_samples + metadata.frame_samples - metadata.hop_samples
        self._delay = delay_samples(rate_hz, metadata.sample_rate_hz, self._step_samples, self._held_back)
        model_s = self._held_back + self._step_samples - 1
        self.latency = Latency(
            lookahead_s=engine.lag * hop_s,
            half_frame_s=(metadata.frame_samples - metadata.hop_samples) / metadata.sample_rate_hz,
            step_s=(self._step_samples - 1) / metadata.sample_rate_hz,
            resampling_s=self._delay / rate_hz - model_s / metadata.sample_rate_hz,
        )
        self._high_band = high_band
        self._has_high_band = high_band == "follow" and has_high_band(rate_hz, metadata.sample_rate_hz)
        self._lock = threading.Lock()
        self.reset()

    @property
    def latency_s(self) -> float:
        """The delay from input to output, s: a constant, whole number of samples."""
        return self._delay / self.sample_rate_hz

    @property
    def latency_samples(self) -> int:
        """The delay in samples of the stream."""
        return self._delay

    @property
    def attenuation_limit_db(self) -> float | None:
        """Maximum noise attenuation, dB, reached by mixing in some of the input; None for no limit.

        The input is mixed in at the model's rate, aligned to the sample, and above 8 kHz unless that band is dropped.
        The limit can be changed at any time, even from another thread; the next step fades to it over 20 ms,
        without a click.
        """
        return self._attenuation_limit_db

    @attenuation_limit_db.setter
    def attenuation_limit_db(self, limit_db: float | None) -> None:
        check_attenuation_limit(limit_db)
        self._attenuation_limit_db = limit_db

    @property
    def high_band(self) -> HighBandMode:
        """How the band above the model's is treated. To change it, open another stream."""
        return self._high_band

    @property
    def statistics(self) -> Statistics:
        """The running means so far, to start another stream with: `Averaging(start=stream.statistics)`."""
        return self._engine.statistics(self._state, self._averaging)

    @overload
    def process(self, chunk: bytes | bytearray | memoryview | array[Any]) -> bytes: ...

    @overload
    def process(self, chunk: ChunkT) -> ChunkT: ...

    def process(self, chunk: Any) -> Any:
        """Process the next samples and return as many.

        Args:
            chunk: An array or tensor as for `Denoiser`, `(samples,)` for a single channel or `(channels, samples)`;
                or `bytes`, `bytearray`, `memoryview`, `array.array` or another buffer of interleaved samples. Items
                are bytes of 16-bit samples in native byte order, 16-bit integers or 32-bit floats. Any length is
                allowed, including 0.

        Returns:
            The same type with the same number of samples; for buffers, `bytes` of the same kind of samples.

        Raises:
            AudioError: The type, dtype or number of channels is wrong, or the audio has NaN, infinity or values
                beyond 1e12. The stream is unchanged.
            EngineError: The engine failed, and there is no output for this chunk. Call `reset` for a new signal, or
                go on: the chunk is computed with the next one, whose output is in its place in time again.
            ValueError: The stream was flushed: call `reset` first. Or its `Denoiser` is closed.
            RuntimeError: Another thread is using this stream.
        """
        with self._alone():
            samples, pack = self._unpacked(chunk)
            self._pack = pack
            self._push(samples)
            _compute([self])
            return pack(self._pop(samples.shape[1]))

    def flush(self) -> Any:
        """End the signal and return the rest of the output.

        >>> stream = denoiser.stream(16_000)
        >>> parts = [stream.process(np.zeros(320, np.int16)), stream.flush()]
        >>> np.concatenate(parts).dtype
        dtype('int16')

        Returns:
            `latency_samples` samples in the form of the last chunk, to be joined to what `process` returned: an array
            or tensor of its dtype and number of dimensions, or `bytes`. Without a chunk, `float32 (channels,
            samples)`. Before the next signal, call `reset`.

        Raises:
            ValueError: The stream was flushed already, or its `Denoiser` is closed.
            RuntimeError: Another thread is using this stream.
            EngineError: The engine failed.
        """
        with self._alone():
            self._push(np.zeros((self.channels, self._delay), np.float32))
            _compute([self])
            out = self._pop(self._delay)
            self._is_flushed = True
            return self._pack(out)

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied: two streams would share the state of one signal."""
        raise TypeError("a stream cannot be pickled or copied: open another one with Denoiser.stream")

    def reset(self) -> None:
        """Start a new signal, as a new stream with the same arguments would.

        Raises:
            ValueError: Its `Denoiser` is closed.
            RuntimeError: Another thread is using this stream.
        """
        with self._alone(even_flushed=True):
            metadata = self._engine.metadata
            empty = np.zeros((self.channels, 0), np.float32)
            self._state: StreamState = self._engine.start(self.channels, self._averaging)
            self._input = _InputState(RunningOffset.none(self.channels), RunningLevel.silent(self.channels))
            self._to_model = StreamResampler(self.sample_rate_hz, metadata.sample_rate_hz, self.channels)
            self._from_model = StreamResampler(metadata.sample_rate_hz, self.sample_rate_hz, self.channels)
            self._high = (
                _StreamHighBand(self.sample_rate_hz, metadata.sample_rate_hz, self.channels)
                if self._has_high_band
                else None
            )
            self._waiting = empty  # a step at the model's rate, not computed yet
            self._out = [np.zeros((self.channels, self._delay), np.float32)]
            self._due = 0  # samples of the output that were not returned yet, though their input is here
            # The input of the hops that the model has not output yet, and their gains.
            self._dry = np.zeros((self.channels, self._held_back), np.float32)
            self._gains = np.ones((self.channels, self._held_back // metadata.hop_samples), np.float32)
            self._skip = self._held_back
            self._share: float | None = None  # of the input in the last step
            self._pack = Layout(np.dtype(np.float32), mono=False).pack  # to the form of the last chunk
            self._is_flushed = False

    # Samples pass through `_push`, then `_next_step` and `_finish` for each full step, then `_pop`.

    def _push(self, samples: NDArray[np.float32]) -> None:
        self._to_model.write(samples)
        self._due += samples.shape[1]
        if self._high is not None:
            self._high.write(samples)

    def _next_step(self) -> tuple[Step, NDArray[np.float32], _InputState] | None:
        """Return the next step, the gains of its hops and the input's state after it; None until the step is full."""
        if not self._waiting.shape[1]:
            if self._to_model.ready < self._step_samples:
                return None
            self._waiting = self._to_model.read(self._step_samples)
        hop = self._engine.metadata.hop_samples
        audio, offset = self._input.offset.taken_out(self._waiting.reshape(self.channels, -1, hop))
        level = self._input.level
        if self._gain is None:
            gains, level = level.update(audio)
        else:
            gains = np.repeat(self._gain[:, None], audio.shape[1], axis=1)
        scaled = (audio * gains[..., None]).reshape(self.channels, -1)
        return Step(self._state, self._averaging, scaled), gains, _InputState(offset, level)

    def _finish(
        self, out: NDArray[np.float32], state: StreamState, gains: NDArray[np.float32], after: _InputState
    ) -> None:
        self._state, self._input = state, after
        hops = gains.shape[1]
        gains = np.concatenate([self._gains, gains], axis=1)
        dry = np.concatenate([self._dry, self._waiting], axis=1)
        if self._high is not None:
            self._high.write_low(self._waiting)
        self._waiting = self._waiting[:, :0]
        self._gains, self._dry = gains[:, hops:], dry[:, self._step_samples :]
        wet = (out.reshape(self.channels, hops, -1) / gains[:, :hops, None]).reshape(self.channels, -1)
        dry = dry[:, : self._step_samples]
        skipped = min(self._skip, wet.shape[1])
        self._skip -= skipped
        share = dry_share_of(self._attenuation_limit_db)
        before, self._share = share if self._share is None else self._share, share
        shares = np.full(self._step_samples, share, np.float32)
        if share != before:  # a jump would click
            hop = self._engine.metadata.hop_samples
            shares[:hop] = np.linspace(before, share, hop, endpoint=False)
        if self._high is not None:
            self._high.write_model(dry[:, skipped:], wet[:, skipped:], shares[skipped:])
        if max(share, before) > 0:
            (wet,) = mix_dry([wet], [dry], shares)
        if skipped < wet.shape[1]:
            self._from_model.write(wet[:, skipped:])
            ready = self._from_model.read(self._from_model.ready)
            self._out.append(ready if self._high is None else ready + self._high.read(ready.shape[1]))

    def _pop(self, samples: int) -> NDArray[np.float32]:
        """Return the last samples that are due; `delay_samples` has the proof that they are there.

        More are due only after calls that failed. They are dropped, so that the delay stays what it is.
        """
        out = self._out[0] if len(self._out) == 1 else np.concatenate(self._out, axis=1)
        due, self._due = self._due, 0
        self._out = [out[:, due:]]
        return out[:, due - samples : due]

    def _unpacked(self, chunk: object) -> tuple[NDArray[np.float32], Pack]:
        """Return a chunk as `float32 (channels, samples)`, and the function that brings a result to its form."""
        view = _buffer(chunk)
        if view is not None:
            dtype = _dtype_of(view)
            check_interleaved(view, self.channels)
            samples, layout = unpack(from_pcm(view.tobytes(), self.channels, dtype))
            pack: Pack = lambda out: to_pcm(layout.pack(out), dtype)  # noqa: E731
        else:
            samples, layout = unpack(chunk)
            pack = layout.pack
        if len(samples) != self.channels:
            raise AudioError(f"the stream has {self.channels} channel(s), the chunk has {len(samples)}")
        check_finite(samples, 0)
        return samples, pack

    @contextmanager
    def _alone(self, *, even_flushed: bool = False) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("this stream is in use by another thread; create one stream per signal")
        try:
            if not even_flushed and self._is_flushed:
                raise ValueError("this stream was flushed: call reset() or create a new stream")
            with self._engine.in_use:
                yield
        finally:
            self._lock.release()


def _buffer(chunk: Any) -> memoryview | None:
    """Return a view of a chunk that is a buffer; None for arrays and other objects."""
    if isinstance(chunk, np.ndarray | np.generic):
        return None
    try:
        return memoryview(chunk)
    except TypeError:
        return None


def _dtype_of(view: memoryview) -> np.dtype[Any]:
    """Return the dtype of the samples in a buffer.

    Raises:
        AudioError: The buffer holds items of another type.
    """
    order, kind = view.format[:-1], view.format[-1:]
    if kind in "bBc" and view.itemsize == 1:
        return np.dtype(np.int16)
    if kind in "hf" and order in {"", "@", "=", "<", ">"}:
        return np.dtype(order.replace("@", "=") + kind)
    raise AudioError(
        f"a buffer must hold bytes, 16-bit integers or 32-bit floats, got items of format {view.format!r}: pass a "
        "numpy array"
    )


class _StreamHighBand:
    """The band above the model's, of a stream.

    It adds no delay: it is always ready as far as the resampled output of the model. A sample of that output needs
    the model up to 4 ms later, which is the reach of the resampler, and `HighBand` needs no more. The signal itself
    is ahead of the model's output by at least a frame and a step, 40 ms; of these, the band needs the reach of the
    resampler and 8 ms.

    Args:
        rate_hz: Rate of the stream.
        model_rate_hz: Rate of the model.
        channels: Number of channels.
    """

    def __init__(self, rate_hz: int, model_rate_hz: int, channels: int) -> None:
        self._high_band = HighBand(rate_hz, model_rate_hz, channels)
        self._low = StreamResampler(model_rate_hz, rate_hz, channels)
        self._signal = [np.zeros((channels, 0), np.float32)]
        self._out = np.zeros((channels, 0), np.float32)

    def write(self, signal: NDArray[np.float32]) -> None:
        """Append to the signal."""
        self._signal.append(signal)

    def write_low(self, audio: NDArray[np.float32]) -> None:
        """Append to the signal at the model's rate."""
        self._low.write(audio)
        low = self._low.read(self._low.ready)
        signal = np.concatenate(self._signal, axis=1)
        self._high_band.write(signal[:, : low.shape[1]] - low)
        self._signal = [signal[:, low.shape[1] :]]

    def write_model(
        self, dry: NDArray[np.float32], wet: NDArray[np.float32], dry_shares: NDArray[np.float32]
    ) -> None:
        """Append to the model's input and output, and to the share of the band that is kept."""
        self._high_band.write_model(dry, wet, dry_shares)

    def read(self, samples: int) -> NDArray[np.float32]:
        """Return the next samples."""
        out = np.concatenate([self._out, self._high_band.read()], axis=1)
        self._out = out[:, samples:]
        return out[:, :samples]


def check_stream_options(step_s: float, gain_db: float | None, averaging: Averaging | None) -> int:
    """Check the options of a stream that do not depend on the model, and return the step in hops.

    Args:
        step_s: See `Denoiser.stream`.
        gain_db: See `Denoiser.stream`.
        averaging: See `Denoiser.stream`.

    Raises:
        ValueError: A value is out of range.
        TypeError: `averaging` is something else.
    """
    step_s = real_number("step_s", step_s)
    hop_s = HOP_SAMPLES / SAMPLE_RATE_HZ
    hops = round(step_s / hop_s) if 0 < step_s < 2 * _MAX_STEP_HOPS * hop_s else 0
    if not (1 <= hops <= _MAX_STEP_HOPS and abs(hops * hop_s - step_s) < 1e-6):
        raise ValueError(
            f"step_s must be a multiple of {hop_s:g} s, up to {_MAX_STEP_HOPS * hop_s:g} s, got {step_s:g} s"
        )
    gain = 0.0 if gain_db is None else real_number("gain_db", gain_db)
    if not -_MAX_GAIN_DB <= gain <= _MAX_GAIN_DB:  # NaN, too
        raise ValueError(f"gain_db must be {-_MAX_GAIN_DB} to {_MAX_GAIN_DB} dB, got {gain:g} dB")
    if averaging is not None and not isinstance(averaging, Averaging):
        raise TypeError(f"averaging must be an Averaging or None, got {type(averaging).__name__}")
    return hops


def process_streams(streams: Sequence[Stream], chunks: Sequence[ChunkT]) -> list[ChunkT]:
    """Process the next chunk of each of many streams, with shared calls of the engine.

    >>> streams = [denoiser.stream(16_000), denoiser.stream(48_000)]
    >>> chunks = [np.zeros(320, np.float32), np.zeros(960, np.float32)]
    >>> [result.shape for result in process_streams(streams, chunks)]
    [(320,), (960,)]

    The streams can differ from call to call. The result of each stream is what `Stream.process` would return, up to
    rounding. Streams can differ in rate and channels, chunks in length.

    Args:
        streams: Different streams of one `Denoiser`.
        chunks: One chunk per stream.

    Returns:
        One result per stream, see `Stream.process`.

    Raises:
        ValueError: The streams belong to different denoisers or have different look-aheads, a stream is given twice,
            or the numbers of streams and chunks differ. Or a stream was flushed, or its denoiser is closed.
        AudioError: A chunk is not valid, see `Stream.process`; the message names it. All streams are unchanged.
        RuntimeError, EngineError: See `Stream.process`.
    """
    if len(streams) != len(chunks):
        raise ValueError(f"got {len(streams)} streams and {len(chunks)} chunks: give one chunk per stream")
    if len({id(stream) for stream in streams}) < len(streams):
        raise ValueError("a stream is given twice")
    if len({id(stream._engine) for stream in streams}) > 1:
        raise ValueError("the streams must belong to one Denoiser and have the same look-ahead")
    with ExitStack() as stack:
        for stream in streams:
            stack.enter_context(stream._alone())
        unpacked = []
        for number, (stream, chunk) in enumerate(zip(streams, chunks, strict=True)):
            try:
                unpacked.append(stream._unpacked(chunk))
            except AudioError as error:
                raise AudioError(f"chunks[{number}]: {error}") from error
        for stream, (samples, pack) in zip(streams, unpacked, strict=True):
            stream._pack = pack
            stream._push(samples)
        _compute(streams)
        return [
            pack(stream._pop(samples.shape[1])) for stream, (samples, pack) in zip(streams, unpacked, strict=True)
        ]


def _compute(streams: Sequence[Stream]) -> None:
    """Run all full steps of the streams."""
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
            for (stream, (_, gains, after)), (out, state) in zip(items, results, strict=True):
                stream._finish(out, state, gains, after)
