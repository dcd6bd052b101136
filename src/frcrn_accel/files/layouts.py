"""Places of channels: layouts by FFmpeg's names, and the order of their channels in files."""

from __future__ import annotations

from functools import cache
from typing import Any

__all__ = ["PLACES", "from_vorbis", "mask_of", "places_of", "to_vorbis"]

# Places of channels, in the order of WAVE's masks, which is also FFmpeg's.
PLACES = (
    *("FL", "FR", "FC", "LFE", "BL", "BR", "FLC", "FRC", "BC", "SL", "SR"),
    *("TC", "TFL", "TFC", "TFR", "TBL", "TBC", "TBR"),
)
_USUAL_PLACES = {"": (), "mono": ("FC",), "stereo": ("FL", "FR")}  # without loading FFmpeg
# How Vorbis orders the places of its layouts (Vorbis I specification, section 4.3.9; RFC 7845, section 5.1.1.2).
_VORBIS_ORDER = {
    "3.0": ("FL", "FC", "FR"),
    "5.0": ("FL", "FC", "FR", "BL", "BR"),
    "5.1": ("FL", "FC", "FR", "BL", "BR", "LFE"),
    "6.1": ("FL", "FC", "FR", "SL", "SR", "BC", "LFE"),
    "7.1": ("FL", "FC", "FR", "SL", "SR", "BL", "BR", "LFE"),
}


@cache
def places_of(layout: str) -> tuple[str, ...]:
    """Return the places of a layout of FFmpeg in its order, or nothing if they are not known."""
    if layout in _USUAL_PLACES:
        return _USUAL_PLACES[layout]
    import av

    try:
        channels: Any = av.AudioLayout(layout).channels
    except (ValueError, av.FFmpegError):
        return ()
    names = tuple(channel.name for channel in channels)
    return names if names and set(names) <= set(PLACES) and len(set(names)) == len(names) else ()


def mask_of(layout: str) -> int:
    """Return the mask of a layout, as WAVE, FLAC, AIFF and CAF store it; 0 if it is unknown or out of order."""
    bits = [PLACES.index(place) for place in places_of(layout)]
    return sum(1 << bit for bit in bits) if bits == sorted(bits) else 0


def to_vorbis(layout: str) -> tuple[int, ...]:
    """Return for each channel of Vorbis or Opus the channel of a layout; nothing if they have the same order."""
    return tuple(places_of(layout).index(place) for place in _VORBIS_ORDER.get(layout, ()))


def from_vorbis(layout: str) -> tuple[int, ...]:
    """Return for each channel of a layout the channel of Vorbis or Opus; nothing if they have the same order."""
    order = to_vorbis(layout)
    return tuple(order.index(channel) for channel in range(len(order)))
