"""The level that the model is fed at: what loud events change, and the difference to the plain rule.

`python benchmarks/level.py AUDIO_DIR [--model NAME]`: AUDIO_DIR has dev/noisy, dev/clean and train/speech. The plain
rule is the RMS of the samples above the mean power, as upstream's pipelines have it. Numbers are dB.

What an event in a stream covers cannot be heard, whatever the rule. So its effect on a stream is also measured
against the stream from which the audio under the event is cut out.

With `--model`, the table is of the model's output instead: how an event changes the power of the speech elsewhere, as
a whole and in the quarter of a second that changes most, and what is left of the event.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from frcrn_accel import Denoiser
from frcrn_accel.audio import measure_levels
from frcrn_accel.streaming.level import RunningLevel
from frcrn_accel.streaming.offset import RunningOffset

RATE_HZ = 16_000
HOP = 320
Rule = Callable[[np.ndarray], np.ndarray]


def plain_file(x: np.ndarray) -> float:
    power = x.astype(np.float64) ** 2
    active = power > power.mean()
    return 10 * float(np.log10(power[active].mean() if active.any() else power.mean()))


def file(x: np.ndarray) -> float:
    gain = measure_levels(lambda: [x[None]], 1).gains[0]
    return -25 - 20 * float(np.log10(gain))


def plain_stream(x: np.ndarray) -> np.ndarray:
    """Return the level after each hop, as streams of 0.1.0 followed it."""
    keep, sums, levels = 1 - 1 / 1000, np.zeros(4), []
    for hop in x[: len(x) // HOP * HOP].reshape(-1, HOP).astype(np.float64) ** 2:
        sums[:2] = keep * sums[:2] + [hop.sum(), HOP]
        active = hop[hop > sums[0] / sums[1]]
        sums[2:] = keep * sums[2:] + [active.sum(), len(active)]
        levels.append(max(sums[2] / max(sums[3], 1), sums[0] / sums[1], 1e-14))
    return 10 * np.log10(levels)


def stream(x: np.ndarray) -> np.ndarray:
    hops, _ = RunningOffset.none(1).taken_out(x[: len(x) // HOP * HOP].reshape(1, -1, HOP))
    gains, _ = RunningLevel.silent(1).update(hops)
    levels_db: np.ndarray = -25 - 20 * np.log10(gains[0].astype(np.float64))
    return levels_db


def pieces(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the dev files, and twelve pieces of 3 to 12 s of each training source."""
    for path in sorted([*folder.glob("dev/*/*.flac"), *folder.glob("dev/*/*.wav")]):
        yield path.parent.name, soundfile.read(path, dtype="float32")[0]
    rng = np.random.default_rng(0)
    for path in sorted(folder.glob("train/speech/*")):
        if path.suffix not in {".opus", ".flac", ".ogg", ".wav"}:
            continue
        info = soundfile.info(path)
        for _ in range(12):
            frames = int(rng.uniform(3, 12) * info.samplerate)
            if frames < info.frames:
                start = int(rng.integers(0, info.frames - frames))
                x, rate = soundfile.read(path, start=start, frames=frames, dtype="float32", always_2d=True)
                yield "train", soxr.resample(x[:, 0], rate, RATE_HZ)


def events(rng: np.random.Generator, samples: int) -> Iterator[tuple[str, np.ndarray, float]]:
    """Yield events: a name, the signal to add, and the time after which they are over, s."""
    time_s = np.arange(samples) / RATE_HZ

    def placed(sound: np.ndarray, *starts_s: float) -> np.ndarray:
        out = np.zeros(samples)
        for start_s in starts_s:
            first = int(start_s * RATE_HZ)
            out[first : first + len(sound)] += sound[: samples - first]
        return out

    seconds = samples / RATE_HZ
    for ms in (10, 100, 500):
        for start_s in (0.0, 4.013, seconds - ms / 1000):
            burst = rng.uniform(-1, 1, ms * 16)
            yield f"burst {ms} ms at {start_s:g} s", placed(burst, start_s), start_s + ms / 1000
    for start_s in (0.0, 4.013):
        yield f"jump of 0.5 s at {start_s:g} s", placed(np.ones(8000), start_s), start_s + 0.5
    yield "3 bursts of 250 ms", placed(rng.uniform(-1, 1, 4000), 1, 4, 7), 7.25
    yield "20 clicks of 1 ms", placed(np.ones(16), *np.linspace(0.5, 8, 20)), 8.001
    tone = np.sin(2 * np.pi * 1000 * time_s[:8000])
    yield "tone 500 ms", placed(tone, 4), 4.5
    ring = np.sin(2 * np.pi * 440 * time_s[:48_000]) * (np.sin(2 * np.pi * 20 * time_s[:48_000]) > 0)
    yield "telephone 3 s", placed(ring, 3), 6.0
    claps = rng.standard_normal(80_000) * (rng.random(80_000) < 0.02)
    yield "applause 5 s", placed(np.clip(claps, -1, 1), 2), 7.0
    for decay_s in (0.02, 0.1, 0.2, 0.3, 0.6, 1.0):  # to a thousandth, as in the reverberation time
        slam = rng.uniform(-1, 1, int(1.2 * decay_s * RATE_HZ))
        slam *= 10 ** (-3 * np.arange(len(slam)) / RATE_HZ / decay_s)
        for start_s in (0.0, 4.013):
            yield f"slam of {decay_s:g} s at {start_s:g} s", placed(slam, start_s), start_s + 1.2 * decay_s


