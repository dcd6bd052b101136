"""Evaluate a model on recordings: scores before and after denoising."""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.backends import resolve_backend
from frcrn_accel.cpu import available_cpus
from frcrn_accel.denoiser import Denoiser, DenoiserOptions
from frcrn_accel.errors import AudioError, EngineError, MissingExtraError
from frcrn_accel.models import find_model
from frcrn_accel.network.topology import SAMPLE_RATE_HZ
from frcrn_accel.progress import Progress, no_progress
from frcrn_accel.quality import agreement_db, bootstrap_interval, dnsmos, is_silent, pesq_wb, required_score, stoi
from frcrn_accel.quality.clips import Clip

__all__ = ["CLEAN_IN", "NOISE_OUT", "Evaluation", "Score", "Summary", "evaluate_clips"]

CLEAN_IN = "PESQ-WB, clean speech in"
NOISE_OUT = "Level out, noise alone in, dB"
_WITH_REFERENCE = ("PESQ-WB", "STOI", "SI-SDR, dB")
_DNSMOS = ("DNSMOS SIG", "DNSMOS BAK", "DNSMOS OVRL")
_LOWEST_LEVEL_DB = -120.0

Scores = Mapping[str, float]


@dataclass(frozen=True)
class Score:
    """Scores of one recording.

    Attributes:
        name: Name of the recording.
        duration_s: Its duration.
        noisy: Scores before denoising, by metric; metrics that cannot score the recording are missing.
        denoised: Scores after denoising; on request also those of its components, clean speech and noise.
        not_scored: Why metrics are missing, by metric: those that could not score it before or after denoising.
    """

    name: str
    duration_s: float
    noisy: Scores
    denoised: Scores
    not_scored: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """One metric over all recordings that it scores.

    Attributes:
        metric: Name of the metric.
        clips: Number of recordings.
        noisy: Mean before denoising and its 95 % bootstrap interval; None for metrics of denoised audio only.
        denoised: Mean after denoising and its interval.
        change: Mean of the differences and its interval; None for metrics of denoised audio only.
        not_scored: Number of recordings that the metric could not score, see `Score.not_scored`.
    """

    metric: str
    clips: int
    noisy: tuple[float, tuple[float, float]] | None
    denoised: tuple[float, tuple[float, float]]
    change: tuple[float, tuple[float, float]] | None
    not_scored: int = 0


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
        """Return a summary of each metric that scores at least one recording."""
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
                    sum(metric in score.not_scored for score in self.scores),
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
                    "not_scored": summary.not_scored,
                }
                for summary in self.summaries()
            },
            "clips": [
                {
                    "name": score.name,
                    "duration_s": score.duration_s,
                    "noisy": dict(score.noisy),
                    "denoised": dict(score.denoised),
                    "not_scored": dict(score.not_scored),
                }
                for score in self.scores
            ],
        }


def evaluate_clips(
    clips: Sequence[Clip],
    options: DenoiserOptions,
    *,
    components: bool = False,
    processes: int | None = None,
    progress: Progress = no_progress,
) -> Evaluation:
    """Denoise recordings and score them before and after.

    DNSMOS needs only the recording; PESQ-WB, STOI and SI-SDR also need its clean speech.

    Args:
        clips: Recordings at 16 kHz.
        options: Options of the denoisers. By default each process computes with a single thread.
        components: Also denoise the clean speech and the noise separately, for clips with clean speech.
        processes: Number of processes; by default as many as there are CPUs.
        progress: Called while a file is prepared, and after each clip.

    Raises:
        ValueError: There are no clips.
        MissingExtraError: The `[eval]` extra is not installed.
        EngineError: A process died.
        FrcrnAccelError: See `Denoiser`.
    """
    if not clips:
        raise ValueError("there are no clips to evaluate")
    if options.threads is None and _uses_threads(options):
        options = dataclasses.replace(options, threads=1)
    with options.open(progress=progress) as denoiser:  # first in this process, which reports its errors
        scores: list[Score] = []
        workers = min(processes or available_cpus(), len(clips))
        progress("evaluate", 0, len(clips))
        if workers == 1:
            for clip in clips:
                scores.append(_score(clip, denoiser, components))
                progress("evaluate", len(scores), len(clips))
        else:
            context = multiprocessing.get_context("spawn")  # threads of engines do not survive a fork
            try:
                with ProcessPoolExecutor(workers, context, _start_worker, (options, components)) as pool:
                    for score in pool.map(_score_in_worker, clips):
                        scores.append(score)
                        progress("evaluate", len(scores), len(clips))
            except BrokenProcessPool as error:
                raise EngineError(
                    f"one of {workers} processes that denoise and score died (out of memory?): use fewer --processes"
                ) from error
        model = denoiser.model
        return Evaluation(model.name, denoiser.backend, denoiser.precision, denoiser.device, tuple(scores))


