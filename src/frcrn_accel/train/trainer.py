"""The training loop: from a config to a checkpoint, over as many sittings as it takes."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from frcrn_accel.atomic import replacing
from frcrn_accel.cpu import available_cpus
from frcrn_accel.errors import TrainingError
from frcrn_accel.network.checkpoint import load_checkpoint
from frcrn_accel.network.module import FRCRN, complex_product
from frcrn_accel.network.operators import Operators
from frcrn_accel.network.topology import parameter_shapes
from frcrn_accel.train.config import Mixing, Optimisation, TrainingConfig
from frcrn_accel.train.fused import fused_operators
from frcrn_accel.train.loss import DenoisingLoss
from frcrn_accel.train.mixing import Example, Mixer
from frcrn_accel.train.optimiser import Muon
from frcrn_accel.train.running import RunningMeans
from frcrn_accel.train.sources import Corpus, prepare_source
from frcrn_accel.train.validation import score

__all__ = ["Progress", "learning_rate_at", "start_network", "train"]

STATE, CHECKPOINT, LOG = "last.pt", "checkpoint.pt", "log.jsonl"
_LOG_EVERY_STEPS = 20
_MOST_SKIPPED = 20

Progress = Callable[[int, Mapping[str, float]], None]


def train(
    config: TrainingConfig,
    data: Path,
    out: Path,
    *,
    threads: int | None = None,
    minutes: float | None = None,
    loaders: int = 1,
    show: Progress = lambda step, entry: None,
) -> int:
    """Train, or go on with a run that was begun.

    The folder of the run holds `checkpoint.pt` (the averaged weights as of the last validation, under the released
    key names), `last.pt` (all that going on takes) and `log.jsonl`. A run that is killed goes on from `last.pt`, and
    on the same machine gives what it would have given without the kill. One GPU is used if there is one; for several,
    or several processes on CPUs, start it with `torchrun`.

    Args:
        config: The run.
        data: Folder that the paths in the config are relative to.
        out: Folder of the run.
        threads: CPU threads to compute with; None takes what this process may use.
        minutes: Stop after so long, with all saved; None goes on to the end.
        loaders: Processes that make examples.
        show: Gets each entry of the log, and its step.

    Returns:
        Steps done, all sittings together.

    Raises:
        TrainingError: The audio is missing, the run in the folder is of another network, or training diverged.
        ModelError: The checkpoint to start from cannot be read.
    """
    deadline_s = None if minutes is None else time.monotonic() + 60 * minutes
    torch.set_num_threads(threads or available_cpus())
    team = _Team()
    try:
        return _Run(config, data, out, team, loaders, show).go_on(deadline_s)
    finally:
        team.close()


def learning_rate_at(step: int, run: Optimisation) -> float:
    """Up along a line, flat, down along a cosine: a run can be prolonged from any step of its flat part."""
    if step < run.warmup_steps:
        return run.learning_rate * (step + 1) / run.warmup_steps
    left = run.steps - step
    if left >= run.decay_steps:
        return run.learning_rate
    return run.learning_rate * 0.5 * (1 - math.cos(math.pi * left / run.decay_steps))


def start_network(config: TrainingConfig, data: Path) -> FRCRN:
    """The network that a run starts from.

    Raises:
        TrainingError: The checkpoint to start from is of another size.
        ModelError: It cannot be read.
    """
    torch.manual_seed(config.optimisation.seed)
    operators = fused_operators(config.model.channels) if config.optimisation.precision == "bf16" else Operators()
    network = FRCRN(config.network, RunningMeans(operators) if config.model.running_means else operators)
    if config.model.start is not None:
        path = data / config.model.start
        given = load_checkpoint(path)
        if given.config.channels != config.model.channels or given.config.unets > config.model.unets:
            raise TrainingError(
                f"checkpoint {str(path)!r} has {given.config.channels} channels and {given.config.unets} U-Net(s), "
                f"the config wants {config.model.channels} and {config.model.unets}"
            )
        weights = {key: torch.tensor(value) for key, value in given.weights.items()}
        network.load_state_dict(weights, strict=False)
        for name in config.network.unet_names[given.config.unets :]:
            # tanh(0) adds nothing to the mask: the new U-Net starts as no change.
            for parameter in network.get_submodule(f"{name}.linear").parameters():
                nn.init.zeros_(parameter)
    return network


class _Team:
    """The processes of a run; one, unless `torchrun` started it."""

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            index, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
            if index >= gpus:
                raise TrainingError(
                    f"each process takes a GPU, and there are {gpus}: start torchrun with --nproc-per-node={gpus}"
                )
            self.device = torch.device("cuda", index)
            torch.cuda.set_device(self.device)
        if self.size > 1:
            torch.distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")

    def rows(self, batch_size: int) -> range:
        """This process's share of a batch."""
        if batch_size % self.size:
            raise TrainingError(f"a batch of {batch_size} cannot be shared by {self.size} processes alike")
        share = batch_size // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def wrap(self, module: nn.Module) -> nn.Module:
        if self.size == 1:
            return module
        return DistributedDataParallel(module, device_ids=[self.device] if self.device.type == "cuda" else None)

    def agree(self, value: bool) -> bool:
        """Process 0's value, in all of them."""
        if self.size == 1:
            return value
        flag = torch.tensor(int(value), device=self.device)
        torch.distributed.broadcast(flag, 0)
        return bool(flag)

    def close(self) -> None:
        if self.size > 1:
            torch.distributed.destroy_process_group()


