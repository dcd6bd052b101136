"""Baselines as backends, so that `frcrn-accel bench` measures them like any other.

Needs `clearvoice` (pip install --no-deps clearvoice==0.1.2), which `nox -s speed` installs. `"auto"` never chooses
these backends.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from frcrn_accel import Backend, BackendUnavailable, ModelFile, Session
from frcrn_accel.models import cached_file, read_weights

__all__ = ["TextbookInt8Backend", "UpstreamOrtBackend", "UpstreamTorchBackend"]

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
NEEDED = ("clearvoice", "onnx", "onnxruntime", "scipy", "torch")
REMEDY = "run it with 'nox -s speed'"


class UpstreamTorchBackend(Backend):
    """Upstream's module, with the weights of the model file."""

    name: ClassVar[str] = "upstream-torch"
    description: ClassVar[str] = "upstream's module, PyTorch, fp32"
    priority: ClassVar[int] = -1

    @classmethod
    def check(cls) -> None:
        """See `Backend.check`."""
        # Not imported: packages that only make a file must not count as memory of the backend that runs it.
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise BackendUnavailable(cls.name, f"no module {', '.join(missing)}", REMEDY)

    def load(self, model: ModelFile, threads: int) -> Session:
        """See `Backend.load`."""
        import torch

        network = upstream_network(model)
        torch.set_num_threads(threads)

        def run(audio: NDArray[np.float32]) -> NDArray[np.float32]:
            with torch.inference_mode():
                denoised: NDArray[np.float32] = network.inference_batch(torch.from_numpy(audio)).numpy()
            return denoised

        return _FunctionSession(run, f"CPU, {threads} thread(s)")


class UpstreamOrtBackend(UpstreamTorchBackend):
    """Upstream's module, exported unchanged: the fp32 original."""

    name: ClassVar[str] = "upstream-ort"
    description: ClassVar[str] = "upstream's module exported to ONNX unchanged, ONNX Runtime, fp32"

    def load(self, model: ModelFile, threads: int) -> Session:
        """See `Backend.load`."""
        return _ort_session(
            cached_file(model, {"form": self.name}, lambda path: export_upstream(model, path), ".onnx"), threads
        )


class TextbookInt8Backend(UpstreamTorchBackend):
    """`onnxruntime.quantization.quantize_dynamic` on the model file."""

    name: ClassVar[str] = "textbook-int8"
    description: ClassVar[str] = "quantize_dynamic on the fp32 file, ONNX Runtime"
    precisions: ClassVar[tuple[str, ...]] = ("int8",)

    def load(self, model: ModelFile, threads: int) -> Session:
        """See `Backend.load`."""
        return _ort_session(
            cached_file(model, {"form": self.name}, lambda path: quantize_by_the_book(model, path), ".onnx"), threads
        )


class _FunctionSession(Session):
    def __init__(self, function: Run, device: str) -> None:
        self._function = function
        self.device = device

    def run(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        # Upstream drops axes of length one.
        return self._function(audio).reshape(audio.shape)


def _ort_session(path: Path, threads: int) -> Session:
    """Open a file with the default settings of ONNX Runtime, except for the number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return _FunctionSession(
        lambda audio: np.asarray(session.run(None, {name: audio})[0]), f"CPU, {threads} thread(s)"
    )


def upstream_network(model: ModelFile) -> Any:
    """Build upstream's module with the weights of a model; for a model with one U-Net the second is removed."""
    import torch

    from frcrn_accel_upstream.network import build

    network = build(model.metadata.channels)
    if model.metadata.unets == 1:
        del network.unet2

        def inference_batch(audio: Any) -> Any:
            spectrum = network.stft(audio).unsqueeze(1)
            spectrum = torch.stack(spectrum.chunk(2, dim=2), dim=-1)
            return network.apply_mask(spectrum, torch.tanh(network.unet(spectrum)))[1]

        network.inference_batch = inference_batch
    weights = {key: torch.tensor(value) for key, value in read_weights(model.path).items()}
    # Not strict: most of its modules have two names, and some are never run.
    _, unknown = network.load_state_dict(weights, strict=False)
    if unknown:
        raise ValueError(f"upstream's module does not have these weights: {', '.join(unknown[:3])}, ...")
    return network


def export_upstream(model: ModelFile, path: Path) -> None:
    """Export upstream's module unchanged."""
    import torch

    network = upstream_network(model)
    network.forward = network.inference_batch
    torch.onnx.export(
        network,
        (torch.zeros(1, model.metadata.sample_rate_hz),),
        str(path),
        input_names=["audio"],
        output_names=["out"],
        dynamic_axes={"audio": {0: "batch", 1: "samples"}, "out": {0: "batch", 1: "samples"}},
        opset_version=17,
        dynamo=False,
    )


def quantize_by_the_book(model: ModelFile, path: Path) -> None:
    """Quantize a model file as the documentation of ONNX Runtime recommends."""
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        # `quantize_dynamic` takes stored weights only, so expressions of weights are folded first.
        folded = Path(folder) / "folded.onnx"
        quant_pre_process(model.path, folded, skip_symbolic_shape=True)
        quantize_dynamic(folded, path)
