"""Score a network on fixed examples."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from frcrn_accel.network.module import FRCRN
from frcrn_accel.quality import Scorer, agreement_db, is_silent, pesq_wb
from frcrn_accel.train.loss import DenoisingLoss
from frcrn_accel.train.mixing import Example

__all__ = ["score"]


def score(
    network: FRCRN, loss: DenoisingLoss, examples: Sequence[Example], lookaheads: Sequence[int]
) -> dict[str, float]:
    """Return means over the examples: the parts of the loss, SI-SDR, and PESQ-WB if the `[pesq]` extra is installed.

    SI-SDR and PESQ-WB are means over the examples that contain speech, and are left out if none does.

    Args:
        network: The network, in evaluation mode, in fp32.
        loss: The loss that it is trained on.
        examples: The examples.
        lookaheads: Values of `network.lookahead`, used in turn.
    """
    device = network.kernel.device
    scorer = Scorer()
    rows: list[dict[str, float]] = []
    for example, network.lookahead in zip(examples, itertools.cycle(lookaheads)):
        estimate = network(torch.from_numpy(example.noisy)[None].to(device))
        target = example.target[: estimate.shape[1]]
        parts = loss(estimate, torch.from_numpy(target)[None].to(device))
        row = {name: float(value) for name, value in parts.items()}
        output = estimate[0].cpu().numpy()
        if not is_silent(target):
            row["si_sdr_db"] = agreement_db(target, output)
            pesq = scorer.score("PESQ-WB", partial(pesq_wb, target, output))
            if pesq is not None:
                row["pesq_wb"] = pesq
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
