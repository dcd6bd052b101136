"""Writing: formats, lengths, bit rates, places of channels, clipping, and the same bytes for the same audio."""

from __future__ import annotations

import itertools
import struct
import time
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from coded import decode, lag, noise, read, source, stated_samples, write, write_all
from example_counts import few
from frcrn_accel import AudioError
from frcrn_accel.errors import AudioWarning
from frcrn_accel.files import AudioWriter, create_audio, encode_sndfile, open_audio
from frcrn_accel.files.bitrates import bit_rate_for, vorbis_quality
from frcrn_accel.files.formats import plan_target, writable_suffix, writable_suffixes
from frcrn_accel.files.layouts import mask_of, places_of
from frcrn_accel.files.riff import finish_wav

needs_amr = pytest.mark.skipif(".amr" not in writable_suffixes(), reason="this build of FFmpeg does not encode AMR")
# Suffix, encoding of the source, and rates. All are written so that FFmpeg gets back the samples that went in.
EXACT = [
    (".wav", "PCM_16", (8_000, 44_100, 192_000)),
    (".wav", "PCM_U8", (11_025,)),
    (".wav", "ULAW", (8_000,)),
    (".w64", "PCM_24", (48_000,)),
    (".rf64", "PCM_16", (48_000,)),
    (".aiff", "PCM_16", (44_100,)),
    (".aifc", "FLOAT", (44_100,)),
    (".au", "PCM_16", (16_000,)),
    (".caf", "PCM_16", (48_000,)),
    (".flac", "PCM_16", (8_000, 44_100, 192_000)),
    (".ogg", "flac", (44_100,)),
    (".oga", "opus", (48_000,)),
    (".mp3", "mp3", (8_000, 11_025, 16_000, 24_000, 44_100, 48_000)),
    (".m4a", "aac", (8_000, 16_000, 44_100, 96_000)),
    (".m4a", "alac", (16_000, 44_100)),
    (".mp4", "flac", (44_100,)),
    (".mov", "pcm_s16le", (44_100,)),
    (".opus", "opus", (48_000,)),
    (".webm", "opus", (48_000,)),
    (".mka", "opus", (48_000,)),
    (".mka", "flac", (44_100,)),
    (".mkv", "mp3", (44_100,)),
    (".mka", "wavpack", (16_000,)),
    (".wv", "wavpack", (8_000, 44_100)),
    (".tta", "tta", (16_000,)),
]
# These have no place for where the audio starts and ends: they get longer, and later by the delay of the encoder.
PADDED = [
    (".aac", "aac", 44_100, 1_024),
    (".ac3", "ac3", 48_000, 256),
    (".eac3", "eac3", 48_000, 256),
    (".mp2", "mp2", 48_000, 481),
    (".mp4", "ac3", 48_000, 0),
    (".mka", "aac", 44_100, 0),
    (".mka", "mp2", 48_000, 0),
    (".wma", "wmav2", 44_100, 0),
    (".wma", "wmav1", 22_050, 0),
]


