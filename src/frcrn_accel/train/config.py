"""The config of a training run: one TOML file."""

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

__all__ = [
    "Data",
    "Loss",
    "Mixing",
    "Model",
    "Optimisation",
    "Source",
    "TrainingConfig",
    "Validation",
    "parse_config",
    "read_config",
]

Range = tuple[float, float]
_LARGEST = 2**53  # of any number; floats hold whole numbers up to it
_LONGEST_CLIP_S = 3600


@dataclass(frozen=True)
class Model:
    """The network.

    Attributes:
        channels: Complex channels, a multiple of 8; 128 in the released model.
        unets: U-Nets in cascade; 2 in the released model.
        start: Weights to start from: the name of a model, an fp32 model file (`.onnx`) or a checkpoint, paths
            relative to the data folder. It must have the same channels. A U-Net that it lacks is added so that it
            changes nothing at first. None starts from random weights.
        running_means: Train for streams: give squeeze-and-excitation the means over the signal so far, not over the
            whole signal.
        lookahead_frames: Frames that each U-Net may look ahead; each training step draws one of these numbers. Fewer
            than 7 lower the latency of streams.
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
        path: Path relative to the data folder.
        weight: How often it is drawn, relative to the other sources of its list.
        voices: Number of speakers in it, or of different recordings of noise. If given, the source is drawn in
            proportion to `weight` times the square root of hours times voices, so that a single voice counts little,
            however long it is.
    """

    path: str
    weight: float = 1.0
    voices: int | None = None


@dataclass(frozen=True)
class Data:
    """The recordings.

    Attributes:
        speech: Clean speech.
        noise: Noise without speech.
        held_out_share: Share at the end of each source that is kept for validation and never trained on.
    """

    speech: tuple[Source, ...]
    noise: tuple[Source, ...]
    held_out_share: float = 0.05


@dataclass(frozen=True)
class Mixing:
    """How examples are made. Fields without a unit are probabilities per example; ranges are uniform.

    Attributes:
        clip_s: Length of an example.
        snr_db: Signal-to-noise ratio: RMS of the loud parts of the speech over RMS of the noise.
        high_snr_db: Signal-to-noise ratio of the examples whose input is nearly clean speech.
        high_snr: Probability of a ratio from `high_snr_db`.
        clean: Probability of speech without noise.
        noise_only: Probability of noise without speech.
        level_jitter_db: Standard deviation of the level, around the level at which the model runs.
        live_level: Probability that the level changes from hop to hop as in a stream, where it is that of the signal
            so far.
        pause: Probability that the speech begins late or ends early.
        speech_eq: Probability of a random equalisation of the speech.
        noise_eq: Probability of a random equalisation, for each noise.
        eq_db: Largest gain or cut of an equalisation.
        reverberation: Probability of a synthetic room; its first 50 ms belong to the target.
        band_limit: Probability that the mixture is cut off somewhere between 3 and 7 kHz.
        speech_speed: Probability that the speech is played up to 12 % faster or slower.
        noise_speed: Probability that a noise is played up to 40 % faster or slower.
        noise_swell: Probability that the loudness of a noise changes over time.
        second_noise: Probability of a second noise.
        coloured: Probability that a noise is synthetic coloured noise.
        babble: Probability that a noise is several voices at once.
        tones: Probability that a noise is a synthetic siren, alarm or hum.
        babble_voices: Minimum and maximum number of voices of babble.
        keystrokes: Probability that a noise is synthetic typing.
        cries: Probability that a noise is synthetic cries.
        gusts: Probability that a noise is synthetic wind in gusts.
        speech_shaped: Probability that a noise has the spectrum and the rhythm of speech.
        noises_in_a_row: Probability that two or three noises follow each other.
        noise_backwards: Probability that a recorded noise is played backwards.
        noise_room: Probability of a synthetic room for a noise.
        rumble: Probability that there is rumble below 80 Hz as well, with a level of its own.
        rumble_over_speech_db: RMS of the rumble over that of the loud parts of the speech.
        bangs: Probability that there are bangs of 5 to 200 ms as well, with a level of their own.
        bangs_over_speech_db: Peak of the bangs over the RMS of the loud parts of the speech.
        lowered_floor: Probability that the steady noise of the target's recording is lowered, so that the network
            learns to remove such noise.
        lowered_floor_db: By how much it is lowered.
    """

    clip_s: float = 3.0
    snr_db: Range = (-6.0, 20.0)
    high_snr_db: Range = (20.0, 45.0)
    high_snr: float = 0.08
    clean: float = 0.04
    noise_only: float = 0.04
    level_jitter_db: float = 3.0
    live_level: float = 0.0
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
    babble_voices: tuple[int, int] = (3, 8)
    keystrokes: float = 0.0
    cries: float = 0.0
    gusts: float = 0.0
    speech_shaped: float = 0.0
    noises_in_a_row: float = 0.0
    noise_backwards: float = 0.0
    noise_room: float = 0.0
    rumble: float = 0.0
    rumble_over_speech_db: Range = (-20.0, 10.0)
    bangs: float = 0.0
    bangs_over_speech_db: Range = (5.0, 26.0)
    lowered_floor: float = 0.0
    lowered_floor_db: Range = (6.0, 10.0)


