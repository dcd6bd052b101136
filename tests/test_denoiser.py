from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile

from frcrn_accel import (
    AudioError,
    BackendUnavailable,
    Denoiser,
    ModelError,
    OutputExistsError,
    UnknownBackendError,
)
from frcrn_accel.cpu import available_cpus
from frcrn_accel.testing import FunctionBackend


def sdr_db(reference: np.ndarray, estimate: np.ndarray) -> float:
    return 10 * np.log10(np.sum(reference**2) / (np.sum((reference - estimate) ** 2) + 1e-20))


def test_it_removes_noise_and_keeps_speech(denoiser, noisy):
    clean = denoiser(noisy, 16_000)
    lead = slice(0, 8_000)  # the first half second of the example holds no speech
    speech = slice(16_000, 150_000)
    assert np.std(clean[lead]) < 0.2 * np.std(noisy[lead])
    level = np.sqrt(np.std(noisy[speech]) ** 2 - np.std(noisy[lead]) ** 2)  # of the speech without the noise
    assert np.std(clean[speech]) > 0.7 * level


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "int32"])
def test_every_dtype_gives_the_same_sound(denoiser, noisy, dtype):
    audio = noisy[:48_000]
    scale = {"int16": 2**15, "int32": 2**31}.get(dtype, 1)
    out = denoiser((audio * scale).astype(dtype), 16_000)
    assert out.dtype == dtype
    assert sdr_db(denoiser(audio, 16_000), out / scale) > 45


def test_channels_are_denoised_each_by_itself(denoiser, noisy):
    left, right = noisy[:40_000], noisy[40_000:80_000] * np.float32(0.1)
    both = denoiser(np.stack([left, right]), 16_000)
    assert both.shape == (2, 40_000)
    np.testing.assert_allclose(both[0], denoiser(left, 16_000), atol=1e-6)
    np.testing.assert_allclose(both[1], denoiser(right, 16_000), atol=1e-6)


@pytest.mark.parametrize("gain", [1e-4, 0.1, 3.0, 1_000.0])
def test_level_goes_through(denoiser, noisy, gain):
    audio = noisy[:40_000]
    expected = denoiser(audio, 16_000)
    out = denoiser(audio * np.float32(gain), 16_000)
    assert sdr_db(expected, out / gain) > 60


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_rate_and_length_go_through(denoiser, noisy, rate):
    from soxr import resample

    audio = resample(noisy[:40_000], 16_000, rate)[: int(2.4 * rate) - 7]
    out = denoiser(audio, rate)
    assert out.shape == audio.shape
    if rate > 16_000:
        back = resample(out, rate, 16_000)
        expected = denoiser(noisy[: len(back)], 16_000)
        assert sdr_db(expected[2_000:-2_000], back[2_000:-2_000]) > 20


def test_torch_tensors_come_back_as_tensors(denoiser, noisy):
    torch = pytest.importorskip("torch")
    out = denoiser(torch.from_numpy(noisy[:16_000]), 16_000)
    assert isinstance(out, torch.Tensor)
    np.testing.assert_array_equal(out.numpy(), denoiser(noisy[:16_000], 16_000))


def test_threads_share_one_denoiser(denoiser, noisy):
    parts = [noisy[i * 8_000 : i * 8_000 + 16_000 + i] for i in range(8)]
    expected = [denoiser(part, 16_000) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda part: denoiser(part, 16_000), parts))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_attenuation_limit_keeps_that_much_noise(denoised, noisy):
    limited = Denoiser(backend="ort", attenuation_limit_db=12)
    expected = 0.7488 * denoised + 0.2512 * noisy
    np.testing.assert_allclose(limited(noisy, 16_000), expected, atol=1e-4)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_speech_and_noise_files_are_the_input(tmp_path, rate):
    """To the sample, with the attenuation limit; both are written at once, or one of them."""
    audio = (0.1 * np.random.default_rng(0).standard_normal((9_000, 2))).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", audio, rate, subtype="FLOAT")
    halving = Denoiser(backend=FunctionBackend(lambda batch: batch * np.float32(0.5)), attenuation_limit_db=20)
    halving.denoise_file(tmp_path / "a.wav", tmp_path / "s.wav", noise_target=tmp_path / "n.wav")
    halving.denoise_file(tmp_path / "a.wav", tmp_path / "only.wav", keep="noise")
    speech, noise, only = (
        soundfile.read(tmp_path / f"{name}.wav", dtype="float32")[0] for name in ("s", "n", "only")
    )
    np.testing.assert_allclose(speech + noise, audio, atol=1e-7)
    np.testing.assert_array_equal(noise, only)
    np.testing.assert_array_equal(speech, halving(audio.T.copy(), rate).T)


