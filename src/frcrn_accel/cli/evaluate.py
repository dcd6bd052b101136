"""`frcrn-accel evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from frcrn_accel.cli.options import BackendName, Model, Precision
from frcrn_accel.cli.output import echo, report_file, write_json
from frcrn_accel.cli.progress import preparation, print_line
from frcrn_accel.cli.usage import usage_errors
from frcrn_accel.models import DEFAULT_MODEL
from frcrn_accel.notices import collected_notices

if TYPE_CHECKING:
    from frcrn_accel.evaluate import Evaluation

__all__ = ["evaluate"]

_DIGITS = {"STOI": 3}


def evaluate(
    noisy: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Folder of noisy recordings, or of noisy/ and clean/ with pairs of the same name.",
        ),
    ],
    clean: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Clean speech, with the same names as the noisy recordings.")
    ] = None,
    model: Model = DEFAULT_MODEL,
    backend: BackendName = "auto",
    precision: Precision = None,
    components: Annotated[
        bool,
        typer.Option(
            "--components", help="Also denoise and score the clean speech and the noise of each recording separately."
        ),
    ] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes, one thread each. [default: one for each CPU]")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--json", metavar="R.json", help="Write all scores, including those of each file.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace R.json if it exists.")] = False,
) -> None:
    """Score a model: PESQ-WB, STOI and SI-SDR if clean speech is known, and DNSMOS; means with 95 % intervals."""
    from frcrn_accel.denoiser import DenoiserOptions
    from frcrn_accel.evaluate import evaluate_clips
    from frcrn_accel.network.topology import SAMPLE_RATE_HZ
    from frcrn_accel.quality.clips import read_clips

    console = Console(stderr=True, highlight=False)
    with collected_notices() as notices:
        clips = read_clips(noisy, SAMPLE_RATE_HZ, clean)
    for notice in notices:
        print_line(console, f"warning: {notice}")
    with report_file(report, overwrite) as path:
        with usage_errors(), preparation(console) as progress:
            found = evaluate_clips(
                clips,
                DenoiserOptions(model=model, backend=backend, precision=precision),
                components=components,
                processes=processes,
                progress=progress,
            )
        write_json(path, found.to_json())
    echo(f"{found.model} on {found.backend}, {found.precision}, {len(clips)} recordings, mean (95 % interval)")
    table = Table("metric", "clips", "noisy", "denoised", "change")
    for summary in found.summaries():
        digits = _DIGITS.get(summary.metric, 2)
        values = (summary.noisy, summary.denoised, summary.change)
        table.add_row(summary.metric, str(summary.clips), *(_shown(value, digits) for value in values))
    Console(highlight=False).print(table)
    for line in _not_scored(found):
        print_line(console, f"not scored: {line}")


def _not_scored(found: Evaluation) -> list[str]:
    """Name what a metric could not score, and why; one line for what holds for all recordings."""
    recordings: dict[tuple[str, str], list[str]] = {}
    for score in found.scores:
        for metric, reason in score.not_scored.items():
            recordings.setdefault((metric, reason), []).append(score.name)
    lines = []
    for (metric, reason), names in recordings.items():
        named = ["all recordings"] if len(names) == len(found.scores) > 1 else names
        lines += [f"{name}: {metric}: {reason}" for name in named]
    return lines


def _shown(value: tuple[float, tuple[float, float]] | None, digits: int) -> str:
    if value is None:
        return ""
    mean, (low, high) = value
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
