"""What streams start with: the means of squeeze-and-excitation of noisy speech."""

from __future__ import annotations

import base64

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.backends import StepSession
from frcrn_accel.models import ModelMetadata

__all__ = ["START_S", "measure_start", "read_start"]

START_S = 1.0  # audio that the start counts for: with half or three times as much the streams sound the same
_STEP_HOPS = 25


def measure_start(session: StepSession, metadata: ModelMetadata) -> str:
    """Run a step on the noisy speech inside the package.

    Returns:
        The means of all layers, one after the other, as text for the metadata.
    """
    from frcrn_accel.evaluate.clips import read_clips
    from frcrn_accel.quantize.clips import CALIBRATION_AUDIO, model_inputs
    from frcrn_accel.streaming.averaging import Averaging
    from frcrn_accel.streaming.engine import Step, StreamEngine

    engine = StreamEngine(session, metadata)
    averaging = Averaging(horizon_s=None, start_s=0)
    state = engine.start(1, averaging)
    samples = _STEP_HOPS * metadata.hop_samples
    for audio in model_inputs(read_clips(CALIBRATION_AUDIO, metadata.sample_rate_hz), metadata):
        for first in range(0, audio.shape[1] - samples + 1, samples):
            ((_, state),) = engine.run([Step(state, averaging, audio[:, first : first + samples])])
    return base64.b64encode(engine.statistics(state, averaging).means.tobytes()).decode()


def read_start(text: str) -> NDArray[np.float32]:
    """The means of all layers, `(1, values)`, from what `measure_start` gave."""
    return np.frombuffer(base64.b64decode(text), np.float32)[None]