class _Objective(nn.Module):
    """Noisy and target to the parts of the loss, as one module, as distributed training wants it."""

    def __init__(self, network: FRCRN, config: TrainingConfig, device: torch.device) -> None:
        super().__init__()
        self.network = network
        self.loss = DenoisingLoss(config.loss)
        self._autocast = config.optimisation.precision == "bf16"
        self._device = device

    def forward(self, noisy: Tensor, target: Tensor) -> dict[str, Tensor]:
        spectrum = self.network.analyse(noisy)
        # The transforms and the loss stay in float32: a spectrogram has more range than bf16 has digits.
        with torch.autocast(self._device.type, torch.bfloat16) if self._autocast else nullcontext():
            mask = self.network.mask(spectrum)
        estimate = self.network.synthesise(complex_product(spectrum, mask.float()))
        parts: dict[str, Tensor] = self.loss(estimate, target[:, : estimate.shape[1]])
        return parts


class _Batches(Dataset[tuple[Tensor, Tensor]]):
    """Item `step` is this process's share of that step's batch."""

    def __init__(self, mixer: Mixer, seed: int, rows: range) -> None:
        self._mixer = mixer
        self._seed = seed
        self._rows = rows

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        noisy, target = self._mixer.batch(self._seed, step, self._rows)
        return torch.from_numpy(noisy), torch.from_numpy(target)


