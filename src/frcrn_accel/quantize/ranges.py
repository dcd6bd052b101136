"""Ranges of activations, relative to the peak of a frame, as `IntegerNetwork` uses them."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.errors import QuantizeError

__all__ = ["FsmnRanges", "Ranges"]


@dataclass(frozen=True)
class FsmnRanges:
    """Largest magnitudes inside one FSMN block, each relative to the peak of the frame's input.

    Attributes:
        hidden: After the ReLU of the real and the imaginary net, `(2, channels)`.
        memory: After the projections, `(channels,)`.
        filtered: After the filters, relative to `memory`.
        memories: The sum of the two memories of one part, relative to `memory`.
        filtered_sum: The sum of the two filtered memories of one part, relative to `memory`.
        total: The sum of all four, relative to `memory`.
    """

    hidden: NDArray[np.float32]
    memory: NDArray[np.float32]
    filtered: float
    memories: float
    filtered_sum: float
    total: float

    def __post_init__(self) -> None:
        """Check that no range is NaN or infinite, which later comparisons would not detect."""
        _check_finite(vars(self))


@dataclass(frozen=True)
class Ranges:
    """Ranges that are known before the network runs.

    Attributes:
        fsmn: By name of FSMN block.
        inputs: By name of convolution, for each of its sources: the largest magnitude, relative to the peak of the
            frame at the input of the FSMN block before it. A convolution that is missing here takes the peaks from
            the data.
    """

    fsmn: Mapping[str, FsmnRanges]
    inputs: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that no range is NaN or infinite."""
        _check_finite(self.inputs)

    def to_json(self) -> str:
        """Return a text from which `from_json` restores the same numbers."""
        fsmn = {
            name: {key: _encoded(np.asarray(value, np.float32)) for key, value in vars(ranges).items()}
            for name, ranges in self.fsmn.items()
        }
        return json.dumps({"fsmn": fsmn, "inputs": self.inputs}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Ranges:
        """Read a text that `to_json` wrote."""
        read = json.loads(text)
        fsmn = {}
        for name, values in read["fsmn"].items():
            arrays = {key: np.frombuffer(base64.b64decode(value), np.float32) for key, value in values.items()}
            numbers = {key: float(array[0]) for key, array in arrays.items() if key not in ("hidden", "memory")}
            fsmn[name] = FsmnRanges(arrays["hidden"].reshape(2, -1), arrays["memory"], **numbers)
        return cls(fsmn, {name: tuple(values) for name, values in read["inputs"].items()})


def _check_finite(values: Mapping[str, Any]) -> None:
    broken = [name for name, value in values.items() if not np.isfinite(value).all()]
    if broken:
        raise QuantizeError(f"measured ranges are not finite, of {', '.join(broken[:3])}: the model overflows here")


def _encoded(values: NDArray[np.float32]) -> str:
    return base64.b64encode(values.tobytes()).decode()
