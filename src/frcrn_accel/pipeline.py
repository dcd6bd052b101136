"""Denoise a signal block by block, in memory that does not grow with its length.

::

    blocks at the source's rate ── resample ── 16 kHz ── gain ── windows ── engine ── cross-fade ── 1 / gain
        │                                                                                             │
        ├── less what 16 kHz can hold ── gains of the band above (high_band.py) ── + ── resample back ──┘
        └──────────────────────────── dry share (attenuation limit) ──────────── + ──► result

Before that, the level is measured, in two passes: each channel gets one gain for its whole length. A short signal is
read only once for both passes, and kept at the model's rate. Only events that are far louder than the speech get less
gain (`_headroom`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.audio import Blocks, Levels, beside, check_finite, fit_length, measure_levels, mix_dry, resample
from frcrn_accel.backends import Session
from frcrn_accel.errors import AudioTooLongError, EngineError
from frcrn_accel.high_band import HighBand, HighBandMode, has_high_band
from frcrn_accel.models import ModelMetadata
from frcrn_accel.windows import Windowing

__all__ = ["Engine", "Signal", "Treatment", "denoise_signal", "split_signal"]

_MAX_KEPT_BYTES = 8 << 20  # two minutes of one channel; the windows of a call take more
_LOUDEST_FRAME = 10 ** (-12 / 10)  # power; 13 dB above active speech, whose loudest syllables reach 6 dB
_HUGE = 1e60  # power of a frame: the gain of a louder one would be too small for float32


@dataclass(frozen=True)
class Signal:
    """Audio that can be read from its start repeatedly.

    Attributes:
        open_blocks: Returns the blocks, `float32 (channels, samples)`, from the start, each time it is called.
        sample_rate_hz: Sample rate.
        channels: Number of channels.
        max_samples: Maximum length in samples; None for no limit.
    """

    open_blocks: Callable[[], Blocks]
    sample_rate_hz: int
    channels: int
    max_samples: int | None = None


@dataclass(frozen=True)
class Engine:
    """A loaded model, and how to run it.

    Attributes:
        session: The loaded model.
        metadata: Metadata of the model.
        windowing: How to cut long signals into windows.
        batch_size: Windows per call of the session; each channel counts.
    """

    session: Session
    metadata: ModelMetadata
    windowing: Windowing
    batch_size: int


@dataclass(frozen=True)
class Treatment:
    """Settings of the processing around the model.

    Attributes:
        dry_share: Share of the input to mix into the result, as amplitude, 0 to 1.
        high_band: What to do with the band above the model's: `"follow"` attenuates noise in it, `"drop"` leaves it
            out.
    """

    dry_share: float = 0.0
    high_band: HighBandMode = "follow"


def denoise_signal(signal: Signal, engine: Engine, treatment: Treatment) -> Iterator[NDArray[np.float32]]:
    """Denoise a signal.

    Args:
        signal: The signal.
        engine: The model.
        treatment: The processing around it.

    Yields:
        Blocks of the result, `float32 (channels, samples)`, at the rate and level of the signal and with its length.

    Raises:
        AudioError: The signal contains NaN, infinity or values beyond 1e12.
        AudioTooLongError: It is too long.
        EngineError: The engine failed or gave numbers that are not finite.
    """
    samples = 0

    def source() -> Iterator[NDArray[np.float32]]:
        nonlocal samples
        samples = 0
        for block in signal.open_blocks():
            check_finite(block, samples)
            samples += block.shape[1]
            if signal.max_samples is not None and samples > signal.max_samples:
                limit_s = signal.max_samples / signal.sample_rate_hz
                raise AudioTooLongError(f"audio is longer than the limit of {limit_s:g} s")
            yield block

    rate_hz = engine.metadata.sample_rate_hz

    def at_model_rate(blocks: Blocks) -> Iterator[NDArray[np.float32]]:
        return resample(blocks, signal.sample_rate_hz, rate_hz, signal.channels)

    measured = _Repeated(lambda: at_model_rate(source()))
    levels = measure_levels(measured.blocks, signal.channels)
    total = samples  # from here on `samples` counts another reading
    if total == 0:
        return
    if treatment.high_band == "follow" and has_high_band(signal.sample_rate_hz, rate_hz):
        del measured
        held, held_dry = _Held(signal.channels), _Held(signal.channels)
        dry = held_dry.kept(at_model_rate(held.kept(source())))
        wet = _enhance(dry, levels, engine)
        wet = _add_high_band(wet, held, held_dry, signal.sample_rate_hz, rate_hz)
    else:
        wet = _enhance(measured.blocks(), levels, engine)
        wet = resample(wet, rate_hz, signal.sample_rate_hz, signal.channels)
    wet = fit_length(wet, total, signal.channels)
    if treatment.dry_share > 0:
        wet = mix_dry(wet, signal.open_blocks(), treatment.dry_share)
    yield from wet


def split_signal(
    signal: Signal, engine: Engine, treatment: Treatment
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Split a signal into speech and noise.

    Args:
        signal: See `denoise_signal`.
        engine: See `denoise_signal`.
        treatment: See `denoise_signal`.

    Yields:
        Blocks of the result of `denoise_signal`, and of the signal minus that.

    Raises:
        Exception: See `denoise_signal`.
    """
    for speech, whole in beside(denoise_signal(signal, engine, treatment), signal.open_blocks()):
        yield speech, whole - speech


