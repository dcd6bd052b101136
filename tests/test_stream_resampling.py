"""The resampler of streams, for reads of any length."""

from __future__ import annotations

import numpy as np
import pytest

from frcrn_accel.streaming.resampling import StreamResampler, reach_samples


@pytest.mark.parametrize("counts", [[1], [7, 50], [100, 0, 333], [10**6]])
@pytest.mark.parametrize("rates_hz", [(16, 48), (48, 16), (24, 16), (16, 24), (192, 16), (16, 192), (44.1, 16)])
def test_a_tone_stays_the_tone(rates_hz, counts):
    """Each sample is the signal at its own time, wherever a read begins and ends."""
    from_hz, to_hz = (round(1000 * rate) for rate in rates_hz)
    tone = [np.sin(2 * np.pi * 1000 / rate * np.arange(rate // 10)) for rate in (from_hz, to_hz)]
    signal = np.stack([tone[0], 0.5 * tone[0]]).astype(np.float32)
    resampler = StreamResampler(from_hz, to_hz, 2)
    resampler.write(signal)
    pieces = []
    while resampler.ready:
        for count in counts:
            pieces.append(resampler.read(min(count, resampler.ready)))
    out = np.concatenate(pieces, axis=1)
    reach_s = reach_samples(from_hz, to_hz) / from_hz
    assert abs(out.shape[1] - (0.1 - reach_s) * to_hz) <= 1
    settled = slice(int(np.ceil(reach_s * to_hz)), out.shape[1])
    np.testing.assert_allclose(out[0, settled], tone[1][settled], atol=1e-4)
    np.testing.assert_allclose(out[1], 0.5 * out[0], atol=1e-6)
