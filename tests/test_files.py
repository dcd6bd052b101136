"""Denoising from file to file."""

from __future__ import annotations

import math
import os
import stat
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from frcrn_accel import AudioError, Denoiser, OutputExistsError, Windowing
from frcrn_accel.errors import AudioWarning
from frcrn_accel.testing import FunctionBackend

RNG = np.random.default_rng(0)


def tone(samples: int, channels: int, rate: int) -> np.ndarray:
    t = np.arange(samples) / rate
    return 0.3 * np.sin(2 * np.pi * 440 * t)[:, None] * np.linspace(1, 0.5, channels)


def quiet(audio: np.ndarray) -> np.ndarray:
    return audio * np.float32(0.5)


@pytest.mark.parametrize(
    ("suffix", "subtype", "tolerance"),
    [
        (".wav", "PCM_16", 1e-3),
        (".wav", "PCM_24", 1e-3),
        (".wav", "PCM_32", 1e-3),
        (".wav", "PCM_U8", 1e-2),
        (".wav", "FLOAT", 1e-3),
        (".wav", "DOUBLE", 1e-3),
        (".wav", "ULAW", 3e-2),
        (".flac", "PCM_16", 1e-3),
        (".flac", "PCM_24", 1e-3),
        (".aiff", "PCM_16", 1e-3),
        (".ogg", "VORBIS", 5e-2),
        (".mp3", "MPEG_LAYER_III", 5e-2),
    ],
)
@pytest.mark.filterwarnings("ignore:.*Vorbis of a single page:frcrn_accel.AudioWarning")  # see test_lengths.py
def test_format_encoding_rate_channels_and_length_are_kept(tmp_path, suffix, subtype, tolerance):
    source, target = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    soundfile.write(source, tone(30_011, 2, 44_100), 44_100, subtype=subtype)
    read, _ = soundfile.read(source)
    report = Denoiser(backend=FunctionBackend(quiet)).denoise_file(source, target)
    info = soundfile.info(target)
    assert (info.subtype, info.samplerate, info.channels) == (subtype, 44_100, 2)
    if suffix != ".mp3":  # MP3 does not store the exact length
        assert info.frames == len(read)
    written, _ = soundfile.read(target)
    inner = slice(1_000, 28_000)
    np.testing.assert_allclose(written[inner], 0.5 * read[inner], atol=tolerance)
    assert (report.sample_rate_hz, report.channels, report.clipped_samples) == (44_100, 2, 0)
    assert report.duration_s == pytest.approx(len(read) / 44_100)


def test_opus(tmp_path):
    source = tmp_path / "in.opus"
    soundfile.write(source, tone(48_000, 1, 48_000), 48_000, format="OGG", subtype="OPUS")
    Denoiser(backend=FunctionBackend(quiet)).denoise_file(source, tmp_path / "out.opus")
    assert soundfile.info(tmp_path / "out.opus").subtype == "OPUS"


@pytest.mark.parametrize("suffix", [".flac", ".wav"])  # libsndfile reads MP3 inside WAV, but cannot write it
def test_another_format(tmp_path, suffix):
    source = tmp_path / "in.mp3"
    soundfile.write(source, tone(30_000, 1, 44_100), 44_100)
    Denoiser(backend=FunctionBackend()).denoise_file(source, tmp_path / f"out{suffix}")
    assert soundfile.info(tmp_path / f"out{suffix}").subtype == "PCM_16"


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32"])
def test_unchanged_samples_are_bit_exact(tmp_path, subtype):
    source, target = tmp_path / "in.wav", tmp_path / "out.wav"
    full_scale = RNG.integers(-(2**31), 2**31, (5_000, 2), dtype=np.int64).astype(np.int32)
    full_scale[:2] = [[2**31 - 1, -(2**31)], [-(2**31), 2**31 - 1]]
    full_scale &= ~0xFF  # 24 bits, what float32 holds
    soundfile.write(source, full_scale, 16_000, subtype=subtype)
    Denoiser(backend=FunctionBackend(np.zeros_like), attenuation_limit_db=0).denoise_file(source, target)
    expected, _ = soundfile.read(source, dtype="int32")
    found, _ = soundfile.read(target, dtype="int32")
    np.testing.assert_array_equal(found, expected)