def test_a_noise_file_beside_nothing_else_is_refused(tmp_path, noisy_path):
    denoiser = Denoiser(backend=FunctionBackend())
    with pytest.raises(ValueError, match="with keep='noise' the noise goes to target"):
        denoiser.denoise_file(noisy_path, tmp_path / "a.wav", keep="noise", noise_target=tmp_path / "b.wav")
    with pytest.raises(ValueError, match="must not be the same file"):
        denoiser.denoise_file(noisy_path, tmp_path / "a.wav", noise_target=tmp_path / "a.wav")
    with pytest.raises(ValueError, match="must not be the same file"):
        denoiser.denoise_file(noisy_path, tmp_path / "a.wav", noise_target=tmp_path / "no" / ".." / "a.wav")
    (tmp_path / "b.wav").write_bytes(b"precious")
    with pytest.raises(OutputExistsError):
        denoiser.denoise_file(noisy_path, tmp_path / "a.wav", noise_target=tmp_path / "b.wav")
    assert [path.name for path in tmp_path.iterdir()] == ["b.wav"]


def test_it_says_what_it_runs(denoiser):
    assert denoiser.backend == "ort"
    assert denoiser.device.startswith("CPUExecutionProvider")
    assert denoiser.threads == available_cpus()
    assert denoiser.model.name == "frcrn-small"
    assert (denoiser.model.sample_rate_hz, denoiser.model.channels, denoiser.model.unets) == (16_000, 32, 2)


def test_a_closed_denoiser_says_so():
    with Denoiser(backend=FunctionBackend()) as denoiser:
        denoiser(np.zeros(10, np.float32), 16_000)
    denoiser.close()
    with pytest.raises(ValueError, match="closed: open a new one"):
        denoiser(np.zeros(10, np.float32), 16_000)