class TestLength:
    @pytest.mark.parametrize(
        ("suffix", "subtype", "rate"), [(suffix, subtype, rate) for suffix, subtype, rates in EXACT for rate in rates]
    )
    @few(3)
    @given(samples=st.integers(2_500, 20_000), channels=st.integers(1, 2), seed=st.integers(0, 99))
    def test_ffmpeg_decodes_as_many_samples_in_their_place(
        self, tmp_path_factory, suffix, subtype, rate, samples, channels, seed
    ):
        path = tmp_path_factory.getbasetemp() / f"length{suffix}"
        audio = noise(samples, channels, seed)
        bit_rate = 160_000 * channels if subtype == "aac" else None  # enough to find the place of short noise
        like = source(suffix, rate, channels, format="", subtype=subtype, bit_rate=bit_rate)
        assert write_all(path, like, audio) == ([], None)
        decoded = decode(path, channels)
        if suffix in (".m4a", ".mp4", ".mov"):  # FFmpeg itself decodes the last packet to its end
            assert stated_samples(path) == samples
            decoded = decoded[:, :samples]
        assert decoded.shape == (channels, samples)
        for before, after in zip(audio, decoded, strict=True):
            assert lag(before, after) == 0

    @pytest.mark.parametrize(
        ("suffix", "subtype"), [(".ogg", "VORBIS"), (".opus", "OPUS"), (".caf", "ALAC_16"), (".caf", "ALAC_24")]
    )
    @few(3)
    @given(samples=st.integers(1, 20_000), channels=st.integers(1, 8), seed=st.integers(0, 99))
    def test_libsndfile_decodes_as_many_samples_in_their_place(
        self, tmp_path_factory, suffix, subtype, samples, channels, seed
    ):
        """FFmpeg cuts ALAC in CAF short, and does not cut Vorbis of a single page."""
        path = tmp_path_factory.getbasetemp() / f"length{suffix}"
        audio = noise(samples, channels, seed)
        write(path, source(suffix, 48_000, channels, format="", subtype=subtype), audio)
        decoded, _ = soundfile.read(path, dtype="float32", always_2d=True)
        assert decoded.shape == (samples, channels)
        if samples > 1_000:
            assert lag(audio[0], decoded[:, 0]) == 0

    @pytest.mark.parametrize("suffix", [".mp3", ".mp2", ".aac", ".ac3", ".eac3"])
    @few(10)
    @given(
        samples=st.integers(1, 2_500),
        channels=st.integers(1, 2),
        rate=st.sampled_from([16_000, 44_100, 48_000]),
        seed=st.integers(0, 99),
    )
    def test_a_few_frames_can_be_read(self, tmp_path_factory, suffix, samples, channels, rate, seed):
        path = tmp_path_factory.getbasetemp() / f"short{suffix}"
        like = source(suffix, rate, channels, format="", subtype=suffix[1:])
        _, said = write_all(path, like, noise(samples, channels, seed))
        file = open_audio(path)
        read = sum(block.shape[1] for block in file.blocks())
        wanted = round(samples * file.sample_rate_hz / rate)
        if suffix == ".mp3":
            assert said is None
            assert wanted <= read <= wanted + 600
        else:
            assert read == wanted + said[0]

    def test_tta_of_a_single_sample(self, tmp_path):
        with pytest.raises(AudioError, match="TTA cannot hold a single sample"):
            write(tmp_path / "a.tta", source(rate=16_000, channels=1), noise(1, 1))
        assert list(tmp_path.iterdir()) == []
        write(tmp_path / "a.tta", source(rate=16_000, channels=1), noise(2, 1))
        assert decode(tmp_path / "a.tta", 1).shape == (1, 2)

    @pytest.mark.parametrize("suffix", [".mp3", ".mkv"])
    @pytest.mark.parametrize("samples", [5_185, 5_222, 5_777])  # cut within the last frame but one
    def test_mp3_that_is_cut_within_two_frames(self, tmp_path, suffix, samples):
        write(tmp_path / f"a{suffix}", source(suffix, 16_000, 1, format="", subtype="mp3"), noise(samples, 1))
        assert decode(tmp_path / f"a{suffix}", 1).shape == (1, samples)

    @pytest.mark.parametrize(("suffix", "subtype", "rate", "delay"), PADDED)
    @few(4)
    @given(samples=st.integers(8_000, 20_000))
    def test_formats_without_a_length_hold_all_of_it(self, tmp_path_factory, suffix, subtype, rate, delay, samples):
        path = tmp_path_factory.getbasetemp() / f"padded{suffix}"
        audio = noise(samples)
        write(path, source(suffix, rate, format="", subtype=subtype), audio)
        decoded = decode(path, 2)
        assert samples + delay <= decoded.shape[1] <= samples + delay + 2_048
        assert lag(audio[0], decoded[0]) == delay

    @pytest.mark.parametrize("suffix", [".wav", ".aiff", ".ogg", ".mp3", ".opus", ".m4a", ".mka", ".flac", ".wv"])
    def test_a_single_sample(self, tmp_path, suffix):
        write(tmp_path / f"a{suffix}", source(suffix, 48_000, 1), np.full((1, 1), 0.1, np.float32))
        assert (tmp_path / f"a{suffix}").stat().st_size > 20

    @pytest.mark.parametrize("suffix", sorted(writable_suffixes()))
    def test_no_samples_are_read_back_or_an_error(self, tmp_path, suffix):
        path, message = tmp_path / f"a{suffix}", ""
        try:
            write(path, source(suffix, 48_000, 1), np.zeros((1, 0), np.float32))
        except AudioError as error:
            message = str(error)
        if path.exists():
            assert sum(block.shape[1] for block in open_audio(path).blocks()) == 0
        else:
            assert "there are no samples, and the format needs some" in message
            assert list(tmp_path.iterdir()) == []
            assert suffix not in (".wav", ".aiff", ".ogg")

    @pytest.mark.parametrize(
        ("suffix", "rate", "becomes"),
        [(".opus", 44_100, 48_000), (".opus", 22_050, 24_000), (".mp3", 96_000, 48_000), (".webm", 11_025, 12_000)],
    )
    def test_rates_that_a_codec_lacks_are_resampled(self, tmp_path, suffix, rate, becomes):
        seconds = np.arange(rate) / rate
        audio = 0.3 * np.sin(2 * np.pi * 440 * seconds)[None].astype(np.float32)
        (warning,) = write(tmp_path / f"a{suffix}", source(".wav", rate, 1), audio)
        assert f"has no sample rate of {rate:,} Hz: resampled to {becomes:,} Hz" in warning
        with av.open(str(tmp_path / f"a{suffix}")) as container:
            layout_channels = container.streams.audio[0].codec_context.layout.nb_channels
        decoded = decode_at(tmp_path / f"a{suffix}", becomes)
        assert (layout_channels, decoded.shape) == (1, (1, becomes))
        expected = 0.3 * np.sin(2 * np.pi * 440 * np.arange(becomes) / becomes)
        middle = slice(becomes // 4, becomes // 2)
        np.testing.assert_allclose(decoded[0][middle], expected[middle], atol=0.03)

    @needs_amr
    def test_amr_is_written_at_its_rate(self, tmp_path):
        audio = noise(16_000, 1)
        (warning,) = write(tmp_path / "a.amr", source(".wav", 16_000, 1), audio)
        assert "resampled to 8,000 Hz" in warning
        assert 8_000 <= decode(tmp_path / "a.amr", 1).shape[1] <= 8_400


def decode_at(path: Path, rate: int) -> np.ndarray:
    """Decode at a rate that FFmpeg would otherwise not give: it decodes Opus at 48 kHz only."""
    import subprocess

    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", path, "-ar", str(rate), "-f", "f32le", "-"]
    return np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.float32)[None]


