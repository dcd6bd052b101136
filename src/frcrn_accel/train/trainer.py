"""The training loop: from a config to a checkpoint, in one sitting or several."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from frcrn_accel.cpu import available_cpus
from frcrn_accel.errors import TrainingError
from frcrn_accel.network.module import FRCRN, complex_product
from frcrn_accel.train.batches import load_batches, loader_errors, prepare_examples
from frcrn_accel.train.config import TrainingConfig
from frcrn_accel.train.log import LOG, append_entry, cut_log
from frcrn_accel.train.loss import DenoisingLoss
from frcrn_accel.train.optimiser import Muon, learning_rate_at
from frcrn_accel.train.start import start_network
from frcrn_accel.train.state import CHECKPOINT, STATE, restore_state, save_state, save_weights
from frcrn_accel.train.team import Team
from frcrn_accel.train.validation import score

__all__ = ["ShowEntry", "train"]

_LOG_EVERY_STEPS = 20
_MOST_SKIPPED = 20

ShowEntry = Callable[[int, Mapping[str, float]], None]


def train(
    config: TrainingConfig,
    data: Path,
    out: Path,
    *,
    threads: int | None = None,
    minutes: float | None = None,
    loaders: int = 1,
    show: ShowEntry = lambda step, entry: None,
) -> int:
    """Train, or resume a run.

    The run folder holds `checkpoint.pt` (the averaged weights as of the last validation, under the released key
    names), `last.pt` (the state to resume from) and `log.jsonl`. A run that is killed resumes from `last.pt`; on a
    CPU, the result is bit for bit that of a run that was never interrupted. If the machine has a GPU, one is used; to
    use several, or several processes on CPUs, start the command with `torchrun`.

    Args:
        config: The run.
        data: Folder that the paths in the config are relative to.
        out: Folder of the run.
        threads: CPU threads to compute with; None for as many as this process may use.
        minutes: Stop after this time, with everything saved; None to run to the end.
        loaders: Processes that make examples.
        show: Called with the step and each entry of the log.

    Returns:
        Number of steps done, over all sittings.

    Raises:
        TrainingError: The audio is missing, the run folder holds another network, a process died, or training
            diverged.
        AudioError: A recording cannot be read.
        ModelError: The weights to start from cannot be read.
    """
    deadline_s = None if minutes is None else time.monotonic() + 60 * minutes
    torch.set_num_threads(threads or available_cpus())
    team = Team()
    try:
        with loader_errors():
            return _Run(config, data, out, team, loaders, show).train_until(deadline_s)
    finally:
        team.close()


class _Run:
    def __init__(
        self, config: TrainingConfig, data: Path, out: Path, team: Team, loaders: int, show: ShowEntry
    ) -> None:
        self._config = config
        self._out = out
        self._team = team
        self._loaders = loaders
        self._show = show
        out.mkdir(parents=True, exist_ok=True)
        run = config.optimisation
        self._rows = team.rows(run.batch_size)
        self._mixer, self._validation = prepare_examples(config, data, out / "audio")
        network = start_network(config, data).to(team.device)
        self._average = deepcopy(network).eval()
        self._network = network
        self._objective = team.wrap(_Objective(network, config, team.device).to(team.device))
        self._optimiser = Muon(network, run.learning_rate, run.weight_decay)
        self._step = 0
        log, state = out / LOG, out / STATE
        if state.exists():
            self._step = restore_state(state, network, self._average, self._optimiser)
            if team.is_first and log.exists():
                cut_log(log, self._step)
        elif team.is_first:
            log.unlink(missing_ok=True)

    def train_until(self, deadline_s: float | None) -> int:
        """Train to the end or to the deadline."""
        run = self._config.optimisation
        if self._step == 0:
            self._log({"config": asdict(self._config)})
        means = _Means()
        skipped_in_a_row = 0
        batches = load_batches(
            self._mixer,
            run.seed,
            self._rows,
            range(self._step, run.steps),
            loaders=self._loaders,
            pin_memory=self._team.device.type == "cuda",
        )
        for noisy, target, data_s in batches:
            started_s = time.perf_counter()
            numbers = self._update(noisy.to(self._team.device), target.to(self._team.device))
            self._step += 1
            means.add(numbers | {"data_s": data_s, "compute_s": time.perf_counter() - started_s})
            skipped_in_a_row = skipped_in_a_row + 1 if numbers["skipped"] else 0
            if skipped_in_a_row > _MOST_SKIPPED:
                raise self._diverged(f"{skipped_in_a_row} gradients in a row are not finite")
            is_late = deadline_s is not None and time.monotonic() >= deadline_s
            is_last = self._step == run.steps or self._team.agree(is_late)
            if self._step % _LOG_EVERY_STEPS == 0 or is_last:
                self._log({"step": self._step, **means.take()})
            if self._step % run.validate_every_steps == 0 or is_last:
                self._validate()
            if (self._step % run.save_every_steps == 0 or is_last) and self._team.is_first:
                save_state(self._out / STATE, self._network, self._average, self._optimiser, self._step)
            if is_last:
                break
        return self._step

    def _update(self, noisy: Tensor, target: Tensor) -> dict[str, float]:
        """Take a step of the optimiser and return its numbers for the log.

        A gradient that is not finite is skipped: it changes nothing.
        """
        run = self._config.optimisation
        learning_rate = learning_rate_at(self._step, run)
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate
        self._network.train()
        if not run.batch_statistics:
            self._network.hold_statistics()
        lookaheads = self._config.model.lookahead_frames
        self._network.lookahead = int(np.random.default_rng((run.seed, self._step)).choice(lookaheads))
        parts = self._objective(noisy, target)
        self._optimiser.zero_grad(set_to_none=True)
        parts["loss"].backward()
        norm = float(nn.utils.clip_grad_norm_(self._network.parameters(), run.gradient_norm))
        if not math.isfinite(norm):
            return {"learning_rate": learning_rate, "skipped": 1.0}
        self._optimiser.step()
        self._update_average()
        numbers = {name: float(value.detach()) for name, value in parts.items()}
        return numbers | {"gradient_norm": norm, "learning_rate": learning_rate, "skipped": 0.0}

    @torch.no_grad()
    def _update_average(self) -> None:
        # The first averages are over fewer steps, so that the start is soon forgotten.
        decay = min(self._config.optimisation.ema_decay, (1 + self._step) / (10 + self._step))
        values = self._network.state_dict()
        for name, average in self._average.state_dict().items():
            if average.is_floating_point():
                average.lerp_(values[name], 1 - decay)
            else:
                average.copy_(values[name])

    def _validate(self) -> None:
        """Score the averaged weights and write them as the checkpoint of the run."""
        if not self._team.is_first:
            return
        if not all(torch.isfinite(value).all() for value in self._average.state_dict().values()):
            raise self._diverged("the averaged weights are not finite")
        with torch.no_grad():
            loss = DenoisingLoss(self._config.loss).to(self._team.device)
            found = score(self._average, loss, self._validation, self._config.model.lookahead_frames)
        self._log({"step": self._step, "validation": found})
        save_weights(self._out / CHECKPOINT, self._average)

    def _diverged(self, reason: str) -> TrainingError:
        return TrainingError(
            f"training diverged before step {self._step}: {reason}; resume from {str(self._out / STATE)!r} with a "
            "lower optimisation.learning_rate"
        )

    def _log(self, entry: dict[str, Any]) -> None:
        if not self._team.is_first:
            return
        append_entry(self._out / LOG, entry)
        if "step" in entry:
            self._show(entry["step"], entry.get("validation", entry))


class _Objective(nn.Module):
    """From noisy and target to the parts of the loss, as the one module that distributed training needs."""

    def __init__(self, network: FRCRN, config: TrainingConfig, device: torch.device) -> None:
        super().__init__()
        self.network = network
        self.loss = DenoisingLoss(config.loss)
        self._autocast = config.optimisation.precision == "bf16"
        self._device = device

    def forward(self, noisy: Tensor, target: Tensor) -> dict[str, Tensor]:
        spectrum = self.network.analyse(noisy)
        # The transforms and the loss stay in float32: the range of a spectrogram exceeds the precision of bf16.
        with torch.autocast(self._device.type, torch.bfloat16) if self._autocast else nullcontext():
            mask = self.network.mask(spectrum)
        estimate = self.network.synthesise(complex_product(spectrum, mask.float()))
        parts: dict[str, Tensor] = self.loss(estimate, target[:, : estimate.shape[1]])
        return parts


class _Means:
    """Means of numbers, by name, since they were last taken."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}

    def add(self, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._values.setdefault(name, []).append(value)

    def take(self) -> dict[str, float]:
        means = {name: float(np.mean(values)) for name, values in self._values.items()}
        self._values.clear()
        return means
