"""Evaluate a model on recordings: scores before and after denoising."""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.backends import resolve_backend
from frcrn_accel.cpu import available_cpus
from frcrn_accel.denoiser import Denoiser, DenoiserOptions
from frcrn_accel.models import find_model
from frcrn_accel.network.topology import SAMPLE_RATE_HZ
from frcrn_accel.progress import Progress, no_progress
from frcrn_accel.quality import agreement_db, bootstrap_interval, dnsmos, is_silent, pesq_wb, score_or_none, stoi
from frcrn_accel.quality.clips import Clip

__all__ = ["CLEAN_IN", "NOISE_OUT", "Evaluation", "Score", "Summary", "evaluate_clips"]

CLEAN_IN = "PESQ-WB, clean speech in"
NOISE_OUT = "Level out, noise alone in, dB"
_LOWEST_LEVEL_DB = -120.0

Scores = Mapping[str, float]


@dataclass(frozen=True)
class Score:
    """Scores of one recording.

    Attributes:
        name: Name of the recording.
        duration_s: Its duration.
        noisy: Scores before denoising, by metric; metrics that cannot score the recording are missing.
        denoised: Scores after denoising; on request also those of its clean speech alone and its noise alone.
    """

    name: str
    duration_s: float
    noisy: Scores
    denoised: Scores


@dataclass(frozen=True)
class Summary:
    """One metric over all recordings that it scores.

    Attributes:
        metric: Name of the metric.
        clips: Number of recordings.
        noisy: Mean before denoising and its 95 % bootstrap interval; None for metrics of denoised audio only.
        denoised: Mean after denoising and its interval.
        change: Mean of the differences and its interval; None for metrics of denoised audio only.
    """

    metric: str
    clips: int
    noisy: tuple[float, tuple[float, float]] | None
    denoised: tuple[float, tuple[float, float]]
    change: tuple[float, tuple[float, float]] | None


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on recordings.

    Attributes:
        model: Name of the model.
        backend: Name of the backend.
        precision: Number format that it computed in.
        device: Device that it ran on.
        scores: Scores of each recording.
    """

    model: str
    backend: str
    precision: str
    device: str
    scores: tuple[Score, ...]

    def summaries(self) -> list[Summary]:
        """Return a summary of each metric."""
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
        """Return all fields and the summaries as values that `json.dumps` takes."""

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
    options: DenoiserOptions,
    *,
    alone: bool = False,
    processes: int | None = None,
    progress: Progress = no_progress,
) -> Evaluation:
    """Denoise recordings and score them before and after.

    DNSMOS needs only the recording; PESQ-WB, STOI and SI-SDR also need its clean speech.

    Args:
        clips: Recordings at 16 kHz.
        options: Options of the denoisers. By default each process computes with a single thread.
        alone: Also denoise the clean speech alone and the noise alone, for clips with clean speech.
        processes: Number of processes; by default as many as there are CPUs.
        progress: Called while a file is prepared, and after each clip.

    Raises:
        MissingExtraError: The `[eval]` extra is not installed.
        FrcrnAccelError: See `Denoiser`.
    """
    if options.threads is None and _uses_threads(options):
        options = dataclasses.replace(options, threads=1)
    with options.open(progress=progress) as denoiser:  # here first, to report its errors
        scores: list[Score] = []
        workers = min(processes or available_cpus(), len(clips))
        progress("evaluate", 0, len(clips))
        if workers == 1:
            for clip in clips:
                scores.append(_score(clip, denoiser, alone))
                progress("evaluate", len(scores), len(clips))
        else:
            context = multiprocessing.get_context("spawn")  # threads of engines do not survive a fork
            with ProcessPoolExecutor(workers, context, _start_worker, (options, alone)) as pool:
                for score in pool.map(_score_in_worker, clips):
                    scores.append(score)
                    progress("evaluate", len(scores), len(clips))
        model = denoiser.model
        return Evaluation(model.name, denoiser.backend, denoiser.precision, denoiser.device, tuple(scores))


def _uses_threads(options: DenoiserOptions) -> bool:
    model = find_model(options.model)
    return resolve_backend(options.backend, options.precision, options.calibration, model).uses_threads


_worker: tuple[Denoiser, bool] | None = None


def _start_worker(options: DenoiserOptions, alone: bool) -> None:
    global _worker
    _worker = options.open(), alone


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
    if clean is not None and not is_silent(clean):
        scores |= _scored("PESQ-WB", lambda: pesq_wb(clean, audio))
        scores |= _scored("STOI", lambda: stoi(clean, audio))
        scores["SI-SDR, dB"] = agreement_db(clean, audio)
    ratings = dnsmos(audio)
    return scores | {"DNSMOS SIG": ratings.sig, "DNSMOS BAK": ratings.bak, "DNSMOS OVRL": ratings.ovrl}


def _scored(name: str, score: Callable[[], float]) -> dict[str, float]:
    value = score_or_none(score)
    return {} if value is None else {name: value}


def _level_db(audio: NDArray[np.float32]) -> float:
    return float(10 * np.log10(np.mean(np.square(audio, dtype=np.float64)) + 1e-20))


def _mean_and_interval(values: NDArray[np.float64]) -> tuple[float, tuple[float, float]]:
    return float(values.mean()), bootstrap_interval(values)
