"""Measure speed, memory and sound of every way to run a model on this machine."""

from frcrn_accel.bench.configurations import (
    BenchModel,
    Configuration,
    LeftOut,
    model_to_measure,
    released_size_model,
)
from frcrn_accel.bench.ratios import LEAST_ROUNDS, Ratio, times_faster
from frcrn_accel.bench.report import (
    SCHEMA_PATH,
    BenchReport,
    Machine,
    describe_machine,
    run_speed,
    run_throughput,
)
from frcrn_accel.bench.sound import Change, Quality
from frcrn_accel.bench.speed import Group, Row
from frcrn_accel.bench.throughput import Setting, SettingRow, Throughput

__all__ = [
    "LEAST_ROUNDS",
    "SCHEMA_PATH",
    "BenchModel",
    "BenchReport",
    "Change",
    "Configuration",
    "Group",
    "LeftOut",
    "Machine",
    "Quality",
    "Ratio",
    "Row",
    "Setting",
    "SettingRow",
    "Throughput",
    "describe_machine",
    "model_to_measure",
    "released_size_model",
    "run_speed",
    "run_throughput",
    "times_faster",
]