class TestBackendArgument:
    def test_class_and_instance(self):
        audio = np.ones(100, np.float32)
        for backend in (FunctionBackend, FunctionBackend(np.copy)):
            np.testing.assert_allclose(Denoiser(backend=backend)(audio, 16_000), audio, rtol=1e-5)

    def test_unknown_name_lists_the_installed_ones(self):
        with pytest.raises(UnknownBackendError, match=r"unknown backend 'orc': installed are .*ort.*torch.*'auto'"):
            Denoiser(backend="orc")

    def test_something_else(self):
        with pytest.raises(TypeError, match="name, a Backend class or an instance"):
            Denoiser(backend=7)

    def test_unusable_backend(self):
        class Missing(FunctionBackend):
            @classmethod
            def check(cls):
                raise BackendUnavailable("missing", "no such card", "buy one")

        with pytest.raises(BackendUnavailable, match="'missing' cannot run here: no such card; buy one"):
            Denoiser(backend=Missing)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threads": 0}, "threads must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"attenuation_limit_db": -1}, "attenuation_limit_db must be 0 or more"),
        ({"attenuation_limit_db": float("nan")}, "attenuation_limit_db must be 0 or more"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        Denoiser(backend=FunctionBackend(), **arguments)


class TestBadAudio:
    """Inputs in memory that must give a correct result or a clear error."""

    @pytest.mark.parametrize("shape", [(0,), (2, 0)])
    def test_empty(self, denoiser, shape):
        out = denoiser(np.zeros(shape, np.int16), 16_000)
        assert out.shape == shape
        assert out.dtype == np.int16

    @pytest.mark.parametrize("samples", [1, 2, 159, 319, 320, 321, 641])
    def test_a_few_samples(self, denoiser, samples):
        out = denoiser(np.full(samples, 0.5, np.float32), 16_000)
        assert out.shape == (samples,)
        assert np.isfinite(out).all()
        assert np.abs(out).max() < 2

    @pytest.mark.parametrize("dtype", ["float32", "int16"])
    def test_silence_stays_silence(self, denoiser, dtype):
        out = denoiser(np.zeros(40_000, dtype), 16_000)
        np.testing.assert_array_equal(out, np.zeros(40_000, dtype))

    def test_a_silent_channel_stays_silent(self, denoiser, noisy):
        out = denoiser(np.stack([noisy[:16_000], np.zeros(16_000, np.float32)]), 16_000)
        np.testing.assert_array_equal(out[1], 0)
        assert np.std(out[0]) > 0

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_not_finite(self, denoiser, noisy, value):
        audio = np.stack([noisy, noisy])
        audio[1, 12_345] = value
        with pytest.raises(AudioError, match="first in channel 1 at sample 12345"):
            denoiser(audio, 16_000)

    def test_beyond_float32(self, denoiser):
        with pytest.raises(AudioError, match="NaN or infinity"):
            denoiser(np.full(1_000, 1e300), 16_000)

    def test_clipped_input_stays_within_the_integers(self, denoiser, noisy):
        audio = np.clip(noisy * 40, -1, 1)
        out = denoiser((audio * 32_767).astype(np.int16), 16_000)
        # A wrapped sample would jump by the whole range.
        assert np.abs(np.diff(out.astype(int))).max() < 60_000
        assert sdr_db(denoiser(audio, 16_000), out / 32_768) > 30

    @pytest.mark.parametrize("rate", [0, -1, 7_999, 192_001])
    def test_rates_out_of_range(self, denoiser, rate):
        with pytest.raises(AudioError, match=f"8000 to 192000 Hz, got {rate}"):
            denoiser(np.zeros(100, np.float32), rate)

    def test_whole_rates_of_any_number_type(self, denoiser, noisy):
        for rate in (22_050.0, np.int64(22_050), np.float32(22_050)):
            assert denoiser(noisy[:5_000], rate).shape == (5_000,)
        for rate in (22_050.5, float("nan"), float("inf")):
            with pytest.raises(AudioError, match=f"whole number of Hz, got {rate}"):
                denoiser(noisy[:5_000], rate)

    @pytest.mark.parametrize("channels", [1, 2, 8])
    def test_channels(self, denoiser, noisy, channels):
        audio = np.stack([noisy[:8_000]] * channels)
        out = denoiser(audio, 16_000)
        assert out.shape == audio.shape
        np.testing.assert_allclose(out, np.stack([out[0]] * channels), atol=1e-6)

    def test_non_contiguous_and_read_only(self, denoiser, noisy):
        interleaved = np.stack([noisy[:8_000], noisy[8_000:16_000]], axis=1)
        interleaved.flags.writeable = False
        out = denoiser(interleaved.T, 16_000)
        np.testing.assert_allclose(out[0], denoiser(noisy[:8_000], 16_000), atol=1e-6)


class TestModelArgument:
    def test_unknown_name(self):
        with pytest.raises(ModelError, match=r"unknown model 'frcrn-huge': give one of frcrn-small"):
            Denoiser("frcrn-huge", backend=FunctionBackend())

    def test_known_but_not_packaged(self):
        with pytest.raises(ModelError, match=r"not in this package: get its checkpoint from .*accel models import"):
            Denoiser("frcrn-16k", backend=FunctionBackend())

    def test_missing_file(self, tmp_path):
        with pytest.raises(ModelError, match="No such file"):
            Denoiser(tmp_path / "none.onnx", backend=FunctionBackend())
