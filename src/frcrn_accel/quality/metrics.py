"""How good denoised speech is, against the clean speech it came from."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.errors import AudioError, MissingExtraError

__all__ = ["Dnsmos", "bootstrap_interval", "dnsmos", "load_dnsmos", "pesq_wb", "si_sdr_db", "stoi"]

SAMPLE_RATE_HZ = 16_000  # the only rate that wide-band PESQ has, and the model's
_DNSMOS_SAMPLES = 144_160  # what it hears at a time


def si_sdr_db(reference: NDArray[Any], estimate: NDArray[Any]) -> float:
    """Scale-invariant signal-to-distortion ratio, dB.

    Source: J. Le Roux, S. Wisdom, H. Erdogan, J. R. Hershey, "SDR - half-baked or well done?", ICASSP 2019.

    Args:
        reference: Clean speech, `(samples,)`.
        estimate: The same length.
    """
    reference = reference.astype(np.float64) - np.mean(reference, dtype=np.float64)
    estimate = estimate.astype(np.float64) - np.mean(estimate, dtype=np.float64)
    target = np.dot(estimate, reference) / np.dot(reference, reference) * reference
    return float(10 * np.log10(np.sum(target**2) / np.sum((estimate - target) ** 2)))


def pesq_wb(reference: NDArray[Any], estimate: NDArray[Any]) -> float:
    """Wide-band PESQ (ITU-T P.862.2), 1 to 4.64.

    Args:
        reference: Clean speech at 16 kHz, `(samples,)`.
        estimate: The same length.

    Raises:
        MissingExtraError: The `[eval]` extra is not installed.
        AudioError: PESQ finds no speech in one of them, or they are too short.
    """
    try:
        from pesq import PesqError, pesq
    except ImportError as error:
        raise MissingExtraError("PESQ", "eval", error) from error
    for what, audio in (("reference", reference), ("estimate", estimate)):
        if not np.any(audio):  # the package fails on that, now with one error, now with another
            raise AudioError(f"PESQ cannot score this: the {what} is silent")
    try:
        return float(pesq(SAMPLE_RATE_HZ, reference, estimate, "wb"))
    except PesqError as error:
        reason = error.args[0] if error.args else type(error).__name__
        raise AudioError(
            f"PESQ cannot score this: {reason.decode() if isinstance(reason, bytes) else reason}"
        ) from error


def stoi(reference: NDArray[Any], estimate: NDArray[Any]) -> float:
    """Short-time objective intelligibility (Taal et al., IEEE TASLP 2011), 0 to 1.

    Args:
        reference: Clean speech at 16 kHz, `(samples,)`.
        estimate: The same length.

    Raises:
        MissingExtraError: The `[eval]` extra is not installed.
    """
    try:
        from pystoi import stoi as short_time_objective_intelligibility
    except ImportError as error:
        raise MissingExtraError("STOI", "eval", error) from error
    return float(short_time_objective_intelligibility(reference, estimate, SAMPLE_RATE_HZ))


class Dnsmos(NamedTuple):
    """DNSMOS P.835, 1 to 5 each.

    Attributes:
        sig: How well the speech is kept.
        bak: How unobtrusive the background is.
        ovrl: Overall quality.
    """

    sig: float
    bak: float
    ovrl: float


def dnsmos(audio: NDArray[Any]) -> Dnsmos:
    """DNSMOS P.835: a network's guess at what listeners say, without a reference.

    Source: C. K. A. Reddy, V. Gopal, R. Cutler, "DNSMOS P.835", ICASSP 2022. It hears 9 s at a time; shorter audio is
    repeated up to that.

    Args:
        audio: Speech at 16 kHz, `(samples,)`; what is beyond full scale is clipped.

    Raises:
        MissingExtraError: The `[eval]` extra is not installed.
        AudioError: There is no audio.
    """
    speechmos = load_dnsmos()
    if not audio.size:
        raise AudioError("DNSMOS cannot score this: no audio")
    # Repeated here: what the package does itself with short audio takes up to eight times as long.
    heard = np.resize(np.clip(audio, -1, 1), max(len(audio), _DNSMOS_SAMPLES))
    scores = speechmos.run(heard, SAMPLE_RATE_HZ)
    return Dnsmos(float(scores["sig_mos"]), float(scores["bak_mos"]), float(scores["ovrl_mos"]))


def load_dnsmos() -> Any:
    """The package that has the network.

    Raises:
        MissingExtraError: The `[eval]` extra is not installed.
    """
    try:
        from speechmos import dnsmos as speechmos
    except ImportError as error:
        raise MissingExtraError("DNSMOS", "eval", error) from error
    return speechmos


def bootstrap_interval(values: NDArray[Any], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of `values`, `(count,)`."""
    rng = np.random.default_rng(seed)
    means = rng.choice(values, (10_000, len(values))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
