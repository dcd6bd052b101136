"""Denoise one file.

python examples/denoise.py noisy.wav clean.wav
"""

import sys

from frcrn_accel import Denoiser

source, target = sys.argv[1:]
report = Denoiser().denoise_file(source, target)
print(f"{report.duration_s:.1f} s of audio in {report.processing_s:.1f} s: {report.target}")
