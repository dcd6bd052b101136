"""One step of training: from a batch to updated weights, without waiting for the device."""

from __future__ import annotations

from collections import Counter, deque
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from frcrn_accel.network.module import FRCRN, complex_product
from frcrn_accel.train.config import TrainingConfig
from frcrn_accel.train.loss import DenoisingLoss
from frcrn_accel.train.optimiser import Muon, fall_at, learning_rate_at

__all__ = ["Objective", "Step"]

_EAGER_STEPS = 3  # before a CUDA graph is recorded: libraries choose algorithms and allocate at first use
_MOST_AHEAD = 2  # steps that may be queued on a GPU
_PARTS = ("complex_spectrum", "magnitude", "si_sdr", "perceptual", "intelligibility", "loss")


class Objective(nn.Module):
    """The network and its loss, from noisy and target to the parts of the loss, as a module for distributed training.

    Args:
        network: The network.
        config: The run.
        device: Device that it computes on.
    """

    def __init__(self, network: FRCRN, config: TrainingConfig, device: torch.device) -> None:
        super().__init__()
        self.network = network
        self.loss = DenoisingLoss(config.loss)
        self._autocast = config.optimisation.precision == "bf16"
        self._device = device

    def forward(self, noisy: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the parts of the loss, see `DenoisingLoss`."""
        spectrum = self.network.analyse(noisy)
        # The transforms and the loss stay in float32: the range of a spectrogram exceeds the precision of bf16.
        with torch.autocast(self._device.type, torch.bfloat16) if self._autocast else nullcontext():
            mask = self.network.mask(spectrum)
        estimate = self.network.synthesise(complex_product(spectrum, mask.float()))
        parts: dict[str, Tensor] = self.loss(estimate, target[:, : estimate.shape[1]])
        return parts


class Step:
    """Trains on one batch after the other, and keeps sums of the numbers for the log.

    All numbers stay on the device until `take` reads them. On a GPU a step is recorded as a CUDA graph, one for each
    look-ahead, and replayed: the host launches one graph instead of thousands of kernels.

    Args:
        network: The network to train, in training mode.
        average: Takes the moving average of its weights.
        objective: An `Objective` of the network, possibly wrapped for distributed training.
        optimiser: The optimiser of the network.
        config: The run.
        device: Device that all of them are on.
        record: Whether to record CUDA graphs. It needs batches of one shape.
    """

    def __init__(
        self,
        network: FRCRN,
        average: FRCRN,
        objective: nn.Module,
        optimiser: Muon,
        config: TrainingConfig,
        device: torch.device,
        *,
        record: bool,
    ) -> None:
        self._network = network
        self._objective = objective
        self._loss = next(module for module in objective.modules() if isinstance(module, DenoisingLoss))
        self._optimiser = optimiser
        self._config = config
        self._device = device
        values, averages = network.state_dict(), average.state_dict()
        names = [name for name, value in values.items() if value.is_floating_point()]
        self._values = [values[name] for name in names]
        self._averages = [averages[name] for name in names]
        self._rate, self._share = torch.zeros(2, device=device).unbind()
        self._sums = torch.zeros(len(_PARTS) + 1, device=device)
        self._taken, self._skipped, self._skipped_in_a_row = torch.zeros(3, device=device).unbind()
        self._steps = 0
        self._record = record
        self._batch: tuple[Tensor, Tensor] | None = None
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._warm: Counter[int] = Counter()
        self._queued: deque[torch.cuda.Event] = deque()
        if device.type == "cuda":
            # The network's convolutions are in bf16. Those in float32 are the STFT and its inverse, which stay exact.
            torch.backends.cudnn.benchmark = True
            torch.backends.cudnn.allow_tf32 = False
            torch.set_float32_matmul_precision("high")

    def __call__(self, noisy: Tensor, target: Tensor, step: int) -> None:
        """Train on a batch.

        A gradient that is not finite is skipped: it changes nothing.

        Args:
            noisy: `float32 (batch, samples)`.
            target: Clean speech of the same shape.
            step: Number of the step, from 0.
        """
        run = self._config.optimisation
        self._rate.fill_(learning_rate_at(step, run))
        # The first averages are over fewer steps, so that the initial weights soon lose influence.
        self._share.fill_(1 - min(run.ema_decay, (1 + step) / (10 + step)))
        self._loss.fall(fall_at(step, run))
        lookaheads = self._config.model.lookahead_frames
        self._network.lookahead = int(np.random.default_rng((run.seed, step)).choice(lookaheads))
        self._steps += 1
        if self._device.type == "cuda":
            self._on_gpu(noisy, target)
        else:
            self._compute(noisy, target)

    def take(self) -> dict[str, float]:
        """Return the means since the last call, by name, and wait for the device.

        The losses and the norm of the gradient are means over the steps that were not skipped, and are left out if
        there are none. `skipped` is a share, `skipped_in_a_row` the number of the last steps that were skipped.
        """
        sums, taken = self._sums.tolist(), float(self._taken)
        means = dict(zip((*_PARTS, "gradient_norm"), (value / max(taken, 1) for value in sums), strict=True))
        found = {
            **(means if taken else {}),
            "learning_rate": float(self._rate),
            "skipped": float(self._skipped) / max(self._steps, 1),
            "skipped_in_a_row": float(self._skipped_in_a_row),
        }
        self._sums.zero_()
        self._taken.zero_()
        self._skipped.zero_()
        self._steps = 0
        return found

    def _compute(self, noisy: Tensor, target: Tensor) -> None:
        """Compute the step; everything in it can be recorded as a CUDA graph."""
        parts = self._objective(noisy, target)
        self._optimiser.zero_grad()
        parts["loss"].backward()
        norm, taken = self._optimiser.step(self._rate, self._config.optimisation.gradient_norm)
        with torch.no_grad():
            change = torch._foreach_sub(self._values, self._averages)
            torch._foreach_mul_(change, self._share * taken)
            torch._foreach_add_(self._averages, change)
            numbers = torch.stack([*(parts[name].detach() for name in _PARTS), norm])
            self._sums += numbers.masked_fill(taken == 0, 0)
            self._taken += taken
            self._skipped += 1 - taken
            self._skipped_in_a_row.copy_((self._skipped_in_a_row + 1) * (1 - taken))

    def _on_gpu(self, noisy: Tensor, target: Tensor) -> None:
        if self._batch is None:
            self._batch = (
                torch.empty_like(noisy, device=self._device),
                torch.empty_like(target, device=self._device),
            )
        for held, given in zip(self._batch, (noisy, target), strict=True):
            held.copy_(given, non_blocking=True)
        lookahead = self._network.lookahead
        if not self._record:
            self._compute(*self._batch)
        elif lookahead in self._graphs:
            self._graphs[lookahead].replay()
        elif self._warm[lookahead] < _EAGER_STEPS:
            self._warm[lookahead] += 1
            self._compute_aside(*self._batch)
        else:
            self._graphs[lookahead] = self._recorded(*self._batch)
            self._graphs[lookahead].replay()
        # Without a bound the host would queue hundreds of steps, which would still run long after a deadline.
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._queued.append(event)
        if len(self._queued) > _MOST_AHEAD:
            self._queued.popleft().synchronize()

    def _compute_aside(self, noisy: Tensor, target: Tensor) -> None:
        """Compute on a separate stream: operations must have run there before they are recorded."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._compute(noisy, target)
        torch.cuda.current_stream().wait_stream(stream)

    def _recorded(self, noisy: Tensor, target: Tensor) -> torch.cuda.CUDAGraph:
        """Record the step without running it. Graphs share memory, since no two run at once."""
        graph = torch.cuda.CUDAGraph()
        pool = next((recorded.pool() for recorded in self._graphs.values()), None)
        self._optimiser.zero_grad()
        # The loader's thread allocates pinned memory meanwhile, which must not become part of the recording.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            self._compute(noisy, target)
        return graph
