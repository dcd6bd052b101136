"""Separate processes: for untrusted files, and for denoisers whose memory or time is measured."""

from frcrn_accel.processes.file_process import FileProcess, FileProcesses, ProcessLimits
from frcrn_accel.processes.intake import Intake
from frcrn_accel.processes.process import WORKER, Loaded, Process, Run

__all__ = ["WORKER", "FileProcess", "FileProcesses", "Intake", "Loaded", "Process", "ProcessLimits", "Run"]
