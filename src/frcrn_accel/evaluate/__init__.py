"""Measures of quality. PESQ, STOI and DNSMOS need the `[eval]` extra."""

from frcrn_accel.evaluate.metrics import bootstrap_interval, dnsmos, pesq_wb, si_sdr_db, stoi

__all__ = ["bootstrap_interval", "dnsmos", "pesq_wb", "si_sdr_db", "stoi"]