class TestEncoding:
    @pytest.mark.parametrize(
        ("suffix", "subtype", "codec", "bits"),
        [
            (".m4a", "PCM_16", "aac", None),
            (".m4a", "alac", "alac", 24),
            (".mka", "PCM_24", "pcm_s24le", None),
            (".mka", "alac", "alac", None),
            (".mka", "dts", "opus", None),
            (".mp4", "mp3", "aac", None),
            (".mov", "FLOAT", "pcm_f32le", None),
            (".wma", "wmapro", "wmav2", None),
            (".flac", "FLOAT", "PCM_24", None),
            (".flac", "mp3", "PCM_16", None),
            (".wav", "pcm_f32le", "FLOAT", None),
            (".wav", "pcm_s24be", "PCM_24", None),
            (".wav", "adpcm_ms", "MS_ADPCM", None),
            (".wav", "aac", "PCM_16", None),
            (".wav", "MPEG_LAYER_III", "PCM_16", None),
            (".ogg", "speex", "VORBIS", None),
            (".ogg", "OPUS", "opus", None),
            (".caf", "alac", "PCM_24", 24),
        ],
    )
    def test_the_encoding_is_kept_or_the_nearest(self, suffix, subtype, codec, bits):
        assert plan_target(Path(f"a{suffix}"), source(".x", 48_000, subtype=subtype, bits=bits)).encoding == codec

    def test_another_codec_under_the_same_name_is_said(self):
        target = plan_target(Path("a.mka"), source(".mka", 48_000, format="matroska,webm", subtype="dts"))
        assert target.notes == ("there is no encoder for dts: it becomes opus",)

    @pytest.mark.parametrize("name", ["a.dts", "a.ape", "a.spx", "a.mpc", "a.tak", "a", "a.xyz", "a.raw"])
    def test_what_cannot_be_written_is_refused(self, name):
        with pytest.raises(AudioError, match=r"unknown audio format .*try \.wav"):
            plan_target(Path(name), source())
        if name != "a":
            like = source(Path(name).suffix, subtype="dts")
            with pytest.raises(AudioError, match=r"can be read, but not written; try \.\w+, \.wav"):
                plan_target(Path(name), like)

    @pytest.mark.parametrize(
        ("suffix", "subtype", "written"),
        [
            (".mp3", "mp3", ".mp3"),
            (".WAV", "PCM_16", ".WAV"),
            (".dts", "dts", ".m4a"),
            (".ape", "ape", ".flac"),
            (".spx", "speex", ".opus"),
            (".ogg", "speex", ".opus"),
            (".ogg", "vorbis", ".ogg"),
            (".webm", "vorbis", ".m4a"),
            (".amr", "amr_wb", ".m4a"),
            (".m4a", "aac", ".m4a"),
            (".mka", "flac", ".mka"),
        ],
    )
    def test_the_suffix_that_can_be_written(self, suffix, subtype, written):
        like = source(suffix, format="", subtype=subtype)
        assert writable_suffix(like) == written
        plan_target(Path(f"a{written}"), like)

    @pytest.mark.parametrize(
        ("format", "subtype", "suffix"),
        [
            ("WAV", "PCM_16", ".wav"),
            ("WAVEX", "PCM_24", ".wav"),
            ("FLAC", "PCM_16", ".flac"),
            ("OGG", "OPUS", ".opus"),
            ("mp3", "mp3", ".mp3"),
            ("mov,mp4,m4a,3gp,3g2,mj2", "aac", ".m4a"),
            ("matroska,webm", "opus", ".webm"),
            ("asf", "wmav2", ".wma"),
            ("aac", "aac", ".aac"),
            ("dts", "dts", ".m4a"),
            ("ape", "ape", ".flac"),
        ],
    )
    def test_a_source_without_a_suffix(self, format, subtype, suffix):
        like = source("", 48_000, format=format, subtype=subtype)
        assert writable_suffix(like) == suffix
        if format not in ("dts", "ape"):
            assert plan_target(Path("stdout"), like) == plan_target(Path(f"a{suffix}"), like)

    @pytest.mark.parametrize(
        ("suffix", "bits"), [(".m4a", 24), (".wv", 24), (".tta", 24), (".oga", 24), (".mka", 24)]
    )
    def test_24_bits_are_kept(self, tmp_path, suffix, bits):
        integers = np.random.default_rng(1).integers(-(2**23), 2**23, (2, 9_000))
        audio = (integers / 2**23).astype(np.float32)
        codec = {".m4a": "alac", ".wv": "wavpack", ".tta": "tta"}.get(suffix, "flac")
        write(tmp_path / f"a{suffix}", source(suffix, format="", subtype=codec, bits=bits), audio)
        np.testing.assert_array_equal(decode(tmp_path / f"a{suffix}", 2)[:, :9_000], audio)