def test_file_and_array_give_the_same(tmp_path, denoiser, noisy_path):
    report = denoiser.denoise_file(noisy_path, tmp_path / "clean.wav")
    audio, rate = soundfile.read(noisy_path, dtype="int16")
    written, _ = soundfile.read(tmp_path / "clean.wav", dtype="int16")
    np.testing.assert_array_equal(written, denoiser(audio, rate))
    assert report.real_time_factor == report.processing_s / report.duration_s


def test_output_beyond_full_scale_is_clipped_and_counted(tmp_path):
    source, target = tmp_path / "in.wav", tmp_path / "out.wav"
    soundfile.write(source, tone(16_000, 1, 16_000) * 3, 16_000)
    report = Denoiser(backend=FunctionBackend(lambda audio: audio * 2)).denoise_file(source, target)
    written, _ = soundfile.read(target, dtype="int16")
    assert report.clipped_samples > 1_000
    assert (written.max(), written.min()) == (32_767, -32_768)


@pytest.mark.parametrize("suffix", [".ogg", ".opus"])
def test_ogg_files_depend_on_their_content_only(tmp_path, identity, noisy_path, suffix):
    for name in ("a", "b"):
        identity.denoise_file(noisy_path, tmp_path / f"{name}{suffix}")
    one, other = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("a", "b"))
    assert one == other
    assert one.count(b"OggS") > 5
    # Readers skip pages with a wrong checksum.
    samples = len(soundfile.read(tmp_path / f"a{suffix}")[0])
    assert samples == soundfile.info(noisy_path).frames
    damaged = bytearray(one)
    damaged[-100] ^= 1
    (tmp_path / f"c{suffix}").write_bytes(damaged)
    assert len(soundfile.read(tmp_path / f"c{suffix}")[0]) < samples


def test_tags_are_kept(tmp_path):
    source, target = tmp_path / "in.flac", tmp_path / "out.flac"
    with soundfile.SoundFile(source, "w", 16_000, 1) as file:
        file.title, file.artist = "A title", "Somebody"
        file.write(tone(1_000, 1, 16_000))
    Denoiser(backend=FunctionBackend()).denoise_file(source, target)
    with soundfile.SoundFile(target) as file:
        assert (file.title, file.artist) == ("A title", "Somebody")


def test_progress(tmp_path):
    source = tmp_path / "in.wav"
    soundfile.write(source, tone(80_000, 1, 16_000), 16_000)
    calls = []
    windowing = Windowing(window_s=1.0, past_s=0.1, future_s=0.04, fade_s=0.1)
    Denoiser(backend=FunctionBackend(), windowing=windowing).denoise_file(
        source, tmp_path / "out.wav", progress=lambda done_s, total_s: calls.append((done_s, total_s))
    )
    assert len(calls) > 3
    assert calls == sorted(calls)
    assert calls[-1] == (5.0, 5.0)


