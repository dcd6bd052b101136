"""Array formats, sample formats, rates and levels of audio, without engines and files.

Inside the library, audio is `float32 (channels, samples)` with full scale at 1.0. Long audio is passed in blocks: an
iterable of consecutive arrays.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.arguments import real_number, shown
from frcrn_accel.errors import AudioError

__all__ = [
    "CEILING_FRAMES",
    "HIGHEST_CEILING",
    "LEVEL_FRAME_SAMPLES",
    "MAX_CHANNELS",
    "MAX_SAMPLE_RATE_HZ",
    "MIN_SAMPLE_RATE_HZ",
    "Blocks",
    "Layout",
    "Levels",
    "Resampler",
    "beside",
    "burst_ceiling_of",
    "burst_of",
    "ceiling_of",
    "check_attenuation_limit",
    "check_channels",
    "check_finite",
    "check_format",
    "dry_share_of",
    "fit_length",
    "float_to_int",
    "gain_of",
    "is_event_only",
    "load_soxr",
    "measure_levels",
    "mix_dry",
    "offset_matters",
    "resample",
    "unpack",
    "whole_hz",
]

MIN_SAMPLE_RATE_HZ = 8_000
MAX_SAMPLE_RATE_HZ = 192_000
MAX_CHANNELS = 64  # with more, it is nearly always an array of (samples, channels)

TARGET_LEVEL = 10 ** (-25 / 20)  # upstream's pipelines bring active speech to -25 dBFS RMS (FRCRN's `audio_norm`)
SILENCE_LEVEL = 10 ** (-140 / 20)  # signals below this RMS are not scaled
_NO_LIMIT_DB = 1_000.0  # float32 cannot hold such a share of the input
_LARGEST_SAMPLE = 1e12  # 240 dB above full scale: powers of spectra would overflow float32 from 1e17 on
_OFFSET_SAMPLES = 16_000  # a second at the model's rate: in less, an offset may be part of a low tone
_ROUNDING = 2.0**-23  # of float32: relative to an offset, anything smaller is rounding and not signal
_TINY = 1e-30  # replaces zero in divisions; float32 can hold it
_HUGE = 1e38  # float32 can hold it
_OFFSET_SHARE = 0.03  # an offset with less power than this share of the rest changes the result by -35 dB or less

LEVEL_FRAME_SAMPLES = 320  # 20 ms at the model's rate
_EVENT_FRAMES = 28  # of 100: an event of half a second touches 26, and may echo
CEILING_FRAMES = 100
_CEILING_STEP = 10
_STEEPNESS = 6  # a frame 5 dB above the ceiling counts 30 dB less
_HEADROOM = 20.0  # 13 dB: loud syllables are within it
_GAP = 4.0  # 6 dB between a burst and the loudest speech around it
_EDGE_FRAMES = 2  # at the edges of a burst, which fills them only in part
_BROKEN_FRAMES = 3  # quieter frames that a burst may contain
HIGHEST_CEILING = 2.0  # it is 3 dB above the loudest frame where there is no burst
_EVENT_ONLY = 10.0  # 10 dB: only events louder than this over the rest can be the signal itself
_BURSTS = 2  # a file may contain several; those of similar loudness have a ceiling
_PEAK_GAP = 5.0  # 7 dB between the peak of a click and the highest around it
_CREST = 16.0  # 12 dB between the peak of a click and the power of its frame; in speech, it is rarely more
_AUDIBLE = 0.25  # what dies away below this share of the loudest speech no longer changes its level
_CORE_RANGE = 30.0  # 15 dB: what is below its peak by less belongs to an event, even after a gap
_FALL, _RISE = 4.0, 1.5  # from frame to frame, what swells or dies away changes by less
_SYLLABLES = 16.0  # 12 dB: the range of the syllables of a word
_SYLLABLE_FRAMES = 8
_WORD_FRAMES = 15  # a word of 0.3 s
_WORD_RANGE = 40.0  # 16 dB between the parts of a word
_FAINT_FRAMES = 5e-8  # as _FAINT_POWER, of whole frames instead of active samples
_FAINT_POWER = 10 ** (-66 / 10)  # speech below this level cannot be distinguished from the noise of a quiet room

# The supported dtypes, and the value that stands for 1.0.
_FULL_SCALE: Mapping[np.dtype[Any], float] = {
    np.dtype(np.float16): 1.0,
    np.dtype(np.float32): 1.0,
    np.dtype(np.float64): 1.0,
    np.dtype(np.int16): 2.0**15,
    np.dtype(np.int32): 2.0**31,
}

Blocks = Iterable[NDArray[np.float32]]


@dataclass(frozen=True)
class Layout:
    """The form of an array or tensor, to return the result in the same form.

    Attributes:
        dtype: float16, float32, float64, int16 or int32.
        mono: Whether the shape was `(samples,)`.
        torch_device: Device of a torch tensor; None for a numpy array.
    """

    dtype: np.dtype[Any]
    mono: bool
    torch_device: Any = None

    def pack(self, audio: NDArray[np.float32]) -> Any:
        """Convert `float32 (channels, samples)` to the original form."""
        out: Any = audio[0] if self.mono else audio
        if self.dtype.kind == "i":
            out = float_to_int(out, 8 * self.dtype.itemsize)
        elif self.dtype == np.float16:
            largest = np.finfo(np.float16).max
            out = np.clip(out, -largest, largest)
        out = out.astype(self.dtype)
        if self.torch_device is not None:
            return sys.modules["torch"].from_numpy(np.ascontiguousarray(out)).to(self.torch_device)
        return out


def unpack(audio: Any) -> tuple[NDArray[np.float32], Layout]:
    """Convert an array or tensor to `float32 (channels, samples)`.

    Args:
        audio: numpy array or torch tensor, `(samples,)` or `(channels, samples)`, float16, float32, float64, int16 or
            int32. Subclasses of numpy's array, such as `np.matrix`, count as plain arrays.

    Returns:
        The samples, and the layout that converts a result back.

    Raises:
        AudioError: The type, dtype or shape is not supported, or it is a masked array.
    """
    torch = sys.modules.get("torch")  # a caller with a tensor has imported torch
    device = None
    if torch is not None and isinstance(audio, torch.Tensor):
        device = audio.device
        if audio.dtype not in (torch.float16, torch.float32, torch.float64, torch.int16, torch.int32):
            raise AudioError(
                f"audio must be float16, float32, float64, int16 or int32, got a tensor of {audio.dtype}"
            )
        try:
            audio = audio.detach().cpu().resolve_neg().numpy()
        except (RuntimeError, TypeError) as error:
            raise AudioError(
                f"audio must be a dense tensor with values, got one of {audio.layout} on {audio.device}, which "
                f"cannot be converted to an array: {str(error).partition(chr(10))[0]}"
            ) from error
    if not isinstance(audio, np.ndarray):
        raise AudioError(
            f"audio must be a numpy array or a torch tensor, got {type(audio).__name__}: convert it with "
            "numpy.asarray, or numpy.frombuffer if it is raw samples"
        )
    if isinstance(audio, np.ma.MaskedArray):
        raise AudioError("audio is a masked array: fill the masked samples first, for example with audio.filled(0)")
    audio = np.asarray(audio)  # a matrix would stay 2-D when a row is taken
    native = audio.dtype.newbyteorder("=")
    full_scale = _FULL_SCALE.get(native)
    if full_scale is None:
        raise AudioError(f"audio must be float16, float32, float64, int16 or int32, got {audio.dtype}")
    if audio.ndim not in (1, 2) or (audio.ndim == 2 and not 1 <= audio.shape[0] <= MAX_CHANNELS):
        raise AudioError(
            f"audio must be (samples,) or (channels, samples) with 1 to {MAX_CHANNELS} channels, got shape "
            f"{audio.shape}; transpose an array of (samples, channels)"
        )
    rows = audio[None] if audio.ndim == 1 else audio
    with np.errstate(over="ignore"):  # float64 values beyond float32 become inf; `check_finite` rejects them
        samples = (rows / full_scale if full_scale != 1.0 else rows).astype(np.float32)
    return samples, Layout(native, audio.ndim == 1, device)


def float_to_int(audio: NDArray[np.float32], bits: int) -> NDArray[np.int64]:
    """Convert audio with full scale at 1.0 to signed integers of `bits` bits, rounded and clipped."""
    full_scale = 1 << (bits - 1)
    return np.clip(np.rint(audio.astype(np.float64) * full_scale), -full_scale, full_scale - 1).astype(np.int64)


def check_format(sample_rate_hz: int, channels: int) -> None:
    """Check that a rate and a channel count are supported.

    Raises:
        AudioError: One of them is out of range, or `channels` is not an integer.
    """
    if not MIN_SAMPLE_RATE_HZ <= sample_rate_hz <= MAX_SAMPLE_RATE_HZ:
        got = shown(sample_rate_hz)
        raise AudioError(f"sample rate must be {MIN_SAMPLE_RATE_HZ} to {MAX_SAMPLE_RATE_HZ} Hz, got {got}")
    check_channels(channels)


def check_channels(channels: int) -> None:
    """Check that a channel count is supported.

    Raises:
        AudioError: It is out of range, or not an integer.
    """
    if not isinstance(channels, Integral):
        raise AudioError(f"channels must be a whole number, got {shown(channels)}")
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(f"audio must have 1 to {MAX_CHANNELS} channels, got {shown(channels)}")


def whole_hz(sample_rate: Any) -> int:
    """Return a sample rate as an integer.

    Raises:
        AudioError: `sample_rate` is not a whole number of Hz.
    """
    try:
        hz = float(sample_rate)
    except (TypeError, ValueError, OverflowError):
        hz = math.nan
    if not hz.is_integer():
        raise AudioError(f"sample rate must be a whole number of Hz, got {shown(sample_rate)}")
    return int(hz)


def check_attenuation_limit(limit_db: float | None) -> None:
    """Check that an attenuation limit is valid.

    Raises:
        ValueError: The limit is negative, NaN or no number.
    """
    if limit_db is not None and not real_number("attenuation_limit_db", limit_db) >= 0:
        raise ValueError(f"attenuation_limit_db must be 0 or more, got {shown(limit_db)}")


def dry_share_of(limit_db: float | None) -> float:
    """Return the share of the input, as amplitude, that limits noise attenuation to `limit_db` dB; 0 for None."""
    return 0.0 if limit_db is None or limit_db > _NO_LIMIT_DB else float(10 ** (-limit_db / 20))


def check_finite(block: NDArray[np.float32], offset: int) -> None:
    """Check that a block has no NaN, no infinity, and no value whose power float32 cannot hold.

    Args:
        block: `(channels, samples)`.
        offset: Position of the block in its signal, for the message.

    Raises:
        AudioError: A value is not finite or beyond 1e12; the message names the first.
    """
    is_sound = np.abs(block) <= _LARGEST_SAMPLE
    if not is_sound.all():
        channel, sample = np.argwhere(~is_sound)[0]
        what = "values beyond 1e12" if np.isfinite(block[channel, sample]) else "NaN or infinity"
        raise AudioError(f"audio contains {what}, first in channel {channel} at sample {offset + sample}")


def load_soxr() -> Any:
    """Import soxr, which is needed only for audio at other rates than the model's.

    Raises:
        AudioError: soxr is not installed.
    """
    try:
        import soxr
    except ImportError as error:
        raise AudioError(
            f"the sample rate cannot be converted: the package soxr is missing ({error}). Run 'pip install soxr'. "
            "There is no wheel of it for Python for Arm on Windows: use Python for x86-64 there, which Windows "
            "emulates, a C compiler to build soxr, or audio at 16 kHz"
        ) from error
    return soxr


class Resampler:
    """Resamples a signal that arrives in blocks. The result does not depend on the block sizes.

    Args:
        from_hz: The rate of the signal.
        to_hz: The rate of the result.
        channels: Number of channels.
    """

    def __init__(self, from_hz: int, to_hz: int, channels: int) -> None:
        stream = load_soxr().ResampleStream
        # One for each channel: the bits are the same, and soxr is slower on interleaved channels.
        self._streams = [stream(from_hz, to_hz, 1, dtype="float32", quality="HQ") for _ in range(channels)]
        self._tail = np.zeros((channels, -(-from_hz // to_hz)), np.float32)

    def push(self, block: NDArray[np.float32], *, last: bool = False) -> NDArray[np.float32]:
        """Take a block, `float32 (channels, samples)`, and return the samples that are ready."""
        rows = zip(self._streams, np.ascontiguousarray(block), strict=True)
        return np.stack([stream.resample_chunk(row, last=last) for stream, row in rows])

    def finish(self) -> NDArray[np.float32]:
        """Return the samples that are left, and a few more: see `resample`."""
        return self.push(self._tail, last=True)


def resample(blocks: Blocks, from_hz: int, to_hz: int, channels: int) -> Iterator[NDArray[np.float32]]:
    """Resample a signal in blocks. The result does not depend on the block sizes.

    The result has at least `samples * to_hz / from_hz` samples, because a few zeros are added at the end; cut it with
    `fit_length`.

    Args:
        blocks: The signal, `float32 (channels, samples)` each.
        from_hz: Its rate.
        to_hz: The rate of the result.
        channels: Number of channels.
    """
    if from_hz == to_hz:
        yield from blocks
        return
    resampler = Resampler(from_hz, to_hz, channels)
    for block in blocks:
        yield resampler.push(block)
    yield resampler.finish()


def fit_length(blocks: Blocks, samples: int, channels: int) -> Iterator[NDArray[np.float32]]:
    """Cut a signal in blocks to `samples` samples, or pad it with zeros."""
    left = samples
    for block in blocks:
        yield block[:, :left]
        left -= min(left, block.shape[1])
    if left:
        yield np.zeros((channels, left), np.float32)


def mix_dry(wet: Blocks, dry: Blocks, dry_share: float | NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Mix two signals of equal length, which may have different block sizes.

    Args:
        wet: The denoised signal.
        dry: The input signal.
        dry_share: Share of the input, as amplitude, 0 to 1; for signals of a single block also that of each sample.
    """
    share = np.asarray(dry_share, np.float32)
    for wet_block, dry_block in beside(wet, dry):
        yield wet_block * (1 - share) + dry_block * share


