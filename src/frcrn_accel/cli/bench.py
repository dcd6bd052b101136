"""`frcrn-accel bench`: speed by default, throughput with `--throughput`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from frcrn_accel.cli.options import MODEL_HELP, GateAudio
from frcrn_accel.cli.output import echo, report_file, write_json
from frcrn_accel.cli.progress import progress_bar
from frcrn_accel.models import DEFAULT_MODEL

if TYPE_CHECKING:
    from frcrn_accel.bench import BenchModel
    from frcrn_accel.bench import tables as bench_tables
    from frcrn_accel.quality.clips import Clip

__all__ = ["bench"]

_SPEED_LENGTH_S, _SPEED_ROUNDS = 5.0, 15
_THROUGHPUT_LENGTH_S, _THROUGHPUT_ROUNDS = 60.0, 6


def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help=f"{MODEL_HELP} [default: {DEFAULT_MODEL}]"),
    ] = None,
    released_size: Annotated[
        bool,
        typer.Option(
            "--released-size", help="Also measure frcrn-16k, or random weights of its size if it is not imported."
        ),
    ] = False,
    configuration: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BACKEND[:PRECISION]",
            help="Measure this configuration; may be repeated. [default: all that can run here]",
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BACKEND[:PRECISION]",
            help="Compare the others with this configuration; may be repeated. [default: ort]",
        ),
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
        int | None, typer.Option(min=6, help="Turns of each configuration. [default: 15, or 6 with --throughput]")
    ] = None,
    throughput: Annotated[
        bool,
        typer.Option("--throughput", help="Find the best workers x threads x windows per call for many files."),
    ] = False,
    pairs: GateAudio = None,
    no_quality: Annotated[bool, typer.Option("--no-quality", help="Measure time only, not the sound.")] = False,
    report: Annotated[Path | None, typer.Option("--json", metavar="R.json", help="Write all measurements.")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="T.md", help="Write the tables as Markdown.")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="P.png", help="Plot speed against PESQ, or SI-SDR without PESQ.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace R.json, T.md and P.png if they exist.")
    ] = False,
) -> None:
    """Measure speed, memory and sound of every backend and precision, taking turns.

    The sound is compared with that of fp32: SI-SDR, and with the extras eval and pesq DNSMOS and PESQ-WB. The machine
    should be otherwise idle; configurations that do not clearly differ are listed.
    """
    from frcrn_accel.bench import model_to_measure, released_size_model
    from frcrn_accel.bench.plot import check_plot, plot_speed_and_quality
    from frcrn_accel.bench.tables import markdown as to_markdown

    if throughput:
        _check_throughput_options(baseline, length_s, threads, pairs, no_quality, plot)
    elif no_quality and (pairs or plot):
        raise typer.BadParameter(f"{'--pairs' if pairs else '--plot'} has no effect with --no-quality")
    if plot is not None:
        check_plot()
    names = models or ([] if released_size else [DEFAULT_MODEL])
    clips = None if no_quality or throughput else _clips(pairs)
    with ExitStack() as stack:
        json_path, markdown_path, plot_path = [
            stack.enter_context(report_file(path, overwrite)) for path in (report, markdown, plot)
        ]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="frcrn-accel-")))
        to_measure = [model_to_measure(name) for name in names]
        to_measure += [released_size_model(folder)] if released_size else []
        if throughput:
            found = _measure_throughput(to_measure, configuration, length_s, rounds)
        else:
            found = _measure_speed(to_measure, configuration, baseline, length_s, threads, rounds, clips)
        write_json(json_path, found)
        if markdown_path is not None:
            markdown_path.write_text(to_markdown(found), encoding="utf-8")
        if plot_path is not None:
            plot_speed_and_quality(found, plot_path)
    _print_report(found)


# Speed.


def _measure_speed(
    models: Sequence[BenchModel],
    configurations: list[str] | None,
    baselines: list[str] | None,
    lengths_s: list[float] | None,
    threads: list[int] | None,
    rounds: int | None,
    clips: Sequence[Clip] | None,
) -> dict[str, Any]:
    from frcrn_accel.bench import run_speed

    with progress_bar(Console(stderr=True, highlight=False)) as show:
        return run_speed(
            models,
            configurations=configurations,
            baselines=baselines or (),
            lengths_s=lengths_s or (_SPEED_LENGTH_S,),
            threads=threads or (),
            rounds=rounds or _SPEED_ROUNDS,
            quality=clips,
            progress=show,
        ).to_json()


def _clips(pairs: Path | None) -> Sequence[Clip]:
    from frcrn_accel.network.topology import SAMPLE_RATE_HZ
    from frcrn_accel.quality.clips import read_clips
    from frcrn_accel.quantize import GATE_AUDIO

    return read_clips(pairs or GATE_AUDIO, SAMPLE_RATE_HZ)


# Throughput.


def _measure_throughput(
    models: Sequence[BenchModel],
    configurations: list[str] | None,
    lengths_s: list[float] | None,
    rounds: int | None,
) -> dict[str, Any]:
    from frcrn_accel.bench import run_throughput

    with progress_bar(Console(stderr=True, highlight=False)) as show:
        return run_throughput(
            models,
            configurations=configurations,
            file_s=lengths_s[0] if lengths_s else _THROUGHPUT_LENGTH_S,
            rounds=rounds or _THROUGHPUT_ROUNDS,
            progress=show,
        ).to_json()


def _check_throughput_options(
    baseline: list[str] | None,
    length_s: list[float] | None,
    threads: list[int] | None,
    pairs: Path | None,
    no_quality: bool,
    plot: Path | None,
) -> None:
    """Refuse options that have no effect with `--throughput`."""
    given = {
        "--baseline": baseline,
        "--threads": threads,
        "--pairs": pairs,
        "--no-quality": no_quality,
        "--plot": plot,
    }
    for name, value in given.items():
        if value:
            raise typer.BadParameter(f"{name} has no effect with --throughput")
    if len(length_s or ()) > 1:
        raise typer.BadParameter("--throughput takes one --length-s")


# Both.


def _print_report(report: dict[str, Any]) -> None:
    """Print the tables to standard output, and what was left out to standard error."""
    from frcrn_accel.bench import tables

    out = Console(highlight=False)
    for line in tables.left_out_lines(report):
        echo(line, err=True)
    echo(tables.machine_line(report))
    for group in report["groups"]:
        echo(tables.group_title(group, report["rounds"]))
        for columns in (tables.TIME_COLUMNS, tables.COMPARED_COLUMNS):
            table = tables.speed_table(group, report["baselines"], columns)
            if len(table.heads) > 1:
                out.print(_rich(table))
        for line in tables.notes(group):
            echo(line)
    for found in report["throughput"]:
        echo(tables.throughput_title(found, report["rounds"]))
        out.print(_rich(tables.throughput_table(found)))
        echo(tables.throughput_advice(found))


def _rich(table: bench_tables.Table) -> Table:
    shown = Table()
    for place, head in enumerate(table.heads):
        shown.add_column(escape(head), overflow="fold", no_wrap=place == 0)
    for row in table.rows:
        shown.add_row(*map(escape, row))
    return shown
