from __future__ import annotations

import numpy as np
import pytest

from frcrn_accel import AudioError
from frcrn_accel.audio import fit_length, float_to_int, measure_levels, mix_dry, resample, unpack

RNG = np.random.default_rng(0)


def upstream_gain(x: np.ndarray) -> float:
    """Return the gain of the two stages of upstream's `audio_norm`, without the constant offset."""
    x = x - np.mean(x)
    target = 10 ** (-25 / 20)
    first = target / np.sqrt(np.mean(x**2))
    power = (x * first) ** 2
    second = target / np.sqrt(np.mean(power[power > np.mean(power)]))
    return first * second


class TestLevels:
    def test_gain_is_that_of_upstreams_two_stages(self):
        x = RNG.standard_normal(50_000) * np.linspace(0, 1, 50_000) ** 3
        blocks = [x[None, :777].astype(np.float32), x[None, 777:].astype(np.float32)]
        samples, gains, _ = measure_levels(lambda: blocks, 1)
        assert samples == 50_000
        np.testing.assert_allclose(gains, upstream_gain(x), rtol=1e-6)

    def test_channels_have_gains_of_their_own(self):
        x = RNG.standard_normal((2, 10_000)).astype(np.float32) * np.array([[0.5], [0.001]], np.float32)
        _, gains, _ = measure_levels(lambda: [x], 2)
        np.testing.assert_allclose(
            gains, [upstream_gain(x[0].astype(float)), upstream_gain(x[1].astype(float))], rtol=1e-5
        )

    def test_constant_power_uses_the_plain_rms(self):
        square = np.tile(np.array([0.5, -0.5], np.float32), 500)[None]
        _, gains, _ = measure_levels(lambda: [square], 1)
        np.testing.assert_allclose(gains, 10 ** (-25 / 20) / 0.5)

    @pytest.mark.parametrize("level", [0.0, 1e-8])
    def test_silence_has_gain_one(self, level):
        _, gains, _ = measure_levels(lambda: [np.full((1, 100), level, np.float32)], 1)
        assert gains.tolist() == [1.0]

    def test_no_samples(self):
        assert measure_levels(list, 1)[0] == 0


class TestUnpack:
    @pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "int32"])
    @pytest.mark.parametrize("shape", [(7,), (1, 7), (3, 7), (0,), (2, 0)])
    def test_round_trip(self, dtype, shape):
        audio = RNG.uniform(-1, 1, shape)
        if dtype.startswith("int"):
            # 24 bits: what float32 holds exactly
            audio = np.round(audio * 2**15) * (2**16 if dtype == "int32" else 1)
            audio = np.clip(audio, np.iinfo(dtype).min, np.iinfo(dtype).max)
        else:
            audio = audio.astype(np.float32)
        audio = audio.astype(dtype)
        samples, layout = unpack(audio)
        assert samples.dtype == np.float32
        assert samples.shape == ((1, *shape) if len(shape) == 1 else shape)
        back = layout.pack(samples)
        assert back.dtype == audio.dtype
        np.testing.assert_array_equal(back, audio)

    def test_big_endian_comes_back_in_native_order(self):
        audio = np.arange(5, dtype=">i2")
        samples, layout = unpack(audio)
        back = layout.pack(samples)
        assert back.dtype == np.int16
        np.testing.assert_array_equal(back, audio)

    @pytest.mark.parametrize(
        ("audio", "message"),
        [
            ([0.0, 1.0], "numpy array or a torch tensor, got list"),
            (np.zeros(5, np.complex64), "got complex64"),
            (np.zeros(5, np.uint8), "got uint8"),
            (np.zeros(5, complex), "got complex128"),
            (np.zeros((1, 2, 3), np.float32), r"got shape \(1, 2, 3\)"),
            (np.zeros((16_000, 2), np.float32), "transpose"),
            (np.float32(1.0), "numpy array"),
            (np.zeros((), np.float32), r"got shape \(\)"),
        ],
    )
    def test_unsupported_audio(self, audio, message):
        with pytest.raises(AudioError, match=message):
            unpack(audio)

    def test_torch_tensors(self):
        torch = pytest.importorskip("torch")
        audio = torch.tensor([[0.5, -0.25]], dtype=torch.float64)
        samples, layout = unpack(audio)
        back = layout.pack(samples)
        assert isinstance(back, torch.Tensor)
        assert back.dtype == torch.float64
        assert torch.equal(back, audio)
        with pytest.raises(AudioError, match=r"torch\.bfloat16"):
            unpack(audio.bfloat16())


class TestIntegers:
    def test_full_scale_is_clipped_and_never_wraps(self):
        x = np.array([1.0, 2.0, -1.0, -2.0, 0.0, 1e9], np.float32)
        assert float_to_int(x, 16).tolist() == [32767, 32767, -32768, -32768, 0, 32767]
        assert float_to_int(x, 32).tolist()[:3] == [2**31 - 1, 2**31 - 1, -(2**31)]

    def test_rounds_to_the_nearest(self):
        assert float_to_int(np.array([0.6, -0.6, 1.4], np.float32) / 32768, 16).tolist() == [1, -1, 1]


class TestResample:
    @pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 44_100, 48_000, 192_000])
    @pytest.mark.parametrize("samples", [1, 2, 3, 1_000, 44_100])
    def test_there_and_back_covers_every_sample(self, rate, samples):
        block = RNG.standard_normal((2, samples)).astype(np.float32)
        there = list(resample([block], rate, 16_000, 2))
        length = sum(part.shape[1] for part in there)
        assert length >= samples * 16_000 / rate
        back = list(resample(there, 16_000, rate, 2))
        assert sum(part.shape[1] for part in back) >= samples

    def test_blocks_do_not_matter(self):
        x = RNG.standard_normal((1, 30_000)).astype(np.float32)
        whole = np.concatenate(list(resample([x], 44_100, 16_000, 1)), axis=1)
        cuts = np.split(x, [1, 2, 500, 501, 20_000], axis=1)
        np.testing.assert_array_equal(np.concatenate(list(resample(cuts, 44_100, 16_000, 1)), axis=1), whole)

    def test_a_tone_below_8_khz_survives(self):
        t = np.arange(48_000) / 48_000
        tone = np.sin(2 * np.pi * 3_000 * t).astype(np.float32)[None]
        back = np.concatenate(list(resample(resample([tone], 48_000, 16_000, 1), 16_000, 48_000, 1)), axis=1)
        np.testing.assert_allclose(back[0, 2_000:46_000], tone[0, 2_000:46_000], atol=1e-3)


def blocks_of(x: np.ndarray, *sizes: int) -> list[np.ndarray]:
    return np.split(x, np.cumsum(sizes), axis=1)


@pytest.mark.parametrize("samples", [0, 3, 10, 15])
def test_fit_length(samples):
    x = np.arange(10, dtype=np.float32)[None]
    fitted = np.concatenate([np.zeros((1, 0)), *fit_length(blocks_of(x, 4, 1), samples, 1)], axis=1)
    np.testing.assert_array_equal(fitted[0], [*range(10), 0, 0, 0, 0, 0][:samples])


def test_mix_dry_aligns_different_blocks():
    wet = np.arange(20, dtype=np.float32)[None]
    dry = 100 * wet
    mixed = list(mix_dry(blocks_of(wet, 3, 9), blocks_of(dry, 1, 1, 12), 0.25))
    np.testing.assert_allclose(np.concatenate(mixed, axis=1), 0.75 * wet + 0.25 * dry, rtol=1e-6)
