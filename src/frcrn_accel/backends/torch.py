"""PyTorch, fp32: the reference that every other engine is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.backends.base import Backend, Session, count_of_threads
from frcrn_accel.errors import BackendUnavailable, EngineError, install_hint, one_line
from frcrn_accel.models import ModelFile, Recipe, read_weights

if TYPE_CHECKING:
    from frcrn_accel.network.module import FRCRN

__all__ = ["TorchBackend"]


class TorchBackend(Backend):
    """PyTorch on the CPU, fp32, with the weights in the model file."""

    name: ClassVar[str] = "torch"
    description: ClassVar[str] = "PyTorch on the CPU, fp32: the reference"
    priority: ClassVar[int] = 10

    @classmethod
    def check(cls) -> None:
        """See `Backend.check`."""
        try:
            import onnx  # noqa: F401 - needed to read the weights from the model file
            import torch  # noqa: F401
        except ImportError as error:
            raise BackendUnavailable(cls.name, str(error), install_hint("export")) from error

    def recipe(self, model: ModelFile) -> Recipe:
        """See `Backend.recipe`."""
        self.check_method(model)
        return Recipe()

    def load(self, model: ModelFile, threads: int) -> Session:
        """See `Backend.load`."""
        self.check()
        from frcrn_accel.network.module import build_network

        return _TorchSession(build_network(read_weights(model.path)), threads)


class _TorchSession(Session):
    def __init__(self, network: FRCRN, threads: int) -> None:
        self._network = network
        self._threads = threads
        self.device = f"CPU, {count_of_threads(threads)}"

    def run(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        import torch

        # PyTorch's thread count belongs to the calling thread: restore the caller's setting afterwards.
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                return self._network(torch.from_numpy(audio)).numpy()  # type: ignore[no-any-return]
        except RuntimeError as error:
            raise EngineError(f"PyTorch failed on a batch of {audio.shape}: {one_line(error)}") from error
        finally:
            torch.set_num_threads(before)
