"""Denoise many files, as a job that can be killed at any moment and resumed."""

from frcrn_accel.corpus.job import CorpusJob
from frcrn_accel.corpus.journal import Entry
from frcrn_accel.corpus.plan import Shard
from frcrn_accel.corpus.report import CorpusReport
from frcrn_accel.corpus.run import denoise_corpus

__all__ = ["CorpusJob", "CorpusReport", "Entry", "Shard", "denoise_corpus"]
