"""The processes that train together, and their devices."""

from __future__ import annotations

import os

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from frcrn_accel.errors import TrainingError
from frcrn_accel.numerals import to_whole

__all__ = ["Team", "rows_of"]


class Team:
    """The processes of a run: those that `torchrun` started, or this one alone.

    Attributes:
        size: Number of processes.
        rank: Number of this process, from 0.
        device: Device that this process computes on: a GPU of its own, or the CPU if the machine has none.

    Raises:
        TrainingError: More processes were started than the machine has GPUs, or `WORLD_SIZE`, `RANK` or `LOCAL_RANK`
            is not a number.
    """

    def __init__(self) -> None:
        self.size = _from_environment("WORLD_SIZE", 1)
        self.rank = _from_environment("RANK", 0)
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            index, gpus = _from_environment("LOCAL_RANK", 0), torch.cuda.device_count()
            if index >= gpus:
                raise TrainingError(
                    f"each process needs a GPU of its own, and this machine has {gpus}: start torchrun with "
                    f"--nproc-per-node={gpus}"
                )
            self.device = torch.device("cuda", index)
            torch.cuda.set_device(self.device)
        if self.size > 1:
            torch.distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes the files of the run."""
        return self.rank == 0

    def rows(self, batch_size: int) -> range:
        """Return this process's rows of a batch, see `rows_of`."""
        return rows_of(batch_size, self.rank, self.size)

    def wrap(self, module: nn.Module) -> nn.Module:
        """Wrap a module so that its gradients are averaged over the processes."""
        if self.size == 1:
            return module
        return DistributedDataParallel(module, device_ids=[self.device] if self.device.type == "cuda" else None)

    def agree(self, value: bool) -> bool:
        """Return the value that the first process passed."""
        if self.size == 1:
            return value
        flag = torch.tensor(int(value), device=self.device)
        torch.distributed.broadcast(flag, 0)
        return bool(flag)

    def close(self) -> None:
        """Leave the group of processes."""
        if self.size > 1:
            torch.distributed.destroy_process_group()


def rows_of(batch_size: int, rank: int, size: int) -> range:
    """Return the rows of a batch that a process computes.

    Args:
        batch_size: Rows of the batch.
        rank: Number of the process, from 0.
        size: Number of processes.

    Raises:
        TrainingError: The batch cannot be split evenly.
    """
    if batch_size % size:
        raise TrainingError(f"optimisation.batch_size {batch_size} cannot be split evenly over {size} processes")
    share = batch_size // size
    return range(rank * share, (rank + 1) * share)


def _from_environment(name: str, default: int) -> int:
    """Return a number that `torchrun` has set.

    Raises:
        TrainingError: It is not a number.
    """
    text = os.environ.get(name, str(default))
    number = to_whole(text)
    if number is None:
        raise TrainingError(f"the environment variable {name} must be a whole number, got {text[:40]!r}")
    return number