def situations(speech: np.ndarray) -> None:
    """Print levels where speech is rare, or whispered beside shouting; those of streams are where speech is."""
    speech = speech * np.float32(10 ** ((-25 - plain_file(speech)) / 20))
    rng = np.random.default_rng(1)
    word, room = speech[RATE_HZ : 2 * RATE_HZ], 1e-4 * rng.standard_normal(120 * RATE_HZ).astype(np.float32)
    steps = np.repeat([1, 0.02], 5 * RATE_HZ).astype(np.float32)
    print("| signal | its speech | file before | file | stream before | stream |")
    print("|---|---|---|---|---|---|")
    for name, x, spoken in (
        ("1 s of speech, then 30 s at -80 dBFS", np.concatenate([word, room[: 30 * RATE_HZ]]), (25, 50)),
        ("2 min at -80 dBFS, then speech", np.concatenate([room, speech]), (6_050, 6_500)),
        ("2 min of digital silence, then speech", np.concatenate([0 * room, speech]), (6_050, 6_500)),
        ("5 s of shouting, then whispering 34 dB below: the shouting", speech * steps, (50, 250)),
        ("the same: the whispering", speech * steps, (300, 500)),
        ("5 s of whispering, then shouting: the shouting", speech * steps[::-1], (300, 500)),
    ):
        first, last = spoken
        levels = [plain_file(x[first * HOP : last * HOP]), plain_file(x), file(x)]
        levels += [float(np.median(rule(x)[first:last])) for rule in (plain_stream, stream)]
        print(f"| {name} | " + " | ".join(f"{level_db:.1f}" for level_db in levels) + " |", flush=True)


def db(power: np.ndarray) -> np.ndarray:
    out: np.ndarray = 10 * np.log10(power + 1e-12)
    return out


