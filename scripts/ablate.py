"""Train variations of a run, of the same length and seed, and compare their scores on the same validation examples.

    python scripts/ablate.py CONFIG.toml OUT_DIR --data DIR --steps 1000 \\
        base erb:loss.erb_exponent=1.0 rumble:mixing.rumble=0.25,mixing.bangs=0.12

A variation is `NAME[:KEY=VALUE,...]`, with values as in TOML. The learning rate falls over `--decay-steps`. Give the
config `[validation]` with `clips = 96` or more, and `[validation.mixing]` with the noises that matter: fewer clips
mislead. Each run is in OUT_DIR/NAME; the same command resumes what was interrupted and adds variations to the table.
SI-SDR and PESQ-WB can always be compared, parts of the loss only between runs with the same weights.
"""

from __future__ import annotations

import argparse
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

from frcrn_accel.train.config import parse_config
from frcrn_accel.train.log import LOG, read_log
from frcrn_accel.train.trainer import train

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHOWN = ("si_sdr_db", "pesq_wb", "magnitude", "intelligibility", "perceptual", "loss")


def varied(content: dict[str, Any], variation: str) -> tuple[str, dict[str, Any]]:
    """Return the name of a variation, and the content of its config."""
    name, _, changes = variation.partition(":")
    content = deepcopy(content)
    for change in filter(None, changes.split(",")):
        key, _, value = change.partition("=")
        *tables, last = key.split(".")
        table = content
        for part in tables:
            table = table.setdefault(part, {})
        table[last] = tomllib.loads(f"value = {value}")["value"]
    return name, content


def row(name: str, log: Path) -> str:
    """Return a line of the table: the last scores, and those of loss terms in their weights of the run."""
    scores = [(entry["step"], entry["validation"]) for entry in read_log(log) if "validation" in entry]
    step, found = scores[-1]
    return f"| {name} | {step} | " + " | ".join(f"{found[key]:.3f}" if key in found else "" for key in SHOWN) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare variations of a run.")
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("variations", nargs="+", metavar="NAME[:KEY=VALUE,...]")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--decay-steps", type=int, help="[default: half of the steps]")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    content = tomllib.loads(options.config.read_text(encoding="utf-8"))
    run = content["optimisation"]
    decay = options.decay_steps or options.steps // 2
    run.update(
        steps=options.steps, decay_steps=decay, warmup_steps=min(run.get("warmup_steps", 200), options.steps - decay)
    )
    print("| variation | step | " + " | ".join(SHOWN) + " |\n|" + "---|" * (2 + len(SHOWN)))
    for variation in options.variations:
        name, changed = varied(content, variation)
        train(parse_config(changed), options.data, options.out / name, threads=options.threads)
        print(row(name, options.out / name / LOG), flush=True)


if __name__ == "__main__":
    main()
