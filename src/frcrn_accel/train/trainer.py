"""The training loop: from a config to a checkpoint, in one session or several."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from frcrn_accel.cpu import available_cpus
from frcrn_accel.errors import TrainingError
from frcrn_accel.train.batches import load_batches, loader_errors, prepare_examples
from frcrn_accel.train.config import TrainingConfig
from frcrn_accel.train.log import LOG, append_entry, cut_log
from frcrn_accel.train.loss import DenoisingLoss
from frcrn_accel.train.optimiser import Muon
from frcrn_accel.train.start import start_network
from frcrn_accel.train.state import CHECKPOINT, STATE, restore_state, save_state, save_weights
from frcrn_accel.train.step import Objective, Step
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
        Number of steps done, over all sessions.

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
        network = start_network(config, data, team.device).to(team.device)
        self._average = deepcopy(network).eval()
        self._network = network.train()
        if not run.batch_statistics:
            network.hold_statistics()
        objective = team.wrap(Objective(network, config, team.device).to(team.device))
        self._optimiser = Muon(network, run.weight_decay)
        record = run.cuda_graph and team.size == 1
        self._update = Step(network, self._average, objective, self._optimiser, config, team.device, record=record)
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
        times = _Means()
        batches = load_batches(
            self._mixer,
            run.seed,
            self._rows,
            range(self._step, run.steps),
            loaders=self._loaders,
            pin_memory=self._team.device.type == "cuda",
        )
        saved_s = time.monotonic()
        for noisy, target, data_s in batches:
            started_s = time.perf_counter()
            self._update(noisy, target, self._step)
            self._step += 1
            times.add(data_s=data_s, compute_s=time.perf_counter() - started_s)
            is_late = deadline_s is not None and time.monotonic() >= deadline_s
            is_last = self._step == run.steps or self._team.agree(is_late)
            if self._step % _LOG_EVERY_STEPS == 0 or is_last:
                numbers = self._update.take()
                in_a_row = numbers.pop("skipped_in_a_row")
                if in_a_row > _MOST_SKIPPED:
                    raise self._diverged(f"{in_a_row:.0f} gradients in a row are not finite")
                self._log({"step": self._step, **numbers, **times.take()})
            if self._step % run.validate_every_steps == 0 or is_last:
                self._validate()
            is_due = run.save_every_s is not None and time.monotonic() - saved_s >= run.save_every_s
            if (self._step % run.save_every_steps == 0 or is_due or is_last) and self._team.is_first:
                save_state(self._out / STATE, self._network, self._average, self._optimiser, self._step)
                saved_s = time.monotonic()
            if is_last:
                break
        return self._step

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


class _Means:
    """Means of numbers, by name, since they were last taken."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}

    def add(self, **numbers: float) -> None:
        for name, value in numbers.items():
            self._values.setdefault(name, []).append(value)

    def take(self) -> dict[str, float]:
        means = {name: sum(values) / len(values) for name, values in self._values.items()}
        self._values.clear()
        return means
