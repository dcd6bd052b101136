"""The formats that can be written: which library writes them, with which encodings, rates and channels."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path

import soundfile

from frcrn_accel.errors import AudioError
from frcrn_accel.files.ffmpeg import DSD
from frcrn_accel.files.layouts import places_of
from frcrn_accel.files.names import audio_suffixes, detected_suffix
from frcrn_accel.files.reading import AudioFile
from frcrn_accel.files.sndfile_forms import nearest_rate_hz, reads_back

__all__ = [
    "FILM_MUXERS",
    "MATROSKA",
    "MP4",
    "Target",
    "keeps_codec",
    "nearest_suffix",
    "plan_target",
    "plan_track",
    "writable_suffix",
    "writable_suffixes",
]

# libsndfile's containers, by the suffixes that are not their names.
_SNDFILE = {
    ".wav": "WAV",
    ".wave": "WAV",
    ".bwf": "WAV",
    ".aif": "AIFF",
    ".aifc": "AIFF",
    ".afc": "AIFF",
    ".snd": "AU",
    ".oga": "OGG",
    ".sph": "NIST",
    ".sf": "IRCAM",
    ".mat": "MAT5",
    ".iff": "SVX",
    ".8svx": "SVX",
}
# RAW has no header, FFmpeg keeps the bit rate of MP3, and SD2 needs a second file.
_NOT_WRITTEN = {"RAW", "MP3", "SD2"}


@dataclass(frozen=True)
class _Container:
    """A container of FFmpeg: its muxer, and the codecs that it holds. The first is for audio of any other codec."""

    muxer: str
    codecs: tuple[str, ...]


# Muxers of families of containers.
MP4 = ("mp4", "mov", "ipod", "3gp", "3g2")
MATROSKA = ("matroska", "webm")
_MP4_CODECS = ("aac", "alac", "ac3", "eac3", "opus", "flac")
_OGG = (".ogg", ".oga")
_OGG_CODECS = ("opus", "flac")
_PCM = ("pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le", "pcm_s16be", "pcm_s24be", "pcm_s32be")
_MATROSKA_CODECS = ("opus", "flac", "aac", "mp3", "mp2", "ac3", "eac3", "alac", "wavpack", *_PCM[:5])
_FFMPEG = {
    ".mp3": _Container("mp3", ("mp3",)),
    ".mp2": _Container("mp2", ("mp2",)),
    ".m2a": _Container("mp2", ("mp2",)),
    ".mpa": _Container("mp2", ("mp2",)),
    ".m4a": _Container("ipod", ("aac", "alac", "ac3")),
    ".m4b": _Container("ipod", ("aac", "alac", "ac3")),
    ".mp4": _Container("mp4", _MP4_CODECS),
    ".mov": _Container("mov", ("aac", "alac", "ac3", "eac3", *_PCM)),
    ".3gp": _Container("3gp", ("amr_nb", "aac")),
    ".aac": _Container("adts", ("aac",)),
    ".ogg": _Container("ogg", _OGG_CODECS),  # Vorbis is libsndfile's: FFmpeg's own encoder sounds far worse
    ".oga": _Container("ogg", _OGG_CODECS),
    ".opus": _Container("opus", ("opus",)),
    ".webm": _Container("webm", ("opus",)),
    ".weba": _Container("webm", ("opus",)),
    ".mka": _Container("matroska", _MATROSKA_CODECS),
    ".mkv": _Container("matroska", _MATROSKA_CODECS),
    ".wma": _Container("asf", ("wmav2", "wmav1")),
    ".asf": _Container("asf", ("wmav2", "wmav1")),
    ".amr": _Container("amr", ("amr_nb",)),
    ".ac3": _Container("ac3", ("ac3",)),
    ".eac3": _Container("eac3", ("eac3",)),
    ".ec3": _Container("eac3", ("eac3",)),
    ".wv": _Container("wv", ("wavpack",)),
    ".tta": _Container("tta", ("tta",)),
}

# The muxer for each suffix of films: the containers that keep sound in step to the sample, or to the milliseconds
# that FLV and ASF count. AVI does not say how much an encoder puts before the sound, so it gets PCM.
FILM_MUXERS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".3gp": "3gp",
    ".3g2": "3g2",
    ".mkv": "matroska",
    ".webm": "webm",
    ".ts": "mpegts",
    ".mts": "mpegts",
    ".m2ts": "mpegts",
    ".wmv": "asf",
    ".asf": "asf",
    ".flv": "flv",
    ".avi": "avi",
    ".ogv": "ogv",
}
# The codecs that are written into films, by muxer. The first is for sound of any other codec.
_FILM_CODECS = {
    "mp4": (*_MP4_CODECS, "mp3"),
    "mov": ("aac", "alac", "ac3", "eac3", *_PCM),
    "matroska": _MATROSKA_CODECS,
    "webm": ("opus",),
    "mpegts": ("aac", "mp2", "mp3", "ac3", "eac3"),
    "asf": ("wmav2", "wmav1"),
    "flv": ("aac",),
    "avi": ("pcm_s16le", "pcm_s24le"),
    "3gp": ("aac", "amr_nb"),
    "3g2": ("aac", "amr_nb"),
    "ogv": _OGG_CODECS,
}
# What to write for formats that are only read, by the usual codec in them. All others become .m4a.
_NEAREST = {
    ".flac": (".ape", ".dff", ".dsf", ".mlp", ".sd2", ".tak", ".thd"),
    ".opus": (".spx",),
    ".ogg": (".mogg", ".ogx"),
    ".mkv": (
        *(".3g2", ".avi", ".divx", ".f4v", ".mpeg", ".mpg", ".mxf", ".nsv", ".ogm", ".ogv", ".qt", ".rm"),
        *(".rmvb", ".vob", ".wtv"),
    ),
}
# FFmpeg's encoders that do not have the name of their codec.
ENCODERS = {"mp3": "libmp3lame", "opus": "libopus", "amr_nb": "libopencore_amrnb"}

# libsndfile's encodings, by FFmpeg's names.
_SUBTYPES = {
    "pcm_u8": "PCM_U8",
    "pcm_s8": "PCM_S8",
    "pcm_s16": "PCM_16",
    "pcm_s24": "PCM_24",
    "pcm_s32": "PCM_32",
    "pcm_f32": "FLOAT",
    "pcm_f64": "DOUBLE",
    "pcm_mulaw": "ULAW",
    "pcm_alaw": "ALAW",
    "adpcm_ms": "MS_ADPCM",
    "adpcm_ima_wav": "IMA_ADPCM",
    "adpcm_ima_qt": "IMA_ADPCM",
    "gsm": "GSM610",
    "gsm_ms": "GSM610",
    "vorbis": "VORBIS",
}
_CODECS = {
    "MPEG_LAYER_I": "mp2",
    "MPEG_LAYER_II": "mp2",
    "MPEG_LAYER_III": "mp3",
    "mp3float": "mp3",
    "mp3adufloat": "mp3",
    "mp2float": "mp2",
    "VORBIS": "vorbis",
    "OPUS": "opus",
    "amrnb": "amr_nb",
    "libopus": "opus",
}
_DEEP = ("PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAC_20", "ALAC_24", "ALAC_32")

_SIDE_OR_BACK = {"SL": "BL", "SR": "BR", "BL": "SL", "BR": "SR"}
_STEREO = ("mono", "stereo")
_XIPH = (*_STEREO, "3.0", "quad", "5.0", "5.1", "6.1", "7.1")
_LAYOUTS = {
    "mp3": _STEREO,
    "mp2": _STEREO,
    "wmav1": _STEREO,
    "wmav2": _STEREO,
    "amr_nb": ("mono",),
    "opus": (*_STEREO, "3.0", "quad", "5.1", "7.1"),  # FFmpeg's encoder mixes up the places of 5.0 and 6.1
    "VORBIS": _XIPH,
    "OPUS": _XIPH,
    "aac": (*_STEREO, "3.0", "4.0", "quad", "5.0", "5.1", "7.1"),
    "tta": (*_STEREO, "2.1", "quad", "5.1"),  # it stores no places; decoders assume these
    "alac": (*_STEREO, "3.0", "4.0", "5.0", "5.1", "6.1(back)", "7.1(wide)"),
    "ac3": (*_STEREO, "3.0", "4.0", "quad(side)", "5.0(side)", "5.1(side)", "2.1", "3.1"),
    "eac3": (*_STEREO, "3.0", "4.0", "quad(side)", "5.0(side)", "5.1(side)", "2.1", "3.1"),
    "flac": (*_STEREO, "3.0", "quad", "5.0", "5.1", "6.1", "7.1"),
}
_AAC_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 64_000, 88_200, 96_000)
_MPEG_RATES = (16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
_RATES = {
    "mp3": (8_000, 11_025, 12_000, *_MPEG_RATES),
    "mp2": _MPEG_RATES,
    "aac": _AAC_RATES,
    "opus": (8_000, 12_000, 16_000, 24_000, 48_000),
    "ac3": (32_000, 44_100, 48_000),
    "eac3": (32_000, 44_100, 48_000),
    "amr_nb": (8_000,),
    "wmav1": (8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000),
    "wmav2": (8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000),
}


_WITHOUT_PLACES = ("W64", "AU", "VOC", "IRCAM", "PAF", "PVF", "NIST", "MAT4", "MAT5")


@dataclass(frozen=True)
class Target:
    """How a file is written.

    Attributes:
        by_ffmpeg: Whether FFmpeg writes it; otherwise libsndfile does.
        container: Muxer of FFmpeg, or format of libsndfile.
        encoding: Codec of FFmpeg, or subtype of libsndfile.
        rate_hz: Sample rate.
        layout: Places of the channels, by FFmpeg's name; empty if unknown.
        sources: For each channel, the channel of the input that it comes from; None for silence.
        bits: Bits per sample of a lossless encoding of FFmpeg.
        notes: What differs from the source, for a warning.
    """

    by_ffmpeg: bool
    container: str
    encoding: str
    rate_hz: int
    layout: str
    sources: tuple[int | None, ...]
    bits: int
    notes: tuple[str, ...]


def plan_target(path: Path, like: AudioFile) -> Target:
    """Decide how to write a file, without touching it.

    Raises:
        AudioError: The suffix is not that of a format that can be written, or the format cannot hold this audio.
    """
    suffix = path.suffix.lower()
    if not suffix and not like.path.suffix:
        suffix = detected_suffix(like)
    codec = codec_of(like)
    notes: list[str] = []
    container = _container_of(suffix)
    # Players of Ogg play Vorbis; few play FLAC in it.
    is_vorbis = suffix in _OGG and (codec not in _OGG_CODECS or (codec == "flac" and like.format == "FLAC"))
    if container is None or is_vorbis:
        file_format = _sndfile_format(suffix, like)
        if file_format is None:
            raise AudioError(_unknown(path, like))
        return _fit(path, like, False, file_format, _sndfile_subtype(path, file_format, like, notes), notes)
    encoding = codec if codec in container.codecs else _default_codec(container, like)
    if encoding.startswith("pcm") and container.muxer == "matroska" and like.channels > 2:
        encoding = "flac"  # Matroska does not say where the channels of PCM belong
    if codec in _LOSSY and encoding != codec and suffix == like.path.suffix.lower():
        notes.append(f"there is no encoder for {codec}: it becomes {encoding}")
    if encoding == "opus" and container.muxer in ("ogg", "opus") and like.channels > 2:
        return _fit(path, like, False, "OGG", "OPUS", notes)
    return _fit(path, like, True, container.muxer, encoding, notes)


def keeps_codec(muxer: str, like: AudioFile) -> bool:
    """Return whether the sound of a film keeps its codec in a container."""
    return codec_of(like) in _FILM_CODECS[muxer]


def plan_track(path: Path, muxer: str, like: AudioFile) -> Target:
    """Decide how to write the sound of a film: in its own codec, or in the first one that the container takes.

    Raises:
        AudioError: The container cannot hold these channels.
    """
    codec, codecs = codec_of(like), _FILM_CODECS[muxer]
    encoding = codec if codec in codecs and _has_encoder(codec) else codecs[0]
    if encoding.startswith("pcm") and muxer == "matroska" and 2 < like.channels <= 8 and like.channel_layout:
        encoding = "flac"  # Matroska does not say where the channels of PCM belong
    notes = [] if encoding == codec else [f"track {like.track}: {codec} becomes {encoding}"]
    return _fit(path, like, True, muxer, encoding, notes)


@lru_cache(maxsize=1_024)  # a job has many files of few formats
def nearest_suffix(suffix: str) -> str:
    """Return the suffix of an output for files of a suffix; unlike `writable_suffix`, without reading one.

    It is the suffix itself if such files can be written, or if it is not that of an audio format.
    """
    lower = suffix.lower()
    for nearest, those in _NEAREST.items():
        if lower in those:
            return nearest
    is_kept = lower in writable_suffixes() or lower in FILM_MUXERS or lower not in audio_suffixes()
    return suffix if is_kept else ".m4a"


def writable_suffix(like: AudioFile) -> str:
    """Return the suffix of a file like this one: its own, or that of the nearest format that can be written."""
    own = like.path.suffix or detected_suffix(like)
    suffix, codec = own.lower(), codec_of(like)
    container = _container_of(suffix)
    if suffix in _OGG:
        kept = codec in ("vorbis", "opus", "flac") or codec not in _LOSSY
    elif container is not None:
        kept = codec in container.codecs or codec not in _LOSSY
    else:
        kept = _sndfile_format(suffix, like) is not None
    if kept:
        return own
    if codec in _LOSSY:
        return ".opus" if codec == "speex" else ".m4a"
    return ".flac" if like.channels <= 8 else ".wav"


def writable_suffixes() -> frozenset[str]:
    """Return the suffixes of all formats that can be written, in lower case, with the dot."""
    named = {f".{name.lower()}" for name in _available() - _NOT_WRITTEN}
    return frozenset(named | _SNDFILE.keys() | {suffix for suffix in _FFMPEG if _container_of(suffix)})


@cache
def _container_of(suffix: str) -> _Container | None:
    """Return the container of a suffix, with the codecs that this build of FFmpeg has encoders for."""
    container = _FFMPEG.get(suffix)
    if container is None:
        return None
    codecs = tuple(codec for codec in container.codecs if _has_encoder(codec))
    return replace(container, codecs=codecs) if codecs else None


@cache
def _has_encoder(codec: str) -> bool:
    import av

    with suppress(av.codec.codec.UnknownCodecError):
        av.Codec(ENCODERS.get(codec, codec), "w")
        return True
    return False


# Lossy codecs, besides those in the table of rates. Nothing is gained by storing their audio without loss.
_LOSSY = {
    *_RATES,
    *("OPUS", "VORBIS"),
    *("vorbis", "speex", "dts", "amr_wb", "cook", "atrac3", "atrac3p", "musepack7", "musepack8", "wmapro"),
    *("wmavoice", "qdm2", "ra_144", "ra_288", "sipr", "nellymoser", "gsm", "g722", "g723_1", "g726", "g729"),
    *("truespeech", "ilbc"),
    *("aac_latm", "mp1", "qcelp", "evrc", "dca", "ac4", "qdmc", "mpc7", "mpc8", "tak_lossy"),
}


def codec_of(like: AudioFile) -> str:
    """Return FFmpeg's name for the codec of a file."""
    if like.format == "FLAC":
        return "flac"
    if like.subtype.startswith("ALAC"):
        return "alac"
    for codec, subtype in _SUBTYPES.items():
        if like.subtype == subtype:
            return f"{codec}le" if codec[-2:] in ("16", "24", "32", "64") else codec
    return _CODECS.get(like.subtype, like.subtype).removesuffix("_planar")


