"""Batches of training examples, and the fixed examples for validation, made from the sources of a config."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from frcrn_accel.errors import TrainingError, one_line
from frcrn_accel.train.config import Mixing, TrainingConfig
from frcrn_accel.train.mixing import Example, Mixer
from frcrn_accel.train.sources import Corpus, draw_weight, prepare_source

__all__ = ["load_batches", "loader_errors", "prepare_examples"]

_PREFETCHED = 4  # batches per loader


def prepare_examples(config: TrainingConfig, data: Path, cache: Path) -> tuple[Mixer, list[Example]]:
    """Read the sources of a config.

    Args:
        config: The run.
        data: Folder that the paths in the config are relative to.
        cache: Folder for decoded audio.

    Returns:
        The mixer of the training examples, and the validation examples.

    Raises:
        TrainingError: A source holds no audio.
        AudioError: A file cannot be read.
    """
    signals = {
        name: [prepare_source(source, data, cache) for source in sources]
        for name, sources in (("speech", config.data.speech), ("noise", config.data.noise))
    }

    def corpus(name: str, held_out: bool) -> Corpus:
        sources = getattr(config.data, name)
        weights = [draw_weight(source, len(signal)) for source, signal in zip(sources, signals[name], strict=True)]
        return Corpus(signals[name], weights, config.data.held_out_share, held_out=held_out)

    validation = config.validation
    plain = Mixing(level_jitter_db=0, pause=0, band_limit=0, speech_speed=0, noise_speed=0, noise_swell=0)
    mixing = replace(validation.mixing or plain, clip_s=validation.clip_s)
    mixer = Mixer(corpus("speech", True), corpus("noise", True), mixing)
    snrs_db = np.linspace(*validation.snr_db, validation.clips)
    examples = [mixer.example((validation.seed, i), float(snr_db)) for i, snr_db in enumerate(snrs_db)]
    return Mixer(corpus("speech", False), corpus("noise", False), config.mixing), examples


def load_batches(
    mixer: Mixer, seed: int, rows: range, steps: range, *, loaders: int, pin_memory: bool
) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Yield the batch of each step and the seconds spent waiting for it.

    Args:
        mixer: Makes the examples.
        seed: Seed of the run.
        rows: Rows of each batch to make.
        steps: Steps to make batches for.
        loaders: Number of processes that make them; 0 for this process.
        pin_memory: Whether to put them into pinned memory, for fast copies to a GPU.

    Yields:
        Noisy and target, `float32 (len(rows), samples)` each, and the time.
    """
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        _Batches(mixer, seed, rows),
        batch_size=None,
        sampler=steps,
        num_workers=loaders,
        prefetch_factor=_PREFETCHED if loaders else None,
        pin_memory=pin_memory,
    )
    batches = iter(loader)
    for _ in steps:
        started_s = time.perf_counter()
        noisy, target = next(batches)
        yield noisy, target, time.perf_counter() - started_s


@contextmanager
def loader_errors() -> Iterator[None]:
    """Turn the errors about a loader that died into a `TrainingError`.

    PyTorch's can interrupt any code. If the loader was handing over a batch, its connection breaks instead.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
            raise
        raise TrainingError(
            f"a process that makes examples died ({one_line(error)}), often because memory ran out: free some or "
            "lower --loaders, then run the same command to resume from the last save"
        ) from error.with_traceback(None)  # its frames would keep the loaders, which report the death again and again


class _Batches(Dataset[tuple[Tensor, Tensor]]):
    """Rows of the batches, by step."""

    def __init__(self, mixer: Mixer, seed: int, rows: range) -> None:
        self._mixer = mixer
        self._seed = seed
        self._rows = rows

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        noisy, target = self._mixer.batch(self._seed, step, self._rows)
        return torch.from_numpy(noisy), torch.from_numpy(target)
