"""The layout that integer products gather from, against padding and slicing in numpy. No ONNX needed."""

from __future__ import annotations

import numpy as np
import pytest

from frcrn_accel.quantize.gather import GatherLayout, Offset

ENCODER = GatherLayout((4, 4), ((0, 1), (2, 3)), times=2, pad_time=True)
DECODER = GatherLayout((3, 3, 2, 2), ((0, None), (1, 0), (None, 1)), times=2, pad_time=False)
SHORT = GatherLayout((3, 3, 2, 2), ((0, None), (1, 0), (None, 1)), times=1, pad_time=False)


def test_by_hand():
    assert ENCODER.padding == 4
    assert ENCODER.inputs == 2 * 2 * 2
    # The first output frame takes the padding, then frame 0; part 1 lies one part and one padding further.
    assert ENCODER.offset(0, 0) == Offset(0, 4 - 4)
    assert ENCODER.offset(0, 1) == Offset(8, 4 + 2 * 4)
    assert ENCODER.offset(1, 0) == Offset(4, 4 + 4 - 4)
    assert DECODER.offset(0, 0) == Offset(0, 3)
    assert DECODER.offset(2, 1) == Offset(10 + 6, 3 + 6 * 3 + 2)
    assert [ENCODER.row(1, tap) for tap in (0, 1)] == [2, 3]
    assert DECODER.row(0, 1) is None
    assert [layout.more_frames for layout in (ENCODER, DECODER, SHORT)] == [1, -1, 0]


@pytest.mark.parametrize("layout", [ENCODER, DECODER, SHORT], ids=["encoder", "decoder", "decoder of one frame"])
@pytest.mark.parametrize("frames", [2, 3, 7])
def test_what_is_gathered(layout, frames):
    """Each row of the stack holds its own number; zero is padding."""
    numbers = iter(range(1, 100_000))
    parts = {}
    stack = [0] * layout.padding
    for time in range(layout.times):
        for part, rows in enumerate(layout.part_rows):
            parts[part, time] = np.array([[next(numbers) for _ in range(rows)] for _ in range(frames)])
            stack += [*parts[part, time].ravel(), *[0] * layout.padding]
    per_output_frame, per_frame, first = layout.coefficients()
    for t in range(frames + layout.more_frames):
        found = np.array(stack)[t * per_output_frame + frames * per_frame + first]
        expected = []
        for rows in layout.source_rows:
            for part in range(len(layout.part_rows)):
                for time in range(layout.times):
                    padded = np.pad(parts[part, time], ((layout.pad_time,) * 2, (0, 0)))
                    expected += [0 if row is None else padded[t + time, row] for row in rows]
        np.testing.assert_array_equal(found, expected)