@dataclass(frozen=True)
class Loss:
    """Weights of the parts of the loss, see `loss.DenoisingLoss`.

    Attributes:
        complex_spectrum: Weight of the squared error of compressed complex spectra.
        magnitude: Weight of the squared error of compressed magnitudes.
        si_sdr: Weight of minus SI-SDR, in units of 10 dB.
        perceptual: Weight of the perceptual disturbance, in points of PESQ's unmapped score.
        intelligibility: Weight of 1 - STOI.
        exponent: Exponent of the compression.
        erb_exponent: How much low frequencies count in both spectra: the weight of a bin is the inverse of the
            equivalent rectangular bandwidth (ERB) of hearing there, to this power. With 1, bins below 1 kHz have 47 %
            of the weight; with 0, all bins count the same.
        perceptual_at_end: Weight that `perceptual` changes to while the learning rate falls; None for no change.
    """

    complex_spectrum: float = 30.0
    magnitude: float = 70.0
    si_sdr: float = 1.0
    perceptual: float = 0.25
    intelligibility: float = 3.0
    exponent: float = 0.3
    erb_exponent: float = 0.0
    perceptual_at_end: float | None = None


@dataclass(frozen=True)
class Optimisation:
    """The schedule of the run and its optimiser.

    Attributes:
        steps: Length of the run.
        batch_size: Examples per step, over all processes.
        learning_rate: Peak learning rate.
        weight_decay: Weight decay, decoupled from the gradient.
        warmup_steps: Steps at the beginning over which the learning rate rises from 0.
        decay_steps: Steps at the end over which it falls to 0 along a cosine; in between it is constant.
        gradient_norm: Norm to which gradients are clipped.
        ema_decay: Decay of the moving average of the weights, which is the result of a run.
        precision: "bf16" (autocast) or "fp32".
        batch_statistics: Whether batch norms normalise by the statistics of the batch, and learn them. If false they
            keep those of `model.start`: faster, and the network computes in training exactly what it computes later.
        seed: Seed of all random numbers.
        cuda_graph: Whether a step on a single GPU is recorded as a CUDA graph, which is launched as a whole.
        save_every_steps: Interval at which the state is saved; a run that was killed resumes from there.
        save_every_s: Interval in seconds at which it is saved as well; None for none.
        validate_every_steps: Interval at which the averaged weights are scored.
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
    cuda_graph: bool = True
    save_every_steps: int = 100
    save_every_s: float | None = None
    validate_every_steps: int = 500


@dataclass(frozen=True)
class Validation:
    """The fixed examples that the averaged weights are scored on, made from the held-out parts.

    Attributes:
        clips: Number of examples.
        clip_s: Length of an example.
        snr_db: Range over which their signal-to-noise ratios are evenly spread.
        seed: Seed of the examples.
        mixing: How they are mixed, except for length and ratio; None for speech and one recorded noise, unaltered.
    """

    clips: int = 24
    clip_s: float = 4.0
    snr_db: Range = (-2.5, 12.5)
    seed: int = 1
    mixing: Mixing | None = None


@dataclass(frozen=True)
class TrainingConfig:
    """A whole config; each field is a table of the TOML file."""

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
        TrainingError: The file cannot be read, or a key in it is unknown, missing or out of range.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingError(f"config {str(path)!r} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is one
        raise TrainingError(f"config {str(path)!r} is not TOML: {error}") from error
    try:
        return parse_config(content)
    except TrainingError as error:
        raise TrainingError(f"config {str(path)!r}: {error}") from None


def parse_config(content: Mapping[str, Any]) -> TrainingConfig:
    """Return the config that tables hold, such as those of a TOML file.

    Raises:
        TrainingError: A key is unknown, missing or out of range.
    """
    config: TrainingConfig = _parse(TrainingConfig, content, "")
    _check(config)
    return config


def _parse(kind: Any, value: Any, name: str) -> Any:
    """Convert a TOML value to a type of the classes above."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise TrainingError(f"{name!r} must be a table")
        return _parse_table(kind, value, name)
    if origin is types.UnionType:  # X | None; TOML has no None
        return None if value is None else _parse(arguments[0], value, name)
    if origin is tuple:
        length = None if arguments[1] is Ellipsis else len(arguments)
        if not isinstance(value, list) or (length is not None and len(value) != length):
            raise TrainingError(f"{name!r} must be a list{f' of {length}' if length else ''}")
        return tuple(_parse(arguments[0], item, f"{name}[{i}]") for i, item in enumerate(value))
    if kind in (int, float) and type(value) in (int, float) and not abs(value) <= _LARGEST:  # NaN, too
        raise TrainingError(f"{name!r} must be a number up to {_LARGEST}, got {value!r}")
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
            raise TrainingError(f"unknown key {prefix + key!r}: the keys are {', '.join(fields)}")
    for key, item in fields.items():
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and key not in table:
            raise TrainingError(f"{prefix + key!r} is missing")
    return kind(**{key: _parse(hints[key], value, prefix + key) for key, value in table.items()})