class TestWriting:
    def test_an_existing_file_is_not_replaced_unasked(self, tmp_path, identity, noisy_path):
        target = tmp_path / "out.wav"
        target.write_bytes(b"precious")
        with pytest.raises(OutputExistsError, match="exists: choose another name"):
            identity.denoise_file(noisy_path, target)
        assert target.read_bytes() == b"precious"
        identity.denoise_file(noisy_path, target, overwrite=True)
        assert soundfile.info(target).frames == 172_480

    def test_a_file_can_replace_itself(self, tmp_path, identity):
        path = tmp_path / "a.wav"
        soundfile.write(path, tone(5_000, 1, 16_000), 16_000)
        identity.denoise_file(path, path, overwrite=True)
        assert soundfile.info(path).frames == 5_000

    def test_a_failure_leaves_nothing_behind(self, tmp_path):
        source = tmp_path / "in.wav"
        soundfile.write(source, tone(160_000, 1, 16_000), 16_000)
        calls = 0

        def fails_later(audio):
            nonlocal calls
            calls += 1
            return audio if calls < 5 else audio * np.float32(np.nan)

        windowing = Windowing(window_s=1.0, past_s=0.1, future_s=0.04, fade_s=0.1)
        with pytest.raises(Exception, match="NaN"):
            Denoiser(backend=FunctionBackend(fails_later), windowing=windowing).denoise_file(
                source, tmp_path / "out.wav"
            )
        assert calls == 5
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.wav"]

    def test_mode_follows_the_umask(self, tmp_path, identity, noisy_path):
        identity.denoise_file(noisy_path, tmp_path / "out.wav")
        umask = os.umask(0)
        os.umask(umask)
        assert stat.S_IMODE((tmp_path / "out.wav").stat().st_mode) == 0o666 & ~umask

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("out.xyz", "unknown audio format '.xyz'"),
            ("out", "unknown audio format ''"),
            ("no/out.wav", "No such file"),
        ],
    )
    def test_impossible_targets(self, tmp_path, identity, noisy_path, name, message):
        with pytest.raises(AudioError, match=message):
            identity.denoise_file(noisy_path, tmp_path / name)
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_as_target(self, tmp_path, identity, noisy_path):
        (tmp_path / "out.wav").mkdir()
        with pytest.raises(OutputExistsError, match="is a folder"):
            identity.denoise_file(noisy_path, tmp_path / "out.wav", overwrite=True)