def _bits_of(like: AudioFile) -> int:
    """Return the bits per sample that hold the samples of a file: 16, or 24 for deeper ones."""
    deep = (
        like.subtype in _DEEP
        or (like.bits or 16) > 16
        or codec_of(like).startswith(("pcm_s24", "pcm_s32", "pcm_f32", "pcm_f64", *DSD))
    )
    return 24 if deep else 16


def _default_codec(container: _Container, like: AudioFile) -> str:
    """Return the codec for audio that cannot keep its own."""
    if container.muxer == "matroska" and codec_of(like) not in _LOSSY:
        return "flac"
    if container.muxer == "3gp" and like.sample_rate_hz > 8_000 and "aac" in container.codecs:
        return "aac"
    return container.codecs[0]


def _sndfile_format(suffix: str, like: AudioFile) -> str | None:
    """Return libsndfile's format for a suffix, or None if it writes no such files."""
    file_format = _SNDFILE.get(suffix, suffix[1:].upper())
    if file_format not in _available() or file_format in _NOT_WRITTEN:
        return None
    if suffix == like.path.suffix.lower() and like.format in ("NIST", "MAT4", "WAVEX") and suffix in (".wav", ".mat"):
        return like.format
    return file_format


def _sndfile_subtype(path: Path, file_format: str, like: AudioFile, notes: list[str]) -> str:
    """Return libsndfile's encoding: that of the source if the format has it and is read back, else the nearest.

    Raises:
        AudioError: The format holds fewer channels.
    """
    if file_format == "OGG":
        return "VORBIS"
    available = soundfile.available_subtypes("WAV" if file_format == "WAVEX" else file_format)
    codec = codec_of(like)
    own = (
        like.subtype if like.subtype in available else _SUBTYPES.get(codec.removesuffix("le").removesuffix("be"), "")
    )
    wanted = ["PCM_24", "PCM_32", "ALAC_24", "FLOAT"] if _bits_of(like) == 24 else []
    wanted += ["PCM_16", str(soundfile.default_subtype(file_format)), *available]
    if own in available and not own.startswith("MPEG"):
        wanted.insert(0, own)
    usable = [subtype for subtype in wanted if subtype in available and not subtype.startswith("MPEG")]
    exact = [form for form in usable if reads_back(file_format, form, like.channels, like.sample_rate_hz)]
    held = exact or [
        form for form in usable if nearest_rate_hz(file_format, form, like.channels, like.sample_rate_hz)
    ]
    if not held:
        raise AudioError(f"{str(path)!r} cannot hold {like.channels} channels: {file_format} has fewer; try .wav")
    if wanted[0] == own and held[0] != own:
        notes.append(f"{own} of this rate and these channels cannot be read back from {file_format}: it is {held[0]}")
    return held[0]


