"""Raw 16-bit PCM, channels interleaved, to arrays and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from typing_extensions import Buffer

from frcrn_accel.errors import AudioError

__all__ = ["check_interleaved", "from_pcm", "to_pcm"]

_ITEM_FORMATS = frozenset({"B", "b", "c", "h"})  # of a `memoryview`: bytes, and 16-bit integers in native order


def from_pcm(pcm: Buffer, channels: int, dtype: DTypeLike = np.int16) -> NDArray[np.int16]:
    """Convert interleaved 16-bit samples to an array.

    >>> from_pcm(to_pcm(np.array([[1, 2, 3], [4, 5, 6]], np.int16)), channels=2)
    array([[1, 2, 3],
           [4, 5, 6]], dtype=int16)

    Args:
        pcm: The samples: any object with a buffer of bytes or 16-bit integers, e.g. `bytes`, `memoryview`, `array`.
        channels: Number of channels.
        dtype: `int16` in the byte order of the samples: by default that of the machine, or e.g. `"<i2"`.

    Returns:
        `(channels, samples)` of that dtype, a copy.

    Raises:
        AudioError: The buffer has items of another type, its shape is neither `(items,)` nor `(samples, channels)`,
            or its size is not a whole number of samples.
    """
    view = memoryview(pcm)
    if view.format not in _ITEM_FORMATS:
        raise AudioError(
            f"a buffer must hold bytes or 16-bit integers, got items of format {view.format!r}: pass a numpy array"
        )
    check_interleaved(view, channels)
    content = view.tobytes()  # the size in bytes: `len` of a view counts its items
    if len(content) % (np.dtype(dtype).itemsize * channels):
        bits = 8 * np.dtype(dtype).itemsize
        raise AudioError(
            f"{len(content)} bytes are not a whole number of {bits}-bit samples in {channels} channel(s)"
        )
    return np.ascontiguousarray(np.frombuffer(content, dtype).reshape(-1, channels).T)


def check_interleaved(view: memoryview, channels: int) -> None:
    """Check that the shape of a buffer does not contradict that the channels of its samples are interleaved.

    Raises:
        AudioError: It has several dimensions, and is not `(samples, channels)`.
    """
    shape = view.shape or ()
    if len(shape) != 1 and (len(shape) != 2 or shape[1] != channels or view.itemsize == 1):
        raise AudioError(
            f"a buffer must have one dimension, or be (samples, channels) with {channels} channel(s), got shape "
            f"{shape}: pass a numpy array of (channels, samples)"
        )


def to_pcm(samples: NDArray[Any], dtype: DTypeLike = np.int16) -> bytes:
    """Convert an array of 16-bit samples to interleaved bytes: the inverse of `from_pcm`.

    Args:
        samples: `(channels, samples)`, integers within 16 bits.
        dtype: See `from_pcm`.
    """
    return np.ascontiguousarray(samples.T, dtype).tobytes()
