"""Compare rules for the band above 8 kHz on speech and on noise.

`python benchmarks/high_band.py WIDE_DIR [--spectrograms DIR]`: WIDE_DIR has noisy/ and clean/, pairs of 48 kHz. The
rules are: noisy, the unprocessed input; dropped and followed, the two modes of `high_band`; passed, the output of the
model below and the input above; streamed, followed in a stream of the model for streams, and whole, the same model
without a stream. Distances and SI-SDR are those of 8 to 20 kHz; means with 95 % intervals from a bootstrap over the
pairs. Fricatives are the frames in which most of the power of clean speech is above 4 kHz. With `--chunks`, the
streams of all pairs have to be equal bit for bit in chunks of 1 sample to the whole; with `--time`, the processor
time of the band is measured, as a share of all other, and with `--released-size` also beside a network of that size
with random weights (needs `[quantize]`). With `--visqol` and `visqol-python` installed, ViSQOL's
audio mode, which covers 48 kHz, rates whole signals; it takes many seconds for each.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import soundfile
from intervals import mean_and_interval, with_interval
from streaming import through

from frcrn_accel import Denoiser
from frcrn_accel.audio import resample
from frcrn_accel.bench.configurations import released_size_model
from frcrn_accel.high_band import HighBandMode

RATE_HZ = 48_000
LOW_HZ, HIGH_HZ = 8_000, 20_000
FRAME = 1024
STEPS_S = (0.02, 0.1, 0.2)  # of the streams whose processor time is measured
FLOOR = 1e-7  # power of a sample, -70 dBFS: what is below is silence
Rule = Callable[[np.ndarray], np.ndarray]


def stft(x: np.ndarray) -> np.ndarray:
    padded = np.pad(x, FRAME)
    frames = np.lib.stride_tricks.sliding_window_view(padded, FRAME)[:: FRAME // 2]
    spectra: np.ndarray = np.fft.rfft(frames * np.sin(np.pi * (np.arange(FRAME) + 0.5) / FRAME))
    return spectra


def band(x: np.ndarray, low_hz: float = LOW_HZ, high_hz: float = HIGH_HZ) -> np.ndarray:
    spectrum = np.fft.rfft(x)
    hz = np.fft.rfftfreq(len(x), 1 / RATE_HZ)
    spectrum[(hz < low_hz) | (hz > high_hz)] = 0
    out: np.ndarray = np.fft.irfft(spectrum, len(x))
    return out


def distances_db(clean: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the log-spectral distance of each frame: RMS over its bins."""
    hz = np.fft.rfftfreq(FRAME, 1 / RATE_HZ)
    inside = (hz >= LOW_HZ) & (hz <= HIGH_HZ)
    powers = [10 * np.log10(np.abs(stft(one)[:, inside]) ** 2 + FLOOR * FRAME / 4) for one in (clean, x)]
    out: np.ndarray = np.sqrt(((powers[0] - powers[1]) ** 2).mean(axis=1))
    return out


def distance_db(clean: np.ndarray, x: np.ndarray) -> float:
    return float(distances_db(clean, x).mean())


def fricatives(clean: np.ndarray) -> np.ndarray:
    """Return which frames have most of their power above 4 kHz, of those within 30 dB of the loudest above 8 kHz."""
    power = np.abs(stft(clean)) ** 2
    hz = np.fft.rfftfreq(FRAME, 1 / RATE_HZ)
    high = power[:, (hz >= LOW_HZ) & (hz <= HIGH_HZ)].sum(axis=1)
    found: np.ndarray = (power[:, hz >= 4_000].sum(axis=1) > power.sum(axis=1) / 2) & (high > 1e-3 * high.max())
    return found


def fricatives_db(clean: np.ndarray, x: np.ndarray) -> float:
    """Return the change of the power of 8 to 20 kHz in the fricatives."""
    frames = fricatives(clean)
    before, after = (np.abs(stft(band(one))[frames]) ** 2 for one in (clean, x))
    return float(10 * np.log10(after.sum() / before.sum()))


