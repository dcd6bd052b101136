"""Raw 16-bit PCM, channels interleaved, to arrays and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from typing_extensions import Buffer

from frcrn_accel.errors import AudioError

__all__ = ["from_pcm", "to_pcm"]


def from_pcm(pcm: Buffer, channels: int, dtype: DTypeLike = np.int16) -> NDArray[np.int16]:
    """Convert interleaved 16-bit samples to an array.

    >>> from_pcm(to_pcm(np.array([[1, 2, 3], [4, 5, 6]], np.int16)), channels=2)
    array([[1, 2, 3],
           [4, 5, 6]], dtype=int16)

    Args:
        pcm: The samples: bytes, or any object with a buffer, which is read as bytes whatever its items are.
        channels: Number of channels.
        dtype: `int16` in the byte order of the samples: that of the machine by default, or e.g. `"<i2"`.

    Returns:
        `(channels, samples)` of that dtype, a copy.

    Raises:
        AudioError: The bytes are not a whole number of samples.
    """
    content = memoryview(pcm).tobytes()  # `len` of a memoryview counts its items
    if len(content) % (np.dtype(dtype).itemsize * channels):
        raise AudioError(f"{len(content)} bytes are not a whole number of 16-bit samples in {channels} channel(s)")
    return np.ascontiguousarray(np.frombuffer(content, dtype).reshape(-1, channels).T)


def to_pcm(samples: NDArray[Any], dtype: DTypeLike = np.int16) -> bytes:
    """Convert an array of 16-bit samples to interleaved bytes: the inverse of `from_pcm`.

    Args:
        samples: `(channels, samples)`, integers within 16 bits.
        dtype: See `from_pcm`.
    """
    return np.ascontiguousarray(samples.T, dtype).tobytes()
