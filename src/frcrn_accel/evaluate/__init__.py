"""Measures of quality. PESQ and STOI need the `[eval]` extra."""

from frcrn_accel.evaluate.metrics import bootstrap_interval, pesq_wb, si_sdr_db, stoi

__all__ = ["bootstrap_interval", "pesq_wb", "si_sdr_db", "stoi"]