def _check(config: TrainingConfig) -> None:
    """Check the ranges.

    Raises:
        TrainingError: A value is out of range.
    """
    model, mixing, run, validation = config.model, config.mixing, config.optimisation, config.validation
    least_steps = run.warmup_steps + run.decay_steps
    shortest_s = 2 * FRAME_SAMPLES / SAMPLE_RATE_HZ
    clip_lengths = f"{shortest_s:g} or more, and at most {_LONGEST_CLIP_S}"
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
        ("mixing.clip_s", shortest_s <= mixing.clip_s <= _LONGEST_CLIP_S, clip_lengths),
        ("validation.clip_s", shortest_s <= validation.clip_s <= _LONGEST_CLIP_S, clip_lengths),
        ("validation.clips", validation.clips > 0, "1 or more"),
        ("optimisation.precision", run.precision in ("bf16", "fp32"), "bf16 or fp32"),
        ("optimisation.steps", run.steps >= least_steps, "at least warmup_steps + decay_steps"),
        ("optimisation.batch_size", run.batch_size > 0, "1 or more"),
        ("optimisation.save_every_steps", run.save_every_steps > 0, "1 or more"),
        ("optimisation.save_every_s", run.save_every_s is None or run.save_every_s > 0, "above 0"),
        ("optimisation.validate_every_steps", run.validate_every_steps > 0, "1 or more"),
        (
            "model.start",
            run.batch_statistics or model.start is not None,
            "set if optimisation.batch_statistics is false",
        ),
        ("optimisation.ema_decay", 0 <= run.ema_decay < 1, "0 or more and below 1"),
    ]
    for name in ("warmup_steps", "decay_steps", "weight_decay", "seed"):
        checks.append((f"optimisation.{name}", getattr(run, name) >= 0, "0 or more"))
    for name in ("learning_rate", "gradient_norm"):
        checks.append((f"optimisation.{name}", getattr(run, name) > 0, "above 0"))
    checks.append(("validation.seed", validation.seed >= 0, "0 or more"))
    for name in typing.get_type_hints(Loss):
        value = getattr(config.loss, name)
        checks.append((f"loss.{name}", value is None or 0 <= value < float("inf"), "0 or more, and finite"))
    for source in (*config.data.speech, *config.data.noise):
        checks.append((f"weight of {source.path!r}", source.weight > 0, "above 0"))
        checks.append((f"voices of {source.path!r}", source.voices is None or source.voices > 0, "1 or more"))
    for kind in ("speech", "noise"):
        given = {source.voices is None for source in getattr(config.data, kind)}
        checks.append((f"voices of data.{kind}", len(given) == 1, "given for all sources or for none"))
    for table, of in (("mixing", mixing), ("validation.mixing", validation.mixing)):
        checks += _checks_of_mixing(table, of) if of is not None else []
    for name, ok, legal in checks:
        if not ok:
            raise TrainingError(f"{name} must be {legal}")


def _checks_of_mixing(table: str, mixing: Mixing) -> list[tuple[str, bool, str]]:
    """Return the conditions for a table of mixing: a name, whether it is in range, and the legal range."""

    def total(names: tuple[str, ...]) -> float:
        return float(sum(getattr(mixing, name) for name in names))

    inputs = ("high_snr", "clean", "noise_only")
    kinds = ("coloured", "babble", "tones", "keystrokes", "cries", "gusts", "speech_shaped")
    least, most = mixing.babble_voices
    return [
        *((f"{table}.{' + '.join(names)}", total(names) <= 1, "at most 1") for names in (inputs, kinds)),
        (f"{table}.babble_voices", 1 <= least <= most, "1 or more, least first"),
        *((f"{table}.{name}", getattr(mixing, name) >= 0, "0 or more") for name in ("level_jitter_db", "eq_db")),
        *(
            (f"{table}.{name}", 0 <= getattr(mixing, name) <= 1, "a probability, 0 to 1")
            for name, hint in typing.get_type_hints(Mixing).items()
            if hint is float and not name.endswith(("_s", "_db"))
        ),
    ]