def _uses_threads(options: DenoiserOptions) -> bool:
    model = find_model(options.model)
    return resolve_backend(options.backend, options.precision, options.calibration, model).uses_threads


_worker: tuple[Denoiser, bool] | None = None


def _start_worker(options: DenoiserOptions, components: bool) -> None:
    global _worker
    _worker = options.open(), components


def _score_in_worker(clip: Clip) -> Score:
    assert _worker is not None
    denoiser, components = _worker
    return _score(clip, denoiser, components)


def _score(clip: Clip, denoiser: Denoiser, components: bool) -> Score:
    def denoise(audio: NDArray[np.float32]) -> NDArray[np.float32]:
        denoised: NDArray[np.float32] = denoiser(audio, SAMPLE_RATE_HZ)
        return denoised

    output = denoise(clip.noisy)
    not_scored: dict[str, str] = {}
    before, after = _metrics(clip.clean, clip.noisy, not_scored), _metrics(clip.clean, output, not_scored)
    if components and clip.clean is not None:
        clean = clip.clean
        noise = clip.noisy - clean
        component_scores: dict[str, Callable[[], float]] = {CLEAN_IN: lambda: pesq_wb(clean, denoise(clean))}
        if noise.any():
            component_scores[NOISE_OUT] = lambda: max(_level_db(denoise(noise)) - _level_db(noise), _LOWEST_LEVEL_DB)
        after |= _scored(component_scores, not_scored)
    return Score(clip.name, clip.duration_s, before, after, not_scored)


def _metrics(
    clean: NDArray[np.float32] | None, audio: NDArray[np.float32], not_scored: dict[str, str]
) -> dict[str, float]:
    scores: dict[str, Callable[[], float]] = {}
    if clean is not None and is_silent(clean):
        not_scored |= dict.fromkeys(_WITH_REFERENCE, "the clean speech is silent")
    elif clean is not None:
        measures = (pesq_wb, stoi, agreement_db)
        scores = {name: partial(score, clean, audio) for name, score in zip(_WITH_REFERENCE, measures, strict=True)}
    try:
        ratings = dnsmos(audio)
    except AudioError as error:
        not_scored |= dict.fromkeys(_DNSMOS, str(error))
    else:
        scores |= {name: partial(float, value) for name, value in zip(_DNSMOS, ratings, strict=True)}
    return _scored(scores, not_scored)


def _scored(scores: Mapping[str, Callable[[], float]], not_scored: dict[str, str]) -> dict[str, float]:
    """Compute scores; note why those that cannot be computed are missing."""
    found = {}
    for name, score in scores.items():
        try:
            found[name] = required_score(score)
        except AudioError as error:
            not_scored[name] = str(error)
        except MissingExtraError as error:
            if error.extra != "pesq":  # which has no wheels and may be impossible to install
                raise
            not_scored[name] = str(error)
    return found


def _level_db(audio: NDArray[np.float32]) -> float:
    return float(10 * np.log10(np.mean(np.square(audio, dtype=np.float64)) + 1e-20))


def _mean_and_interval(values: NDArray[np.float64]) -> tuple[float, tuple[float, float]]:
    return float(values.mean()), bootstrap_interval(values)
