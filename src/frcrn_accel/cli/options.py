"""Options that several commands share, each with one meaning and one help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = [
    "AttenuationLimit",
    "BackendName",
    "BatchSize",
    "Calibration",
    "GateAudio",
    "HighBandOption",
    "Model",
    "Precision",
    "Threads",
]

Model = Annotated[str, typer.Option(help="Model name (see 'models list'), or a file made by 'export'.")]
BackendName = Annotated[str, typer.Option(help="Backend to run the model with; see 'backends'.")]
Precision = Annotated[
    str | None,
    typer.Option(help="Number format to compute in; see 'backends'. [default: chosen by the backend]"),
]
Calibration = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder of noisy speech to calibrate a model that is not quantized yet."),
]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Windows per call of the engine. [default: chosen by the backend]")
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads to compute with. [default: all this process may use]")
]
AttenuationLimit = Annotated[
    float | None, typer.Option(min=0, help="Maximum noise attenuation, dB. [default: no limit]")
]
HighBandOption = Annotated[
    Literal["follow", "drop"],
    typer.Option(help="Sound above 8 kHz, unheard by the model: follow it there and attenuate noise, or drop all."),
]
GateAudio = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Noisy speech to compare outputs on, or a folder with noisy/ and clean/. [default: a small set in "
        "the package]",
    ),
]
