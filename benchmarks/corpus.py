"""Test jobs over many files: what they survive, and how fast they are.

    python benchmarks/corpus.py faults
    python benchmarks/corpus.py ray [--files 60]
    python benchmarks/corpus.py speed [--files 200] [--rounds 6]

each with [--backend ort] and [--json OUT.json]. The files are pieces of examples/noisy.wav in six formats, from one
second to a minute, at several rates, with one or two channels. Linux only.

- `faults`: a worker is killed; the disk is full (a small tmpfs, which requires root) and then larger; the folder is
  not writable (for root, a read-only tmpfs).
- `ray`: the same job on a local Ray cluster with two actors, one of which is killed.
- `speed`: the job, a simple loop over `Denoiser`, and that loop with one thread take turns; whole commands are timed,
  including loading.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import soundfile
import soxr

from frcrn_accel.bench import describe_machine
from frcrn_accel.digest import sha256_of

NOISY = Path(__file__).parents[1] / "examples" / "noisy.wav"
FORMATS = ("wav", "flac", "ogg", "opus", "mp3", "aiff")
RATES_HZ = (8_000, 16_000, 16_000, 44_100, 48_000)
LOOP = """
import sys
from pathlib import Path
from frcrn_accel import Denoiser
source, target, backend, threads = sys.argv[1:]
denoiser = Denoiser(backend=backend, threads=int(threads) or None)
for path in sorted(Path(source).rglob("*.*")):
    out = Path(target) / path.relative_to(source)
    out.parent.mkdir(parents=True, exist_ok=True)
    denoiser.denoise_file(path, out)
"""


def make_files(folder: Path, count: int, longest_s: float = 60.0) -> float:
    """Write files of seeded lengths, most of a few seconds; return the seconds of audio."""
    rng = np.random.default_rng(0)
    audio, rate_hz = soundfile.read(NOISY, dtype="float32")
    total_s = 0.0
    for number in range(count):
        length_s = float(np.clip(rng.lognormal(np.log(2.5), 0.8), 1, longest_s))
        file_format = FORMATS[number % len(FORMATS)]
        to_hz = 48_000 if file_format == "opus" else int(rng.choice(RATES_HZ))
        start = int(rng.integers(len(audio)))
        piece = np.resize(np.roll(audio, -start), round(length_s * rate_hz))
        piece = soxr.resample(piece, rate_hz, to_hz)
        if number % 5 == 0:
            piece = np.stack([piece, 0.5 * piece], axis=1)
        path = folder / f"speaker{number % 7}" / f"{number:04}.{file_format}"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(
            path,
            piece,
            to_hz,
            format="OGG" if file_format == "opus" else None,
            subtype="OPUS" if file_format == "opus" else None,
        )
        total_s += length_s
    return total_s


def command(source: Path, out: Path, backend: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "frcrn_accel", "corpus", str(source), str(out), "--backend", backend, *more]


def digests(out: Path) -> dict[str, str]:
    """Return the digests of all files but journals."""
    return {
        path.relative_to(out).as_posix(): sha256_of(path)
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.suffix != ".jsonl"
    }


def check_whole(out: Path, expected: dict[str, str]) -> None:
    """Check that all outputs exist, nothing else, and that each has one line."""
    assert digests(out) == expected, f"{out} differs"
    assert not (out / ".corpus").exists(), "unfinished files are left"
    lines = [json.loads(line) for line in (out / "corpus.jsonl").read_text().splitlines()[1:]]
    made = [line["output"] for line in lines if line["error"] is None]
    assert sorted(made) == sorted(expected), "an output was lost, or made twice"


def workers_of(pid: int) -> list[int]:
    """Return the descendants of a process."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found += [int(path.parent.name), *workers_of(int(path.parent.name))]
    return found