class TestChangedWhileItIsDenoised:
    WINDOWING = Windowing(window_s=1.0, past_s=0.2, future_s=0.04, fade_s=0.05, fixed=True)

    @pytest.fixture
    def source(self, tmp_path):
        """20 s in eight channels: too long to be kept in memory from the first reading."""
        path = tmp_path / "a.wav"
        soundfile.write(path, 0.1 * RNG.standard_normal((320_000, 8)), 16_000)
        return path

    @pytest.mark.parametrize("kind", ["cut", "grown", "other bytes", "another file", "same size and time", "deleted"])
    def test_it_is_an_error(self, source, tmp_path, kind):
        content, times = source.read_bytes(), source.stat()

        def change(audio):
            if kind == "cut":
                os.truncate(source, len(content) // 2)
            elif kind == "grown":
                source.write_bytes(content + bytes(1_000))
            elif kind == "other bytes":
                source.write_bytes(content[:1_000] + bytes(len(content) - 1_000))
            elif kind == "deleted":
                source.unlink(missing_ok=True)
            else:
                (tmp_path / "new").write_bytes(content[:1_000] + bytes(len(content) - 1_000))
                if kind == "same size and time":
                    os.utime(tmp_path / "new", ns=(times.st_atime_ns, times.st_mtime_ns))
                (tmp_path / "new").replace(source)
            return audio.copy()

        with (
            Denoiser(backend=FunctionBackend(change), windowing=self.WINDOWING) as denoiser,
            pytest.raises(AudioError, match=r"a\.wav' (changed while it was read|cannot be read)"),
        ):
            denoiser.denoise_file(source, tmp_path / "out.wav")
        assert not [path for path in tmp_path.iterdir() if path != source]

    @pytest.mark.parametrize("limit_db", [None, 6.0])
    def test_what_was_read_before_is_the_original(self, source, tmp_path, limit_db):
        """A short file is read once, so what happens to it later does not matter, unless it is needed again."""
        short = tmp_path / "short.wav"
        short.write_bytes(source.read_bytes()[: 44 + 16 * 32_000])
        soundfile.write(short, soundfile.read(short)[0], 16_000)
        before = soundfile.read(short, dtype="int16")[0]
        source.unlink()

        def change(audio):
            short.write_bytes(short.read_bytes()[:1_000] + bytes(1_000))
            return audio.copy()

        options = {} if limit_db is None else {"attenuation_limit_db": limit_db}
        with Denoiser(backend=FunctionBackend(change), **options) as denoiser:
            if limit_db is None:
                denoiser.denoise_file(short, tmp_path / "out.wav")
                np.testing.assert_allclose(soundfile.read(tmp_path / "out.wav", dtype="int16")[0], before, atol=1)
            else:
                with pytest.raises(AudioError, match="changed while it was read"):
                    denoiser.denoise_file(short, tmp_path / "out.wav")
                assert not (tmp_path / "out.wav").exists()


class TestBadFiles:
    """Odd files give a correct result or a clear error."""

    def test_missing(self, tmp_path, identity):
        with pytest.raises(AudioError, match="does not exist"):
            identity.denoise_file(tmp_path / "none.wav", tmp_path / "out.wav")

    def test_folder(self, tmp_path, identity):
        with pytest.raises(AudioError, match="is not a file"):
            identity.denoise_file(tmp_path, tmp_path / "out.wav")

    @pytest.mark.parametrize("content", [b"", b"hello\n", b"RIFF\0\0\0\0WAVE", b"\0" * 5_000])
    def test_not_audio(self, tmp_path, identity, content):
        (tmp_path / "in.wav").write_bytes(content)
        with pytest.raises(AudioError, match=r"in\.wav' cannot be read as audio"):
            identity.denoise_file(tmp_path / "in.wav", tmp_path / "out.wav")
        assert not (tmp_path / "out.wav").exists()

    def test_no_samples(self, tmp_path, identity):
        soundfile.write(tmp_path / "in.wav", np.zeros((0, 2)), 44_100)
        report = identity.denoise_file(tmp_path / "in.wav", tmp_path / "out.wav")
        assert soundfile.info(tmp_path / "out.wav").frames == 0
        assert report.duration_s == 0
        assert np.isnan(report.real_time_factor)

    @pytest.mark.parametrize("samples", [1, 2, 640])
    def test_a_few_samples(self, tmp_path, denoiser, samples):
        soundfile.write(tmp_path / "in.wav", np.full(samples, 0.5), 44_100)
        denoiser.denoise_file(tmp_path / "in.wav", tmp_path / "out.wav")
        assert soundfile.info(tmp_path / "out.wav").frames == samples

    def test_silence(self, tmp_path, denoiser):
        soundfile.write(tmp_path / "in.wav", np.zeros((20_000, 2)), 48_000)
        denoiser.denoise_file(tmp_path / "in.wav", tmp_path / "out.wav")
        written, _ = soundfile.read(tmp_path / "out.wav")
        np.testing.assert_array_equal(written, 0)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_not_finite(self, tmp_path, identity, value):
        audio = tone(100_000, 1, 16_000)
        audio[70_000] = value
        soundfile.write(tmp_path / "in.wav", audio, 16_000, subtype="FLOAT")
        with pytest.raises(AudioError, match="at sample 70000"):
            identity.denoise_file(tmp_path / "in.wav", tmp_path / "out.wav")
        assert not (tmp_path / "out.wav").exists()

    def test_a_truncated_wav_is_read_to_its_end(self, tmp_path, identity):
        soundfile.write(tmp_path / "whole.wav", tone(50_000, 1, 16_000), 16_000)
        content = (tmp_path / "whole.wav").read_bytes()
        (tmp_path / "in.wav").write_bytes(content[: 44 + 2 * 20_000])
        with pytest.warns(AudioWarning, match=r"in\.wav' is cut off: about 1\.9 s at its end are missing"):
            report = identity.denoise_file(tmp_path / "in.wav", tmp_path / "out.wav")
        assert len(report.warnings) == 1
        assert soundfile.info(tmp_path / "out.wav").frames == 20_000

    def test_a_truncated_flac_is_read_to_its_end(self, tmp_path, identity):
        soundfile.write(tmp_path / "whole.flac", RNG.uniform(-0.5, 0.5, 200_000), 16_000)
        content = (tmp_path / "whole.flac").read_bytes()
        (tmp_path / "in.flac").write_bytes(content[: len(content) // 2])
        with pytest.warns(AudioWarning):
            report = identity.denoise_file(tmp_path / "in.flac", tmp_path / "out.flac")
        samples = soundfile.info(tmp_path / "out.flac").frames
        assert 95_000 < samples < 105_000
        missing = f"{(200_000 - samples) / 16_000:.1f} s at its end are missing"
        assert [missing in warning for warning in report.warnings] == [True, False]
        assert "1 of its frames are not whole" in report.warnings[1]

    @pytest.mark.parametrize("rate", [4_000, 384_000])
    def test_rates_out_of_range(self, tmp_path, identity, rate):
        soundfile.write(tmp_path / "in.wav", np.zeros(100), rate)
        with pytest.raises(AudioError, match=f"8000 to 192000 Hz, got {rate}"):
            identity.denoise_file(tmp_path / "in.wav", tmp_path / "out.wav")

    @pytest.mark.parametrize("rate", [8_000, 192_000])
    def test_rates_at_the_edge(self, tmp_path, denoiser, rate):
        soundfile.write(tmp_path / "in.wav", tone(rate, 1, rate), rate)
        denoiser.denoise_file(tmp_path / "in.wav", tmp_path / "out.wav")
        assert soundfile.info(tmp_path / "out.wav").frames == rate

    def test_eight_channels(self, tmp_path, denoiser):
        soundfile.write(tmp_path / "in.wav", tone(8_000, 8, 16_000), 16_000)
        denoiser.denoise_file(tmp_path / "in.wav", tmp_path / "out.wav")
        assert soundfile.info(tmp_path / "out.wav").channels == 8

    def test_too_many_channels(self, tmp_path, identity):
        soundfile.write(tmp_path / "in.wav", np.zeros((100, 65)), 16_000)
        with pytest.raises(AudioError, match="1 to 64 channels, got 65"):
            identity.denoise_file(tmp_path / "in.wav", tmp_path / "out.wav")

    def test_longer_than_the_limit(self, tmp_path, identity):
        soundfile.write(tmp_path / "in.wav", np.zeros(160_000), 16_000)
        with pytest.raises(AudioError, match="longer than the limit of 5 s"):
            identity.denoise_file(tmp_path / "in.wav", tmp_path / "out.wav", max_duration_s=5)
        assert not (tmp_path / "out.wav").exists()
        identity.denoise_file(tmp_path / "in.wav", tmp_path / "out.wav", max_duration_s=float("inf"))
        assert soundfile.info(tmp_path / "out.wav").frames == 160_000

    def test_no_limit(self, tmp_path, identity):
        soundfile.write(tmp_path / "in.wav", np.zeros(1_600), 16_000)
        identity.denoise_file(tmp_path / "in.wav", tmp_path / "out.wav", max_duration_s=math.inf)
        assert soundfile.info(tmp_path / "out.wav").frames == 1_600

    def test_an_hour_in_bounded_memory(self, tmp_path):
        """Decoded, it is 115 MB. With an engine that does nothing, to measure everything else."""
        if not sys.platform.startswith("linux"):
            pytest.skip("reads its memory from /proc")
        samples = 3600 * 8_000
        soundfile.write(tmp_path / "in.wav", np.resize(tone(8_000, 1, 8_000)[:, 0], samples), 8_000, subtype="PCM_U8")
        code = (
            "from pathlib import Path\n"
            "import av, soundfile, soxr\n"  # code takes memory, too, when it is first used
            "from frcrn_accel import Denoiser\n"
            "from frcrn_accel.testing import FunctionBackend\n"
            # Not getrusage: its peak includes the process that started this one.
            "def peak_kib():\n"
            "    return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
            "before = peak_kib()\n"
            "Denoiser(backend=FunctionBackend()).denoise_file('in.wav', 'out.wav')\n"
            "print(peak_kib() - before)"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert 1 < int(done.stdout) / 1024 < 50
        assert soundfile.info(tmp_path / "out.wav").frames == samples