def si_sdr_db(clean: np.ndarray, x: np.ndarray) -> float:
    clean, x = band(clean), band(x)
    target = clean * (clean @ x) / (clean @ clean)
    return float(10 * np.log10((target @ target + 1e-12) / (np.sum((x - target) ** 2) + 1e-12)))


def change_db(before: np.ndarray, after: np.ndarray) -> float:
    return float(10 * np.log10((np.sum(after**2) + 1e-12) / np.sum(before**2)))


def above(x: np.ndarray) -> np.ndarray:
    """Return what the model cannot hold of a signal."""
    down = resample([x[None].astype(np.float32)], RATE_HZ, 16_000, 1)
    kept: np.ndarray = np.concatenate(list(resample(down, 16_000, RATE_HZ, 1)), axis=1)[0, : len(x)]
    rest: np.ndarray = x - kept
    return rest


def rules(denoiser: Denoiser, streaming: Denoiser) -> dict[str, Rule]:
    return {
        "noisy": lambda x: x,
        "dropped": lambda x: denoiser(x, RATE_HZ, high_band="drop"),
        "passed": lambda x: denoiser(x, RATE_HZ, high_band="drop") + above(x),
        "followed": lambda x: denoiser(x, RATE_HZ, high_band="follow"),
        "streamed": lambda x: through(streaming.stream(RATE_HZ), x),
        "whole": lambda x: streaming(x, RATE_HZ),
    }


