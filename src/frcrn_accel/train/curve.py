"""A plot of a run's log."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from frcrn_accel.atomic import replacing
from frcrn_accel.errors import TrainingError
from frcrn_accel.train.log import read_log

__all__ = ["plot_curve"]


def plot_curve(log: Path, picture: Path) -> None:
    """Plot loss, SI-SDR, PESQ-WB and learning rate over the steps.

    Args:
        log: `log.jsonl` of a run.
        picture: PNG file to write or replace.

    Raises:
        TrainingError: The log is missing or damaged, or holds no steps yet.
    """
    if not log.exists():
        raise TrainingError(f"{str(log)!r} does not exist: {str(log.parent)!r} is not the folder of a training run")
    entries = read_log(log)
    steps = [entry for entry in entries if "loss" in entry]
    scores = [(entry["step"], entry["validation"]) for entry in entries if "validation" in entry]
    if not steps:
        raise TrainingError(f"{str(log)!r} holds no steps yet")
    figure = Figure(figsize=(9, 7), layout="constrained")
    ((loss, si_sdr), (pesq, rate)) = figure.subplots(2, 2, sharex=True)
    loss.plot([e["step"] for e in steps], [e["loss"] for e in steps], lw=0.6, alpha=0.5, label="training")
    loss.plot([step for step, _ in scores], [found["loss"] for _, found in scores], "o-", ms=3, label="validation")
    loss.legend()
    for axes, name in ((si_sdr, "si_sdr_db"), (pesq, "pesq_wb")):
        known = [(step, found[name]) for step, found in scores if name in found]
        axes.plot([step for step, _ in known], [value for _, value in known], "o-", ms=3, color="C1")
    rate.plot([e["step"] for e in steps], [e["learning_rate"] for e in steps])
    for axes, title in (
        (loss, "loss"),
        (si_sdr, "SI-SDR, validation, dB"),
        (pesq, "PESQ-WB, validation"),
        (rate, "learning rate"),
    ):
        axes.set_title(title)
        axes.grid(alpha=0.3)
    for axes in (pesq, rate):
        axes.set_xlabel("step")
    with replacing(picture, overwrite=True) as temporary:
        figure.savefig(temporary, dpi=110)
