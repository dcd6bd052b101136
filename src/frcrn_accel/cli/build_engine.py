"""`frcrn-accel build-engine`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from frcrn_accel.atomic import replacing
from frcrn_accel.cli.options import MODEL_HELP
from frcrn_accel.cli.output import echo
from frcrn_accel.cli.progress import preparation
from frcrn_accel.cli.usage import usage_errors
from frcrn_accel.models import find_model
from frcrn_accel.prepare import prepare

__all__ = ["build_engine"]


class Package(str, Enum):
    """NVIDIA's packages, by the name of their backend."""

    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"


def build_engine(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The plan to write.")],
    package: Annotated[
        Package, typer.Option(help="tensorrt-rtx builds for any RTX card, tensorrt for the card in this machine.")
    ] = Package.TENSORRT_RTX,
    precision: Annotated[str | None, typer.Option(help="fp16, fp32 or int8. [default: the file's, or fp16]")] = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(metavar="N.M", help="Architecture of the card, e.g. 8.9; repeatable. [default: this card's]"),
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Maximum number of windows per call.")] = 4,
    window_s: Annotated[float, typer.Option(min=1, help="Maximum window length, s.")] = 20.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
) -> None:
    """Build a TensorRT engine ahead of time, for this machine's card or another."""
    from frcrn_accel.backends.tensorrt import TensorRtBackend, TensorRtRtxBackend

    kind = TensorRtRtxBackend if package is Package.TENSORRT_RTX else TensorRtBackend
    source = find_model(model)
    with usage_errors(), preparation(Console(stderr=True, highlight=False)) as progress:
        backend = kind(precision, window_s=window_s, max_batch=max_batch)
        # Preparing the file can take minutes: first check that a plan can be built at all.
        if compute_capability:
            backend.check_packages()
        else:
            backend.check()
        plan = backend.build(prepare(source, backend, progress), compute_capability or ())
    with replacing(out, overwrite=overwrite) as temporary:
        plan.write(temporary)
    target = plan.target
    echo(
        f"{out}: {source.metadata.name}, {target.precision}, compute capability "
        f"{', '.join(target.compute_capabilities)}, 1 to {target.max_batch} windows of up to {window_s:g} s, "
        f"{target.package} {target.package_version}, {out.stat().st_size / 1e6:.1f} MB"
    )
