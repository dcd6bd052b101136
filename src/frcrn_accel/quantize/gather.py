"""The layout of the rows that the matrix product of a convolution gathers as its inputs.

With channels last a convolution is one matrix product, of rows that are gathered from a stack `(rows, channels)`:

    padding, part 0 for time 0, padding, part 1 for time 0, padding, ..., part 0 for time 1, padding, ...

A part is the real or the imaginary part of a source, and a time is a tap along time. The frames of a part follow each
other, each with all its rows. The padding is zero and as long as the longest frame: everything before the first
frame, after the last or beyond the edges along frequency is read there.

The number of frames is known only when the graph runs, so every index is linear in it. Needs numpy only.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["GatherLayout", "Offset"]


class Offset(NamedTuple):
    """A position in the stack: `per_frame * frames + first`, with the number of frames of the sources.

    Attributes:
        per_frame: Rows for each frame.
        first: Further rows.
    """

    per_frame: int
    first: int


@dataclass(frozen=True)
class GatherLayout:
    """The stack of one convolution, and the rows that each of its outputs gathers.

    Attributes:
        part_rows: Rows of a frame of each part.
        source_rows: For each output row and tap along frequency, the row of the input frame; None for none.
        times: Taps along time: 1 or 2.
        pad_time: Whether the outputs start with a frame of zeros before the first one, and end with one of zeros
            after the last.
    """

    part_rows: tuple[int, ...]
    source_rows: tuple[tuple[int | None, ...], ...]
    times: int
    pad_time: bool

    @property
    def padding(self) -> int:
        """Rows of zeros before the first part and after each."""
        return max(self.part_rows)

    @property
    def inputs(self) -> int:
        """Rows that each output gathers."""
        return len(self.part_rows) * self.times * len(self.source_rows[0])

    @property
    def more_frames(self) -> int:
        """Output frames, less input frames."""
        return 1 if self.pad_time else 1 - self.times

    def offset(self, part: int, time: int) -> Offset:
        """Return where the frame begins that output frame 0 takes from a part at a tap along time."""
        before = time * len(self.part_rows) + part
        per_frame = time * sum(self.part_rows) + sum(self.part_rows[:part])
        return Offset(per_frame, self.padding * (1 + before) + self.part_rows[part] * (time - self.pad_time))

    def row(self, output_row: int, tap: int) -> int | None:
        """Return the row within that frame that an output row takes at a tap along frequency; None for none."""
        return self.source_rows[output_row][tap]

    def coefficients(self) -> NDArray[np.int64]:
        """Return all indices as coefficients, in the order output row, part, time, tap.

        Returns:
            `(3, output rows * inputs)`: the index for output frame `t` of sources with `frames` frames is
            `t * coefficients[0] + frames * coefficients[1] + coefficients[2]`.
        """
        columns = []
        parts, times, taps = (range(n) for n in (len(self.part_rows), self.times, len(self.source_rows[0])))
        for output_row, part, time, tap in itertools.product(range(len(self.source_rows)), parts, times, taps):
            row = self.row(output_row, tap)
            if row is None:
                columns.append((0, 0, 0))  # the first row of padding
            else:
                per_frame, first = self.offset(part, time)
                columns.append((self.part_rows[part], per_frame, first + row))
        return np.array(columns, np.int64).T
