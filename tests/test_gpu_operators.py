"""The Triton kernels against PyTorch's operators: on a GPU where there is one, by Triton's interpreter elsewhere."""

from __future__ import annotations

import os

import pytest

torch = pytest.importorskip("torch")

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported
pytest.importorskip("triton", reason="Triton is not installed (PyTorch brings it along with CUDA, on Linux)")

from frcrn_accel.network.operators import Operators  # noqa: E402
from frcrn_accel.train.gpu_operators import GpuOperators  # noqa: E402

DEVICE = torch.device("cuda" if HAS_GPU else "cpu")


def values_and_gradients(operators, inputs, dtype):
    """Output of an FSMN layer, and the gradients of all inputs, in float64."""
    leaves = [tensor.to(DEVICE, copy=True).requires_grad_() for tensor in inputs]
    x, *parameters = leaves
    output = operators.memory(x.to(dtype), *(parameter.to(dtype) for parameter in parameters))
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    (output.float() * weights).sum().backward()
    return [output.detach().double(), *(leaf.grad.double() for leaf in leaves)]


def layer(shape: tuple[int, ...], taps: int = 20):
    """Random inputs of `Operators.memory`."""
    generator = torch.Generator().manual_seed(0)
    channels = shape[-1] // 2
    shapes = [shape, (2 * channels, channels), (2 * channels,), (channels, channels), (4 * channels, 1, taps, 1)]
    x, weight, bias, projection, filters = (torch.randn(s, generator=generator) for s in shapes)
    return [x, weight / channels**0.5, bias, torch.block_diag(projection, projection) / channels**0.5, filters]


@pytest.mark.parametrize(
    ("shape", "taps"),
    [
        pytest.param((1, 33, 3, 8), 20, id="along frequency"),
        pytest.param((1, 41, 1, 8), 20, id="along time"),
        pytest.param((1, 21, 1, 12), 20, id="channels that are no power of two"),
        pytest.param((1, 5, 2, 8), 5, id="fewer bins than taps"),
        pytest.param((1, 1, 2, 8), 1, id="one bin"),
    ],
)
def test_values_and_gradients_are_those_of_pytorch(shape, taps):
    inputs = layer(shape, taps)
    expected = values_and_gradients(Operators(), inputs, torch.float32)
    found = values_and_gradients(GpuOperators(), inputs, torch.float32)
    for a, b in zip(expected, found, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4 * float(a.abs().max()))


def test_bfloat16_differs_by_its_rounding():
    inputs = layer((1, 21, 2, 8))
    exact = values_and_gradients(Operators(), inputs, torch.float32)
    found = values_and_gradients(GpuOperators(), inputs, torch.bfloat16)
    for e, f in zip(exact, found, strict=True):
        assert float((f - e).norm() / e.norm()) < 2 * 2**-8
