"""Options that several commands share, each with one meaning and one help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frcrn_accel.high_band import HighBandMode

__all__ = [
    "MODEL_HELP",
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

MODEL_HELP = "frcrn-small, frcrn-small-stream, frcrn-16k once imported, another import, or a file by 'export'."
Model = Annotated[str, typer.Option(help=MODEL_HELP)]
BackendName = Annotated[
    str,
    typer.Option(
        help="auto, openvino, ort, ort-dynamic-int8, ort-static-int8, ort-cuda, tensorrt, tensorrt-rtx or torch."
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(help="fp32, bf16, fp16 or int8, as the backend has it. [default: chosen by the backend]"),
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
    HighBandMode,
    typer.Option(help="Sound above 8 kHz, which the model does not process: attenuate its noise, or leave it out."),
]
GateAudio = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Noisy speech to compare outputs on, or a folder with noisy/ and clean/. [default: a small set in "
        "the package]",
    ),
]
