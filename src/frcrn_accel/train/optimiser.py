"""The optimiser, Muon for matrices and Adam for the rest, and its learning rate."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from frcrn_accel.train.config import Optimisation

__all__ = ["Muon", "learning_rate_at"]

_MOMENTUM = 0.95
_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_LEAST_RANK = 16  # smaller matrices have too few directions to profit from using them evenly
# Quintic Newton-Schulz iteration: five steps bring singular values from (0, 1] to about 1.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_ADAM_STEP = 0.2  # typical size of an Adam update at learning rate 1; Muon's are scaled to it


class Muon(torch.optim.Optimizer):
    """Momentum whose updates have all singular values near one, so that no direction of a matrix lags behind.

    Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024. The scale of the
    updates, which lets Muon and Adam share a learning rate, is from J. Liu et al., "Muon is scalable for LLM
    training", 2025.
    `torch.optim.Muon` takes matrices only; here the kernel of a convolution counts as a matrix of its outputs by
    everything else. Biases, batch norms, depthwise filters and small matrices are trained with Adam.
    docs/models/frcrn-small.md compares Muon with AdamW.

    Args:
        network: The network whose parameters to train.
        learning_rate: Learning rate of all parameters.
        weight_decay: Weight decay of all parameters, decoupled from the gradient.
    """

    def __init__(self, network: nn.Module, learning_rate: float, weight_decay: float) -> None:
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        for module in network.modules():
            for parameter in module.parameters(recurse=False):
                is_depthwise = isinstance(module, nn.Conv2d) and module.groups > 1
                (others if is_depthwise or _rank(parameter) < _LEAST_RANK else matrices).append(parameter)
        groups = [{"params": matrices, "is_matrix": True}, {"params": others, "is_matrix": False}]
        super().__init__(
            [group for group in groups if group["params"]], {"lr": learning_rate, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the parameters that have gradients."""
        if closure is not None:
            raise ValueError("Muon does not take a closure")
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
            update = self._step_matrices if group["is_matrix"] else self._step_others
            update(parameters, group["lr"])

    def _step_matrices(self, parameters: Iterable[Tensor], learning_rate: float) -> None:
        by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter in parameters:
            gradient = _gradient(parameter)
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(gradient, 1 - _MOMENTUM)
            update = gradient.lerp(state["momentum"], _MOMENTUM).flatten(1)
            by_shape[(update.shape[0], update.shape[1])].append((parameter, update))
        for shape, items in by_shape.items():
            # Matrices of one shape together: the network has some three hundred, most of them small.
            updates = _orthogonal(torch.stack([update for _, update in items]))
            scale = _ADAM_STEP * max(shape) ** 0.5
            for (parameter, _), update in zip(items, updates, strict=True):
                parameter.add_(update.view_as(parameter), alpha=-learning_rate * scale)

    def _step_others(self, parameters: Iterable[Tensor], learning_rate: float) -> None:
        for parameter in parameters:
            gradient = _gradient(parameter)
            state: dict[str, Any] = self.state[parameter]
            if not state:
                state.update(step=0, mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
            state["step"] += 1
            state["mean"].lerp_(gradient, 1 - _BETAS[0])
            state["square"].lerp_(gradient.square(), 1 - _BETAS[1])
            mean = state["mean"] / (1 - _BETAS[0] ** state["step"])
            square = state["square"] / (1 - _BETAS[1] ** state["step"])
            parameter.addcdiv_(mean, square.sqrt() + _EPSILON, value=-learning_rate)


def learning_rate_at(step: int, run: Optimisation) -> float:
    """Return the learning rate of a step: a linear rise, a constant part, a fall along a cosine.

    The constant part does not depend on the length of the run, so a run can be prolonged until the fall begins.
    """
    if step < run.warmup_steps:
        return run.learning_rate * (step + 1) / run.warmup_steps
    left = run.steps - step
    if left >= run.decay_steps:
        return run.learning_rate
    return run.learning_rate * 0.5 * (1 - math.cos(math.pi * left / run.decay_steps))


def _rank(parameter: Tensor) -> int:
    return min(parameter.shape[0], parameter[0].numel()) if parameter.ndim > 1 else 1


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _orthogonal(matrices: Tensor) -> Tensor:
    """Return the nearest matrices whose singular values are all near one, `(count, rows, columns)` both."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + _EPSILON)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if is_tall else x
    return result
