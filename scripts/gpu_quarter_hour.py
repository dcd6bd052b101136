"""Spend a quarter of an hour on a GPU well: train in two sittings on a machine that starts empty.

Such a machine takes some tens of MiB at a time, has no network, and may be gone at any moment. So the recordings are
coded down and sent in two stages, everything is checked before training starts, and the state of the run is delivered
every minute. Run these commands in this order (`--help` lists the options of each):

    python scripts/gpu_quarter_hour.py pack examples/train/gpu-quarter-hour.toml PACK --data DIR --mib 50

codes the recordings into PACK/stage1 and PACK/stage2, and writes what the machine needs beside them: the code, the
weights to start from, and the losses of one batch as this machine's CPU computes them. Then, there, with one stage in
PACK each:

    python PACK/gpu_quarter_hour.py sitting PACK WORK OUT --stage 1 --seconds 240
    python PACK/gpu_quarter_hour.py sitting PACK WORK OUT --stage 2 --seconds 300 --last

Each decodes its stage in the background. The first compares the losses with the CPU's, profiles ten steps, and ends
with status 3 below `--least` seconds of audio a second. WORK stays on the machine, OUT is brought back. The learning
rate rises and stays in the first sitting, and falls to zero in the last one. Then, back here:

    python scripts/gpu_quarter_hour.py collect OUT RUN
    frcrn-accel train continue.toml RUN --data DIR

where continue.toml has more steps than were done, and a low learning rate. The machine needs Python 3.10 or later
with PyTorch, NumPy and pip; wheels of soundfile, cffi, soxr and platformdirs go into PACK/packages, if it lacks them:

    pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \\
        --platform manylinux2014_x86_64 --dest PACK/packages soundfile cffi soxr platformdirs
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

HERE = Path(__file__).resolve().parent
if (HERE / "code").is_dir():  # in a pack
    sys.path.insert(0, str(HERE / "code"))

if TYPE_CHECKING:
    from frcrn_accel.train.config import Source, TrainingConfig

RATE_HZ = 16_000
# Of libsndfile's Opus encoder: 0 is 256 kb/s, 1 is 6 kb/s.
COMPRESSION = {"speech": 0.944, "noise": 0.912}  # 20 and 28 kb/s
BYTES_A_SECOND = {"speech": 2_600, "noise": 3_500}
NOISE_SHARE = 0.4  # of the bytes
STAGES = 2
CHECKED_ROWS, CHECKED_S = 4, 3.0
TOLERANCE = 0.03  # of a part of the loss, relative to the whole: bfloat16 against float32
PIECE_BYTES = 15 << 20
TOO_SLOW = 3


STARTED_S = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - STARTED_S:6.1f} s] {text}", flush=True)


# Here: the pack.


def pack(options: argparse.Namespace) -> None:
    """Write a pack."""
    import torch

    import frcrn_accel
    from frcrn_accel.train.config import read_config
    from frcrn_accel.train.sources import draw_weight, prepare_source
    from frcrn_accel.train.start import read_start

    config = read_config(options.config)
    out: Path = options.out
    out.mkdir(parents=True)
    package = Path(frcrn_accel.__file__).parent
    ignored = shutil.ignore_patterns("*.onnx", "*.flac", "page", "__pycache__")
    shutil.copytree(package, out / "code" / "frcrn_accel", ignore=ignored)
    shutil.copy(__file__, out / Path(__file__).name)
    assert config.model.start is not None
    weights = read_start(config.model.start, options.data)
    torch.save({key: torch.tensor(value) for key, value in weights.items()}, out / "start.pt")

    sources: dict[str, list[dict[str, Any]]] = {}
    with ProcessPoolExecutor(options.workers) as pool:
        jobs = []
        for kind in ("speech", "noise"):
            given: tuple[Source, ...] = getattr(config.data, kind)
            signals = [prepare_source(source, options.data, options.cache) for source in given]
            weights_of = [draw_weight(source, len(signal)) for source, signal in zip(given, signals, strict=True)]
            kept = [len(signal) * (1 - config.data.held_out_share) / RATE_HZ for signal in signals]
            share = NOISE_SHARE if kind == "noise" else 1 - NOISE_SHARE
            budget_s = STAGES * options.mib * 2**20 * share / BYTES_A_SECOND[kind]
            lengths = fit(kept, weights_of, budget_s)
            sources[kind] = []
            for source, signal, weight, length in zip(given, signals, weights_of, lengths, strict=True):
                name = f"{kind}-{Path(source.path).stem}"
                sources[kind].append({"path": f"{name}.npy", "weight": weight})
                for stage in range(STAGES):
                    first, last = (int(length * RATE_HZ * part / STAGES) for part in (stage, stage + 1))
                    path = out / f"stage{stage + 1}" / f"{name}.opus"
                    path.parent.mkdir(exist_ok=True)
                    jobs.append(pool.submit(code_down, np.array(signal[first:last]), path, COMPRESSION[kind]))
            say(f"{kind}: {sum(lengths) / 3600:.2f} of {sum(kept) / 3600:.2f} h")
        for job in jobs:
            job.result()

    table = asdict(config)
    table["data"] = {**sources, "held_out_share": 0.01}
    table["model"]["start"] = "start.pt"
    (out / "config.json").write_text(json.dumps(table, indent=1))
    check = check_batch(config, options.data, options.cache)
    np.savez_compressed(out / "check.npz", **check)
    (out / "check.json").write_text(json.dumps(losses(load_config(out), out, check, "cpu"), indent=1))
    for stage in range(STAGES):
        say(f"stage {stage + 1}: {size_of(out / f'stage{stage + 1}') / 2**20:.1f} MiB")
    others = size_of(out) - sum(size_of(out / f"stage{stage + 1}") for stage in range(STAGES))
    say(f"everything else: {others / 2**20:.1f} MiB")


def fit(available_s: list[float], weights: list[float], budget_s: float) -> list[float]:
    """Return the seconds to take of each source: in the ratio of the weights, as far as they have so much."""
    low, high = 0.0, budget_s / min(weights)
    for _ in range(60):
        scale = (low + high) / 2
        taken = [min(has, scale * weight) for has, weight in zip(available_s, weights, strict=True)]
        low, high = (scale, high) if sum(taken) < budget_s else (low, scale)
    return taken


def code_down(signal: Any, path: Path, compression: float) -> None:
    import soundfile

    audio = signal.astype(np.float32) / 32768
    with soundfile.SoundFile(
        path, "w", RATE_HZ, 1, format="OGG", subtype="OPUS", compression_level=compression
    ) as file:
        for start in range(0, len(audio), RATE_HZ):  # libsndfile's encoder overflows its stack at whole files
            file.write(audio[start : start + RATE_HZ])


def check_batch(config: TrainingConfig, data: Path, cache: Path) -> dict[str, Any]:
    """Return a batch of float32 examples of the run."""
    from frcrn_accel.train.batches import prepare_examples

    mixing = replace(config.mixing, clip_s=CHECKED_S)
    short = replace(config, mixing=mixing, validation=replace(config.validation, clips=1))
    mixer, _ = prepare_examples(short, data, cache)
    noisy, target = mixer.batch(config.optimisation.seed, 0, range(CHECKED_ROWS))
    return {"noisy": noisy, "target": target}


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# There: a sitting.


def load_config(pack_folder: Path) -> TrainingConfig:
    """Read the config of a pack."""
    from frcrn_accel.train.config import parse_config

    return parse_config(json.loads((pack_folder / "config.json").read_text()))


def losses(config: TrainingConfig, data: Path, check: Any, device_name: str) -> dict[str, float]:
    """Return the parts of the loss of a batch, and the norm of its gradient, as a step computes them."""
    import torch

    from frcrn_accel.train.start import start_network
    from frcrn_accel.train.step import Objective

    device = torch.device(device_name)
    if device.type == "cpu":
        config = replace(config, optimisation=replace(config.optimisation, precision="fp32"))
    network = start_network(config, data, device).to(device).train()
    network.hold_statistics()
    objective = Objective(network, config, device).to(device)
    parts = objective(*(torch.from_numpy(check[name]).to(device) for name in ("noisy", "target")))
    parts["loss"].backward()
    gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    return {name: float(value.detach()) for name, value in parts.items()} | {"gradient_norm": float(gradient.norm())}


def compare(found: dict[str, float], expected: dict[str, float]) -> list[str]:
    """Return what differs too much."""
    scale = sum(abs(value) for name, value in expected.items() if name not in ("loss", "gradient_norm"))
    wrong = []
    for name, value in expected.items():
        size = value if name == "gradient_norm" else scale
        limit = TOLERANCE * (5 if name == "gradient_norm" else 1)
        if not abs(found[name] - value) < limit * size:
            wrong.append(f"{name} is {found[name]:.4f}, and {value:.4f} on the CPU of the pack")
    return wrong


def profile(options: argparse.Namespace) -> None:
    """Check the losses, time ten steps, and print what was found as JSON on the last line."""
    import torch

    from frcrn_accel.train.optimiser import Muon
    from frcrn_accel.train.start import start_network
    from frcrn_accel.train.step import Objective, Step

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = load_config(options.pack)
    run = replace(config.optimisation, cuda_graph=options.graph)
    config = replace(config, optimisation=run)
    expected = json.loads((options.pack / "check.json").read_text())
    with np.load(options.pack / "check.npz") as check:
        found = losses(config, options.pack, check, device.type)
    network = start_network(config, options.pack, device).to(device)
    average = start_network(config, options.pack, device).to(device).eval()
    network.train()
    if not run.batch_statistics:
        network.hold_statistics()
    objective = Objective(network, config, device).to(device)
    step = Step(network, average, objective, Muon(network, 0.01), config, device, record=options.graph)
    samples = round(config.mixing.clip_s * RATE_HZ)
    generator = torch.Generator().manual_seed(0)
    target = 0.05 * torch.randn(run.batch_size, samples, generator=generator)
    noisy = target + 0.02 * torch.randn(run.batch_size, samples, generator=generator)
    if device.type == "cuda":
        noisy, target = noisy.pin_memory(), target.pin_memory()

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    done = 0

    def steps(count: int) -> float:
        nonlocal done
        wait()
        started_s = time.perf_counter()
        for _ in range(count):
            step(noisy, target, done)
            done += 1
        wait()
        return (time.perf_counter() - started_s) / count

    first_s = steps(5 if device.type == "cuda" else 1)
    step_s = steps(10 if device.type == "cuda" else 2)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        steps(2 if device.type == "cuda" else 1)
    key = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    options.table.write_text(profiler.key_averages().table(sort_by=key, row_limit=40, max_name_column_width=90))
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0
    result = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "graph": options.graph and device.type == "cuda",
        "first_step_s": first_s,
        "step_s": step_s,
        "audio_s_per_s": run.batch_size * config.mixing.clip_s / step_s,
        "memory_gib": memory,
        "wrong": compare(found, expected),
        "found": found,
        "expected": expected,
    }
    print(json.dumps(result))


def decode(paths: list[Path], out: Path) -> float:
    """Decode the stages of one source, one after the other, and return the hours."""
    import soundfile

    from frcrn_accel.atomic import replacing

    signals = [soundfile.read(path, dtype="int16")[0] for path in paths]
    signal = np.concatenate(signals)
    with replacing(out, overwrite=True) as temporary:
        np.save(temporary, signal)
    return len(signal) / RATE_HZ / 3600


def install(wheels: list[Path], folder: Path) -> None:
    """Make the packages of wheels importable, here and in processes that are started, behind those that are there."""
    if not folder.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        subprocess.run([*command, "--target", str(folder), *map(str, wheels)], check=True)
    sys.path.append(str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(folder)]))


def sitting(options: argparse.Namespace) -> int:
    """Check, profile, train by the clock, and deliver."""
    end_s = time.monotonic() + options.seconds
    work, out = options.work.resolve(), options.out.resolve()
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    wheels = sorted((options.pack / "packages").glob("*.whl"))
    if wheels:
        install(wheels, work / "site")
    data, run_folder = work / "data", work / "run"
    data.mkdir(exist_ok=True)
    shutil.copy(options.pack / "start.pt", data / "start.pt")
    arrived = options.pack / f"stage{options.stage}"
    kept = work / "coded" / arrived.name
    if not kept.exists():
        shutil.copytree(arrived, kept)
    names = sorted({path.stem for path in (work / "coded").glob("*/*.opus")})
    with ProcessPoolExecutor(options.loaders) as pool:
        coded = [sorted((work / "coded").glob(f"*/{name}.opus")) for name in names]
        decoding = [
            pool.submit(decode, paths, data / f"{name}.npy") for name, paths in zip(names, coded, strict=True)
        ]
        speed = profiled(options) if options.stage == 1 else json.loads((work / "profile.json").read_text())
        if speed is None:
            return 1
        hours = [job.result() for job in decoding]
    say(f"{len(names)} sources decoded, {sum(hours):.2f} h")
    (work / "profile.json").write_text(json.dumps(speed))
    if speed["audio_s_per_s"] < options.least:
        say(f"stopped: {speed['audio_s_per_s']:.0f} s of audio a second, and {options.least:g} were asked for")
        return TOO_SLOW
    config = scheduled(
        load_config(options.pack), run_folder, speed, end_s - time.monotonic() - options.margin, options
    )
    stop = threading.Event()
    courier = threading.Thread(target=carry, args=(run_folder, out, stop))
    courier.start()
    try:
        train_until(config, data, run_folder, end_s - options.margin, options.loaders)
    finally:
        stop.set()
        courier.join()
    say(f"done: {', '.join(sorted(path.name for path in out.iterdir()))} in {out}")
    return 0


def profiled(options: argparse.Namespace) -> dict[str, Any] | None:
    """Profile in a process of its own, without a CUDA graph if it fails with one; None if the losses are wrong."""
    for graph in (["--graph"], []):
        command = [sys.executable, __file__, "profile", str(options.pack), str(options.out / "profile.txt"), *graph]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        (options.out / f"profile{len(graph)}.log").write_text(done.stdout + done.stderr)
        if done.returncode == 0:
            break
        say(f"profiling failed{' with a CUDA graph' if graph else ''}: {done.stderr.strip().splitlines()[-1:]}")
    else:
        return None
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    (options.out / "profile.json").write_text(json.dumps(result, indent=1))
    for name, value in result["expected"].items():
        say(f"  {name}: {result['found'][name]:.4f}, on the CPU of the pack {value:.4f}")
    if result["wrong"]:
        say("stopped: the losses are not those of the CPU: " + "; ".join(result["wrong"]))
        return None
    say(
        f"{result['device']}{', CUDA graph' if result['graph'] else ''}: a step of {result['step_s']:.3f} s, "
        f"{result['audio_s_per_s']:.0f} s of audio a second, {result['memory_gib']:.1f} GiB"
    )
    return result


def scheduled(
    config: TrainingConfig, run_folder: Path, speed: dict[str, Any], left_s: float, options: argparse.Namespace
) -> TrainingConfig:
    """Return the config with as many steps as fit into the time that is left."""
    done, step_s = 0, speed["step_s"]
    log = run_folder / "log.jsonl"
    if log.exists():
        entries = [json.loads(line) for line in log.read_text().splitlines()]
        timed = [entry for entry in entries if "compute_s" in entry]
        done = timed[-1]["step"]
        step_s = float(np.median([entry["compute_s"] + entry["data_s"] for entry in timed[-20:]]))
    fitting = max(2, math.floor(0.97 * left_s / step_s))
    warmup = min(config.optimisation.warmup_steps, fitting // 2) if done == 0 else 0
    steps = done + fitting if options.last else done + 100 * fitting
    decay = (fitting if done else fitting - warmup) if options.last else 1
    run = replace(config.optimisation, steps=steps, warmup_steps=warmup, decay_steps=decay, cuda_graph=speed["graph"])
    falling = f"falls over {decay} of them" if options.last else "does not fall yet"
    say(f"{done} steps done, about {fitting} more in {left_s:.0f} s; the learning rate {falling}")
    return replace(config, optimisation=run, validation=replace(config.validation, clips=options.clips, clip_s=4.0))


def train_until(config: TrainingConfig, data: Path, run_folder: Path, end_s: float, loaders: int) -> None:
    from frcrn_accel.train.trainer import train

    def show(step: int, entry: Any) -> None:
        names = ("loss", "si_sdr_db", "si_sdr", "learning_rate", "skipped", "data_s", "compute_s")
        say(f"step {step}: " + ", ".join(f"{name} {entry[name]:.4g}" for name in names if name in entry))

    minutes = max(0.0, end_s - time.monotonic()) / 60
    train(config, data, run_folder, minutes=minutes, loaders=loaders, show=show)


def carry(run_folder: Path, out: Path, stop: threading.Event) -> None:
    """Copy what changes in the run folder to `out`, in pieces of a bounded size, until told to stop."""
    seen: dict[str, int] = {}
    while True:
        is_last = stop.wait(1)
        for name in ("last.pt", "checkpoint.pt", "log.jsonl"):
            path = run_folder / name
            if path.exists() and path.stat().st_mtime_ns != seen.get(name):
                seen[name] = path.stat().st_mtime_ns
                deliver(path, out)
                if name == "last.pt":
                    say(f"delivered {name}, {path.stat().st_size / 2**20:.1f} MiB")
        if is_last:
            return


def deliver(path: Path, out: Path) -> None:
    """Copy a file, whole or in numbered pieces; each piece is complete or absent."""
    content = path.read_bytes()
    count = max(1, -(-len(content) // PIECE_BYTES))
    for i in range(count):
        name = path.name if count == 1 else f"{path.name}.{i + 1}of{count}"
        temporary = out.parent / f".{name}.part"
        temporary.write_bytes(content[i * PIECE_BYTES : (i + 1) * PIECE_BYTES])
        temporary.replace(out / name)


# Here again: the run.


def collect(options: argparse.Namespace) -> None:
    """Join what was delivered into a run folder."""
    options.run.mkdir(parents=True, exist_ok=True)
    for name in ("last.pt", "checkpoint.pt", "log.jsonl"):
        pieces = sorted(options.out.glob(f"{name}.*of*"), key=lambda path: int(path.suffix[1:].split("of")[0]))
        if pieces and len(pieces) != int(pieces[0].suffix.split("of")[1]):
            raise SystemExit(f"{name}: {len(pieces)} pieces of {pieces[0].suffix.split('of')[1]}")
        content = b"".join(path.read_bytes() for path in pieces or [options.out / name] if path.exists())
        if content:
            (options.run / name).write_bytes(content)
            print(f"{options.run / name}: {len(content)} bytes")


def main() -> int:
    parser = argparse.ArgumentParser(description="Train for a quarter of an hour on a GPU.")
    commands = parser.add_subparsers(dest="command", required=True)
    of_pack = commands.add_parser("pack", help="write what the machine needs")
    of_pack.add_argument("config", type=Path)
    of_pack.add_argument("out", type=Path)
    of_pack.add_argument("--data", type=Path, required=True)
    of_pack.add_argument("--cache", type=Path, default=Path("audio-cache"), help="decoded recordings")
    of_pack.add_argument("--mib", type=float, default=50, help="recordings of a stage")
    of_pack.add_argument("--workers", type=int, default=os.cpu_count())
    of_sitting = commands.add_parser("sitting", help="check, profile and train")
    for name in ("pack", "work", "out"):
        of_sitting.add_argument(name, type=Path)
    of_sitting.add_argument("--stage", type=int, choices=range(1, STAGES + 1), required=True)
    of_sitting.add_argument("--seconds", type=float, required=True, help="of the whole sitting")
    of_sitting.add_argument("--margin", type=float, default=15, help="seconds to validate and to deliver at the end")
    of_sitting.add_argument("--last", action="store_true", help="let the learning rate fall to zero")
    of_sitting.add_argument("--least", type=float, default=600, help="seconds of audio a second")
    of_sitting.add_argument("--loaders", type=int, default=max(1, (os.cpu_count() or 1) - 2))
    of_sitting.add_argument("--clips", type=int, default=24, help="validation clips")
    of_profile = commands.add_parser("profile", help="used by sitting")
    of_profile.add_argument("pack", type=Path)
    of_profile.add_argument("table", type=Path)
    of_profile.add_argument("--graph", action="store_true")
    of_collect = commands.add_parser("collect", help="join what was delivered into a run folder")
    of_collect.add_argument("out", type=Path)
    of_collect.add_argument("run", type=Path)
    options = parser.parse_args()
    run = {"pack": pack, "sitting": sitting, "profile": profile, "collect": collect}[options.command]
    return int(run(options) or 0)


if __name__ == "__main__":
    sys.exit(main())
