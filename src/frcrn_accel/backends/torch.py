"""PyTorch, fp32: the reference that every other engine is held against."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.backends.base import Backend, Session
from frcrn_accel.errors import BackendUnavailable, EngineError, install_hint
from frcrn_accel.models import ModelFile

if TYPE_CHECKING:
    from frcrn_accel.model.network import FRCRN

__all__ = ["TorchBackend"]


class TorchBackend(Backend):
    """PyTorch on the CPU, fp32, from the weights inside the model file."""

    name: ClassVar[str] = "torch"
    description: ClassVar[str] = "PyTorch on the CPU, fp32: the reference"
    priority: ClassVar[int] = 10

    @classmethod
    def check(cls) -> None:
        """See `Backend.check`."""
        try:
            import onnx  # noqa: F401 - reads the weights out of the model file
            import torch  # noqa: F401
        except ImportError as error:
            raise BackendUnavailable(cls.name, str(error), install_hint("export")) from error

    def load(self, model: ModelFile, threads: int) -> Session:
        """See `Backend.load`."""
        self.check()
        from frcrn_accel.export import read_weights
        from frcrn_accel.model.network import build_network

        return _TorchSession(build_network(read_weights(model.path)), threads)


class _TorchSession(Session):
    def __init__(self, network: FRCRN, threads: int) -> None:
        self._network = network
        self._threads = threads
        self.device = f"CPU, {threads} thread{'s' if threads > 1 else ''}"

    def run(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        import torch

        # The thread count belongs to the calling thread in PyTorch: give the caller's own setting back.
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                return self._network(torch.from_numpy(audio)).numpy()  # type: ignore[no-any-return]
        except RuntimeError as error:
            raise EngineError(f"PyTorch failed on a batch of {audio.shape}: {error}") from error
        finally:
            torch.set_num_threads(before)