def beside(blocks: Blocks, others: Blocks) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Yield the blocks of a signal, each with the same samples of another of equal length."""
    other_blocks = iter(others)
    kept: NDArray[np.float32] | None = None
    for block in blocks:
        while kept is None or kept.shape[1] < block.shape[1]:
            more = next(other_blocks)
            kept = more if kept is None else np.concatenate([kept, more], axis=1)
        yield block, kept[:, : block.shape[1]]
        kept = kept[:, block.shape[1] :]


class Levels(NamedTuple):
    """Length and levels of a signal.

    Attributes:
        samples: Number of samples.
        gains: Gain of each channel, `(channels,)`.
        offsets: Constant offset of each channel, `(channels,)`; 0 where it is too small to matter to the model.
    """

    samples: int
    gains: NDArray[np.float64]
    offsets: NDArray[np.float64]


def measure_levels(open_blocks: Callable[[], Blocks], channels: int) -> Levels:
    """Measure the length of a signal, and the gain that brings each channel to the level the model was trained at.

    Upstream scales in two stages: first to -25 dBFS over all samples, then so that the samples above the mean power
    (the active ones) are at -25 dBFS. The first stage cancels out; the level is the RMS of the samples above the mean
    power. A channel without such samples (a square wave, silence) uses its plain RMS. A channel below -140 dBFS is
    silence and gets gain 1.

    Four things differ from upstream, and change little for ordinary speech. A constant offset does not count, and
    neither do one or two bursts (`burst_of`). Frames above a ceiling (`ceiling_of`) have less weight, and hardly any
    from 5 dB above it on, so that a bang changes neither the level of the speech nor the offset. If the rest is too
    quiet to be speech (`is_event_only`), the loud part is the signal, and all frames count.

    Args:
        open_blocks: Returns the signal from its start, at the model's rate, each time it is called; it is read twice.
        channels: Number of channels.

    Returns:
        Length, gains and offsets.
    """
    samples, last = 0, LEVEL_FRAME_SAMPLES
    parts = [np.zeros((4, channels, 0), np.float32)]  # 16 bytes per frame: 2.9 MB per hour
    for frames in _frames(open_blocks(), channels):
        last = frames.shape[2]
        samples += frames.shape[1] * last
        means = np.add.reduce(frames, axis=2, dtype=np.float64) / last
        own = np.einsum("cfn,cfn->cf", frames, frames, dtype=np.float64) - means**2 * last
        ranges = [frames.max(axis=2), frames.min(axis=2)]
        parts.append(np.clip([means, own, *ranges], -_HUGE, _HUGE).astype(np.float32))
    if not samples:
        return Levels(0, np.ones(channels), np.zeros(channels))
    means, own, highest, lowest = np.concatenate(parts, axis=2)
    del parts
    counts = np.full(own.shape[1], LEVEL_FRAME_SAMPLES, np.float32)
    counts[-1] = last

    def energy_around(offset: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the energy of each frame without an offset; `own` is that without the frame's own mean."""
        energy: NDArray[np.float64] = np.maximum(own, 0) + (means - offset[:, None]) ** 2 * counts
        return energy

    # The mean would move with a bang that has an offset of its own; the median does not, and the bang stands out.
    middle = np.median(means, axis=1).astype(np.float64)
    powers = energy_around(middle) / counts
    peaks = np.maximum(highest - middle[:, None], middle[:, None] - lowest) ** 2
    kept = np.ones_like(powers)
    for values in zip(powers, peaks, kept, strict=True):
        _take_bursts_out(*values)
    robust_weights = kept * _robust_weights(powers)
    offset = np.sum(robust_weights * counts * means, axis=1, dtype=np.float64)
    offset /= np.maximum(np.sum(robust_weights * counts, axis=1, dtype=np.float64), _TINY)
    energy = energy_around(offset)
    weights = np.stack([kept, robust_weights])
    mean_power = np.sum(weights * energy, axis=2, dtype=np.float64)
    mean_power /= np.maximum(np.sum(weights * counts, axis=2, dtype=np.float64), _TINY)
    active_energy = np.zeros(mean_power.shape)
    active_samples = np.zeros(mean_power.shape)
    first = 0
    for frames in _frames(open_blocks(), channels):
        squares = np.square(frames - offset[:, None, None], dtype=np.float64)
        of_frames = weights[:, :, first : first + frames.shape[1]]
        for rule, threshold in enumerate(mean_power):
            active = squares > threshold[:, None, None]
            active_energy[rule] += np.sum(np.sum(squares, axis=2, where=active) * of_frames[rule], axis=1)
            active_samples[rule] += np.sum(np.count_nonzero(active, axis=2) * of_frames[rule], axis=1)
        first += frames.shape[1]
    levels = np.where(active_samples > 0, active_energy / np.where(active_samples > 0, active_samples, 1), mean_power)
    plain, robust = levels
    event_only = is_event_only(plain, robust)
    level = np.sqrt(np.where(event_only, plain, robust))
    gains = gain_of(np.where(level > _ROUNDING * np.abs(offset), level, 0.0))
    rest = np.where(event_only, mean_power[0], mean_power[1])
    matters = offset_matters(offset, rest) & (samples >= _OFFSET_SAMPLES)
    return Levels(samples, gains, np.where(matters, offset, 0.0))