def show_faults(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    source = folder / "in"
    make_files(source, options.files, longest_s=8)
    subprocess.run(command(source, folder / "whole", options.backend), check=True, stderr=subprocess.DEVNULL)
    expected = digests(folder / "whole")
    found: dict[str, Any] = {"files": options.files}

    out = folder / "killed"
    job = subprocess.Popen(command(source, out, options.backend, "--workers", "2"), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: lines_in(out) > 5, job)
    victims = [pid for pid in workers_of(job.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(victims[0], signal.SIGKILL)
    _, err = job.communicate()
    assert job.returncode == 0, err
    check_whole(out, expected)
    found["a worker killed"] = err.splitlines()[-1]

    disk = folder / "disk"
    disk.mkdir()
    need = sum(path.stat().st_size for path in (folder / "whole").rglob("*.*"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={need // 2}", "none", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        found["a full disk"] = "not tried: mounting a small one is not permitted"
    else:
        try:
            run = subprocess.run(command(source, disk, options.backend), capture_output=True, text=True, check=False)
            errors = [line for line in run.stderr.splitlines() if line.startswith("frcrn-accel: error: ")]
            assert (run.returncode, len(errors)) == (2, 1), run.stderr
            assert all(digest == expected[name] for name, digest in digests(disk).items())
            half = len(digests(disk))
            subprocess.run(["mount", "-o", f"remount,size={4 * need}", str(disk)], check=True)
            subprocess.run(command(source, disk, options.backend), capture_output=True, check=True)
            check_whole(disk, expected)
            found["a full disk"] = f"{errors[0]} ({half} files were done; the others followed on a larger disk)"
        finally:
            subprocess.run(["umount", str(disk)], check=True)

    closed = folder / "closed"
    closed.mkdir(mode=0o555)
    read_only = ["mount", "-t", "tmpfs", "-o", "ro", "none", str(closed)]
    mounted = subprocess.run(read_only, capture_output=True, check=False)
    if mounted.returncode and os.geteuid() == 0:
        found["a folder that is not writable"] = "not tried: root may write everywhere, and mounting is not permitted"
    else:
        try:
            run = subprocess.run(
                command(source, closed, options.backend), capture_output=True, text=True, check=False
            )
        finally:
            if not mounted.returncode:
                subprocess.run(["umount", str(closed)], check=True)
        assert (run.returncode, run.stderr.count("\n")) == (2, 1), run.stderr
        found["a folder that is not writable"] = run.stderr.strip()
    for what, said in found.items():
        print(f"{what}: {said}")
    return found


def lines_in(out: Path) -> int:
    journal = out / "corpus.jsonl"
    return journal.read_bytes().count(b"\n") - 1 if journal.exists() else 0


def wait_for(condition: Callable[[], bool], job: subprocess.Popen[str]) -> None:
    while not condition():
        assert job.poll() is None, "the job ended too early"
        time.sleep(0.01)


def show_ray(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    source = folder / "in"
    make_files(source, options.files, longest_s=8)
    subprocess.run(command(source, folder / "whole", options.backend), check=True, stderr=subprocess.DEVNULL)
    expected = digests(folder / "whole")
    out = folder / "ray"
    more = ("--workers-on", "ray", "--workers", "2", "--threads", "1")
    job = subprocess.Popen(command(source, out, options.backend, *more), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: lines_in(out) > options.files // 4, job)
    actors = [pid for pid in workers_of(job.pid) if b"ray::_Actor" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(actors[0], signal.SIGKILL)
    at = lines_in(out)
    _, err = job.communicate()
    assert job.returncode == 0, err
    check_whole(out, expected)
    said = err.splitlines()[-1]
    print(f"one of {len(actors)} actors killed after {at} of {options.files} files: {said}")
    return {"files": options.files, "actors": len(actors), "killed_after_files": at, "said": said}


def show_speed(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    source = folder / "in"
    audio_s = make_files(source, options.files)
    loop = [sys.executable, "-c", LOOP, str(source)]
    commands: dict[str, Callable[[Path], list[str]]] = {
        "a loop, one thread": lambda out: [*loop, str(out), options.backend, "1"],
        "a loop, all threads": lambda out: [*loop, str(out), options.backend, "0"],
        "frcrn-accel corpus": lambda out: command(source, out, options.backend),
    }
    times_s: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(options.rounds):
        for name, command_for in commands.items():
            out = folder / f"{name.replace(' ', '-')}-{number}"
            began = time.perf_counter()
            subprocess.run(command_for(out), check=True, stderr=subprocess.DEVNULL)
            times_s[name].append(time.perf_counter() - began)
            print(f"round {number + 1}: {name}: {times_s[name][-1]:.1f} s", file=sys.stderr, flush=True)
    made = [digests(folder / f"{name.replace(' ', '-')}-0") for name in commands]
    assert made[0] == made[1] == made[2], "the outputs differ"
    for name, times in times_s.items():
        print(f"{name}: {median(times):.1f} s, real-time factor {median(times) / audio_s:.4f}")
    return {"files": options.files, "audio_s": audio_s, "machine": str(describe_machine()), "times_s": times_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shows = {"faults": show_faults, "ray": show_ray, "speed": show_speed}
    parser.add_argument("show", choices=shows)
    parser.add_argument("--files", type=int)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--backend", default="ort")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.files = options.files or (200 if options.show == "speed" else 60)
    with tempfile.TemporaryDirectory() as name:
        found = shows[options.show](Path(name), options)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
