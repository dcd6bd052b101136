"""Options that several commands have, each with one meaning and one text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "AttenuationLimit",
    "BackendName",
    "BatchSize",
    "Calibration",
    "GateAudio",
    "Model",
    "Precision",
    "Threads",
]

Model = Annotated[str, typer.Option(help="A name, see 'models list', or a file made by 'export'.")]
BackendName = Annotated[str, typer.Option(help="Engine, see 'backends'.")]
Precision = Annotated[
    str | None,
    typer.Option(help="Number format to compute in, see 'backends'. [default: the backend's own choice]"),
]
Calibration = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Noisy speech, for a backend that measures ranges on it first.")
]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Windows for one call of the engine. [default: the backend's own choice]")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads. [default: all this process may use]")]
AttenuationLimit = Annotated[
    float | None, typer.Option(min=0, help="Take away at most this much noise, dB. [default: no limit]")
]
GateAudio = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Noisy speech to compare the sound on, or a folder with noisy/ and clean/. [default: a small set in "
        "the package]",
    ),
]
