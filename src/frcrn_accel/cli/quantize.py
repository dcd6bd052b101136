"""`frcrn-accel quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from frcrn_accel.cli.options import MODEL_HELP, GateAudio
from frcrn_accel.cli.output import echo, report_file, write_json
from frcrn_accel.cli.progress import print_line, progress_bar
from frcrn_accel.errors import QualityError

if TYPE_CHECKING:
    from frcrn_accel.quantize import QuantizeReport

__all__ = ["quantize"]

_SHOWN_GROUPS = 10


def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    out: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The model file to write.")],
    method: Annotated[
        str,
        typer.Option(
            metavar="dynamic|static|openvino-int8|tensorrt-int8|fp16",
            help="dynamic and static: INT8 for ONNX Runtime, static is calibrated; fp16: for GPUs.",
        ),
    ],
    calibration: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of noisy speech, for methods that need calibration.")
    ] = None,
    gate_audio: GateAudio = None,
    report: Annotated[
        Path | None,
        typer.Option("--json", metavar="R.json", help="Write all measurements, even if the gate refuses."),
    ] = None,
    keep_float: Annotated[
        list[str] | None,
        typer.Option(metavar="GROUP", help="Layer group to keep in float, e.g. unet.encoders.1; repeatable."),
    ] = None,
    max_rescued: Annotated[
        int,
        typer.Option(
            min=0,
            help="If the gate refuses, keep up to this many more layer groups in float, costliest first; 0 for none.",
        ),
    ] = 4,
    max_pesq_drop_percent: Annotated[float, typer.Option(min=0, help="Maximum drop of the mean PESQ-WB, %.")] = 1.0,
    min_si_sdr_db: Annotated[
        float, typer.Option(help="Minimum mean SI-SDR of the output against that of the fp32 model, dB.")
    ] = 30.0,
    max_dnsmos_drop: Annotated[
        float, typer.Option(min=0, help="Maximum drop of the mean DNSMOS OVRL, points.")
    ] = 0.03,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Measure the cost of each layer group, even if the gate passes.")
    ] = False,
    no_gate: Annotated[
        bool, typer.Option("--no-gate", help="Skip the comparison; the file's metadata records that.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT.onnx and R.json if they exist.")
    ] = False,
) -> None:
    """Quantize a model, and check that it still sounds the same. Exit code 1 if it does not."""
    from frcrn_accel.quantize import GateThresholds, quantize_model

    thresholds = GateThresholds(max_pesq_drop_percent, min_si_sdr_db, max_dnsmos_drop)
    console = Console(stderr=True, highlight=False)
    refusal: QualityError | None = None
    with report_file(report, overwrite) as report_path:
        with progress_bar(console) as show:
            try:
                result = quantize_model(
                    model,
                    out,
                    method,
                    calibration=calibration,
                    gate=None if no_gate else thresholds,
                    gate_audio=gate_audio,
                    keep_float=keep_float or (),
                    max_rescued=max_rescued,
                    sensitivity=sensitivity,
                    overwrite=overwrite,
                    progress=show,
                )
            except QualityError as error:
                refusal, result = error, error.report
        write_json(report_path, result.to_json())
    _show(result)
    if refusal is not None:
        print_line(console, f"refused: {refusal}")
        raise typer.Exit(1)


def _show(report: QuantizeReport) -> None:
    """Print the report as tables on standard output."""
    console = Console(highlight=False)
    kept = f", in float: {', '.join(report.kept_float)}" if report.kept_float else ""
    source_mb, output_mb = report.source_bytes / 1e6, report.output_bytes / 1e6
    echo(
        f"{report.model}, {report.method}{kept}: {source_mb:.2f} MB to {output_mb:.2f} MB ({report.size_ratio:.0%}), "
        f"gate {report.verdict}"
    )
    rescue = report.rescue
    if rescue is not None:
        echo(
            f"{', '.join(rescue.groups)} in float to pass the gate: {_price(report)}; without that refused: "
            f"{rescue.refused_for}"
        )
    if report.gate is not None:
        gate = report.gate
        table = Table("measure", "source", "quantized", "change", "limit", "verdict")
        for measure in gate.measures:
            value = "" if measure.value is None else f"{measure.value:.3f} {measure.unit}"
            verdict = {True: "passed", False: "refused", None: "not measured"}[measure.passed]
            table.add_row(
                escape(measure.metric),
                _number(measure.source),
                _number(measure.candidate),
                value,
                f"{measure.limit:g} {measure.unit}",
                verdict,
            )
        table.add_row(
            "real-time factor",
            _number(gate.source_real_time_factor),
            _number(gate.candidate_real_time_factor),
            "" if gate.speedup is None else f"{gate.speedup:.2f} x",
        )
        console.print(table)
        for measure in gate.measures:
            if measure.note:
                echo(f"{measure.metric}: {measure.note}")
    if report.sensitivity:
        table = Table("layer group, quantized alone", "SI-SDR to the source's output, dB")
        for cost in report.sensitivity[:_SHOWN_GROUPS]:
            table.add_row(cost.group, f"{cost.si_sdr_db:.1f}")
        console.print(table)


def _price(report: QuantizeReport) -> str:
    """Say what the groups in float cost: bytes of the file."""
    assert report.rescue is not None
    size = report.output_bytes / report.rescue.bytes_without - 1
    return f"{(report.output_bytes - report.rescue.bytes_without) / 1e6:+.2f} MB ({size:+.0%})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