def _fit(path: Path, like: AudioFile, by_ffmpeg: bool, container: str, encoding: str, notes: list[str]) -> Target:
    """Fit rate and channels to an encoding.

    Raises:
        AudioError: It does not hold these channels.
    """
    codec = encoding.lower() if encoding in ("VORBIS", "OPUS") else encoding
    rates = _RATES.get(codec, ())
    if codec == "opus" and container in MP4:
        rates = rates[-1:]  # it counts at this rate, and the start of any other would be misplaced
    rate = like.sample_rate_hz
    if not by_ffmpeg and container != "OGG":
        rates = (nearest_rate_hz(container, encoding, like.channels, rate) or rate,)
    if rates and rate not in rates:
        rate = next((allowed for allowed in rates if allowed >= rate), rates[-1])
        where = f"{codec} in MP4" if rates == _RATES["opus"][-1:] else codec if by_ffmpeg else container
        notes.append(f"{where} has no sample rate of {like.sample_rate_hz:,} Hz: resampled to {rate:,} Hz")
    allowed = _LAYOUTS.get(encoding)
    if codec == "flac" and container in ("matroska", "FLAC"):
        allowed = None  # its comments hold the mask of any layout
    if like.channels > 8 and codec in ("flac", "alac"):
        raise AudioError(f"{str(path)!r} cannot hold {like.channels} channels: {codec} has at most 8; try .wav")
    layout, sources = _layout(path, like, codec, allowed)
    if len(sources) > like.channels:
        notes.append(
            f"{codec} has no channel layout {like.channel_layout}: silent channels are added, as in {layout}"
        )
    if like.channels > 2 and layout and container in _WITHOUT_PLACES:
        notes.append(f"the format does not say where channels belong: their order is that of {layout}")
    return Target(by_ffmpeg, container, encoding, rate, layout, sources, _bits_of(like), tuple(notes))


