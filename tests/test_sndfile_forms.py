"""Each form that libsndfile claims to write is read back correctly, or replaced by the nearest one that is."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from coded import noise, source, write
from frcrn_accel import AudioError
from frcrn_accel.files import open_audio
from frcrn_accel.files.formats import plan_target

SUFFIXES = {"WAVEX": ".wav", "AIFF": ".aiff"}
FORMATS = sorted(set(soundfile.available_formats()) - {"RAW", "MP3", "SD2", "OGG"})
FORMS = [
    (name, subtype)
    for name in FORMATS
    for subtype in soundfile.available_subtypes("WAV" if name == "WAVEX" else name)
    if not subtype.startswith("MPEG")
]
CODED_DB = {"GSM610": -9, "NMS_ADPCM_16": -9, "VOX_ADPCM": -9}

TRIED = ((16_000, 1, 1_000), (44_100, 2, 1_000), (96_000, 3, 1_000), (8_000, 1, 1), (48_000, 2, 0))


def written(folder, name, subtype, rate, channels, samples):
    """Write noise; return it, the plan, what was said, and what comes back; or None if it is refused."""
    path = folder / f"a{SUFFIXES.get(name, f'.{name.lower()}')}"
    path.unlink(missing_ok=True)
    like = source(path.suffix, rate, channels, format=name, subtype=subtype, layout={3: "3.0"}.get(channels, ""))
    audio = noise(samples, channels)
    try:
        said = write(path, like, audio)
    except AudioError as error:
        reason = str(error)
    else:
        reason = ""
    if reason:
        assert not path.exists()
        assert "channels" in reason or (samples == 0 and "there are no samples" in reason)
        return None
    file = open_audio(path)
    blocks = [np.zeros((file.channels, 0), np.float32), *file.blocks()]
    return audio, plan_target(path, like), said, file, np.concatenate(blocks, axis=1)


@pytest.mark.parametrize(("name", "subtype"), FORMS)
def test_all_that_is_written_is_read_back(tmp_path, name, subtype):
    for rate, channels, samples in [
        (16_000, 1, 1_000),
        (44_100, 2, 1_000),
        (96_000, 3, 1_000),
        (8_000, 1, 1),
        (48_000, 2, 0),
    ]:
        result = written(tmp_path, name, subtype, rate, channels, samples)
        if result is None:
            continue
        audio, plan, said, file, found = result
        assert abs(file.sample_rate_hz - plan.rate_hz) <= 1e-3 * plan.rate_hz
        assert file.channels == channels
        wanted = round(samples * plan.rate_hz / rate)
        assert found.shape[1] >= wanted
        assert (plan.rate_hz == rate) == (not any("resampled to" in text for text in said))
        assert (plan.encoding == subtype) == (not any("cannot be read back" in text for text in said))
        if samples >= 1_000 and plan.rate_hz == rate:
            error = np.square(found[:, :samples] - audio).sum() / np.square(audio).sum()
            assert 10 * np.log10(error + 1e-12) < CODED_DB.get(plan.encoding, -12)


@pytest.mark.parametrize(
    ("name", "subtype", "rate", "channels", "encoding", "rate_hz"),
    [
        ("AIFF", "DWVW_16", 44_100, 1, "PCM_16", 44_100),
        ("PAF", "PCM_24", 44_100, 3, "PCM_16", 44_100),
        ("XI", "DPCM_16", 16_000, 1, "DPCM_16", 44_100),
        ("WVE", "ALAW", 16_000, 1, "ALAW", 8_000),
        ("MPC2K", "PCM_16", 96_000, 2, "PCM_16", 64_000),
        ("SVX", "PCM_16", 96_000, 1, "PCM_16", 64_000),
        ("VOC", "PCM_U8", 44_100, 1, "PCM_16", 44_100),
        ("VOC", "PCM_U8", 8_000, 1, "PCM_U8", 8_000),
        ("HTK", "PCM_16", 44_100, 1, "PCM_16", 44_247),
        ("SDS", "PCM_16", 44_100, 1, "PCM_16", 44_100),
    ],
)
def test_the_nearest_form_is_taken(tmp_path, name, subtype, rate, channels, encoding, rate_hz):
    _, plan, _, file, found = written(tmp_path, name, subtype, rate, channels, 4_000)
    assert (plan.encoding, plan.rate_hz) == (encoding, rate_hz)
    assert file.sample_rate_hz == pytest.approx(rate_hz, rel=1e-3)
    assert found.shape[1] >= round(4_000 * rate_hz / rate)


@pytest.mark.parametrize(
    ("name", "subtype", "packet"),
    [("SDS", "PCM_S8", 60), ("SDS", "PCM_16", 40), ("SDS", "PCM_24", 30), ("PAF", "PCM_24", 10)],
)
def test_the_last_packet_of_a_format_of_packets_is_not_lost(tmp_path, name, subtype, packet):
    for samples in (1, packet - 1, packet, packet + 1, 2 * packet, 1_001):
        audio, _, _, _, found = written(tmp_path, name, subtype, 16_000, 1, samples)
        assert found.shape[1] == max(2 * packet, -(-samples // packet) * packet)
        np.testing.assert_allclose(found[:, :samples], audio, atol=1e-2)
