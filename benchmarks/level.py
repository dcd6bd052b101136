"""The level that the model is fed at: what loud events change, and the difference to the plain rule.

`python benchmarks/level.py AUDIO_DIR [--model NAME]`: AUDIO_DIR has dev/noisy, dev/clean and train/speech. The plain
rule is the RMS of the samples above the mean power, as upstream's pipelines have it. Numbers are dB.

What an event in a stream covers cannot be heard, whatever the rule. So its effect on a stream is also measured
against the stream from which the audio under the event is cut out.

With `--sweep CASES`, random bursts of 10 to 500 ms at full scale are added at random places to random recordings, at
-20 to -60 dBFS. Each case that changes the level of a file or a stream by more than 1 dB is printed; `--case NUMBER`
repeats one. Where the recording has hardly any speech but what the burst covers, no rule can tell the burst from the
speech: these cases are counted apart.

With `--model`, the table is of the model's output instead: how an event changes the power of the speech elsewhere, as
a whole and in the quarter of a second that changes most, and what is left of the event.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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


BOUND_DB = 1.0
KINDS = (
    "noise",
    "clipped noise",
    "constant",
    "tone",
    "thump",
    "square",
    "sweep",
    "click train",
    "decaying",
    "rising",
    "recorded",
)


def burst(kind: str, samples: int, rng: np.random.Generator, recorded: np.ndarray) -> np.ndarray:
    """Return a burst with its peak at full scale; `recorded` is the audio of the last kind."""
    n = np.arange(samples)
    hz = np.exp(rng.uniform(np.log(200), np.log(4000)))
    noise = rng.uniform(-1, 1, samples)
    decay = 10 ** (-rng.uniform(1, 3) * n / samples)
    sound = {
        "noise": noise,
        "clipped noise": np.sign(noise),
        "constant": np.full(samples, rng.choice([-1.0, 1.0])),
        "tone": np.sin(2 * np.pi * hz * n / RATE_HZ),
        "thump": np.sin(2 * np.pi * rng.uniform(30, 90) * n / RATE_HZ + rng.uniform(0, 2 * np.pi)),
        "square": np.sign(np.sin(2 * np.pi * hz * n / RATE_HZ) + 1e-9),
        "sweep": np.sin(2 * np.pi * (100 + 3000 * n / samples) * n / RATE_HZ),
        "click train": (n % int(rng.integers(32, 480)) < int(rng.integers(1, 17))).astype(np.float64),
        "decaying": noise * decay,
        "rising": noise * decay[::-1],
        "recorded": np.resize(recorded, samples) + 1e-9,
    }[kind]
    peaked: np.ndarray = sound / np.abs(sound).max()
    return peaked


@dataclass(frozen=True)
class Case:
    """A random burst in a random recording.

    Attributes:
        name: What it is, in words.
        quiet: The recording without the burst.
        loud: The same with it.
        start: First sample of the burst.
        stop: First sample after it.
    """

    name: str
    quiet: np.ndarray
    loud: np.ndarray
    start: int
    stop: int

    @classmethod
    def number(cls, number: int, seed: int, clips: list[tuple[str, np.ndarray]]) -> Case:
        rng = np.random.default_rng([seed, number])
        kind, ms, level_db = KINDS[number % len(KINDS)], int(rng.integers(10, 501)), rng.uniform(-60, -20)
        clip = int(rng.integers(len(clips)))
        clip_name, x = clips[clip]
        samples = min(16 * ms, len(x))
        where = rng.random()
        start = int(rng.uniform(0, max(len(x) - samples, 1)))
        if where < 0.3:
            start = int(rng.uniform(0, min(0.6 * RATE_HZ, len(x) - samples)))
        elif where < 0.4:
            start = 0 if where < 0.35 else len(x) - samples
        _, other = clips[rng.integers(len(clips))]
        sound = burst(kind, samples, rng, other[np.abs(other).argmax() :])
        quiet = (x * 10 ** ((level_db - plain_file(x)) / 20)).astype(np.float32)
        loud = quiet.copy()
        loud[start : start + samples] += sound.astype(np.float32)
        name = (
            f"{number}: {kind}, {ms} ms at {start / RATE_HZ:.3f} s of {len(x) / RATE_HZ:.1f} s, {level_db:.0f} dBFS"
        )
        return cls(f"{name}, recording {clip} ({clip_name})", quiet, loud, start, start + samples)

    def without_what_is_covered(self) -> np.ndarray:
        return np.concatenate([self.quiet[: self.start], self.quiet[self.stop :]])

    def speech_frames(self, first_s: float = np.inf) -> int:
        """Return how many frames of the first seconds are within 12 dB of the loudest, without what is covered."""
        powers = np.mean(self.quiet[: len(self.quiet) // HOP * HOP].reshape(-1, HOP).astype(np.float64) ** 2, axis=1)
        is_speech = powers > powers.max() / 16
        is_speech[self.start // HOP : -(-self.stop // HOP)] = False
        return int(np.count_nonzero(is_speech[: int(min(first_s * RATE_HZ / HOP, len(powers)))]))

    def class_of_file(self) -> str:
        """Return why the level may be unknown, "" if it is not, from the recording and the place of the burst."""
        if abs(plain_file(self.without_what_is_covered()) - plain_file(self.quiet)) > BOUND_DB:
            return "covers the speech that sets the level"
        return "less than 1 s of speech elsewhere" if self.speech_frames() < 50 else ""

    def class_of_stream(self) -> str:
        """Do the same for streams."""
        heard = self.speech_frames(self.stop / RATE_HZ + 1)
        return "less than 0.3 s of speech until 1 s after it" if heard < 15 else ""

    def change_of_file_db(self) -> float:
        return file(self.loud) - file(self.quiet)

    def changes_of_stream_db(self) -> tuple[float, float]:
        """Return the largest change where speech is, to the stream without the burst and to the one cut out."""
        hops = self.quiet[: len(self.quiet) // HOP * HOP].reshape(-1, HOP)
        spoken = db(np.mean(hops**2, axis=1)) > plain_file(self.quiet) - 12
        first, last = self.start // HOP, -(-self.stop // HOP)  # of the hops that the burst touches
        spoken[: last + RATE_HZ // HOP] = False
        if not spoken.any():
            return 0.0, 0.0
        found = stream(self.loud)
        kept = np.r_[:first, last : len(hops)]
        cut = np.zeros(len(hops))
        cut[kept] = stream(hops[kept].ravel())
        changes = [(found - other)[spoken] for other in (stream(self.quiet), cut)]
        to_whole, to_cut = (float(change[np.abs(change).argmax()]) for change in changes)
        return to_whole, to_cut


def sweep(clips: list[tuple[str, np.ndarray]], numbers: range, seed: int) -> None:
    """Print the cases that change the level by more than 1 dB, and how many they are."""
    changes: dict[tuple[str, str], list[float]] = {}
    for number in numbers:
        case = Case.number(number, seed, clips)
        in_file, (to_whole, to_cut) = case.change_of_file_db(), case.changes_of_stream_db()
        in_stream = min(to_whole, to_cut, key=abs)
        for kind, change, name, detail in (
            ("file", in_file, case.class_of_file(), f"{in_file:+.2f} dB"),
            ("stream", in_stream, case.class_of_stream(), f"{to_whole:+.2f} dB, to the cut one {to_cut:+.2f} dB"),
        ):
            changes.setdefault((kind, name), []).append(abs(change))
            if abs(change) > BOUND_DB:
                print(f"{kind} {detail}: {case.name}{name and f' [{name}]'}", flush=True)
    for (kind, name), sizes in sorted(changes.items()):
        over = sum(size > BOUND_DB for size in sizes)
        print(
            f"{kind}, {name or 'all else'}: {over} of {len(sizes)} over {BOUND_DB:g} dB, worst {max(sizes):.2f} dB, "
            f"95 % within {np.quantile(sizes, 0.95):.2f} dB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", help="Measure the output of this model.")
    parser.add_argument("--sweep", type=int, metavar="CASES", help="Try random bursts.")
    parser.add_argument("--case", type=int, metavar="NUMBER", help="Try this random burst.")
    parser.add_argument("--seed", type=int, default=0, help="Of the random bursts.")
    arguments = parser.parse_args()
    found = list(pieces(arguments.folder))
    if arguments.sweep or arguments.case is not None:
        numbers = range(arguments.sweep) if arguments.sweep else range(arguments.case, arguments.case + 1)
        sweep(found, numbers, arguments.seed)
        return
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