def _add_high_band(
    wet: Blocks, held: _Held, held_dry: _Held, rate_hz: int, model_rate_hz: int
) -> Iterator[NDArray[np.float32]]:
    """Bring the model's output to the rate of the signal, and add the band above the model's.

    That band is the signal minus what is left of it after resampling to the model's rate and back, so that the two
    bands add up to the signal at every frequency, the cross-over included.

    Args:
        wet: The model's output, at its rate.
        held: The signal so far.
        held_dry: The model's input so far.
        rate_hz: Rate of the signal.
        model_rate_hz: Rate of the model.
    """
    channels = held.channels
    high_band = HighBand(rate_hz, model_rate_hz, channels)
    low = _Held(channels)

    def pairs() -> Iterator[NDArray[np.float32]]:
        for block in wet:
            dry = held_dry.take(block.shape[1])
            high_band.write_model(dry, block)
            yield np.concatenate([block, dry])

    for both in resample(pairs(), model_rate_hz, rate_hz, 2 * channels):
        low.append(both[:channels])
        band = held.take(both.shape[1])
        high_band.write(band - both[channels:, : band.shape[1]])
        high = high_band.read()
        yield low.take(high.shape[1]) + high
    high = high_band.finish()
    rest = low.take(high.shape[1])
    yield rest + high[:, : rest.shape[1]]


