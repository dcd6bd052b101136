"""Many files: a job that can be killed at any moment and goes on where it was."""

from frcrn_accel.corpus.journal import Entry
from frcrn_accel.corpus.plan import Shard
from frcrn_accel.corpus.run import CorpusReport, denoise_corpus

__all__ = ["CorpusReport", "Entry", "Shard", "denoise_corpus"]