def of_output(speech: list[np.ndarray], denoiser: Denoiser) -> None:
    """Print what events change in the output of a model."""

    def whole(x: np.ndarray) -> np.ndarray:
        return denoiser(x, RATE_HZ)

    def streamed(x: np.ndarray) -> np.ndarray:
        live = denoiser.stream(RATE_HZ, step_s=0.2)
        return np.concatenate([live.process(x), live.flush()])[live.latency_samples :]

    rules = (whole, streamed)

    def quarters(x: np.ndarray) -> np.ndarray:
        out: np.ndarray = np.mean(x.reshape(-1, RATE_HZ // 4) ** 2, axis=1)
        return out

    for shout_first in (True, False):
        whisper = np.repeat([not shout_first, shout_first], 5 * RATE_HZ)
        later = whisper[:: RATE_HZ // 4] & (np.arange(40) >= (24 if shout_first else 4))
        changes = []
        for x in speech:
            both, alone = x * np.where(whisper, 0.02, 1), x * np.where(whisper, 0.02, 0)
            powers = [[quarters(rule(y.astype(np.float32)))[later].sum() for y in (both, alone)] for rule in rules]
            changes.append([db(together) - db(by_itself) for together, by_itself in powers])
        worst = ", ".join(f"{max(column, key=abs):.1f}" for column in np.transpose(changes))
        order = "after" if shout_first else "before"
        print(
            f"5 s of whispering {order} shouting 34 dB louder, to whispering alone: file, stream {worst}", flush=True
        )
    print("| event | speech, dBFS | file, all | file, worst | event in file | stream, all | stream, worst |")
    print("|---|---|---|---|---|---|---|")
    for level_db in (-60, -20):
        quiet = [(x * 10 ** ((level_db - plain_file(x)) / 20)).astype(np.float32) for x in speech]
        before = [[quarters(rule(x)) for rule in rules] for x in quiet]
        for name, event, over_s in events(np.random.default_rng(2), 10 * RATE_HZ):
            if not any(
                word in name
                for word in (
                    "500 ms at 0",
                    "500 ms at 4",
                    "jump",
                    "clicks",
                    "phone",
                    "applause",
                    "of 0.2 s",
                    "of 1 s",
                )
            ):
                continue  # each takes half a minute
            touched = np.convolve(quarters(event) > 0, [1, 1, 1], "same") > 0
            later = np.arange(40) >= np.ceil(4 * (over_s + 1))
            rows = []
            for x, without in zip(quiet, before, strict=True):
                loud = (x + event).astype(np.float32)
                row = []
                for rule, old, part in zip(rules, without, (~touched, later), strict=True):
                    new = quarters(rule(loud))
                    change = (db(new) - db(old))[part & (db(old) > level_db - 15)]
                    row += [db(new[part].sum()) - db(old[part].sum()), max(change, key=abs, default=0)]
                    if rule is not streamed:
                        row.append(float(db(new[touched].max())))
                rows.append(row)
            values = [max(column, key=abs) for column in np.transpose(rows)]
            values[2] = max(row[2] for row in rows)
            print(f"| {name} | {level_db} | " + " | ".join(f"{value:.1f}" for value in values) + " |", flush=True)


def table(speech: list[np.ndarray]) -> None:
    """Print what offsets, situations and events change."""
    offset = [file(x + np.float32(0.3)) - file(x) for x in speech]
    print(f"offset 0.3 added: {max(map(abs, offset)):.3f}")
    situations(speech[0])
    print("largest change of the level by an event at 0 dBFS; streams: from 1 s after it")
    print("| event | speech, dBFS | file before | file | stream before | stream | stream, to the cut one |")
    print("|---|---|---|---|---|---|---|")
    levels_db = (-20, -40, -60)
    without = {
        level_db: [(x * 10 ** ((level_db - plain_file(x)) / 20)).astype(np.float32) for x in speech]
        for level_db in levels_db
    }
    running = {level_db: [(plain_stream(x), stream(x)) for x in without[level_db]] for level_db in levels_db}
    for name, event, over_s in events(np.random.default_rng(2), 10 * RATE_HZ):
        for level_db in levels_db:
            changes = []
            for quiet, (plain_db, quiet_db) in zip(without[level_db], running[level_db], strict=True):
                loud = (quiet + event).astype(np.float32)
                later = int((over_s + 1) * RATE_HZ / HOP) + 1
                hops = quiet[: len(quiet) // HOP * HOP].reshape(-1, HOP)
                spoken = 10 * np.log10(np.mean(hops**2, axis=1) + 1e-12) > plain_file(quiet) - 12
                spoken[:later] = False
                covered = event[: hops.size].reshape(hops.shape).any(axis=1)
                found_db, cut_db = stream(loud), np.zeros(len(hops))
                cut_db[~covered] = stream(hops[~covered].ravel())
                changes.append(
                    [
                        plain_file(loud) - plain_file(quiet),
                        file(loud) - file(quiet),
                        np.max(np.abs((plain_stream(loud) - plain_db)[spoken]), initial=0),
                        np.max(np.abs((found_db - quiet_db)[spoken]), initial=0),
                        np.max(np.abs((found_db - cut_db)[spoken & ~covered]), initial=0),
                    ]
                )
            worst = np.array(changes)[np.abs(changes).argmax(axis=0), range(5)]
            print(f"| {name} | {level_db} | " + " | ".join(f"{value:.1f}" for value in worst) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", help="Measure the output of this model.")
    arguments = parser.parse_args()
    found = list(pieces(arguments.folder))
    speech = [x[: 10 * RATE_HZ] for kind, x in found if kind == "train" and len(x) >= 10 * RATE_HZ][:4]
    if arguments.model:
        of_output(speech, Denoiser(arguments.model, backend="ort"))
        return
    kinds = np.array([kind for kind, _ in found])
    for name, change in (
        ("file", np.array([file(x) - plain_file(x) for _, x in found])),
        ("stream, median over time", np.array([np.median((stream(x) - plain_stream(x))[50:]) for _, x in found])),
        ("plain stream, end, to the plain level", np.array([plain_stream(x)[-1] - plain_file(x) for _, x in found])),
        ("stream, end, to that of the file", np.array([stream(x)[-1] - file(x) for _, x in found])),
    ):
        for kind in dict.fromkeys(kinds):
            of_kind = change[kinds == kind]
            size = np.abs(of_kind)
            print(
                f"{name}, {kind}, {len(size)} pieces: mean {of_kind.mean():.2f}, median {np.median(of_kind):.2f}, "
                f"95 % within {np.quantile(size, 0.95):.2f}, worst {of_kind[size.argmax()]:.2f}, "
                f"over 0.5: {(size > 0.5).sum()}"
            )
    table(speech)


if __name__ == "__main__":
    main()
