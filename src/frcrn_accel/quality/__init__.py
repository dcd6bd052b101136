"""Measures of quality. PESQ, STOI and DNSMOS need the `[eval]` extra."""

from frcrn_accel.quality.metrics import Dnsmos, bootstrap_interval, dnsmos, pesq_wb, si_sdr_db, stoi

__all__ = ["Dnsmos", "bootstrap_interval", "dnsmos", "pesq_wb", "si_sdr_db", "stoi"]
