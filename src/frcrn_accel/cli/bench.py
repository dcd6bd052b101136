"""`frcrn-accel bench`."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from frcrn_accel.cli.options import GateAudio
from frcrn_accel.cli.output import report_file
from frcrn_accel.cli.progress import progress_bar
from frcrn_accel.models import DEFAULT_MODEL

__all__ = ["bench"]


def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL", help=f"A name, see 'models list', or a file made by 'export'. [default: {DEFAULT_MODEL}]"
        ),
    ] = None,
    released_size: Annotated[
        bool,
        typer.Option(
            "--released-size", help="Also frcrn-16k; if it is not imported, its size with seeded random weights."
        ),
    ] = False,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BACKEND[:PRECISION]", help="Measure this one; may be repeated. [default: all that can run here]"
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(metavar="VARIANT", help="Compare the others with this; may be repeated. [default: ort]"),
    ] = None,
    length_s: Annotated[
        list[float] | None,
        typer.Option(min=0.1, help="Length of the clip, s; may be repeated. [default: 5, or 60 with --throughput]"),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(min=1, help="CPU threads; may be repeated. [default: all this process may use]"),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=6, help="Turns of each variant. [default: 15, or 6 with --throughput]")
    ] = None,
    throughput: Annotated[
        bool,
        typer.Option("--throughput", help="Find the best workers x threads x windows at a time for many files."),
    ] = False,
    pairs: GateAudio = None,
    no_quality: Annotated[bool, typer.Option("--no-quality", help="Measure time only, not the sound.")] = False,
    report: Annotated[
        Path | None, typer.Option("--json", metavar="R.json", help="Write all that was measured.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="T.md", help="Write the tables as Markdown.")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="P.png", help="Draw speed against PESQ, or SI-SDR without PESQ.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace R.json, T.md and P.png if they exist.")
    ] = False,
) -> None:
    """Measure speed, memory and sound of every backend and precision, taking turns.

    The sound is compared with that of fp32: SI-SDR, and with the packages of [eval] PESQ-WB and DNSMOS. The machine
    should have nothing else to do; what is too close to tell apart is said.
    """
    from frcrn_accel.bench import model_to_measure, released_size_model, run_speed, run_throughput
    from frcrn_accel.bench.plot import check_plot, plot_speed_and_quality
    from frcrn_accel.bench.tables import markdown as to_markdown

    _check_options(throughput, baseline, length_s, threads, pairs, no_quality, plot)
    if plot is not None:
        check_plot()
    names = models or ([] if released_size else [DEFAULT_MODEL])
    clips = None if no_quality or throughput else _clips(pairs)
    with ExitStack() as stack:
        targets = [stack.enter_context(report_file(path, overwrite)) for path in (report, markdown, plot)]
        show = stack.enter_context(progress_bar(Console(stderr=True, highlight=False)))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="frcrn-accel-")))
        measured = [model_to_measure(name) for name in names]
        measured += [released_size_model(folder)] if released_size else []
        if throughput:
            file_s = length_s[0] if length_s else 60.0
            found = run_throughput(
                measured, variants=variant, file_s=file_s, rounds=rounds or 6, progress=show
            ).to_json()
        else:
            found = run_speed(
                measured,
                variants=variant,
                baselines=baseline or (),
                lengths_s=length_s or [5.0],
                threads=threads or (),
                rounds=rounds or 15,
                quality=clips,
                progress=show,
            ).to_json()
        json_path, markdown_path, plot_path = targets
        if json_path is not None:
            json_path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        if markdown_path is not None:
            markdown_path.write_text(to_markdown(found), encoding="utf-8")
        if plot_path is not None:
            plot_speed_and_quality(found, plot_path)
    _show(found)


def _check_options(
    throughput: bool,
    baseline: list[str] | None,
    length_s: list[float] | None,
    threads: list[int] | None,
    pairs: Path | None,
    no_quality: bool,
    plot: Path | None,
) -> None:
    """Options that would be without effect are errors."""
    if throughput:
        given = {
            "--baseline": baseline,
            "--threads": threads,
            "--pairs": pairs,
            "--no-quality": no_quality,
            "--plot": plot,
        }
        for name, value in given.items():
            if value:
                raise typer.BadParameter(f"{name} is of no use with --throughput")
        if len(length_s or ()) > 1:
            raise typer.BadParameter("--throughput takes one --length-s")
    if no_quality and (pairs or plot):
        raise typer.BadParameter(f"{'--pairs' if pairs else '--plot'} is of no use with --no-quality")


def _clips(pairs: Path | None) -> list[Any]:
    from frcrn_accel.quality.clips import read_clips
    from frcrn_accel.quality.metrics import SAMPLE_RATE_HZ
    from frcrn_accel.quantize import GATE_AUDIO

    return read_clips(pairs or GATE_AUDIO, SAMPLE_RATE_HZ)


def _show(report: dict[str, Any]) -> None:
    """The tables on standard output, and what was left out on standard error."""
    from frcrn_accel.bench import tables

    out = Console(highlight=False)
    for line in tables.left_out_lines(report):
        typer.echo(line, err=True)
    typer.echo(tables.machine_line(report))
    for group in report["groups"]:
        typer.echo(tables.group_title(group, report["rounds"]))
        for columns in (tables.TIME_COLUMNS, tables.COMPARED_COLUMNS):
            table = tables.speed_table(group, report["baselines"], columns)
            if len(table.heads) > 1:
                out.print(_rich(table))
        for line in tables.notes(group):
            typer.echo(line)
    for found in report["throughput"]:
        typer.echo(tables.throughput_title(found, report["rounds"]))
        out.print(_rich(tables.throughput_table(found)))
        typer.echo(tables.throughput_advice(found))


def _rich(table: Any) -> Table:
    shown = Table()
    for place, head in enumerate(table.heads):
        shown.add_column(escape(head), overflow="fold", no_wrap=place == 0)
    for row in table.rows:
        shown.add_row(*map(escape, row))
    return shown
