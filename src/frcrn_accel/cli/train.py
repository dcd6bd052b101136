"""`frcrn-accel train`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from frcrn_accel.cli.options import Threads
from frcrn_accel.cli.progress import print_line, progress_bar
from frcrn_accel.errors import MissingExtraError
from frcrn_accel.memory import keep_freed_memory

__all__ = ["train"]


def train(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.toml", help="Config of the run: model, data, mixing, loss, steps.")
    ],
    out: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of the run; a run in it is resumed.")],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder that paths in CONFIG.toml are relative to. [default: that of CONFIG.toml]"
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0, help="Stop after this many minutes, with everything saved. [default: run to the end]"),
    ] = None,
    threads: Threads = None,
    loaders: Annotated[int, typer.Option(min=0, help="Processes that make training examples.")] = 1,
) -> None:
    """Train FRCRN on folders of speech and noise. Run the same command again to resume."""
    # Threads that spin while they wait halve the speed as soon as anything else runs on the machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()  # each step allocates and frees gigabytes
    try:
        from frcrn_accel.train.config import read_config

        parsed = read_config(config)  # report its mistakes before missing packages
        from frcrn_accel.train.curve import plot_curve
        from frcrn_accel.train.log import LOG
        from frcrn_accel.train.state import CHECKPOINT
        from frcrn_accel.train.trainer import train as run_training
    except ImportError as error:
        raise MissingExtraError("Training", "train", error) from error
    console = Console(stderr=True, highlight=False)
    with progress_bar(console) as bar:

        def show(step: int, entry: Mapping[str, float]) -> None:
            bar("training", step, parsed.optimisation.steps)
            if "compute_s" not in entry:  # scores of a validation
                scores = ", ".join(f"{name} {value:.3f}" for name, value in entry.items())
                print_line(console, f"step {step}: {scores}")

        bar("training", 0, parsed.optimisation.steps)  # recordings are decoded before the first step
        steps = run_training(
            parsed,
            config.parent if data is None else data,
            out,
            threads=threads,
            minutes=minutes,
            loaders=loaders,
            show=show,
        )
    plot_curve(out / LOG, out / "curve.png")
    print_line(
        console,
        f"{steps} of {parsed.optimisation.steps} steps: {out / CHECKPOINT}, curve.png and log.jsonl beside it",
    )