def sounds(speech: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield noises of the length of a recording, as loud above 8 kHz as its loudest tenth is."""
    rng = np.random.default_rng(0)
    t = np.arange(len(speech)) / RATE_HZ
    white = rng.standard_normal(len(speech))
    clicks = np.zeros(len(speech))
    for at in rng.integers(0, len(speech) - 480, 20):
        clicks[at : at + 480] += rng.standard_normal(480) * np.exp(-np.arange(480) / 96)
    hum = 2 * np.pi * np.cumsum(1_000 + 400 * np.sin(2 * np.pi * 0.5 * t)) / RATE_HZ
    notes = np.repeat(rng.choice([220.0, 277.2, 329.6, 440.0], len(speech) // 12_000 + 1), 12_000)[: len(speech)]
    tune = 2 * np.pi * np.cumsum(notes) / RATE_HZ
    keys = 2 * np.pi * np.outer([2_900, 4_300, 9_100, 11_700, 13_300], t)
    jingle = np.sin(keys).sum(axis=0) * np.repeat(rng.random(len(speech) // 4_800 + 1) > 0.6, 4_800)[: len(speech)]
    yield "hiss", white
    yield "clicks of keys", clicks
    yield "siren", sum((np.sin(k * hum) / k for k in range(1, 16)), np.zeros(len(t)))
    tones = sum((np.sin(k * tune) / k for k in range(1, 60)), np.zeros(len(t)))
    yield "music", tones + 0.1 * band(white, 8_000) * (np.sin(16 * t) > 0.9)
    yield "bunch of keys", jingle


def check_chunks(streaming: Denoiser, noisy: list[np.ndarray]) -> None:
    """Check that streams do not depend on how they are cut."""
    rng = np.random.default_rng(0)
    for number, x in enumerate(noisy):
        x = x[: 4 * RATE_HZ].astype(np.float32)
        expected = through(streaming.stream(RATE_HZ), x)
        cuts = {str(size): np.arange(size, len(x), size) for size in (1, 441, 480, 960, 4_096)}
        cuts["random"] = np.cumsum(rng.integers(0, 3_000, len(x) // 1_500 - 20))
        for name, at in cuts.items():
            stream = streaming.stream(RATE_HZ)
            parts = [stream.process(chunk) for chunk in np.split(x, at)]
            found = np.concatenate([*parts, stream.flush()])[stream.latency_samples :]
            if not np.array_equal(found, expected):
                raise SystemExit(f"pair {number} differs in chunks of {name}")
        print(f"pair {number}: the same bits in chunks of {', '.join(cuts)}", flush=True)


def measure_time(denoisers: dict[str, Denoiser], noisy: list[np.ndarray]) -> None:
    """Print the processor time of the two modes, in turn, and their ratio."""
    x = np.concatenate([one[: 5 * RATE_HZ] for one in noisy]).astype(np.float32)
    modes: tuple[HighBandMode, ...] = get_args(HighBandMode)

    def call(denoiser: Denoiser, mode: HighBandMode) -> float:
        began = time.process_time()
        denoiser(x, RATE_HZ, high_band=mode)
        return time.process_time() - began

    for name, denoiser in denoisers.items():
        call(denoiser, "follow")
        calls = [{mode: call(denoiser, mode) for mode in modes} for _ in range(5)]
        print_ratio(f"{name}, {len(x) / RATE_HZ:.0f} s at once", calls)
        for step_s in STEPS_S:
            streams = {mode: denoiser.stream(RATE_HZ, high_band=mode, step_s=step_s) for mode in modes}
            seconds: list[dict[HighBandMode, float]] = []
            for second in np.split(x, np.arange(RATE_HZ, len(x), RATE_HZ)):
                spent = dict.fromkeys(modes, 0.0)
                for mode, stream in streams.items():  # in turn, second by second: other load affects both
                    began = time.process_time()
                    for chunk in np.split(second, np.arange(960, len(second), 960)):
                        stream.process(chunk)
                    spent[mode] = time.process_time() - began
                seconds.append(spent)
            print_ratio(f"{name}, stream in steps of {1000 * step_s:.0f} ms, a second", seconds)


def print_ratio(what: str, spent: list[dict[HighBandMode, float]]) -> None:
    drop_s, follow_s = (np.array([one[mode] for one in spent]) for mode in ("drop", "follow"))
    low, ratio, high = np.percentile(follow_s / drop_s, (25, 50, 75))
    print(
        f"{what}: dropped {1000 * np.median(drop_s):.0f} ms, followed {1000 * np.median(follow_s):.0f} ms of "
        f"processor time; ratio {ratio:.3f} (quartiles {low:.3f} and {high:.3f})",
        flush=True,
    )


def table(title: str, rows: dict[str, dict[str, list[float]]]) -> None:
    columns = list(next(iter(rows.values())))
    print(f"\n{title}\n\n| rule | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, values in rows.items():
        cells = (with_interval(mean_and_interval(values[column])) for column in columns)
        print(f"| {name} | {' | '.join(cells)} |")


def visqol() -> Callable[[np.ndarray, np.ndarray], float]:
    from visqol import VisqolApi  # type: ignore[import-not-found]

    api = VisqolApi()
    api.create(mode="audio")
    return lambda clean, x: float(api.measure_from_arrays(clean.astype(float), x.astype(float), RATE_HZ).moslqo)


def draw(path: Path, clean: np.ndarray, results: dict[str, np.ndarray]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = {"clean": clean, **results}
    figure, axes = pyplot.subplots(len(shown), 1, figsize=(12, 3 * len(shown)), sharex=True)
    for axis, (name, x) in zip(axes, shown.items(), strict=True):
        power = 20 * np.log10(np.abs(stft(x)).T + 1e-5)
        edges = (0, len(x) / RATE_HZ, 0, RATE_HZ / 2_000)
        axis.imshow(power, origin="lower", aspect="auto", extent=edges, vmin=-70, vmax=30, cmap="magma")
        axis.set_ylabel(f"{name}, kHz")
    figure.tight_layout()
    figure.savefig(path, dpi=60)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("wide", type=Path, help="Folder with noisy/ and clean/.")
    parser.add_argument("--spectrograms", type=Path, help="Folder to draw spectrograms to.")
    parser.add_argument("--chunks", action="store_true", help="Only compare streams in chunks of many sizes.")
    parser.add_argument("--time", action="store_true", help="Only measure the processor time.")
    parser.add_argument("--released-size", action="store_true", help="With --time, measure this size, too.")
    parser.add_argument("--visqol", action="store_true", help="Rate with ViSQOL, too.")
    arguments = parser.parse_args()
    names = sorted(path.name for path in (arguments.wide / "noisy").iterdir())
    pairs = [[soundfile.read(arguments.wide / part / name)[0] for part in ("noisy", "clean")] for name in names]
    if arguments.chunks or arguments.time:
        noisy = [one for one, _ in pairs]
        with (
            Denoiser(backend="ort", threads=1) as denoiser,
            Denoiser("frcrn-small-stream", backend="ort", threads=1) as streaming,
        ):
            if arguments.chunks:
                check_chunks(streaming, noisy)
            else:
                measure_time({"frcrn-small": denoiser, "frcrn-small-stream": streaming}, noisy)
        if arguments.released_size:
            with tempfile.TemporaryDirectory() as folder:
                model = released_size_model(Path(folder)).file
                with Denoiser(model.path, backend="ort", threads=1) as denoiser:
                    measure_time({"released size": denoiser}, noisy)
        return
    rate = visqol() if arguments.visqol else None
    with Denoiser(backend="ort") as denoiser, Denoiser("frcrn-small-stream", backend="ort") as streaming:
        by_rule = rules(denoiser, streaming)
        measures: dict[str, dict[str, dict[str, list[float]]]] = {"noisy pairs": {}, "alone": {}}
        for name, rule in by_rule.items():
            outs = [rule(noisy) for noisy, _ in pairs]
            row = {
                "distance, dB": [distance_db(clean, out) for (_, clean), out in zip(pairs, outs, strict=True)],
                "SI-SDR, dB": [si_sdr_db(clean, out) for (_, clean), out in zip(pairs, outs, strict=True)],
                "distance in fricatives, dB": [
                    float(distances_db(clean, out)[fricatives(clean)].mean())
                    for (_, clean), out in zip(pairs, outs, strict=True)
                    if fricatives(clean).any()
                ],
            }
            if rate is not None:
                row["ViSQOL"] = [rate(clean, out) for (_, clean), out in zip(pairs, outs, strict=True)]
            measures["noisy pairs"][name] = row
            measures["alone"][name] = {
                "clean speech, dB": [change_db(band(clean), band(rule(clean))) for _, clean in pairs],
                "its fricatives, dB": [
                    fricatives_db(clean, rule(clean)) for _, clean in pairs if fricatives(clean).any()
                ],
                "noise, dB": [change_db(band(noisy - clean), band(rule(noisy - clean))) for noisy, clean in pairs],
                "noise below 8 kHz, dB": [
                    change_db(band(noisy - clean, 50, 7_000), band(rule(noisy - clean), 50, 7_000))
                    for noisy, clean in pairs
                ],
            }
            print(name, *(f"{values:.1f}" for values in row["SI-SDR, dB"]), flush=True)
        table("Pairs, 8 to 20 kHz (ViSQOL: whole)", measures["noisy pairs"])
        table("Change of the power of 8 to 20 kHz of speech alone and noise alone", measures["alone"])
        print(
            "\nMade noises with the speech of the first two pairs: distance / SI-SDR, dB; change of the noise alone\n"
        )
        print(f"| noise | {' | '.join(by_rule)} |\n|---|{'---|' * len(by_rule)}")
        for name, cells in made([clean for _, clean in pairs[:2]], by_rule).items():
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
        if arguments.spectrograms is not None:
            for name, (noisy, clean) in zip(names, pairs, strict=True):
                results = {one: by_rule[one](noisy) for one in ("noisy", "followed", "streamed")}
                draw(arguments.spectrograms / f"band-{Path(name).stem}.png", clean, results)


def made(speech: list[np.ndarray], by_rule: dict[str, Rule]) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    for clean in speech:
        loud = np.percentile(np.abs(band(clean)), 90)
        for name, sound in sounds(clean):
            noise = sound * loud / np.sqrt(np.mean(band(sound) ** 2))
            cells = []
            for rule in by_rule.values():
                out = rule(clean + noise)
                left = change_db(band(noise), band(rule(noise)))
                cells.append(f"{distance_db(clean, out):.1f} / {si_sdr_db(clean, out):.1f}; {left:.0f}")
            rows.setdefault(name, [""] * len(cells))
            rows[name] = [f"{old}, {new}".removeprefix(", ") for old, new in zip(rows[name], cells, strict=True)]
    return rows


if __name__ == "__main__":
    main()
