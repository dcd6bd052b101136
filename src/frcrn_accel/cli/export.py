"""`frcrn-accel export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from frcrn_accel.cli.output import echo

__all__ = ["export"]


def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Weights: PyTorch, safetensors, .npz or ONNX.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The model file to write.")],
    name: Annotated[
        str | None,
        typer.Option(help="Name of the model; a known name requires its own checkpoint. [default: the file's]"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.onnx if it exists.")] = False,
) -> None:
    """Convert a checkpoint to a model file for every backend, verified against PyTorch.

    The content of CHECKPOINT decides how it is read: a file of torch.save, safetensors, an .npz of NumPy or MLX, or
    a plain ONNX export, whose own output is then compared.
    """
    from frcrn_accel.export import export_model

    console = Console(stderr=True, highlight=False)
    with console.status("exporting, and comparing with PyTorch"):
        report = export_model(checkpoint, out, name=name, overwrite=overwrite)
    model = report.model.metadata
    echo(
        f"{out}: {model.name}, {model.channels} channels, {model.unets} U-Net(s), {report.bytes / 1e6:.1f} MB, "
        f"differs from PyTorch by {report.difference:.1e} of the peak"
    )
