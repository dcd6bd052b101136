"""The order of the axes in the weights of convolutions.

PyTorch has the channels before the kernel, MLX after it. The shapes show which order a file has: a layer has at least
8 channels, and no kernel is that long except the filter of an FSMN, which has one channel.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.errors import ModelError
from frcrn_accel.network.topology import FSMN_ORDER

__all__ = ["as_pytorch"]

# How axes are permuted to PyTorch's order: (outputs, inputs, height, width), and (inputs, outputs, height, width) for
# transposed convolutions. First PyTorch's own, then MLX's, (outputs, height, width, inputs) for both.
_CONVOLUTION = ((0, 1, 2, 3), (0, 3, 1, 2))
# The last one is that of files in which the channels of PyTorch's weights were just moved to the end.
_TRANSPOSED = ((0, 1, 2, 3), (3, 0, 1, 2), (0, 3, 1, 2))


def as_pytorch(
    tensors: Mapping[str, NDArray[np.float32]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, NDArray[np.float32]]:
    """Return tensors with the weights of convolutions in PyTorch's order of axes.

    The layers decide together: decoder 0 has as many inputs as outputs, so its own shape fits several orders.

    Args:
        tensors: Tensors by their released key names.
        shapes: The shapes that they should have. Others are left as they are.

    Raises:
        ModelError: Some layers have one order, and some another.
    """
    found = dict(tensors)
    filters = {key for key in shapes if key.endswith(".conv1.weight") and key in found}
    for key in filters:
        channels = shapes[key][0]
        if found[key].shape in ((channels, FSMN_ORDER, 1), (channels, FSMN_ORDER, 1, 1), (channels, 1, FSMN_ORDER)):
            found[key] = found[key].reshape(shapes[key])
    for orders, is_transposed in ((_CONVOLUTION, False), (_TRANSPOSED, True)):
        keys = [
            key
            for key, shape in shapes.items()
            if key in found.keys() - filters
            and len(shape) == found[key].ndim == 4
            and (".transconv." in key) == is_transposed
        ]
        fits = {key: [order for order in orders if _permuted(found[key], order) == shapes[key]] for key in keys}
        # A layer that no order fits has a wrong shape, which is for the caller to report.
        common = [order for order in orders if all(order in fitting or not fitting for fitting in fits.values())]
        if not common:
            raise ModelError("some of its convolutions have their channels first, as in PyTorch, and some last")
        for key in keys:
            if common[0] in fits[key]:
                found[key] = np.ascontiguousarray(found[key].transpose(common[0]))
    return found


def _permuted(array: NDArray[np.float32], order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(array.shape[axis] for axis in order)
