"""Random weights, for tests and timings."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.network.topology import Config, parameter_shapes

__all__ = ["random_weights"]


def random_weights(config: Config, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Return random weights of a network of any size, for tests and timings.

    Gains are near one and biases small, so that rounding errors do not grow on their way through the network.

    Args:
        config: Size of the network.
        seed: Seed of the random numbers.
    """
    rng = np.random.default_rng(seed)
    weights = {}
    for key, shape in parameter_shapes(config).items():
        if key.endswith("running_var") or (".bn_" in key and key.endswith("weight")):
            value = rng.uniform(0.5, 1.5, shape)
        elif len(shape) == 1:
            value = 0.1 * rng.standard_normal(shape)
        else:
            value = 0.6 * rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        weights[key] = value.astype(np.float32)
    return weights
