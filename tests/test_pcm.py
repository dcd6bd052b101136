"""Raw PCM to arrays and back."""

from __future__ import annotations

from array import array

import numpy as np
import pytest

from frcrn_accel import AudioError
from frcrn_accel.pcm import from_pcm, to_pcm

STEREO = np.array([[1, -2, 32_767], [4, 5, -32_768]], np.int16)
INTERLEAVED = np.array([1, 4, -2, 5, 32_767, -32_768], np.int16)


def test_there_and_back() -> None:
    pcm = to_pcm(STEREO)
    assert pcm == INTERLEAVED.tobytes()
    np.testing.assert_array_equal(from_pcm(pcm, 2), STEREO)


@pytest.mark.parametrize(
    "wrap",
    [
        bytes,
        bytearray,
        memoryview,
        lambda pcm: memoryview(pcm).cast("h"),
        lambda pcm: memoryview(array("h", INTERLEAVED.tolist())),
        lambda pcm: array("h", INTERLEAVED.tolist()),
        lambda pcm: memoryview(np.repeat(INTERLEAVED, 2))[::2],
    ],
    ids=["bytes", "bytearray", "bytes view", "int16 view", "array view", "array", "strided view"],
)
def test_every_kind_of_buffer(wrap) -> None:
    """Sizes are counted in bytes, not in the items of a view."""
    found = from_pcm(wrap(INTERLEAVED.tobytes()), 2)
    np.testing.assert_array_equal(found, STEREO)
    assert found.dtype == np.int16
    assert found.flags.c_contiguous


@pytest.mark.parametrize("channels", [1, 2])
def test_an_empty_buffer(channels: int) -> None:
    assert from_pcm(b"", channels).shape == (channels, 0)
    assert to_pcm(np.zeros((channels, 0), np.int16)) == b""


@pytest.mark.parametrize(
    ("pcm", "channels", "message"),
    [
        (b"12345", 1, r"^5 bytes are not a whole number of 16-bit samples in 1 channel\(s\)$"),
        (bytearray(6), 2, r"^6 bytes are not a whole number of 16-bit samples in 2 channel\(s\)$"),
        (memoryview(bytes(6)).cast("h"), 2, "^6 bytes"),
        (array("h", [1, 2, 3]), 2, "^6 bytes"),
    ],
)
def test_a_part_of_a_sample(pcm, channels: int, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        from_pcm(pcm, channels)


@pytest.mark.parametrize("item", ["f", "d", "i", "H"])
def test_items_of_another_type_are_refused(item: str) -> None:
    """Read as 16-bit samples, they would be noise."""
    with pytest.raises(AudioError, match=f"got items of format {item!r}: pass a numpy array$"):
        from_pcm(array(item, [1, 2, 3, 4]), 1)


def test_the_result_is_a_copy() -> None:
    """A framework may reuse its buffer as soon as the call returns."""
    pcm = bytearray(INTERLEAVED.tobytes())
    found = from_pcm(pcm, 1)
    pcm[:] = bytes(len(pcm))
    np.testing.assert_array_equal(found[0], INTERLEAVED)


@pytest.mark.parametrize(("dtype", "expected"), [("<i2", b"\x01\x00\xfe\xff"), (">i2", b"\x00\x01\xff\xfe")])
def test_byte_order(dtype: str, expected: bytes) -> None:
    samples = np.array([[1, -2]], np.int16)
    assert to_pcm(samples, dtype) == expected
    np.testing.assert_array_equal(from_pcm(expected, 1, dtype), samples)
