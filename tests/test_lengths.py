"""The warning gives the exact number of extra samples that FFmpeg decodes, in every format that can be written."""

from __future__ import annotations

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from coded import decode, lag, noise, source, stated_samples, write_all
from example_counts import few
from frcrn_accel import AudioError
from frcrn_accel.files.formats import writable_suffixes

# Suffix, encoding of the source and rates.
CODED = [
    (".mp2", "mp2", (16_000, 44_100, 48_000)),
    (".m4a", "aac", (8_000, 44_100, 96_000)),
    (".m4a", "alac", (44_100,)),
    (".m4a", "ac3", (32_000, 44_100)),
    (".mp4", "eac3", (48_000,)),
    (".mp4", "opus", (8_000, 24_000, 48_000)),
    (".mp4", "flac", (44_100,)),
    (".mov", "aac", (22_050,)),
    (".mov", "alac", (44_100,)),
    (".mov", "ac3", (48_000,)),
    (".mov", "pcm_s16le", (44_100,)),
    (".3gp", "amr_nb", (8_000,)),
    (".3gp", "aac", (16_000,)),
    (".aac", "aac", (8_000, 16_000, 44_100, 88_200)),
    (".ogg", "flac", (44_100,)),
    (".opus", "opus", (8_000, 16_000, 48_000)),
    (".webm", "opus", (8_000, 12_000, 16_000, 24_000, 48_000)),
    (".mka", "opus", (48_000,)),
    (".mka", "flac", (44_100,)),
    (".mka", "aac", (8_000, 44_100)),
    (".mka", "mp3", (8_000, 16_000, 44_100, 48_000)),
    (".mka", "mp2", (22_050, 48_000)),
    (".mka", "ac3", (44_100,)),
    (".mka", "eac3", (32_000,)),
    (".mka", "alac", (44_100,)),
    (".mka", "wavpack", (44_100,)),
    (".mka", "pcm_f32le", (44_100,)),
    (".wma", "wmav2", (8_000, 22_050, 44_100, 48_000)),
    (".wma", "wmav1", (16_000, 44_100)),
    (".amr", "amr_nb", (8_000,)),
    (".ac3", "ac3", (32_000, 44_100, 48_000)),
    (".eac3", "eac3", (32_000, 44_100, 48_000)),
    (".wv", "wavpack", (44_100,)),
    (".mp3", "mp3", (8_000, 44_100, 48_000)),
]
BLOCKS = [
    (".wav", "PCM_16"),
    (".wav", "IMA_ADPCM"),
    (".wav", "MS_ADPCM"),
    (".wav", "GSM610"),
    (".w64", "IMA_ADPCM"),
    (".w64", "MS_ADPCM"),
    (".w64", "GSM610"),
    (".aiff", "PCM_S8"),
    (".aiff", "ULAW"),
    (".aiff", "IMA_ADPCM"),
    (".aiff", "GSM610"),
    (".au", "G721_32"),
    (".au", "G723_24"),
    (".au", "G723_40"),
    (".voc", "ULAW"),
    (".sds", "PCM_16"),
    (".ogg", "VORBIS"),
    (".flac", "PCM_16"),
]
ALL = [(suffix, codec, rate) for suffix, codec, rates in CODED for rate in rates]
ALL += [(suffix, codec, rate) for suffix, codec in BLOCKS for rate in (8_000, 44_100)]
LENGTHS = st.one_of(st.sampled_from([1, 2, 100]), st.integers(1, 5_000))


def decoded_rate(path, rate):
    """Return the rate after decoding: 48 kHz for Opus; a file whose rate was rounded keeps its samples."""
    with av.open(str(path)) as container:
        codec = container.streams.audio[0].codec_context
        return codec.sample_rate if codec.name in ("opus", "libopus") else rate


