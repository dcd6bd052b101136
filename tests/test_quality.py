"""The sound of the packaged model on real speech that is not part of the project."""

from __future__ import annotations

import numpy as np
import soundfile

from frcrn_accel import Denoiser, Windowing
from frcrn_accel.quality import si_sdr_db


def test_denoised_speech_is_nearer_to_clean_speech(dev_audio, denoiser):
    gains_db = []
    for path in sorted((dev_audio / "noisy").iterdir())[:16]:
        noisy, rate = soundfile.read(path)
        clean, _ = soundfile.read(dev_audio / "clean" / path.name)
        gains_db.append(si_sdr_db(clean, denoiser(noisy, rate)) - si_sdr_db(clean, noisy))
    assert np.mean(gains_db) > 4.5  # 5.5 dB over all pairs with the first checkpoint
    assert np.min(gains_db) > -1


def test_a_long_signal_is_denoised_as_well_as_in_one_pass(dev_audio, denoiser):
    """On joined recordings, whose noise changes every few seconds: the means of a window differ from the whole's."""
    paths = sorted((dev_audio / "noisy").iterdir())[:11]
    noisy = np.concatenate([soundfile.read(path, dtype="float32")[0] for path in paths])
    clean = np.concatenate([soundfile.read(dev_audio / "clean" / path.name, dtype="float32")[0] for path in paths])
    assert len(noisy) > 60 * 16_000
    whole = Denoiser(backend="ort", windowing=Windowing(window_s=120))(noisy, 16_000)
    windowed = denoiser(noisy, 16_000)
    assert si_sdr_db(clean, windowed) > si_sdr_db(clean, whole) - 0.5
    assert si_sdr_db(whole, windowed) > 15
