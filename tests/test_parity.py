"""The output against upstream's code, over widths, lengths and batches.

A few lengths of a small network always; all of them, and the released width, with `--thorough` (`nox -s parity`).
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

import upstream
from frcrn_accel.backends.ort import OrtBackend
from frcrn_accel.export import export_model
from frcrn_accel.models import read_weights
from frcrn_accel.network.checkpoint import load_checkpoint
from frcrn_accel.network.module import build_network

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

TOLERANCE = 1e-4  # of the peak
LENGTHS = [640, 641, 959, 16_000, 16_001, 48_123, 80_000]
FEW = [(3, 641), (1, 16_001)]
SHAPES = [
    pytest.param(*shape, marks=[] if shape in FEW else pytest.mark.thorough) for shape in product([1, 3], LENGTHS)
]


@pytest.fixture(scope="module", params=[32, pytest.param(128, marks=pytest.mark.thorough)])
def oracle(request):
    """Upstream's network."""
    return upstream.build(request.param)


@pytest.fixture(scope="module")
def checkpoint_path(oracle, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("parity") / "model.pt"
    torch.save(oracle.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def network(checkpoint_path):
    return build_network(load_checkpoint(checkpoint_path).weights)


@pytest.fixture(scope="module")
def exported(checkpoint_path):
    return export_model(checkpoint_path, checkpoint_path.with_suffix(".onnx"))


@pytest.fixture(scope="module")
def session(exported):
    return OrtBackend().load(exported.model, threads=2)


@pytest.mark.parametrize(("batch", "samples"), SHAPES)
def test_pytorch_and_onnx_runtime_give_what_upstream_gives(oracle, network, session, samples, batch):
    audio = (0.1 * np.random.default_rng(samples).standard_normal((batch, samples))).astype(np.float32)
    expected = upstream.run(oracle, audio)
    peak = np.abs(expected).max()
    with torch.inference_mode():
        in_torch = network(torch.from_numpy(audio)).numpy()
    in_ort = session.run(audio)
    assert expected.shape == (batch, samples - samples % 320)
    assert in_torch.shape == in_ort.shape == expected.shape
    assert np.abs(in_torch - expected).max() <= TOLERANCE * peak
    assert np.abs(in_ort - expected).max() <= TOLERANCE * peak


def test_each_weight_is_stored_once(exported):
    import onnx

    model = onnx.load(exported.model.path)
    stored = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    weights = sum(value.size for value in read_weights(exported.model.path).values())
    assert stored - weights < 20_000  # a few small constants
    assert exported.bytes == exported.model.path.stat().st_size
    assert exported.bytes < 60_000_000
    assert exported.model.metadata.channels != 128 or exported.bytes > 50_000_000


def test_both_axes_are_dynamic_and_the_opset_is_17_or_later(exported):
    import onnx

    model = onnx.load(exported.model.path)
    for value in (*model.graph.input, *model.graph.output):
        dimensions = value.type.tensor_type.shape.dim
        assert len(dimensions) == 2
        assert all(dimension.dim_param and not dimension.dim_value for dimension in dimensions)
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert [(entry.domain, entry.version >= 17) for entry in model.opset_import] == [("", True)]
    assert {node.domain for node in model.graph.node} == {""}
