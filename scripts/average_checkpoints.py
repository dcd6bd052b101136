"""Average two checkpoints of the same network, the second of which was trained from the first.

    python scripts/average_checkpoints.py FIRST.pt SECOND.pt OUT.pt [--share 0.5]

The loss between two such points is often lower than at either of them: noise of the last steps partly cancels out,
since it differs between the two.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from frcrn_accel.atomic import replacing
from frcrn_accel.network.checkpoint import load_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description="Average two checkpoints.")
    for name in ("first", "second", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--share", type=float, default=0.5, help="share of the second checkpoint, 0 to 1")
    options = parser.parse_args()
    first, second = (load_checkpoint(path) for path in (options.first, options.second))
    if first.config != second.config:
        raise SystemExit(f"the checkpoints are of different networks: {first.config} and {second.config}")
    mean = {
        key: torch.lerp(torch.tensor(weight), torch.tensor(second.weights[key]), options.share)
        for key, weight in first.weights.items()
    }
    with replacing(options.out, overwrite=False) as temporary:
        torch.save(mean, temporary)


if __name__ == "__main__":
    main()
