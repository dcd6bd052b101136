"""Compare the sound of configurations with that of the model in fp32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.quality import Scorer, agreement_db, bootstrap_interval, dnsmos, pesq_wb
from frcrn_accel.quality.clips import Clip

__all__ = ["Change", "Outputs", "Quality", "compare_quality"]

Outputs = Sequence[NDArray[np.float32]]
"""The denoised clips of a configuration, `(samples,)` each."""


@dataclass(frozen=True)
class Change:
    """A mean over the clips, and its 95 % bootstrap interval.

    Attributes:
        mean: The mean.
        low, high: The interval.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Quality:
    """The sound of a configuration.

    Attributes:
        clips: Number of clips.
        si_sdr_to_fp32_db: Mean SI-SDR of its output to that of the reference, at most 120 dB; None for the reference.
        pesq_wb: Mean PESQ-WB of its output; None without clean speech or the packages for it.
        pesq_change_percent: Change from the reference, in percent of the reference's mean.
        dnsmos_ovrl: Mean DNSMOS OVRL of its output; None without the packages for it.
        dnsmos_change: Change from the reference, in points.
        note: Why a score is missing; empty if no score is.
    """

    clips: int
    si_sdr_to_fp32_db: float | None
    pesq_wb: float | None
    pesq_change_percent: Change | None
    dnsmos_ovrl: float | None
    dnsmos_change: Change | None
    note: str = ""


def compare_quality(
    outputs: Mapping[str, Outputs],
    reference: str,
    clips: Sequence[Clip],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Quality]:
    """Compare the outputs of configurations for the same clips.

    Args:
        outputs: The denoised clips of each configuration, by its name.
        reference: Name of the configuration that the others are compared with.
        clips: The clips, at 16 kHz. PESQ uses those whose clean speech is known.
        progress: Called after each configuration with the number done and the total.
    """
    scorer = Scorer()
    scores = {}
    for done, (name, denoised) in enumerate(outputs.items()):
        progress(done, len(outputs))
        pairs = list(zip(clips, denoised, strict=True))
        pesq = [_pesq(scorer, clip.clean, audio) for clip, audio in pairs]
        guess = [_dnsmos(scorer, audio) for _, audio in pairs]
        scores[name] = pesq, guess
    progress(len(outputs), len(outputs))
    expected = outputs[reference]
    pesq_before, guess_before = scores[reference]
    found = {}
    for name, denoised in outputs.items():
        pesq, guess = scores[name]
        agreements = [agreement_db(one, other) for one, other in zip(expected, denoised, strict=True)]
        is_reference = name == reference
        found[name] = Quality(
            clips=len(clips),
            si_sdr_to_fp32_db=None if is_reference else float(np.mean(agreements)),
            pesq_wb=_mean(pesq),
            pesq_change_percent=None if is_reference else _change(pesq_before, pesq, percent=True),
            dnsmos_ovrl=_mean(guess),
            dnsmos_change=None if is_reference else _change(guess_before, guess),
            note="; ".join(scorer.notes.values()),
        )
    return found


def _pesq(scorer: Scorer, clean: NDArray[np.float32] | None, audio: NDArray[np.float32]) -> float | None:
    return None if clean is None else scorer.score("PESQ-WB", lambda: pesq_wb(clean, audio))


def _dnsmos(scorer: Scorer, audio: NDArray[np.float32]) -> float | None:
    return scorer.score("DNSMOS", lambda: dnsmos(audio).ovrl)


def _mean(scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return float(np.mean(known)) if known else None


def _change(before: Sequence[float | None], after: Sequence[float | None], *, percent: bool = False) -> Change | None:
    """Return the change over the clips that have both scores."""
    pairs = [(b, a) for b, a in zip(before, after, strict=True) if b is not None and a is not None]
    if not pairs:
        return None
    values = np.array(pairs)
    changes = values[:, 1] - values[:, 0]
    if percent:
        changes = 100 * changes / values[:, 0].mean()
    return Change(float(changes.mean()), *bootstrap_interval(changes))