class TestBitRate:
    @pytest.mark.parametrize(
        ("suffix", "codec", "rate", "channels", "bit_rate"),
        [
            (".mp3", "mp3", 44_100, 2, 320_000),
            (".mp3", "mp3", 44_100, 2, 190_123),
            (".mp3", "mp3", 16_000, 1, 64_000),
            (".m4a", "aac", 44_100, 2, 256_000),
            (".m4a", "aac", 16_000, 1, 32_000),
            (".opus", "opus", 48_000, 2, 96_000),
            (".opus", "opus", 48_000, 6, 400_000),
            (".ac3", "ac3", 48_000, 6, 448_000),
            (".eac3", "eac3", 48_000, 2, 256_000),
            (".mp2", "mp2", 48_000, 2, 384_000),
            (".wma", "wmav2", 44_100, 2, 192_000),
            pytest.param(".amr", "amr_nb", 8_000, 1, 7_950, marks=needs_amr),
        ],
    )
    def test_it_is_that_of_the_source(self, tmp_path, suffix, codec, rate, channels, bit_rate):
        audio = noise(4 * rate, channels)
        like = source(suffix, rate, channels, format="", subtype=codec, bit_rate=bit_rate)
        write(tmp_path / f"a{suffix}", like, audio)
        assert (tmp_path / f"a{suffix}").stat().st_size * 8 / 4 == pytest.approx(bit_rate, rel=0.15)

    def test_vorbis_is_comparable(self, tmp_path, noisy):
        for quality in (0.2, 0.6):
            with soundfile.SoundFile(
                tmp_path / "a.ogg", "w", 16_000, 1, "VORBIS", format="OGG", compression_level=1 - quality
            ) as file:
                for start in range(0, len(noisy), 16_000):
                    file.write(noisy[start : start + 16_000])
            size = (tmp_path / "a.ogg").stat().st_size
            like = source(".ogg", 16_000, 1, subtype="VORBIS", bit_rate=round(size * 8 * 16_000 / len(noisy)))
            write(tmp_path / "b.ogg", like, noisy[None])
            assert (tmp_path / "b.ogg").stat().st_size == pytest.approx(size, rel=0.2)

    @given(
        codec=st.sampled_from(["mp3", "mp2", "aac", "opus", "ac3", "eac3", "wmav2", "amr_nb"]),
        rate=st.sampled_from([8_000, 16_000, 22_050, 44_100, 48_000, 96_000]),
        channels=st.integers(1, 8),
        bps=st.one_of(st.none(), st.integers(1, 10**8)),
        same=st.booleans(),
    )
    def test_it_is_always_a_positive_number(self, codec, rate, channels, bps, same):
        found = bit_rate_for(codec, rate, channels, bps, same_codec=same)
        assert found is not None
        assert 4_000 <= found <= 256_000 * channels + 400_000

    def test_lossless_codecs_have_none(self):
        assert bit_rate_for("flac", 44_100, 2, 900_000, same_codec=True) is None

    @given(bps=st.integers(1, 10**7), rate=st.integers(8_000, 192_000), channels=st.integers(1, 8))
    def test_quality_is_a_share(self, bps, rate, channels):
        assert 0 <= vorbis_quality(bps, rate, channels) <= 1

    def test_another_codec_gets_no_less_than_usual(self):
        assert bit_rate_for("mp3", 44_100, 2, 12_200, same_codec=False) == 192_000
        assert bit_rate_for("mp3", 44_100, 2, 320_000, same_codec=False) == 320_000


