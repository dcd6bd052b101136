"""The files in which a run keeps its weights: its state, to resume from, and its result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from frcrn_accel.atomic import replacing
from frcrn_accel.errors import TrainingError
from frcrn_accel.network.module import FRCRN
from frcrn_accel.network.topology import parameter_shapes
from frcrn_accel.train.log import write_errors
from frcrn_accel.train.optimiser import Muon

__all__ = ["CHECKPOINT", "STATE", "restore_state", "save_state", "save_weights"]

STATE, CHECKPOINT = "last.pt", "checkpoint.pt"


def save_state(path: Path, network: FRCRN, average: FRCRN, optimiser: Muon, step: int) -> None:
    """Write everything that a run needs to resume.

    Args:
        path: File to write or replace.
        network: The network that is trained.
        average: The network with the averaged weights.
        optimiser: The optimiser of `network`.
        step: Number of steps done.

    Raises:
        TrainingError: It cannot be written.
    """
    state = {
        "step": step,
        "network": network.state_dict(),
        "average": average.state_dict(),
        "optimiser": optimiser.state_dict(),
    }
    _save(state, path)


def restore_state(path: Path, network: FRCRN, average: FRCRN, optimiser: Muon) -> int:
    """Load what `save_state` wrote into the networks and the optimiser.

    Returns:
        Number of steps done.

    Raises:
        TrainingError: The file is damaged, or holds the state of another network.
    """
    try:
        state = torch.load(path, map_location=network.kernel.device, weights_only=True)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        return int(state["step"])
    except Exception as error:  # damaged files make the reader fail with nearly any class
        raise TrainingError(
            f"{str(path)!r} is not the state of a run of this network: choose another run folder, or restore the file"
        ) from error


def save_weights(path: Path, network: FRCRN) -> None:
    """Write the weights as a checkpoint, under the released key names.

    Args:
        path: File to write or replace.
        network: The network.

    Raises:
        TrainingError: It cannot be written.
    """
    state = network.state_dict()
    _save({key: state[key].cpu() for key in parameter_shapes(network.config)}, path)


def _save(content: dict[str, Any], path: Path) -> None:
    # PyTorch tells why a write failed only of a file that Python opened.
    with write_errors(path), replacing(path, overwrite=True) as temporary, temporary.open("wb") as file:
        torch.save(content, file)
