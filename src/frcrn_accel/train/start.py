"""The network that a run starts from: new, or with the weights of a model or a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from frcrn_accel.errors import MissingExtraError, TrainingError
from frcrn_accel.models import MODEL_NAME, find_model, imported_names, known_models, read_weights
from frcrn_accel.network.checkpoint import Weights, load_checkpoint
from frcrn_accel.network.module import FRCRN
from frcrn_accel.network.operators import Operators
from frcrn_accel.network.topology import config_of
from frcrn_accel.train.config import TrainingConfig
from frcrn_accel.train.fused import fused_operators
from frcrn_accel.train.gpu_operators import gpu_operators
from frcrn_accel.train.running import RunningMeans

__all__ = ["read_start", "start_network"]

_CPU = torch.device("cpu")


def start_network(config: TrainingConfig, data: Path, device: torch.device = _CPU) -> FRCRN:
    """Build the network that a run starts from, on the CPU.

    Args:
        config: The run.
        data: Folder that the paths in the config are relative to.
        device: Device that it will compute on, for which its operators are chosen.

    Raises:
        TrainingError: The weights to start from are of another size.
        ModelError: They cannot be read.
        MissingExtraError: They are those of a model file, and the ONNX package is not installed.
    """
    torch.manual_seed(config.optimisation.seed)
    operators = _operators(config, device)
    network = FRCRN(config.network, RunningMeans(operators) if config.model.running_means else operators)
    if config.model.start is not None:
        _load(network, read_start(config.model.start, data), config.model.start)
    return network


def _operators(config: TrainingConfig, device: torch.device) -> Operators:
    """Return the fastest operators for a run."""
    if device.type == "cuda":
        return gpu_operators()
    return fused_operators(config.model.channels) if config.optimisation.precision == "bf16" else Operators()


def read_start(start: str, data: Path) -> Weights:
    """Read the weights that `model.start` names.

    Args:
        start: Name of a model, path of an fp32 model file (`.onnx`), or path of a checkpoint. A name takes precedence
            over a file of that name: write `./name` for the file.
        data: Folder that paths are relative to.

    Raises:
        ModelError: The model or the file is missing, damaged or not an FRCRN, or is quantized.
        MissingExtraError: The ONNX package is not installed, which reading a model file needs.
    """
    path = data / start
    is_name = start in known_models() or start in imported_names()
    if is_name or (MODEL_NAME.fullmatch(start) and not path.exists()):
        model = find_model(start)
    elif path.suffix == ".onnx":
        model = find_model(path)
    else:
        return load_checkpoint(path).weights
    try:
        return read_weights(model.path)
    except ImportError as error:
        raise MissingExtraError("Training from a model file", "train", error) from error


def _load(network: FRCRN, weights: Weights, start: str) -> None:
    """Give a network the weights to start from; U-Nets that they lack are added so that they change nothing."""
    given, wanted = config_of(weights), network.config
    assert given is not None  # all readers of weights check it
    if given.channels != wanted.channels or given.unets > wanted.unets:
        raise TrainingError(
            f"model.start {start!r} has {given.channels} channels and {given.unets} U-Net(s), but the config asks "
            f"for {wanted.channels} and {wanted.unets}"
        )
    network.load_state_dict({key: torch.tensor(value) for key, value in weights.items()}, strict=False)
    for name in wanted.unet_names[given.unets :]:
        # tanh(0) adds nothing to the mask.
        for parameter in network.get_submodule(f"{name}.linear").parameters():
            nn.init.zeros_(parameter)
