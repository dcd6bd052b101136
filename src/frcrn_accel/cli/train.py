"""`frcrn-accel train`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from frcrn_accel.cli.options import Threads
from frcrn_accel.cli.progress import progress_bar
from frcrn_accel.errors import MissingExtraError
from frcrn_accel.memory import keep_freed_memory

__all__ = ["train"]


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="The run: model, data, mixing, loss, steps.")],
    out: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Its folder; a run in it goes on where it stopped.")],
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="What paths in CONFIG.toml start from. [default: its folder]")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0, help="Stop after this many minutes, with all saved. [default: go on to the end]"),
    ] = None,
    threads: Threads = None,
    loaders: Annotated[int, typer.Option(min=0, help="Processes that make the examples.")] = 1,
) -> None:
    """Train FRCRN: folders of speech and noise to a checkpoint for 'export'. A run that was stopped goes on."""
    # Threads that wait for each other busily lose half of the speed as soon as anything else runs on the machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()  # each step takes and frees some gigabytes
    try:
        from frcrn_accel.train.config import read_config

        parsed = read_config(config)  # what is wrong in it is told before packages that are missing
        from frcrn_accel.train.curve import plot_curve
        from frcrn_accel.train.trainer import CHECKPOINT, LOG
        from frcrn_accel.train.trainer import train as run_training
    except ImportError as error:
        raise MissingExtraError("Training", "train", error) from error
    console = Console(stderr=True, highlight=False)
    with progress_bar(console) as bar:

        def show(step: int, entry: Mapping[str, float]) -> None:
            bar("training", step, parsed.optimisation.steps)
            if "compute_s" not in entry:  # a validation
                shown = ", ".join(f"{name} {value:.3f}" for name, value in entry.items())
                console.print(f"step {step}: {shown}", markup=False, soft_wrap=True)

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
    console.print(
        f"{steps} of {parsed.optimisation.steps} steps: {out / CHECKPOINT}, curve.png and log.jsonl beside it",
        markup=False,
        soft_wrap=True,
    )
