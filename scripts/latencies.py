"""Print the latency of streams at common rates, as a table for docs/streaming.md: `python scripts/latencies.py`."""

from frcrn_accel import Denoiser

RATES_HZ = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 88_200, 96_000, 176_400, 192_000)

print("| rate, Hz | latency, samples | ms |\n|---|---|---|")
with Denoiser("frcrn-small-stream", threads=1) as denoiser:
    for rate_hz in RATES_HZ:
        stream = denoiser.stream(rate_hz)
        print(f"| {rate_hz:,} | {stream.latency_samples} | {1000 * stream.latency_s:.1f} |")
