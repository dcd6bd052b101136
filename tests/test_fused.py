"""The operators between convolutions: `fused.c` against PyTorch's own."""

from __future__ import annotations

import logging

import pytest

torch = pytest.importorskip("torch")

from frcrn_accel.network.module import FRCRN, complex_product  # noqa: E402
from frcrn_accel.network.operators import Operators  # noqa: E402
from frcrn_accel.network.seeded import random_weights  # noqa: E402
from frcrn_accel.network.topology import Config  # noqa: E402
from frcrn_accel.train.fused import FusedOperators, fused_operators  # noqa: E402

CHANNELS = 8
SHAPE = (2, 37, 29, 2 * CHANNELS)  # 1073 pixels: more than one block of a sum, and not whole blocks
ROUNDING = 2**-8  # of bfloat16, relative
BLOCKS = torch.block_diag(*2 * [torch.ones(CHANNELS, CHANNELS)])


@pytest.fixture(scope="module")
def operators() -> FusedOperators:
    found = fused_operators(CHANNELS)
    if not isinstance(found, FusedOperators):
        pytest.skip("no C compiler here")
    return found


def tensors(*shapes: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    """Random values that bfloat16 holds exactly."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).bfloat16().float() for shape in shapes]


def values_and_gradients(function, inputs):
    """Outputs of a function, and the gradients of its inputs."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    gradients = tensors(*(output.shape for output in outputs), seed=1)
    sum((output.float() * g).sum() for output, g in zip(outputs, gradients, strict=True)).backward()
    return [output.detach().float() for output in outputs], [leaf.grad.float() for leaf in leaves]


CASES = {
    "leaky_relu": (lambda o, cast: lambda x, bias: o.leaky_relu(cast(x), bias), [SHAPE, SHAPE[-1:]]),
    "memory": (
        lambda o, cast: lambda x, w, b, p, t: o.memory(cast(x), w, b, BLOCKS * p, t),
        [
            SHAPE,
            (2 * CHANNELS, CHANNELS),
            (2 * CHANNELS,),
            (2 * CHANNELS, 2 * CHANNELS),
            (4 * CHANNELS, 1, 20, 1),
        ],
    ),
    "means": (lambda o, cast: lambda x: o.means(cast(x)), [SHAPE]),
    "means of frames": (lambda o, cast: lambda x: o.frame_means(cast(x)), [SHAPE]),
    "concatenate": (
        lambda o, cast: lambda a, sa, b, sb: o.concatenate(cast(a), sa, cast(b), sb),
        [SHAPE, (2, 1, SHAPE[-1]), SHAPE, (2, 1, SHAPE[-1])],
    ),
    "concatenate with scales of frames": (
        lambda o, cast: lambda a, sa, b, sb: o.concatenate(cast(a), sa, cast(b), sb),
        [SHAPE, (2, *SHAPE[2:]), SHAPE, (2, *SHAPE[2:])],
    ),
    "concatenate without a scale": (
        lambda o, cast: lambda a, b, sb: o.concatenate(cast(a), None, cast(b), sb),
        [SHAPE, SHAPE, (2, 1, SHAPE[-1])],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_pytorch(operators, name):
    make, shapes = CASES[name]
    inputs = tensors(*shapes)
    expected = values_and_gradients(make(Operators(), lambda x: x), inputs)
    found = values_and_gradients(make(operators, lambda x: x.bfloat16()), inputs)
    for kind in range(2):
        for a, b in zip(expected[kind], found[kind], strict=True):
            assert a.shape == b.shape
            assert float((a - b).norm() / a.norm()) < 2 * ROUNDING


@pytest.mark.parametrize("steps", [1, 2, 19, 20, 21])
def test_memory_of_few_steps(operators, steps):
    make, shapes = CASES["memory"]
    taps = min(20, steps)
    inputs = tensors((1, steps, 3, SHAPE[-1]), *shapes[1:-1], (4 * CHANNELS, 1, taps, 1))
    expected, _ = values_and_gradients(make(Operators(), lambda x: x), inputs)
    found, _ = values_and_gradients(make(operators, lambda x: x.bfloat16()), inputs)
    assert float((expected[0] - found[0]).norm() / expected[0].norm()) < 2 * ROUNDING


@pytest.mark.parametrize("name", ["leaky_relu", "memory"])
def test_threads_do_not_change_a_bit(operators, name):
    make, shapes = CASES[name]
    inputs = tensors(*shapes)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            function = make(operators, lambda x: x.bfloat16())
            outputs, gradients = values_and_gradients(function, inputs)
            results.append([*outputs, *gradients])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_fp32_is_pytorch(operators):
    (x, bias) = tensors(SHAPE, SHAPE[-1:])
    assert torch.equal(operators.leaky_relu(x, bias), Operators().leaky_relu(x, bias))


@pytest.mark.parametrize("unets", [1, 2])
@pytest.mark.parametrize("held", [True, False])
def test_gradients_of_a_network_are_as_close_to_fp32_as_with_autocast_alone(operators, unets, held):
    config = Config(CHANNELS, unets)
    weights = random_weights(config)
    (audio,) = tensors((2, 9600))

    def gradient(chosen: Operators, *, autocast: bool) -> torch.Tensor:
        network = FRCRN(config, chosen)
        network.load_state_dict({key: torch.tensor(value) for key, value in weights.items()}, strict=False)
        network.train()
        if held:
            network.hold_statistics()
        spectrum = network.analyse(0.05 * audio)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            mask = network.mask(spectrum)
        network.synthesise(complex_product(spectrum, mask.float())).square().sum().backward()
        used = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
        return torch.cat(used)

    exact = gradient(Operators(), autocast=False)
    plain = gradient(Operators(), autocast=True)
    found = gradient(operators, autocast=True)
    assert float((found - exact).norm()) < 1.25 * float((plain - exact).norm())


@pytest.mark.parametrize(("compiler", "problem"), [("no-such-compiler", "no C compiler"), ("false", "' failed (")])
def test_without_a_compiler_it_warns_and_uses_pytorch(caplog, compiler, problem):
    with caplog.at_level(logging.WARNING):
        assert type(fused_operators(CHANNELS, compiler)) is Operators
    assert problem in caplog.text
    assert "training uses PyTorch's own operators, which are slower" in caplog.text
