"""Plot speed against quality."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from frcrn_accel.errors import BenchError, MissingExtraError
from frcrn_accel.quality import MAX_AGREEMENT_DB

__all__ = ["check_plot", "plot_speed_and_quality"]

_MARKERS = "osD^vP*X<>"  # with ten colours, for configurations
_FILLS = ("full", "none", "left", "top")  # for models
_PESQ_LIMIT_PERCENT = -1.0  # of the quality gate
_PESQ_TICKS = (-50, -20, -10, -5, -2, -1, -0.5, 0, 0.5, 1, 2, 5, 10, 20, 50)
Json = Mapping[str, Any]


def check_plot() -> None:
    """Check that plots are possible, before measuring for hours.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("A plot", "eval", error) from error


def plot_speed_and_quality(report: Json, picture: Path) -> None:
    """Plot each configuration: its speed relative to real time against the change of its output from fp32.

    Args:
        report: The JSON of a `BenchReport`.
        picture: Path of the PNG to write.

    Raises:
        MissingExtraError: matplotlib is not installed.
        BenchError: No quality was measured.
    """
    check_plot()
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, StrMethodFormatter

    groups = [group for group in report["groups"] if any(row["quality"] for row in group["rows"])]
    if not groups:
        raise BenchError(
            "there is no quality to plot: choose a model with trained weights, and leave --no-quality out"
        )
    rows = [(group, row) for group in groups for row in group["rows"]]
    has_pesq = any(row["quality"]["pesq_wb"] is not None for _, row in rows)
    rows.sort(key=lambda pair: pair[1]["real_time_factor"])
    names = list(dict.fromkeys(row["configuration"] for _, row in rows))
    models = list(dict.fromkeys(group["model"] for group in groups))
    height = max(4.5, 1.6 + 0.28 * len(rows))
    figure = Figure(figsize=(10, height), layout="constrained")
    axes = figure.subplots()
    lowest = 0.0
    for group, row in rows:
        speeds = [group["length_s"] / time_s for time_s in (row["p95_s"], row["median_s"], min(row["times_s"]))]
        value, below, above = _quality(row["quality"], has_pesq)
        if value is None:
            continue
        lowest = min(lowest, value - below)
        model = f"{group['model']}, " if len(models) > 1 else ""
        place = names.index(row["configuration"])
        axes.errorbar(
            speeds[1],
            value,
            xerr=[[speeds[1] - speeds[0]], [speeds[2] - speeds[1]]],
            yerr=[[below], [above]],
            fmt=_MARKERS[place % len(_MARKERS)],
            color=f"C{place % 10}",
            fillstyle=_FILLS[models.index(group["model"]) % len(_FILLS)],
            markersize=8,
            elinewidth=0.8,
            capsize=3,
            label=f"{model}{row['configuration']}: {speeds[1]:.3g} x",
        )
    if has_pesq:
        axes.axhline(_PESQ_LIMIT_PERCENT, color="0.4", ls="--", lw=1)
        axes.annotate(
            "limit of the quality gate",
            (0.01, _PESQ_LIMIT_PERCENT),
            xycoords=("axes fraction", "data"),
            xytext=(0, 4),
            textcoords="offset points",
            color="0.3",
            fontsize=9,
        )
        axes.set_ylim(bottom=min(axes.get_ylim()[0], 1.25 * _PESQ_LIMIT_PERCENT))
        if lowest < 5 * _PESQ_LIMIT_PERCENT:  # the others would be one line: logarithmic beyond 1 %
            axes.set_yscale("symlog", linthresh=1, linscale=1.5)
            axes.yaxis.set_major_locator(FixedLocator(_PESQ_TICKS))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_ylabel("PESQ-WB, change from fp32, %\n(mean, 95 % interval)")
    else:
        axes.set_ylabel("SI-SDR to the fp32 output, dB")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("speed, times real time (median; from the 95th percentile of the times to the shortest)")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, title="times real time")
    shared = {f"{group['model']}, {group['length_s']:g} s, {group['threads']} thread(s)" for group in groups}
    axes.set_title(f"{'; '.join(sorted(shared))}\n{report['machine']['cpu'] or 'unknown CPU'}", fontsize=10)
    figure.savefig(picture, dpi=120)


def _quality(quality: Json | None, has_pesq: bool) -> tuple[float | None, float, float]:
    """Return the value to plot, and how far its interval extends down and up; None if there is no value."""
    if quality is None:
        return None, 0.0, 0.0
    if not has_pesq:
        agreement_db = quality["si_sdr_to_fp32_db"]
        return MAX_AGREEMENT_DB if agreement_db is None else agreement_db, 0.0, 0.0  # None is the reference itself
    if quality["pesq_wb"] is None:
        return None, 0.0, 0.0
    change = quality["pesq_change_percent"]
    if change is None:  # the reference itself
        return 0.0, 0.0, 0.0
    return change["mean"], change["mean"] - change["low"], change["high"] - change["mean"]