def _layout(
    path: Path, like: AudioFile, codec: str, allowed: Sequence[str] | None
) -> tuple[str, tuple[int | None, ...]]:
    """Return the layout of a new file, and where each of its channels comes from."""
    same = tuple(range(like.channels))
    places = places_of(like.channel_layout)
    if len(places) != like.channels:
        places = ()
    if allowed is None:
        return (like.channel_layout if places else ""), same
    candidates = [(name, places_of(name)) for name in allowed]
    if like.channels <= 2 or not places:
        for name, offered in candidates:
            if len(offered) == like.channels:
                return name, same
    else:
        for widen in (False, True):
            for name, offered in candidates:
                if (len(offered) > len(places) if widen else len(offered) == len(places)) and (
                    found := _match(places, offered)
                ):
                    return name, found
    most = max(len(offered) for _, offered in candidates)
    if like.channels > most:
        reason = f"{like.channels} channels: {codec} has at most {most}"
    elif places:
        reason = f"channels at these places: {codec} has no layout {like.channel_layout}"
    else:
        reason = f"{like.channels} channels: {codec} has no such layout"
    raise AudioError(f"{str(path)!r} cannot hold {reason}; try .wav or .flac")


def _match(places: tuple[str, ...], offered: tuple[str, ...]) -> tuple[int | None, ...]:
    """Return the source of each offered place, or nothing if a place is missing.

    Side and back channels can stand in for each other.
    """
    for swap in (False, True):
        wanted = tuple(_SIDE_OR_BACK.get(place, place) for place in places) if swap else places
        if set(wanted) <= set(offered):
            return tuple(wanted.index(place) if place in wanted else None for place in offered)
    return ()


@cache
def _available() -> frozenset[str]:
    return frozenset(soundfile.available_formats())


def _unknown(path: Path, like: AudioFile) -> str:
    suffix = path.suffix.lower()
    if suffix in _FFMPEG:
        return f"{str(path)!r}: this build of FFmpeg has no encoder for {suffix} files; try .wav, .flac, .mp3 or .m4a"
    if suffix and suffix == like.path.suffix.lower():
        return (
            f"{str(path)!r}: {suffix} files can be read, but not written; try {writable_suffix(like)}, .wav or .flac"
        )
    return f"{str(path)!r}: unknown audio format {suffix!r}; try .wav, .flac, .ogg, .mp3, .m4a or .opus"
