"""Run a denoiser in a process of its own: to measure it, or to find out how much memory a worker needs."""

from frcrn_accel.processes.process import WORKER, Loaded, Process, Run

__all__ = ["WORKER", "Loaded", "Process", "Run"]
