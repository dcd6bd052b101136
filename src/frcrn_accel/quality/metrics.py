"""Metrics of denoised speech against clean speech: SI-SDR, PESQ and STOI."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.errors import AudioError, MissingExtraError
from frcrn_accel.network.topology import SAMPLE_RATE_HZ

__all__ = [
    "MAX_AGREEMENT_DB",
    "agreement_db",
    "bootstrap_interval",
    "is_silent",
    "pesq_wb",
    "si_sdr_db",
    "stoi",
]

_NO_STOI = 1e-5  # the package returns this instead of a score where there is too little speech
MAX_AGREEMENT_DB = 120.0  # of signals that are equal or nearly so: float32 does not resolve more


def si_sdr_db(reference: NDArray[Any], estimate: NDArray[Any]) -> float:
    """Return the scale-invariant signal-to-distortion ratio, dB.

    It does not depend on the level of the signals or on a constant offset. Infinite for equal signals and NaN for a
    silent one: see `agreement_db`.

    Source: J. Le Roux, S. Wisdom, H. Erdogan, J. R. Hershey, "SDR - half-baked or well done?", ICASSP 2019.

    >>> from frcrn_accel.quality import si_sdr_db
    >>> speech, noise = np.array([1.0, -1.0, 1.0, -1.0]), np.array([0.1, 0.1, -0.1, -0.1])
    >>> round(si_sdr_db(speech, speech + noise), 6)
    20.0

    Args:
        reference: Clean speech, `(samples,)`.
        estimate: Denoised speech of the same length.
    """
    reference = reference.astype(np.float64) - np.mean(reference, dtype=np.float64)
    estimate = estimate.astype(np.float64) - np.mean(estimate, dtype=np.float64)
    target = np.dot(estimate, reference) / np.dot(reference, reference) * reference
    return float(10 * np.log10(np.sum(target**2) / np.sum((estimate - target) ** 2)))


def agreement_db(reference: NDArray[Any], estimate: NDArray[Any]) -> float:
    """Return the SI-SDR between two signals, limited to +-`MAX_AGREEMENT_DB` and defined for all signals.

    Two silent signals have the highest agreement. A silent signal and one that is not silent have the lowest, and so
    do signals with values that are not finite. The result is never NaN.

    >>> from frcrn_accel.quality import agreement_db
    >>> agreement_db(np.zeros(4), np.zeros(4)), agreement_db(np.zeros(4), np.array([0.0, 0.1, 0.0, 0.1]))
    (120.0, -120.0)

    Args:
        reference: Expected signal, `(samples,)`.
        estimate: Signal of the same length.
    """
    if not (np.isfinite(reference).all() and np.isfinite(estimate).all()):
        return -MAX_AGREEMENT_DB
    if is_silent(reference) or is_silent(estimate):
        return MAX_AGREEMENT_DB if is_silent(reference) and is_silent(estimate) else -MAX_AGREEMENT_DB
    with np.errstate(all="ignore"):  # no distortion, nothing in common, or squares beyond what a float64 holds
        found = si_sdr_db(reference, estimate)
    return -MAX_AGREEMENT_DB if np.isnan(found) else float(np.clip(found, -MAX_AGREEMENT_DB, MAX_AGREEMENT_DB))


def is_silent(audio: NDArray[Any]) -> bool:
    """Return whether a signal is constant: SI-SDR ignores an offset, so nothing is left to compare."""
    return not audio.size or not np.ptp(audio)


def pesq_wb(reference: NDArray[Any], estimate: NDArray[Any]) -> float:
    """Return wide-band PESQ (ITU-T P.862.2), 1 to 4.64.

    Args:
        reference: Clean speech at 16 kHz, `(samples,)`.
        estimate: Denoised speech of the same length.

    Raises:
        MissingExtraError: The `[pesq]` extra is not installed.
        AudioError: PESQ finds no speech in a signal, the signals are too short or differ in length, or hold NaN.
    """
    try:
        from pesq import PesqError, pesq
    except ImportError as error:
        raise MissingExtraError("PESQ", "pesq", error) from error
    _check_pair("PESQ", reference, estimate)
    for what, audio in (("reference", reference), ("estimate", estimate)):
        if not np.any(audio):  # the package fails on silence with one of several errors
            raise AudioError(f"PESQ cannot score this: the {what} is silent")
    try:
        return float(pesq(SAMPLE_RATE_HZ, reference, estimate, "wb"))
    except PesqError as error:
        reason = error.args[0] if error.args else type(error).__name__
        raise AudioError(
            f"PESQ cannot score this: {reason.decode() if isinstance(reason, bytes) else reason}"
        ) from error


def stoi(reference: NDArray[Any], estimate: NDArray[Any]) -> float:
    """Return short-time objective intelligibility (Taal et al., IEEE TASLP 2011), 0 to 1.

    Args:
        reference: Clean speech at 16 kHz, `(samples,)`.
        estimate: Denoised speech of the same length.

    Raises:
        MissingExtraError: The `[eval]` extra is not installed.
        AudioError: There is less than about half a second of speech, or the signals differ in length or hold NaN.
    """
    try:
        from pystoi import stoi as short_time_objective_intelligibility
    except ImportError as error:
        raise MissingExtraError("STOI", "eval", error) from error
    _check_pair("STOI", reference, estimate)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Not enough STFT frames", RuntimeWarning)
            value = float(short_time_objective_intelligibility(reference, estimate, SAMPLE_RATE_HZ))
    except IndexError:  # not a single frame
        value = _NO_STOI
    if value == _NO_STOI:
        raise AudioError("STOI cannot score this: it needs about half a second of speech")
    if is_silent(reference):
        raise AudioError("STOI cannot score this: the reference is silent")
    return value


def _check_pair(metric: str, reference: NDArray[Any], estimate: NDArray[Any]) -> None:
    """Check that two signals can be compared: on others, the packages fail or return a meaningless number."""
    if reference.shape != estimate.shape:
        raise AudioError(
            f"{metric} cannot score this: the lengths differ, {len(reference)} and {len(estimate)} samples"
        )
    for what, audio in (("reference", reference), ("estimate", estimate)):
        if not np.isfinite(audio).all():
            raise AudioError(f"{metric} cannot score this: the {what} has NaN or infinity")


def bootstrap_interval(values: NDArray[Any], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean of `values`, `(count,)`."""
    rng = np.random.default_rng(seed)
    means = rng.choice(values, (10_000, len(values))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
