"""What a training run is: one TOML file."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frcrn_accel.errors import TrainingError
from frcrn_accel.network.topology import FRAME_SAMPLES, LOOKAHEAD_FRAMES, SAMPLE_RATE_HZ, SE_REDUCTION, Config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Data", "Loss", "Mixing", "Model", "Optimisation", "Source", "TrainingConfig", "Validation", "read_config"]

Range = tuple[float, float]


@dataclass(frozen=True)
class Model:
    """The network.

    Attributes:
        channels: Complex channels, a multiple of 8; 128 in the released model.
        unets: U-Nets in cascade; 2 in the released model.
        start: Checkpoint to start from; None starts from random weights. It has the same channels. A U-Net that it
            lacks starts so that it changes nothing.
        running_means: For a network that is used in streams: squeeze-and-excitation gets means over what has been
            heard so far, not over the whole signal.
        lookahead_frames: Frames that each U-Net may look ahead; every step of training draws one of them. Fewer than
            7 are for streams with less latency.
    """

    channels: int = 32
    unets: int = 1
    start: str | None = None
    running_means: bool = False
    lookahead_frames: tuple[int, ...] = (LOOKAHEAD_FRAMES,)


@dataclass(frozen=True)
class Source:
    """One audio file, or a folder of them.

    Attributes:
        path: In the data folder.
        weight: How often it is drawn, against the other sources of its list.
    """

    path: str
    weight: float = 1.0


@dataclass(frozen=True)
class Data:
    """The recordings.

    Attributes:
        speech: Clean speech.
        noise: Noise without speech.
        held_out_share: Share of each source, its end, that is never trained on: validation is made of it.
    """

    speech: tuple[Source, ...]
    noise: tuple[Source, ...]
    held_out_share: float = 0.05


@dataclass(frozen=True)
class Mixing:
    """How examples are made. Probabilities are per example; ranges are uniform.

    Attributes:
        clip_s: Length of an example.
        snr_db: Level of the speech's loud parts over the noise's mean.
        high_snr_db: The same for the examples with nearly clean speech in.
        high_snr: Probability of these.
        clean: Probability of clean speech in.
        noise_only: Probability of noise without speech in.
        level_jitter_db: Standard deviation of the level about the one that the model is run at.
        pause: Probability that the speech begins late or ends early.
        speech_eq: Probability of a random equalisation of the speech.
        noise_eq: The same for each noise.
        eq_db: Most that it changes a band by.
        reverberation: Probability of a synthetic room, with its first 50 ms in the target.
        band_limit: Probability that all is cut above 3 to 7 kHz.
        speech_speed: Probability that the speech is played faster or slower by up to 12 %.
        noise_speed: Probability that a noise is played faster or slower by up to 40 %.
        noise_swell: Probability that a noise's loudness is made to change.
        second_noise: Probability of another noise.
        coloured: Probability that a noise is a synthetic coloured one.
        babble: Probability that a noise is several voices at once.
        tones: Probability that a noise is a synthetic siren, alarm or hum.
    """

    clip_s: float = 3.0
    snr_db: Range = (-6.0, 20.0)
    high_snr_db: Range = (20.0, 45.0)
    high_snr: float = 0.08
    clean: float = 0.04
    noise_only: float = 0.04
    level_jitter_db: float = 3.0
    pause: float = 0.15
    speech_eq: float = 0.4
    noise_eq: float = 0.5
    eq_db: float = 8.0
    reverberation: float = 0.3
    band_limit: float = 0.06
    speech_speed: float = 0.4
    noise_speed: float = 0.4
    noise_swell: float = 0.25
    second_noise: float = 0.35
    coloured: float = 0.1
    babble: float = 0.1
    tones: float = 0.06


@dataclass(frozen=True)
class Loss:
    """Weights of the parts of the loss: `loss.py`.

    Attributes:
        complex_spectrum: Squared error of compressed complex spectra.
        magnitude: Squared error of compressed magnitudes.
        si_sdr: Minus SI-SDR, in units of 10 dB.
        perceptual: What is lost to the ear, in points of PESQ's unmapped score.
        intelligibility: One minus STOI.
        exponent: Of the compression.
    """

    complex_spectrum: float = 30.0
    magnitude: float = 70.0
    si_sdr: float = 1.0
    perceptual: float = 0.25
    intelligibility: float = 3.0
    exponent: float = 0.3


@dataclass(frozen=True)
class Optimisation:
    """The run.

    Attributes:
        steps: Its length.
        batch_size: Examples a step, over all processes.
        learning_rate: At its highest.
        weight_decay: Decoupled from the gradient.
        warmup_steps: The learning rate rises from 0 over these.
        decay_steps: It falls to 0 over these, the last ones, along a cosine; between them it stays.
        gradient_norm: Gradients are clipped to this.
        ema_decay: Of the moving average of the weights, which is what a run gives.
        precision: "bf16" (autocast) or "fp32".
        batch_statistics: Batch norms normalise by the batch, and learn its statistics; false, by those that the
            checkpoint to start from holds: faster, and the network is in training what it is in use.
        seed: Of everything random.
        save_every_steps: A killed run goes on from the last of these.
        validate_every_steps: How often the average is scored.
    """

    steps: int
    batch_size: int = 6
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warmup_steps: int = 200
    decay_steps: int = 1000
    gradient_norm: float = 1.0
    ema_decay: float = 0.998
    precision: str = "bf16"
    batch_statistics: bool = True
    seed: int = 0
    save_every_steps: int = 100
    validate_every_steps: int = 500


@dataclass(frozen=True)
class Validation:
    """The fixed examples that a run is watched on, made of the held-out parts.

    Attributes:
        clips: How many.
        clip_s: Their length.
        snr_db: They are spread over this range.
        seed: Another makes other examples.
    """

    clips: int = 24
    clip_s: float = 4.0
    snr_db: Range = (-2.5, 12.5)
    seed: int = 1


@dataclass(frozen=True)
class TrainingConfig:
    """All of it; one table of the TOML file each."""

    data: Data
    optimisation: Optimisation
    model: Model = field(default_factory=Model)
    mixing: Mixing = field(default_factory=Mixing)
    loss: Loss = field(default_factory=Loss)
    validation: Validation = field(default_factory=Validation)

    @property
    def network(self) -> Config:
        """Size of the network."""
        return Config(self.model.channels, self.model.unets)


def read_config(path: Path) -> TrainingConfig:
    """Read a config file.

    Raises:
        TrainingError: It cannot be read, or a value in it is unknown, missing or out of range; it is named.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingError(f"config {str(path)!r} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TrainingError(f"config {str(path)!r} is not TOML: {error}") from error
    try:
        config: TrainingConfig = _parse(TrainingConfig, content, "")
        _check(config)
    except TrainingError as error:
        raise TrainingError(f"config {str(path)!r}: {error}") from None
    return config


def _parse(kind: Any, value: Any, name: str) -> Any:
    """A TOML value as a type of the classes above."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise TrainingError(f"{name!r} must be a table")
        return _parse_table(kind, value, name)
    if origin is types.UnionType:  # X | None; TOML has no None
        return _parse(arguments[0], value, name)
    if origin is tuple:
        length = None if arguments[1] is Ellipsis else len(arguments)
        if not isinstance(value, list) or (length is not None and len(value) != length):
            raise TrainingError(f"{name!r} must be a list{f' of {length}' if length else ''}")
        return tuple(_parse(arguments[0], item, f"{name}[{i}]") for i, item in enumerate(value))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise TrainingError(f"{name!r} must be {kind.__name__}, got {value!r}")
    return value


def _parse_table(kind: Any, table: Mapping[str, Any], name: str) -> Any:
    hints = typing.get_type_hints(kind)
    prefix = f"{name}." if name else ""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in table:
        if key not in fields:
            raise TrainingError(f"unknown {prefix + key!r}; there are {', '.join(fields)}")
    for key, item in fields.items():
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and key not in table:
            raise TrainingError(f"{prefix + key!r} is missing")
    return kind(**{key: _parse(hints[key], value, prefix + key) for key, value in table.items()})


def _check(config: TrainingConfig) -> None:
    model, mixing, run, validation = config.model, config.mixing, config.optimisation, config.validation
    shortest_s = 2 * FRAME_SAMPLES / SAMPLE_RATE_HZ
    checks = [
        ("model.channels", model.channels >= SE_REDUCTION and model.channels % SE_REDUCTION == 0, "a multiple of 8"),
        ("model.unets", 1 <= model.unets <= 2, "1 or 2"),
        (
            "model.lookahead_frames",
            len(model.lookahead_frames) > 0 and all(0 <= n <= LOOKAHEAD_FRAMES for n in model.lookahead_frames),
            f"one or more numbers from 0 to {LOOKAHEAD_FRAMES}",
        ),
        ("data.speech", len(config.data.speech) > 0, "one source or more"),
        ("data.noise", len(config.data.noise) > 0, "one source or more"),
        ("data.held_out_share", 0 < config.data.held_out_share < 0.5, "above 0 and below 0.5"),
        ("mixing.clip_s", mixing.clip_s >= shortest_s, f"{shortest_s:g} or more"),
        ("validation.clip_s", validation.clip_s >= shortest_s, f"{shortest_s:g} or more"),
        ("validation.clips", validation.clips > 0, "1 or more"),
        ("mixing.high_snr, clean, noise_only", mixing.high_snr + mixing.clean + mixing.noise_only <= 1, "1 together"),
        ("mixing.coloured, babble, tones", mixing.coloured + mixing.babble + mixing.tones <= 1, "1 together"),
        ("optimisation.precision", run.precision in ("bf16", "fp32"), "bf16 or fp32"),
        ("optimisation.steps", run.steps >= run.warmup_steps + run.decay_steps, "warm-up and decay or more"),
        ("optimisation.batch_size", run.batch_size > 0, "1 or more"),
        ("optimisation.save_every_steps", run.save_every_steps > 0, "1 or more"),
        ("optimisation.validate_every_steps", run.validate_every_steps > 0, "1 or more"),
        (
            "model.start",
            run.batch_statistics or model.start is not None,
            "given where optimisation.batch_statistics is false",
        ),
        ("optimisation.ema_decay", 0 <= run.ema_decay < 1, "0 or more and below 1"),
    ]
    for source in (*config.data.speech, *config.data.noise):
        checks.append((f"weight of {source.path}", source.weight > 0, "above 0"))
    for item in dataclasses.fields(Mixing):
        if item.type == "float" and item.name not in ("clip_s", "level_jitter_db", "eq_db"):
            value = getattr(mixing, item.name)
            checks.append((f"mixing.{item.name}", 0 <= value <= 1, "a probability, 0 to 1"))
    for name, ok, legal in checks:
        if not ok:
            raise TrainingError(f"{name} must be {legal}")