@pytest.mark.parametrize(("suffix", "codec", "rate"), ALL)
@few(3)
@given(samples=LENGTHS, channels=st.integers(1, 2))
def test_ffmpeg_decodes_as_many_samples_as_is_said(tmp_path_factory, suffix, codec, rate, samples, channels):
    if suffix not in writable_suffixes() or (codec == "amr_nb" and ".amr" not in writable_suffixes()):
        pytest.skip("this build of FFmpeg does not encode it")
    if codec in ("amr_nb", "GSM610") or codec.startswith(("G72", "VOX")) or suffix == ".sds":
        channels = 1
    path = tmp_path_factory.getbasetemp() / f"length{suffix}"
    like = source(suffix, rate, channels, format="", subtype=codec)
    _, said = write_all(path, like, noise(samples, channels))
    wanted = round(samples * (out := decoded_rate(path, rate)) / rate)
    decoded = decode(path, channels).shape[1]
    if codec == "aac" and suffix != ".aac" and suffix != ".mka":  # older FFmpeg decodes the last packet to its end
        assert stated_samples(path) == wanted
        decoded = min(decoded, wanted)
    assert decoded - wanted == (said[0] if said else 0)
    assert said is None or said[1] == out


@pytest.mark.parametrize(
    ("suffix", "codec", "rate"),
    [(suffix, codec, rate) for suffix, codec, rate in ALL if codec != "opus" or rate == 48_000],
)
def test_the_audio_starts_where_it_did_or_as_much_later_as_is_said(tmp_path, suffix, codec, rate):
    if suffix not in writable_suffixes() or (codec == "amr_nb" and ".amr" not in writable_suffixes()):
        pytest.skip("this build of FFmpeg does not encode it")
    audio = noise(20_000, 1)
    path = tmp_path / f"a{suffix}"
    like = source(suffix, rate, 1, format="", subtype=codec, bit_rate=160_000 if codec == "aac" else None)
    _, said = write_all(path, like, audio)
    assert abs(lag(audio[0], decode(path, 1)[0]) - (said[2] if said else 0)) <= 1


@pytest.mark.parametrize("suffix", [".aac", ".ac3", ".eac3"])
@pytest.mark.parametrize("rate", [32_000, 44_100, 48_000])
def test_ffmpeg_finds_the_audio_in_very_short_files(tmp_path, suffix, rate):
    for samples in (1, 2, 47, 100, 530, 1_152):
        path = tmp_path / f"a{samples}{suffix}"
        write_all(path, source(suffix, rate, 1, format="", subtype=suffix[1:]), noise(samples, 1))
        assert decode(path, 1).shape[1] >= samples


@pytest.mark.parametrize(("suffix", "codec", "rate"), [(".mp4", "opus", 48_000), (".3gp", "amr_nb", 8_000)])
def test_nothing_is_lost_of_a_single_packet(tmp_path, suffix, codec, rate):
    if codec == "amr_nb" and ".amr" not in writable_suffixes():
        pytest.skip("this build of FFmpeg does not encode it")
    audio = noise(100, 1)
    write_all(tmp_path / f"a{suffix}", source(suffix, rate, 1, format="", subtype=codec), audio)
    decoded = decode(tmp_path / f"a{suffix}", 1)
    assert np.square(decoded[:, :100]).sum() > 0.1 * np.square(audio).sum()


@pytest.mark.parametrize("samples", [1, 63, 64, 65])
def test_a_whole_number_of_blocks_is_not_warned_about(tmp_path, samples):
    like = source(".aiff", 8_000, 1, format="", subtype="IMA_ADPCM")
    _, said = write_all(tmp_path / "a.aiff", like, noise(samples, 1))
    assert (said is None) == (samples % 64 == 0)
    assert soundfile.info(tmp_path / "a.aiff").frames == samples + (said[0] if said else 0)


def test_a_failed_file_says_nothing_about_its_length(tmp_path):
    with pytest.raises(AudioError):
        write_all(tmp_path / "a.tta", source(".tta", 8_000, 1, format="", subtype="tta"), noise(1, 1))
    assert list(tmp_path.iterdir()) == []
