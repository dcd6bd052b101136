"""Separate processes: for untrusted files, and for denoisers whose memory or time is measured."""

from frcrn_accel.processes.denoiser_process import DENOISER_WORKER, DenoiserProcess, Loaded, Run
from frcrn_accel.processes.file_process import FileProcess, FileProcesses, ProcessLimits
from frcrn_accel.processes.intake import Intake

__all__ = [
    "DENOISER_WORKER",
    "DenoiserProcess",
    "FileProcess",
    "FileProcesses",
    "Intake",
    "Loaded",
    "ProcessLimits",
    "Run",
]