def offset_matters(offset: NDArray[np.float64], rest: NDArray[np.float64], evidence: Any = 1.0) -> NDArray[np.bool_]:
    """Return whether a constant offset is large enough to change what the model does.

    Args:
        offset: The offset of each channel.
        rest: The power of each channel without it.
        evidence: Factor of the power of the offset, below 1 if there is too little audio to measure it well.
    """
    matters: NDArray[np.bool_] = evidence * offset**2 > _OFFSET_SHARE * rest
    return matters


def ceiling_of(power: NDArray[Any]) -> NDArray[Any]:
    """Return the power above which a frame counts less, from the frames of up to two seconds.

    It is 13 dB above the 29th loudest frame: an event of up to half a second does not raise it, the syllables of
    speech do. If there is a burst (`burst_ceiling_of`), it is below the burst.

    Args:
        power: Powers of consecutive frames of 20 ms, `(..., frames)`.
    """
    frames = power.shape[-1]
    ranked = np.sort(power, axis=-1)[..., ::-1]
    around = _HEADROOM * ranked[..., min(_EVENT_FRAMES, frames // 2)]
    ceiling: NDArray[Any] = np.minimum(around, _below_burst(power, ranked))
    return ceiling


def burst_ceiling_of(power: NDArray[Any]) -> NDArray[Any]:
    """Return the power between a burst and all else, or 3 dB above the loudest frame if there is no burst.

    A burst is a run of up to 28 frames, at most half of all, that are 6 dB louder than the others. It can be
    distinguished from speech as soon as it is over; events of other shapes need the two seconds of `ceiling_of`.

    Args:
        power: Powers of consecutive frames of 20 ms, `(..., frames)`.
    """
    return _below_burst(power, np.sort(power, axis=-1)[..., ::-1])


def _below_burst(power: NDArray[Any], ranked: NDArray[Any]) -> NDArray[Any]:
    """Return `burst_ceiling_of` powers that are also given from the loudest to the quietest."""
    longest = min(_EVENT_FRAMES, power.shape[-1] // 2)
    none: NDArray[Any] = HIGHEST_CEILING * ranked[..., 0]
    if not longest:
        return none
    lengths = np.arange(1, longest + 1)
    loudest = ranked[..., :longest]
    others = ranked.take(lengths + _EDGE_FRAMES, axis=-1, mode="clip")
    is_burst = loudest > _GAP * others
    if not is_burst.any():  # saves half of the time in a stream
        return none
    order = np.argsort(power, axis=-1)[..., : -longest - 1 : -1]
    spans = np.maximum.accumulate(order, axis=-1) - np.minimum.accumulate(order, axis=-1)
    is_burst &= spans < lengths + _BROKEN_FRAMES
    between = np.sqrt(loudest) * np.maximum(np.sqrt(others), _TINY)
    # The longer the burst, the lower the power between it and the rest: the least is that of the longest one.
    lowest: NDArray[Any] = np.where(is_burst, between, none[..., None]).min(axis=-1)
    return lowest


def burst_of(power: NDArray[np.float64], peak: NDArray[np.float64]) -> slice | None:
    """Return where a loud event is that is not part of speech, with how it swells and dies away; None without one.

    It fits into 28 frames, or half of all if there are fewer, and its loudest frame is 6 dB above all other frames.
    A click is short for a frame, so its peak counts instead, from 7 dB on. If all else is too quiet to be speech, it
    is not an event, as in `is_event_only`. Neither is what is at most 16 dB above the rest if that is loud only in
    the half second beside it: then both are parts of one word.

    Args:
        power: Powers of consecutive frames of 20 ms, `(frames,)`.
        peak: The largest squares in them, `(frames,)`.
    """
    found = _outstanding(power, _GAP)
    if found is None:
        found = _outstanding(peak, _PEAK_GAP)
        if found is None or peak[found].max() < _CREST * power[found.start + int(peak[found].argmax())]:
            return None
    rest = np.delete(power, found)
    loudest = rest.max()
    apart = np.append(power[: max(found.start - _EVENT_FRAMES, 0)], power[found.stop + _EVENT_FRAMES :])
    if np.count_nonzero(apart > loudest / _SYLLABLES) < _WORD_FRAMES and power.max() < _WORD_RANGE * loudest:
        return None
    # Edges of the event may be left: they are shorter than a syllable.
    left = float(np.sort(rest)[-min(_SYLLABLE_FRAMES, len(rest))])
    return None if left < _FAINT_FRAMES and power.max() > _EVENT_ONLY * left else found


def _take_out(values: NDArray[np.float64], burst: slice) -> None:
    """Replace the powers of a burst by what they may have been without it: between those around it, in dB."""
    around = [at for at in (burst.start - 1, burst.stop) if 0 <= at < len(values)]
    logs = np.log(np.maximum(values[around], _TINY))
    values[burst] = np.exp(np.interp(np.arange(burst.start, burst.stop), around, logs))


def _outstanding(values: NDArray[np.float64], gap: float) -> slice | None:
    """Return where the largest values stand out from all others, with what falls towards the others beside them."""
    frames = len(values)
    longest = min(_EVENT_FRAMES, frames // 2)
    if not longest:
        return None
    loudest = int(values.argmax())
    first, last = max(loudest - longest + 1, 0), min(loudest, frames - longest)
    before = np.maximum.accumulate(np.append(values[:first].max(initial=0), values[first:last]))
    after = np.maximum.accumulate(
        np.append(values[last + longest :].max(initial=0), values[first + longest : last + longest][::-1])
    )
    others = np.maximum(before, after[::-1])
    other = float(others.min())
    if values[loudest] <= gap * other:
        return None
    start = first + int(others.argmin())
    core = max(gap * other, values[loudest] / _CORE_RANGE)
    over = start + np.flatnonzero(values[start : start + longest] > core)
    start, stop = int(over[0]), int(over[-1]) + 1
    audible = _AUDIBLE * other
    while stop - start < longest:
        left = _beside(values, start, start - 1, audible)
        right = _beside(values, stop - 1, stop, audible)
        if not left and not right:
            break
        if left > right:
            start -= 1
        else:
            stop += 1
    # The first and the last frame are often filled only in part.
    if stop - start < longest and start and values[start - 1] > audible:
        start -= 1
    if stop - start < longest and stop < frames and values[stop] > audible:
        stop += 1
    return slice(start, stop)


def _beside(values: NDArray[np.float64], edge: int, outside: int, audible: float) -> float:
    """Return the value beside an edge if it is part of the same sound, else 0."""
    if not 0 <= outside < len(values) or values[outside] <= audible:
        return 0.0
    return float(values[outside]) if 1 / _FALL <= values[outside] / values[edge] < _RISE else 0.0


def is_event_only(plain: Any, robust: Any) -> Any:
    """Return whether a signal without its loud events is too quiet to be speech, so that the events are the signal.

    Args:
        plain: Power of all active samples.
        robust: The same with less weight for loud events.
    """
    return (robust < _FAINT_POWER) & (plain > _EVENT_ONLY * robust)


def _take_bursts_out(power: NDArray[np.float64], peak: NDArray[np.float64], kept: NDArray[np.float64]) -> None:
    """Set `kept` to 0 where bursts are, and replace their powers and peaks."""
    for _ in range(_BURSTS):
        burst = burst_of(power, peak)
        # Side by side, two make up a longer sound, which is no burst.
        if burst is None or not kept[max(burst.start - _EVENT_FRAMES, 0) : burst.stop + _EVENT_FRAMES].all():
            return
        kept[burst] = 0
        for values in (power, peak):
            _take_out(values, burst)


def _robust_weights(power: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weights of frames, `(channels, frames)` like their powers."""
    frames = power.shape[1]
    starts = np.unique(np.minimum(np.arange(0, frames, _CEILING_STEP), max(frames - CEILING_FRAMES, 0)))
    ceiling = np.zeros(len(power))
    for some in np.array_split(starts, -(-len(starts) // 256)):  # bounds the memory to a few MB
        windows = power[:, some[:, None] + np.arange(min(CEILING_FRAMES, frames))]
        ceiling = np.maximum(ceiling, ceiling_of(windows).max(axis=1))
    over = np.maximum(power, _TINY) / np.maximum(ceiling, _TINY)[:, None]
    weights: NDArray[np.float64] = np.maximum(over, 1.0) ** -_STEEPNESS
    return weights


def _frames(blocks: Blocks, channels: int) -> Iterator[NDArray[np.float32]]:
    """Cut a signal into frames, `(channels, frames, samples)`; the last frame may be shorter."""
    rest = np.zeros((channels, 0), np.float32)
    for block in blocks:
        joined = np.concatenate([rest, block], axis=1) if rest.shape[1] else block
        whole = joined.shape[1] // LEVEL_FRAME_SAMPLES * LEVEL_FRAME_SAMPLES
        if whole:
            yield joined[:, :whole].reshape(channels, -1, LEVEL_FRAME_SAMPLES)
        rest = joined[:, whole:]
    if rest.shape[1]:
        yield rest[:, None]


def gain_of(level: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the gain from an RMS of active speech to the level the model was trained at; 1 for silence."""
    return np.where(level > SILENCE_LEVEL, TARGET_LEVEL / np.maximum(level, SILENCE_LEVEL), 1.0)