class _Means:
    """Means of numbers by name, since the last look."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}

    def add(self, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._values.setdefault(name, []).append(value)

    def take(self) -> dict[str, float]:
        means = {name: float(np.mean(values)) for name, values in self._values.items()}
        self._values.clear()
        return means


class _Run:
    def __init__(
        self, config: TrainingConfig, data: Path, out: Path, team: _Team, loaders: int, show: Progress
    ) -> None:
        self._config = config
        self._out = out
        self._team = team
        self._loaders = loaders
        self._show = show
        out.mkdir(parents=True, exist_ok=True)
        run = config.optimisation
        self._rows = team.rows(run.batch_size)
        self._mixer, self._validation = _mixers(config, data, out / "audio")
        network = start_network(config, data).to(team.device)
        self._average = deepcopy(network).eval()
        self._network = network
        self._objective = team.wrap(_Objective(network, config, team.device).to(team.device))
        self._optimiser = Muon(network, run.learning_rate, run.weight_decay)
        self._step = 0
        if (out / STATE).exists():
            self._restore()
        elif team.rank == 0:
            (out / LOG).unlink(missing_ok=True)

    def go_on(self, deadline_s: float | None) -> int:
        """Train to the end, or to the deadline."""
        run = self._config.optimisation
        if self._step == 0:
            self._log({"config": asdict(self._config)})
        means = _Means()
        skipped_in_a_row = 0
        for noisy, target, data_s in self._batches():
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
            if self._step % run.save_every_steps == 0 or is_last:
                self._save()
            if is_last:
                break
        return self._step

    def _update(self, noisy: Tensor, target: Tensor) -> dict[str, float]:
        """One step of the optimiser; what to log of it. One whose gradient is not finite changes nothing."""
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
        self._average_in()
        numbers = {name: float(value.detach()) for name, value in parts.items()}
        return numbers | {"gradient_norm": norm, "learning_rate": learning_rate, "skipped": 0.0}

    def _batches(self) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Batches from the current step on, and how long each was waited for."""
        run = self._config.optimisation
        loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
            _Batches(self._mixer, run.seed, self._rows),
            batch_size=None,
            sampler=range(self._step, run.steps),
            num_workers=self._loaders,
            prefetch_factor=4 if self._loaders else None,
            pin_memory=self._team.device.type == "cuda",
        )
        batches = iter(loader)
        while self._step < run.steps:
            started_s = time.perf_counter()
            noisy, target = next(batches)
            yield noisy, target, time.perf_counter() - started_s

    @torch.no_grad()
    def _average_in(self) -> None:
        # At the start the average is over fewer steps than it will be, so that it does not hold on to the beginning.
        decay = min(self._config.optimisation.ema_decay, (1 + self._step) / (10 + self._step))
        values = self._network.state_dict()
        for name, average in self._average.state_dict().items():
            if average.is_floating_point():
                average.lerp_(values[name], 1 - decay)
            else:
                average.copy_(values[name])

    def _validate(self) -> None:
        if self._team.rank:
            return
        if not all(torch.isfinite(value).all() for value in self._average.state_dict().values()):
            raise self._diverged("the averaged weights are not finite")
        with torch.no_grad():
            loss = DenoisingLoss(self._config.loss).to(self._team.device)
            found = score(self._average, loss, self._validation, self._config.model.lookahead_frames)
        self._log({"step": self._step, "validation": found})
        with replacing(self._out / CHECKPOINT, overwrite=True) as temporary:
            state = self._average.state_dict()
            torch.save({key: state[key].cpu() for key in parameter_shapes(self._config.network)}, temporary)

    def _diverged(self, what: str) -> TrainingError:
        return TrainingError(
            f"training diverged before step {self._step}: {what}; go on from {str(self._out / STATE)!r} with a lower "
            "optimisation.learning_rate"
        )

    def _save(self) -> None:
        if self._team.rank:
            return
        state = {
            "step": self._step,
            "network": self._network.state_dict(),
            "average": self._average.state_dict(),
            "optimiser": self._optimiser.state_dict(),
        }
        with replacing(self._out / STATE, overwrite=True) as temporary:
            torch.save(state, temporary)

    def _restore(self) -> None:
        path = self._out / STATE
        try:
            state = torch.load(path, map_location=self._team.device, weights_only=True)
            self._network.load_state_dict(state["network"])
            self._average.load_state_dict(state["average"])
            self._optimiser.load_state_dict(state["optimiser"])
            self._step = int(state["step"])
        except Exception as error:  # damaged files make the reader fail with nearly any class
            raise TrainingError(
                f"{str(path)!r} is not the state of a run of this network: choose another folder, or restore the file"
            ) from error
        if self._team.rank == 0 and (self._out / LOG).exists():
            # What was logged after the state was saved will be logged again, as will a line that a kill cut short.
            lines = (self._out / LOG).read_text(encoding="utf-8").split("\n")[:-1]
            kept = [line for line in lines if json.loads(line).get("step", 0) <= self._step]
            with replacing(self._out / LOG, overwrite=True) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def _log(self, entry: dict[str, Any]) -> None:
        if self._team.rank:
            return
        with (self._out / LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")
        if "step" in entry:
            self._show(entry["step"], entry.get("validation", entry))


def _mixers(config: TrainingConfig, data: Path, cache: Path) -> tuple[Mixer, list[Example]]:
    """What training examples come from, and the validation examples."""
    signals = {
        name: [prepare_source(source, data, cache) for source in sources]
        for name, sources in (("speech", config.data.speech), ("noise", config.data.noise))
    }

    def corpus(name: str, held_out: bool) -> Corpus:
        weights = [source.weight for source in getattr(config.data, name)]
        return Corpus(signals[name], weights, config.data.held_out_share, held_out=held_out)

    validation = config.validation
    plain = Mixing(
        clip_s=validation.clip_s,
        level_jitter_db=0,
        pause=0,
        band_limit=0,
        speech_speed=0,
        noise_speed=0,
        noise_swell=0,
    )
    mixer = Mixer(corpus("speech", True), corpus("noise", True), plain)
    snrs_db = np.linspace(*validation.snr_db, validation.clips)
    examples = [mixer.example((validation.seed, i), float(snr_db)) for i, snr_db in enumerate(snrs_db)]
    return Mixer(corpus("speech", False), corpus("noise", False), config.mixing), examples
