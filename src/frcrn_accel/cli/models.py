"""`frcrn-accel models`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from frcrn_accel.cli.output import echo
from frcrn_accel.cli.progress import print_line, progress_bar
from frcrn_accel.models import cached_files, download_checkpoint, downloadable, find_model, packaged_files
from frcrn_accel.prepare.inventory import ABSENT, IMPORTED, PACKAGED, ModelStatus, model_statuses

__all__ = ["models"]

models = typer.Typer(
    help="List, check, import and download models.",
    invoke_without_command=True,
    rich_markup_mode=None,
)

_PLACES = {PACKAGED: "in the package", IMPORTED: "imported"}


@models.callback()
def _options(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@models.command("list")
def list_() -> None:
    """List the models: origin, licence, digest and whether each is available here."""
    for status in model_statuses():
        echo(f"{status.name}: {_place(status)}")
        for label, text in (
            ("what", status.description),
            ("source", status.source),
            ("licence", status.licence),
            ("checkpoint", f"sha256 {status.checkpoint_sha256}" if status.checkpoint_sha256 else ""),
            ("quantized", ", ".join(status.variants)),
            ("problem", status.problem or ""),
        ):
            if text:
                echo(f"  {label:<10}  {text}")


@models.command()
def verify() -> None:
    """Check every model file, packaged or cached, against its digest. Exit code 1 if one is damaged."""
    files = packaged_files() + cached_files()
    damaged = [file for file in files if file.problem is not None]
    for file in files:
        echo(f"{'ok' if file.problem is None else 'damaged'}  {file.bytes / 1e6:.1f} MB  {file.path}")
    for file in damaged:
        echo(f"{file.path}: {file.problem}", err=True)
    echo(f"{len(files) - len(damaged)} of {len(files)} files are intact")
    if damaged:
        raise typer.Exit(1)


@models.command()
def path(name: Annotated[str, typer.Argument(metavar="NAME", help="Model name; see 'models list'.")]) -> None:
    """Print the path of a model's file."""
    typer.echo(find_model(name).path)


@models.command("import")
def import_(
    checkpoint: Annotated[Path, typer.Argument(metavar="FILE", help="Weights: PyTorch, safetensors, .npz or ONNX.")],
    name: Annotated[
        str | None,
        typer.Option(help="Name of the model; a known name requires its own checkpoint. [default: the file's]"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace another model imported under this name.")
    ] = False,
) -> None:
    """Import a checkpoint: export it to the cache, verified against PyTorch, and quantize it.

    The content of FILE decides how it is read: a file of torch.save, safetensors, an .npz of NumPy or MLX, or a plain
    ONNX export, whose own output is then compared.

    Every command then accepts its name as a model. At the released size this can take half an hour.
    Exit code 1 if the quality gate refuses a quantized variant; the model itself can still be used.
    """
    from frcrn_accel.prepare.importing import import_model

    with progress_bar(Console(stderr=True, highlight=False)) as show:
        report = import_model(checkpoint, name=name, overwrite=overwrite, progress=show)
    model = report.model.metadata
    difference = "" if report.difference is None else f", differs from PyTorch by {report.difference:.1e} of the peak"
    echo(
        f"{model.name}: {model.channels} channels, {model.unets} U-Net(s), "
        f"{report.model.path.stat().st_size / 1e6:.1f} MB{difference}"
    )
    for variant in report.variants:
        if variant.file is not None:
            echo(f"  {variant.method}: {variant.file.path.stat().st_size / 1e6:.1f} MB, gate passed")
        else:
            echo(f"  {variant.method}: {'refused' if variant.refusal else 'left out'}")
            echo(f"{variant.method}: {variant.refusal or variant.missing}", err=True)
    echo(f"Use it with: frcrn-accel denoise IN --model {model.name}")
    if any(variant.refusal for variant in report.variants):
        raise typer.Exit(1)


@models.command()
def download(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A known model that is not in the package.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT", help="File to write. [default: NAME.bin]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
) -> None:
    """Download a checkpoint from the model hub. This is the only command that downloads a model.

    A partial download is kept if the connection breaks; run the same command to resume it.
    """
    known = downloadable(name)
    out = output or Path(f"{name}.bin")
    console = Console(stderr=True, highlight=False)
    print_line(console, f"{known.checkpoint_url} -> {out}")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task(name, total=known.checkpoint_bytes)
        download_checkpoint(
            name, out, overwrite=overwrite, progress=lambda done, total: bars.update(bar, completed=done, total=total)
        )
    echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB, the known checkpoint of {name}")
    echo(f"Import it with: frcrn-accel models import {out}")


def _place(status: ModelStatus) -> str:
    """Describe where a model is and in which state."""
    if status.problem is not None:
        return f"{_PLACES[status.place]}, damaged"
    if status.place == ABSENT:
        return f"not available: run 'frcrn-accel models download {status.name}', then 'models import'"
    return f"{_PLACES[status.place]}, {status.bytes / 1e6:.1f} MB, verified"
