"""Denoise a file in live chunks: `frcrn-accel live` without a sound card.

python examples/live/file_as_microphone.py examples/noisy.wav clean.wav
"""

import sys

import soundfile

from frcrn_accel import Denoiser
from frcrn_accel.adapters.feed import LiveStatus, aligned, denoise_live

source_path, target_path = sys.argv[1:]
with soundfile.SoundFile(source_path) as source:
    rate = source.samplerate
    chunks = (block.T for block in source.blocks(rate // 100, dtype="float32", always_2d=True))
    stream = Denoiser("frcrn-small-stream").stream(rate, channels=source.channels)
    status = LiveStatus(rate)
    with soundfile.SoundFile(target_path, "w", rate, source.channels) as target:
        denoise_live(chunks, stream, [aligned(lambda block: target.write(block.T), stream.latency_samples)], status)
print(f"{status.audio_s:.1f} s, real-time factor {status.mean_real_time_factor:.3f}")
