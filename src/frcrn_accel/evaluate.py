"""A model on a folder of recordings: what it makes better, and by how much."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.cpu import available_cpus
from frcrn_accel.denoiser import Denoiser
from frcrn_accel.errors import AudioError
from frcrn_accel.quality.clips import Clip
from frcrn_accel.quality.metrics import SAMPLE_RATE_HZ, bootstrap_interval, dnsmos, pesq_wb, si_sdr_db, stoi

__all__ = ["CLEAN_IN", "NOISE_OUT", "Evaluation", "Score", "Summary", "evaluate_clips"]

CLEAN_IN = "PESQ-WB, clean speech in"
NOISE_OUT = "Level out, noise alone in, dB"
_LOWEST_LEVEL_DB = -120.0

Scores = Mapping[str, float]


@dataclass(frozen=True)
class Score:
    """One recording.

    Attributes:
        name: Its name in the folder.
        duration_s: Its length.
        noisy: Scores of the recording as it is, by metric; one that it has no score in is not there.
        denoised: Scores of the denoised one, and of what became of its clean speech and of its noise alone.
    """

    name: str
    duration_s: float
    noisy: Scores
    denoised: Scores


@dataclass(frozen=True)
class Summary:
    """One metric over all recordings that have it.

    Attributes:
        metric: Its name.
        clips: How many recordings.
        noisy: Mean before, and its 95 % bootstrap interval; None where only the denoised audio has it.
        denoised: The same after.
        change: The same of the differences.
    """

    metric: str
    clips: int
    noisy: tuple[float, tuple[float, float]] | None
    denoised: tuple[float, tuple[float, float]]
    change: tuple[float, tuple[float, float]] | None


@dataclass(frozen=True)
class Evaluation:
    """All that was measured.

    Attributes:
        model: Name of the model.
        backend: Name of the backend.
        precision: The number format it computed in.
        device: What it ran on.
        scores: Of each recording.
    """

    model: str
    backend: str
    precision: str
    device: str
    scores: tuple[Score, ...]

    def summaries(self) -> list[Summary]:
        """One for each metric."""
        metrics = dict.fromkeys(name for score in self.scores for name in score.denoised)
        found = []
        for metric in metrics:
            scored = [score for score in self.scores if metric in score.denoised]
            after = np.array([score.denoised[metric] for score in scored])
            both = [score for score in scored if metric in score.noisy]
            before = np.array([score.noisy[metric] for score in both])
            differences = np.array([score.denoised[metric] - score.noisy[metric] for score in both])
            found.append(
                Summary(
                    metric,
                    len(scored),
                    _mean_and_interval(before) if both else None,
                    _mean_and_interval(after),
                    _mean_and_interval(differences) if both else None,
                )
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """As plain values."""

        def plain(value: tuple[float, tuple[float, float]] | None) -> dict[str, Any] | None:
            return None if value is None else {"mean": value[0], "interval": list(value[1])}

        return {
            "model": self.model,
            "backend": self.backend,
            "precision": self.precision,
            "device": self.device,
            "summary": {
                summary.metric: {
                    "clips": summary.clips,
                    "noisy": plain(summary.noisy),
                    "denoised": plain(summary.denoised),
                    "change": plain(summary.change),
                }
                for summary in self.summaries()
            },
            "clips": [
                {
                    "name": score.name,
                    "duration_s": score.duration_s,
                    "noisy": dict(score.noisy),
                    "denoised": dict(score.denoised),
                }
                for score in self.scores
            ],
        }


def evaluate_clips(
    clips: Sequence[Clip],
    options: Mapping[str, Any],
    *,
    alone: bool = False,
    processes: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Denoise recordings and score them before and after.

    DNSMOS needs the recording only; PESQ-WB, STOI and SI-SDR its clean speech too.

    Args:
        clips: At 16 kHz.
        options: Arguments of `Denoiser`.
        alone: Also denoise the clean speech alone, and the noise alone, of the clips that have clean speech.
        processes: How many work side by side, with one thread each; None takes as many as there are CPUs.
        progress: Told after each clip: how many are done, and of how many.

    Raises:
        MissingExtraError: The `[eval]` extra is not installed.
        FrcrnAccelError: What `Denoiser` raises.
    """
    options = {**options, "threads": 1}
    with Denoiser(**options) as denoiser:  # in this process first, for its errors and for what it says of itself
        scores: list[Score] = []
        workers = min(processes or available_cpus(), len(clips))
        if workers == 1:
            for clip in clips:
                scores.append(_score(clip, denoiser, alone))
                progress(len(scores), len(clips))
        else:
            context = multiprocessing.get_context("spawn")  # engines' threads do not survive a fork
            with ProcessPoolExecutor(workers, context, _start_worker, (options, alone)) as pool:
                for score in pool.map(_score_in_worker, clips):
                    scores.append(score)
                    progress(len(scores), len(clips))
        model = denoiser.model
        return Evaluation(model.name, denoiser.backend, denoiser.precision, denoiser.device, tuple(scores))


_worker: tuple[Denoiser, bool] | None = None


def _start_worker(options: Mapping[str, Any], alone: bool) -> None:
    global _worker
    _worker = Denoiser(**options), alone


def _score_in_worker(clip: Clip) -> Score:
    assert _worker is not None
    denoiser, alone = _worker
    return _score(clip, denoiser, alone)


def _score(clip: Clip, denoiser: Denoiser, alone: bool) -> Score:
    def denoise(audio: NDArray[np.float32]) -> NDArray[np.float32]:
        denoised: NDArray[np.float32] = denoiser(audio, SAMPLE_RATE_HZ)
        return denoised

    output = denoise(clip.noisy)
    before, after = _metrics(clip.clean, clip.noisy), _metrics(clip.clean, output)
    if alone and clip.clean is not None:
        clean = clip.clean
        noise = clip.noisy - clean
        after |= _scored(CLEAN_IN, lambda: pesq_wb(clean, denoise(clean)))
        if noise.any():
            after[NOISE_OUT] = max(_level_db(denoise(noise)) - _level_db(noise), _LOWEST_LEVEL_DB)
    return Score(clip.name, clip.duration_s, before, after)


def _metrics(clean: NDArray[np.float32] | None, audio: NDArray[np.float32]) -> dict[str, float]:
    scores: dict[str, float] = {}
    if clean is not None and clean.any():
        scores |= _scored("PESQ-WB", lambda: pesq_wb(clean, audio))
        scores["STOI"] = stoi(clean, audio)
        with np.errstate(divide="ignore"):
            scores["SI-SDR, dB"] = float(np.clip(si_sdr_db(clean, audio), -100, 100)) if audio.any() else -100.0
    guess = dnsmos(audio)
    return scores | {"DNSMOS SIG": guess.sig, "DNSMOS BAK": guess.bak, "DNSMOS OVRL": guess.ovrl}


def _scored(name: str, score: Callable[[], float]) -> dict[str, float]:
    try:
        return {name: score()}
    except AudioError:  # no speech in it that this metric could find
        return {}


def _level_db(audio: NDArray[np.float32]) -> float:
    return float(10 * np.log10(np.mean(np.square(audio, dtype=np.float64)) + 1e-20))


def _mean_and_interval(values: NDArray[np.float64]) -> tuple[float, tuple[float, float]]:
    return float(values.mean()), bootstrap_interval(values)
