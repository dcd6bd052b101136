"""The optimiser, Muon for matrices and Adam for the rest, and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from frcrn_accel.train.config import Optimisation

__all__ = ["Muon", "fall_at", "learning_rate_at"]

_MOMENTUM = 0.95
_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_NORM_EPSILON = 1e-6  # that of PyTorch's clipping
_LEAST_RANK = 16  # smaller matrices have too few directions to profit from using them evenly
# Quintic Newton-Schulz iteration: five steps bring singular values from (0, 1] to about 1.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_ADAM_STEP = 0.2  # typical size of an Adam update at learning rate 1; Muon's are scaled to it


class Muon:
    """Momentum whose updates have all singular values near one, so that no direction of a matrix lags behind.

    Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024. The scale of the
    updates, which lets Muon and Adam share a learning rate, is from J. Liu et al., "Muon is scalable for LLM
    training", 2025. `torch.optim.Muon` takes matrices only; here the kernel of a convolution counts as a matrix of
    its outputs by everything else. Biases, batch norms, depthwise filters and small matrices are trained with Adam.
    docs/models/frcrn-small.md compares Muon with AdamW.

    Gradients and states are single tensors over all parameters, in which matrices of one shape are neighbours: a step
    takes about three hundred operations instead of ten thousand. The host reads none of its numbers, so it never
    waits for a GPU, and a CUDA graph can hold the step.

    Args:
        network: The network whose parameters to train.
        weight_decay: Weight decay of all parameters, decoupled from the gradient.
    """

    def __init__(self, network: nn.Module, weight_decay: float) -> None:
        by_shape: dict[tuple[int, int], list[Tensor]] = {}
        others: list[Tensor] = []
        for module in network.modules():
            for parameter in module.parameters(recurse=False):
                is_depthwise = isinstance(module, nn.Conv2d) and module.groups > 1
                if is_depthwise or _rank(parameter) < _LEAST_RANK:
                    others.append(parameter)
                else:
                    by_shape.setdefault((len(parameter), parameter[0].numel()), []).append(parameter)
        self._shapes = [(len(same), *shape) for shape, same in by_shape.items()]
        self._parameters = [*(parameter for same in by_shape.values() for parameter in same), *others]
        self._weight_decay = weight_decay
        sizes = [sum(map(math.prod, self._shapes)), sum(parameter.numel() for parameter in others)]
        device = self._parameters[0].device
        self._momentum, self._mean = (torch.zeros(size, device=device) for size in sizes)
        self._square = torch.zeros_like(self._mean)
        self._steps = torch.zeros((), device=device)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, learning_rate: Tensor, most_norm: float) -> tuple[Tensor, Tensor]:
        """Update the parameters by their gradients.

        Args:
            learning_rate: On the device of the parameters, `()`.
            most_norm: Norm to which the gradient of all parameters is clipped.

        Returns:
            The norm of the gradient before it is clipped, and 1, `()` each; 0 if the norm is not finite, and nothing
            was changed.
        """
        gradient = torch.cat([_gradient(parameter) for parameter in self._parameters])
        norm = gradient.norm()
        is_finite = norm.isfinite()
        taken = is_finite.to(norm.dtype)
        gradient *= (most_norm / (norm + _NORM_EPSILON)).clamp_max(1)
        gradient = gradient.masked_fill(~is_finite, 0)
        of_matrices, of_others = gradient.tensor_split([len(self._momentum)])
        rate = learning_rate * taken
        updates = rate * torch.cat(
            [self._updates_of_matrices(of_matrices, taken), self._updates_of_others(of_others, taken)]
        )
        pieces = _split(updates, (parameter.numel() for parameter in self._parameters))
        by_parameter = [piece.view_as(p) for piece, p in zip(pieces, self._parameters, strict=True)]
        torch._foreach_mul_(self._parameters, 1 - rate * self._weight_decay)
        torch._foreach_sub_(self._parameters, by_parameter)
        return norm, taken

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state, by name."""
        return {
            "momentum": self._momentum,
            "mean": self._mean,
            "square": self._square,
            "steps": self._steps,
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            KeyError: A tensor is missing.
            RuntimeError: A tensor has another shape.
        """
        for name, value in self.state_dict().items():
            if state[name].shape != value.shape:
                raise RuntimeError(f"{name!r} has the shape {tuple(state[name].shape)}, not {tuple(value.shape)}")
            value.copy_(state[name])

    def _updates_of_matrices(self, gradient: Tensor, taken: Tensor) -> Tensor:
        self._momentum.lerp_(gradient, (1 - _MOMENTUM) * taken)
        aimed = gradient.lerp(self._momentum, _MOMENTUM)
        updates = [aimed.new_empty(0)]
        for shape, part in zip(self._shapes, _split(aimed, map(math.prod, self._shapes)), strict=True):
            updates.append((_ADAM_STEP * max(shape[1:]) ** 0.5 * _orthogonal(part.view(shape))).flatten())
        return torch.cat(updates)

    def _updates_of_others(self, gradient: Tensor, taken: Tensor) -> Tensor:
        self._steps += taken
        self._mean.lerp_(gradient, (1 - _BETAS[0]) * taken)
        self._square.lerp_(gradient.square(), (1 - _BETAS[1]) * taken)
        steps = self._steps.clamp_min(1)  # 0 while no gradient was finite
        mean = self._mean / (1 - _BETAS[0] ** steps)
        square = self._square / (1 - _BETAS[1] ** steps)
        return mean / (square.sqrt() + _EPSILON)


def learning_rate_at(step: int, run: Optimisation) -> float:
    """Return the learning rate of a step: a linear rise, a constant part, a fall along a cosine.

    The constant part does not depend on the length of the run, so a run can be prolonged until the fall begins.
    """
    if step < run.warmup_steps:
        return run.learning_rate * (step + 1) / run.warmup_steps
    return run.learning_rate * (1 - fall_at(step, run))


def fall_at(step: int, run: Optimisation) -> float:
    """Return by how much the learning rate of a step has fallen, as a share: 0 until the fall, 1 at the end."""
    left = run.steps - step
    if left >= run.decay_steps:
        return 0.0
    return 0.5 * (1 + math.cos(math.pi * left / run.decay_steps))


def _split(row: Tensor, sizes: Iterable[int]) -> tuple[Tensor, ...]:
    return torch.split(row, list(sizes))


def _rank(parameter: Tensor) -> int:
    return min(parameter.shape[0], parameter[0].numel()) if parameter.ndim > 1 else 1


def _gradient(parameter: Tensor) -> Tensor:
    """Return the gradient as one row; zeros if the parameter was not used."""
    gradient = parameter.grad
    return torch.zeros_like(parameter).flatten() if gradient is None else gradient.reshape(-1)


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
