"""Open files with PyAV, and work around what its versions do differently or wrongly."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any, BinaryIO

__all__ = ["DSD", "PLACES", "fix_layout", "open_input"]

# Places of channels, in the order of WAVE's masks, which is also FFmpeg's.
PLACES = (
    *("FL", "FR", "FC", "LFE", "BL", "BR", "FLC", "FRC", "BC", "SL", "SR"),
    *("TC", "TFL", "TFC", "TFR", "TBL", "TBC", "TBR"),
)

# How the names of the decoders of DSD start.
DSD = ("dsd_", "dst")

# From this version on, PyAV decodes text as UTF-8 with `surrogateescape`, and has no option for it.
_WITHOUT_METADATA_OPTION = 19


def open_input(source: Any, **options: Any) -> Any:
    """Open an input container. Text in it that is not UTF-8 has surrogate escapes.

    From a file object, no other file or address is opened: a playlist in disguise must not read one.

    Args:
        source: Path as a string, or a file object.
        **options: Other arguments of `av.open`.
    """
    import av

    if int(av.__version__.partition(".")[0]) < _WITHOUT_METADATA_OPTION:
        options["metadata_errors"] = "surrogateescape"
    if not isinstance(source, str):
        source = _Input(source)
    given: Mapping[str, str] = options.pop("container_options", {})
    protocols = "file" if isinstance(source, str) else "none"
    return av.open(source, "r", container_options={"protocol_whitelist": protocols, **given}, **options)


class _Input:
    """A file for PyAV, in which a seek that fails is an error of FFmpeg, not a traceback on the terminal.

    Sizes in damaged headers lead to positions that no file has, for each chunk that FFmpeg looks for.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.name = getattr(file, "name", "")  # FFmpeg looks at its suffix
        self.read = file.read
        self._file = file

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position. Return it, or a negative error number."""
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -errno.EINVAL

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()


def fix_layout(context: Any) -> tuple[str, tuple[int, ...]]:
    """Return the layout of a decoder that is not open yet, and take it from the decoder if its order is not FFmpeg's.

    QuickTime, CAF and AIFF files can have their channels in any order. PyAV frees such a layout twice, once with the
    object that describes it, and that ends the process.

    Returns:
        FFmpeg's name of the layout in FFmpeg's order, empty if the places are not known; and for each of its places
        the channel of the file, nothing if the file has this order.
    """
    import av

    layout = context.layout
    name = str(layout.name)
    if "channels" not in name:
        return name, ()
    if "(" not in name:
        return "", ()
    places = [channel.name for channel in layout.channels]
    context.layout = f"{len(places)} channels"
    if not set(places) <= set(PLACES) or len(set(places)) < len(places):
        return "", ()
    order = tuple(sorted(range(len(places)), key=lambda channel: PLACES.index(places[channel])))
    own = str(av.AudioLayout("+".join(places[channel] for channel in order)).name)
    if order == tuple(range(len(places))):
        context.layout = own  # without one, some decoders assume a standard layout
        return own, ()
    return own, order