def _enhance(blocks: Blocks, levels: Levels, engine: Engine) -> Iterator[NDArray[np.float32]]:
    """Cut a signal at the model's rate into windows, denoise them and join the results."""
    samples, gains, offsets = levels
    if offsets.any():  # the model would remove an offset, at a cost in quality
        shift = offsets.astype(np.float32)[:, None]
        blocks = (block - shift for block in blocks)
    hop = engine.metadata.hop_samples
    # With silence around the signal, each of its samples is part of the same number of STFT frames. The first and the
    # last hop of the model's output are not reliable.
    margin = engine.metadata.frame_samples - hop
    padded = -(-(samples + 2 * margin) // hop) * hop
    plan = engine.windowing.plan(padded, engine.metadata.sample_rate_hz, hop)
    gain = gains.astype(np.float32)[:, None]
    feed = _Feed(blocks, len(gains), margin)
    windows_per_call = max(1, engine.batch_size // len(gains))
    joined = np.zeros((len(gains), 0), np.float32)  # the sum so far, from `position` on
    position = 0
    for first in range(0, len(plan), windows_per_call):
        windows = plan[first : first + windows_per_call]
        batch = np.stack([feed.read(window.start, window.stop) for window in windows])
        rows = (batch * gain).reshape(-1, batch.shape[-1])
        headroom = _headroom(rows, hop)
        denoised = _run(engine, rows) if headroom is None else _run(engine, rows * headroom) / headroom
        denoised = denoised.reshape(batch.shape) / gain
        for index, (window, piece) in enumerate(zip(windows, denoised, strict=True), first):
            # The window's weights are zero before `position`, where its fade-in begins.
            grown = (piece * window.weights())[:, position - window.start :]
            grown[:, : joined.shape[1]] += joined
            end = plan[index + 1].fade_in[0] if index + 1 < len(plan) else padded
            yield grown[:, max(0, margin - position) : min(end, margin + samples) - position]
            joined, position = grown[:, end - position :], end


def _headroom(rows: NDArray[np.float32], hop: int) -> NDArray[np.float32] | None:
    """Return, for each sample, the gain that brings loud events down to levels that the model was trained on.

    The level of a signal is that of its speech, so a bang beside quiet speech would reach the model far above full
    scale. The model passes such a bang through, and because it averages over the whole signal, it then removes speech
    elsewhere. In streams, the level rises with an event, which keeps the event within the same bound.

    Args:
        rows: Input of the model, whole hops, `(rows, samples)`.
        hop: Hop of the STFT in samples.

    Returns:
        Gains of the shape of `rows`; None if no frame is above the bound, as in nearly all recordings.
    """
    frames = rows.reshape(len(rows), -1, hop)
    power = np.einsum("rfn,rfn->rf", frames, frames, dtype=np.float64) / hop
    if power.max() <= _LOUDEST_FRAME:
        return None
    gains_db = 10 * np.log10(_LOUDEST_FRAME / np.clip(power, _LOUDEST_FRAME, _HUGE))
    padded = np.pad(gains_db, [(0, 0), (1, 1)], mode="edge")
    gains_db = np.minimum(np.minimum(padded[:, :-2], padded[:, 2:]), gains_db)  # an event may begin late in a frame
    centres = np.arange(gains_db.shape[1]) * hop + (hop - 1) / 2
    samples = np.arange(rows.shape[1])
    return np.stack([10 ** (np.interp(samples, centres, of_row) / 20) for of_row in gains_db]).astype(np.float32)


def _run(engine: Engine, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run rows of equal length, at most `batch_size` per call."""
    parts = []
    for first in range(0, len(rows), engine.batch_size):
        part = rows[first : first + engine.batch_size]
        denoised = engine.session.run(part)
        if denoised.shape != part.shape:
            raise EngineError(f"the engine returned {denoised.shape} for a batch of {part.shape}")
        if not np.isfinite(denoised).all():
            raise EngineError("the engine returned NaN or infinity for finite audio")
        parts.append(denoised)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class _Feed:
    """Reads windows from blocks, and keeps only the samples from the start of the last window on.

    Args:
        blocks: The signal.
        channels: Number of channels.
        margin: Number of zeros to put before the signal.
    """

    def __init__(self, blocks: Blocks, channels: int, margin: int) -> None:
        self._blocks = iter(blocks)
        self._held = np.zeros((channels, margin), np.float32)
        self._start = 0

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return samples `start` to `stop`, with zeros after the end of the signal. `start` must not decrease."""
        pieces = [self._held[:, start - self._start :]]
        length = pieces[0].shape[1]
        while length < stop - start:
            block = next(self._blocks, None)
            if block is None:
                block = np.zeros((self._held.shape[0], stop - start - length), np.float32)
            pieces.append(block)
            length += block.shape[1]
        self._held, self._start = np.concatenate(pieces, axis=1), start
        return self._held[:, : stop - start]


class _Repeated:
    """A signal that is read repeatedly: kept after the first time if it is short, else computed each time.

    Args:
        compute: Returns the blocks from the start, each time it is called.
    """

    def __init__(self, compute: Callable[[], Blocks]) -> None:
        self._compute = compute
        self._kept: list[NDArray[np.float32]] | None = None

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yield the blocks from the start."""
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[NDArray[np.float32]] | None = []
        size = 0
        for block in self._compute():
            size += block.nbytes
            if kept is not None:
                kept.append(block)
            if size > _MAX_KEPT_BYTES:
                kept = None
            yield block
        self._kept = kept


class _Held:
    """The part of a signal between two readers, which the second takes from the start.

    Args:
        channels: Number of channels.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self._blocks: deque[NDArray[np.float32]] = deque()

    def append(self, block: NDArray[np.float32]) -> None:
        """Append a block."""
        self._blocks.append(block)

    def kept(self, blocks: Blocks) -> Iterator[NDArray[np.float32]]:
        """Pass blocks on, and append each."""
        for block in blocks:
            self.append(block)
            yield block

    def take(self, samples: int) -> NDArray[np.float32]:
        """Remove and return the next samples, fewer at the end of the signal."""
        pieces = [np.zeros((self.channels, 0), np.float32)]
        while samples and self._blocks:
            block = self._blocks.popleft()
            pieces.append(block[:, :samples])
            if block.shape[1] > samples:
                self._blocks.appendleft(block[:, samples:])
            samples -= pieces[-1].shape[1]
        return np.concatenate(pieces, axis=1)
