"""Measures of audio quality. STOI and DNSMOS need the `[eval]` extra, PESQ the `[pesq]` extra."""

from frcrn_accel.quality.metrics import (
    MAX_AGREEMENT_DB,
    agreement_db,
    bootstrap_interval,
    is_silent,
    pesq_wb,
    si_sdr_db,
    stoi,
)
from frcrn_accel.quality.ratings import Dnsmos, dnsmos
from frcrn_accel.quality.scoring import Scorer, required_score, score_or_none

__all__ = [
    "MAX_AGREEMENT_DB",
    "Dnsmos",
    "Scorer",
    "agreement_db",
    "bootstrap_interval",
    "dnsmos",
    "is_silent",
    "pesq_wb",
    "required_score",
    "score_or_none",
    "si_sdr_db",
    "stoi",
]
