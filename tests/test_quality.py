"""The sound of the packaged model on real speech that is not part of the project."""

from __future__ import annotations

import numpy as np
import soundfile

from frcrn_accel import Denoiser, Windowing
from frcrn_accel.evaluate import si_sdr_db


def test_denoised_speech_is_nearer_to_clean_speech(dev_audio, denoiser):
    gains_db = []
    for path in sorted((dev_audio / "noisy").iterdir())[:16]:
        noisy, rate = soundfile.read(path)
        clean, _ = soundfile.read(dev_audio / "clean" / path.name)
        gains_db.append(si_sdr_db(clean, denoiser(noisy, rate)) - si_sdr_db(clean, noisy))
    assert np.mean(gains_db) > 4.5  # 5.5 dB over all pairs with the first checkpoint
    assert np.min(gains_db) > -1


def test_a_long_signal_is_near_to_its_whole_pass(dev_audio, denoiser):
    paths = sorted((dev_audio / "noisy").iterdir())
    audio = np.concatenate([soundfile.read(path, dtype="float32")[0] for path in paths[:11]])
    assert len(audio) > 60 * 16_000
    whole = Denoiser(backend="ort", windowing=Windowing(window_s=120))(audio, 16_000)
    assert si_sdr_db(whole, denoiser(audio, 16_000)) > 25
