"""A denoiser in a process of its own, for measurements and for trying out what a worker needs."""

from frcrn_accel.processes.process import Loaded, Process, Run

__all__ = ["Loaded", "Process", "Run"]