FREQUENCIES = {
    place: 400 + 200 * number for number, place in enumerate(("FL", "FR", "FC", "BL", "BR", "SL", "SR", "BC"))
}
FREQUENCIES["LFE"] = 60
FORMATS = (".wav", ".flac", ".ogg", ".opus", ".m4a", ".ac3", ".caf", ".aiff", ".mka", ".wv", ".eac3")
LAYOUTS = ("mono", "stereo", "4.0", "quad", "5.0", "5.1", "5.1(side)", "6.1", "7.1", "3.0", "2.1")


def tones(layout: str, rate: int = 48_000) -> np.ndarray:
    time_s = np.arange(rate // 2) / rate
    tone = [0.3 * np.sin(2 * np.pi * FREQUENCIES[place] * time_s) for place in places_of(layout)]
    return np.stack(tone).astype(np.float32)


def heard(path: Path) -> dict[str, int]:
    """Return the frequency of each channel that is not silent, by its place."""
    with av.open(str(path)) as container:
        layout = container.streams.audio[0].codec_context.layout
        names = [channel.name for channel in layout.channels]
    found = {}
    default = {1: ("FC",), 2: ("FL", "FR")}.get(len(names))
    for name, row in zip(default or names, decode(path, len(names)), strict=True):
        part = row[6_000:18_000]
        if np.abs(part).max() > 0.03:
            found[name] = 4 * int(np.argmax(np.abs(np.fft.rfft(part * np.hanning(12_000)))))
    return found


def same_place(place: str) -> str:
    """Replace side by back: many formats do not state which of them two of five or seven channels are."""
    return place.replace("S", "B") if place in ("SL", "SR") else place


class TestPlaces:
    @pytest.mark.parametrize(("suffix", "layout"), [*itertools.product(FORMATS, LAYOUTS)])
    def test_a_tone_in_each_channel_comes_out_at_its_place(self, tmp_path, suffix, layout):
        audio = tones(layout)
        path = tmp_path / f"a{suffix}"
        like = source(".wav", 48_000, len(audio), samples=audio.shape[1], layout=layout)
        if layout in ("6.1", "7.1") and suffix in (".ac3", ".eac3"):
            with pytest.raises(AudioError, match=r"cannot hold . channels: e?ac3 has at most 6"):
                plan_target(path, like)
            return
        if layout == "6.1" and suffix == ".m4a":
            with pytest.raises(AudioError, match=r"aac has no layout 6\.1; try \.wav or \.flac"):
                plan_target(path, like)
            return
        warned = write(path, like, audio)
        found = heard(path)
        expected = {place: FREQUENCIES[place] for place in places_of(layout)}
        if layout == "7.1" or suffix in (".wav", ".flac", ".caf", ".aiff", ".wv"):
            assert found == expected
        else:
            assert {same_place(place): tone for place, tone in found.items()} == {
                same_place(place): tone for place, tone in expected.items()
            }
        with av.open(str(path)) as container:
            channels = container.streams.audio[0].codec_context.layout.nb_channels
        assert bool(warned) == (channels > len(audio))

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("suffix", [".ogg", ".opus", ".flac", ".wav", ".m4a", ".aiff", ".caf", ".wv", ".mka"])
    def test_a_tone_in_each_channel_is_read_from_its_place(self, tmp_path, suffix, layout):
        path = tmp_path / f"a{suffix}"
        audio = tones(layout)
        try:
            write(path, source(".wav", 48_000, len(audio), samples=audio.shape[1], layout=layout), audio)
        except AudioError:
            pytest.skip("the format has no such layout")
        file, audio, _ = read(path)
        write(tmp_path / "b.wav", source(".wav", 48_000, file.channels, layout=file.channel_layout), audio)
        assert heard(tmp_path / "b.wav") == heard(path)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_the_mask_of_wave_is_kept(self, tmp_path, layout):
        audio = tones(layout)
        write(tmp_path / "a.wav", source(".wav", 48_000, len(audio), format="WAVEX", layout=layout), audio)
        content = (tmp_path / "a.wav").read_bytes()
        start = content.index(b"fmt ") + 8
        assert struct.unpack_from("<H", content, start) == (0xFFFE,)
        assert struct.unpack_from("<I", content, start + 20) == (mask_of(layout),)

    @pytest.mark.parametrize("suffix", [".wav", ".flac", ".mka", ".mov", ".wv", ".caf"])
    def test_places_of_a_layout_without_a_name(self, tmp_path, suffix):
        layout = "5 channels (FL+FR+LFE+BL+BR)"
        codec = {".mov": "pcm_s16le", ".wv": "wavpack", ".mka": "flac"}.get(suffix, "PCM_16")
        audio = noise(1_000, 5)
        write(tmp_path / f"a{suffix}", source(suffix, 48_000, 5, format="", subtype=codec, layout=layout), audio)
        file = open_audio(tmp_path / f"a{suffix}")
        assert file.channel_layout == layout
        np.testing.assert_allclose(np.concatenate(list(file.blocks()), axis=1), audio, atol=2**-15)

    def test_unknown_places_stay_unknown(self, tmp_path):
        write(tmp_path / "a.wav", source(".wav", 48_000, 5, format="WAVEX"), noise(1_000, 5))
        content = (tmp_path / "a.wav").read_bytes()
        assert struct.unpack_from("<I", content, content.index(b"fmt ") + 28) == (0,)
        write(tmp_path / "b.wav", source(".wav", 48_000, 5), noise(1_000, 5))
        content = (tmp_path / "b.wav").read_bytes()
        assert struct.unpack_from("<H", content, content.index(b"fmt ") + 8) == (1,)

    @pytest.mark.parametrize("suffix", [".mp3", ".mp2", ".wma"])
    def test_six_channels_into_two_are_refused(self, tmp_path, suffix):
        like = source(".wav", 48_000, 6, layout="5.1")
        with pytest.raises(AudioError, match=r"cannot hold 6 channels: \w+ has at most 2; try .wav or .flac"):
            write(tmp_path / f"a{suffix}", like, noise(1_000, 6))
        assert list(tmp_path.iterdir()) == []

    def test_formats_that_say_nothing_of_places(self, tmp_path):
        (warning,) = write(tmp_path / "a.w64", source(".wav", 48_000, 6, layout="5.1"), noise(1_000, 6))
        assert "does not say where channels belong: their order is that of 5.1" in warning

    def test_sixty_channels(self, tmp_path):
        audio = noise(1_000, 60)
        write(tmp_path / "a.wav", source(".wav", 48_000, 60), audio)
        assert soundfile.info(tmp_path / "a.wav").channels == 60
        with pytest.raises(AudioError, match="cannot hold 60 channels: flac has at most 8"):
            plan_target(tmp_path / "a.oga", source(".oga", 48_000, 60, subtype="flac"))


class TestClipping:
    @pytest.mark.parametrize(
        ("suffix", "subtype", "rate"),
        [
            (".wav", "PCM_16", 16_000),
            (".wav", "PCM_U8", 16_000),
            (".wav", "ULAW", 8_000),
            (".wav", "ALAW", 8_000),
            (".wav", "IMA_ADPCM", 8_000),
            (".wav", "MS_ADPCM", 8_000),
            (".wav", "GSM610", 8_000),
            (".au", "G721_32", 8_000),
            (".aiff", "ULAW", 8_000),
            (".caf", "ALAC_24", 16_000),
            (".flac", "PCM_24", 16_000),
            (".m4a", "alac", 16_000),
            (".wv", "wavpack", 16_000),
            pytest.param(".amr", "amr_nb", 8_000, marks=needs_amr),
            (".mp2", "mp2", 16_000),
        ],
    )
    def test_integers_and_coded_samples_clip_and_do_not_wrap(self, tmp_path, suffix, subtype, rate):
        audio = 15 * noise(8_000, 1)
        like = source(suffix, rate, 1, format="", subtype=subtype)
        path = tmp_path / f"a{suffix}"
        longer = suffix in (".au", ".amr", ".mp2") or subtype == "IMA_ADPCM"
        with pytest.warns(AudioWarning) if longer else _nothing(), create_audio(path, like, overwrite=True) as writer:
            writer.write(audio)
        assert writer.clipped_samples == np.count_nonzero(np.abs(audio) > (0.85 if subtype == "G721_32" else 1))
        decoded = decode(path, 1)[0]
        clipped = np.clip(audio[0], -1, 1)
        shift = lag(clipped, decoded)
        after = decoded[shift : shift + 7_000]
        assert np.corrcoef(clipped[: len(after)], after)[0, 1] > 0.6  # wrapped samples have the opposite sign

    @pytest.mark.parametrize(
        ("suffix", "subtype"), [(".wav", "FLOAT"), (".mp3", "mp3"), (".opus", "opus"), (".m4a", "aac")]
    )
    def test_floating_point_is_not_clipped(self, tmp_path, suffix, subtype):
        audio = 1.5 * np.sin(2 * np.pi * 200 * np.arange(48_000) / 48_000)[None].astype(np.float32)
        with create_audio(
            tmp_path / f"a{suffix}", source(suffix, 48_000, 1, format="", subtype=subtype), overwrite=True
        ) as writer:
            writer.write(audio)
        assert writer.clipped_samples == 0
        assert np.abs(decode(tmp_path / f"a{suffix}", 1)).max() > 1.3

    @pytest.mark.parametrize("subtype", ["IMA_ADPCM", "MS_ADPCM", "GSM610"])
    def test_the_true_length_of_block_codes_is_in_the_file(self, tmp_path, subtype):
        write(tmp_path / "a.wav", source(".wav", 8_000, 1, subtype=subtype), noise(7_777, 1))
        content = (tmp_path / "a.wav").read_bytes()
        assert struct.unpack_from("<I", content, content.index(b"fact") + 8) == (7_777,)

    def test_block_codes_without_a_length_are_said(self, tmp_path):
        like = source(".au", 8_000, 1, subtype="G721_32")
        said = "G721_32 is stored in whole blocks.*: 23 samples more than the source"
        with (
            pytest.warns(AudioWarning, match=said),
            create_audio(tmp_path / "a.au", like, overwrite=True) as writer,
        ):
            writer.write(noise(7_777, 1))


def _nothing():
    from contextlib import nullcontext

    return nullcontext()


class TestBytes:
    @pytest.mark.parametrize(
        ("suffix", "subtype"),
        [
            (".wav", "FLOAT"),
            (".w64", "FLOAT"),
            (".aiff", "FLOAT"),
            (".caf", "FLOAT"),
            (".mat5", "PCM_16"),
            *[(suffix, subtype) for suffix, subtype, _ in EXACT],
            *[(suffix, subtype) for suffix, subtype, _, _ in PADDED],
        ],
    )
    def test_the_same_audio_gives_the_same_file(self, tmp_path, suffix, subtype, monkeypatch):
        audio, like = noise(5_000, 1), source(suffix, 48_000, 1, format="", subtype=subtype)
        write(tmp_path / f"a{suffix}", like, audio)
        write(tmp_path / f"b{suffix}", like, audio, block=2_222)
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()

    @pytest.mark.parametrize(("suffix", "mark"), [(".wav", b"PEAK"), (".aiff", b"PEAK"), (".w64", b"PEAK")])
    def test_no_file_says_when_it_was_written(self, tmp_path, suffix, mark):
        before = int(time.time())
        write(tmp_path / f"a{suffix}", source(suffix, 48_000, 1, subtype="FLOAT"), noise(5_000, 1))
        content = (tmp_path / f"a{suffix}").read_bytes()
        for order in "<>":
            stamps = {struct.pack(f"{order}I", second) for second in range(before - 1, int(time.time()) + 2)}
            assert not any(stamp in content[:200] for stamp in stamps)

    def test_a_mat5_file_has_no_date(self, tmp_path):
        write(tmp_path / "a.mat5", source(".wav", 48_000, 1), noise(5_000, 1))
        assert b"1970-01-01 00:00:00" in (tmp_path / "a.mat5").read_bytes()[:116]
        assert soundfile.info(tmp_path / "a.mat5").frames == 5_000

    def test_a_short_wav_has_the_usual_header(self, tmp_path):
        write(tmp_path / "a.wav", source(".wav", 16_000, 1, samples=100), noise(100, 1))
        content = (tmp_path / "a.wav").read_bytes()
        assert (len(content), content[36:40]) == (44 + 200, b"data")
        assert struct.unpack("<I", content[4:8]) == (len(content) - 8,)


class TestLongWav:
    @pytest.mark.parametrize("samples_in_header", [50, 0])  # 0: unknown, so that there is room for longer sizes
    @pytest.mark.parametrize(("limit", "kind"), [(1_000, b"RF64"), (2_000, b"RIFF")])
    def test_rf64_only_beyond_the_limit(self, tmp_path, samples_in_header, limit, kind):
        audio = noise(500, 1)
        write(tmp_path / "a.wav", source(".wav", 16_000, 1, samples=samples_in_header), audio)
        with (tmp_path / "a.wav").open("r+b") as file:
            finish_wav(file, source().belongings, samples=500, data_bytes=1_000, mask=0, limit_bytes=limit)
        content = (tmp_path / "a.wav").read_bytes()
        assert content[:4] == kind
        assert soundfile.info(tmp_path / "a.wav").frames == 500
        np.testing.assert_allclose(decode(tmp_path / "a.wav", 1), audio, atol=2**-15)
        if kind == b"RF64":
            sizes = struct.unpack_from("<QQQ", content, 20)
            assert sizes == (len(content) - 8, 1_000, 500)

    def test_16_bit_wav_of_one_gib_is_no_rf64(self):
        like = source(".wav", 192_000, 2, samples=1 << 29)  # 2 GiB
        assert plan_target(Path("a.wav"), like).container == "WAV"


def give_up(writer: AudioWriter) -> None:
    writer.write(noise(5_000))
    raise AudioError("given up")


class TestErrors:
    def test_a_full_disk(self, tmp_path):
        resource = pytest.importorskip("resource")
        import signal

        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            for suffix in (".wav", ".flac", ".ogg", ".mp3", ".opus", ".m4a", ".mka", ".wv"):
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
                with pytest.raises(AudioError, match=r"cannot be written: File too large"):
                    write(tmp_path / f"a{suffix}", source(suffix, 48_000, 2), noise(200_000))
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
                assert list(tmp_path.iterdir()) == []
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)

    @pytest.mark.parametrize(("suffix", "name"), [(".aiff", "AIFF"), (".voc", "VOC"), (".svx", "SVX")])
    def test_a_file_too_large_for_its_format(self, tmp_path, monkeypatch, suffix, name):
        monkeypatch.setitem(encode_sndfile._LIMITS_BYTES, name, 30_000)
        write(tmp_path / f"a{suffix}", source(".wav", 44_100, 1), noise(14_000, 1))
        with pytest.raises(AudioError, match=f"{name} holds up to"):
            write(tmp_path / f"b{suffix}", source(".wav", 44_100, 1), noise(15_000, 1))
        assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]

    def test_an_error_leaves_nothing(self, tmp_path):
        for suffix in (".wav", ".mp3", ".m4a"):
            with (
                pytest.raises(AudioError, match="given up"),
                create_audio(tmp_path / f"a{suffix}", source(suffix), overwrite=False) as writer,
            ):
                give_up(writer)
            assert list(tmp_path.iterdir()) == []
