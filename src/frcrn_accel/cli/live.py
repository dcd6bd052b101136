"""`frcrn-accel live`."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from frcrn_accel.adapters.background import HEADROOM_S
from frcrn_accel.adapters.feed import Feed, LiveStatus, Sink, aligned, denoise_live, first_samples
from frcrn_accel.adapters.playout import Playout
from frcrn_accel.adapters.sound_card import Device, find_device, list_devices, sound_card
from frcrn_accel.audio import MAX_SAMPLE_RATE_HZ, MIN_SAMPLE_RATE_HZ, check_channels, check_format
from frcrn_accel.cli.options import AttenuationLimit, BackendName, HighBandOption, Model, Precision, Threads
from frcrn_accel.cli.progress import preparation, print_line
from frcrn_accel.cli.usage import usage_errors
from frcrn_accel.denoiser import DenoiserOptions, StreamOptions
from frcrn_accel.errors import EngineError, SoundCardError
from frcrn_accel.files import AudioFile, AudioWriter, create_audio
from frcrn_accel.models import LIVE_MODEL
from frcrn_accel.posix_signals import handled, stopping

__all__ = ["live"]

_MAX_WAITING_BLOCKS = 500  # 5 s: a file loses nothing when the machine is busy for a moment
_MAX_FILE_BYTES = (1 << 32) - (1 << 16)  # what a WAV can hold: a recording without a duration ends there
_SUBTYPE, _SAMPLE_BYTES = "PCM_16", 2
_METER_FLOOR_DB = -60.0


def live(
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write to a file, aligned with the input."),
    ] = None,
    input_device: Annotated[
        str | None, typer.Option(metavar="N|NAME", help="Device to record from. [default: the system's]")
    ] = None,
    output_device: Annotated[
        str | None,
        typer.Option(metavar="N|NAME", help="Device to play to. [default: the system's; with -o, none]"),
    ] = None,
    devices: Annotated[bool, typer.Option("--list-devices", help="List the devices and exit.")] = False,
    duration_s: Annotated[
        float | None,
        typer.Option(min=0, help="Stop after this time, s. [default: until Ctrl-C]"),
    ] = None,
    sample_rate: Annotated[
        int | None, typer.Option(metavar="HZ", help="Sample rate. [default: the input device's preferred rate]")
    ] = None,
    channels: Annotated[int, typer.Option(min=1, help="Channels to record and play.")] = 1,
    model: Model = LIVE_MODEL,
    backend: BackendName = "auto",
    precision: Precision = None,
    threads: Threads = None,
    attenuation_limit_db: AttenuationLimit = None,
    high_band: HighBandOption = "follow",
    lookahead_s: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="How far the model looks ahead, s; less means less latency. [default: as the model was trained]",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it exists.")] = False,
) -> None:
    """Denoise a microphone, to the speaker or to a file, until Ctrl-C. Use headphones to avoid acoustic feedback."""
    if devices:
        _show_devices(list_devices())
        return
    with usage_errors():
        options = DenoiserOptions(
            model,
            backend=backend,
            precision=precision,
            threads=threads,
            attenuation_limit_db=attenuation_limit_db,
            high_band=high_band,
        )
        stream_options = StreamOptions(lookahead_s=lookahead_s)
    check_channels(channels)
    if sample_rate is not None:
        check_format(sample_rate, channels)
    source = find_device(input_device, "input")
    speaker = find_device(output_device, "output") if output is None or output_device is not None else None
    rate_hz = source.sample_rate_hz if sample_rate is None else sample_rate
    if not MIN_SAMPLE_RATE_HZ <= rate_hz <= MAX_SAMPLE_RATE_HZ:
        bounds = f"{MIN_SAMPLE_RATE_HZ} to {MAX_SAMPLE_RATE_HZ} Hz"
        raise SoundCardError(
            f"{source.name} prefers {rate_hz} Hz, and streams take {bounds}: choose with --sample-rate"
        )
    console = Console(stderr=True, highlight=False)
    status, feed = LiveStatus(rate_hz), Feed(_MAX_WAITING_BLOCKS)
    playout = None if speaker is None else Playout(channels, hold=round(HEADROOM_S * rate_hz), dtype=np.float32)
    samples = None if duration_s is None else round(duration_s * rate_hz)
    chunks: Iterable[NDArray[np.float32]] = feed if samples is None else first_samples(feed, samples)
    # Everything that can fail is opened before recording starts. The sound card is closed last, after the file is
    # complete, because some drivers end the process when the card is gone.
    with stopping(), ExitStack() as stack:
        start = stack.enter_context(sound_card(source, speaker, feed, playout, rate_hz, channels))
        writer = None
        if output is not None:
            writer = stack.enter_context(_recording(output, rate_hz, channels, samples, overwrite))
            if samples is None:
                chunks = first_samples(feed, _MAX_FILE_BYTES // (_SAMPLE_BYTES * channels))
        with usage_errors(), preparation(console) as progress:
            denoiser = stack.enter_context(options.open(progress=progress))
            stream = stream_options.open(denoiser, rate_hz, channels=channels)
        sinks: list[Sink] = [] if playout is None else [playout.put]
        if writer is not None:
            sinks.append(aligned(writer.write, stream.latency_samples))
        latency_s = stream.latency_s + (0.0 if playout is None else HEADROOM_S)
        print_line(
            console,
            f"{source.name}, {rate_hz} Hz, {denoiser.model.name} on {denoiser.backend}, {denoiser.precision} "
            f"({denoiser.device}); latency {1000 * latency_s:.0f} ms plus that of the sound card; Ctrl-C stops",
        )
        with _meters(console, status, feed, playout), _ending(feed) as is_ended:
            start()
            denoise_live(chunks, stream, sinks, status)
        card_stopped = feed.is_closed and not is_ended()
        feed.close()
    print_line(console, _summary(status, feed, playout, output))
    if card_stopped:
        raise SoundCardError(f"the sound card stopped unexpectedly after {status.audio_s:.1f} s: {source.name}")
    if status.unprocessed_s:
        raise EngineError(f"the engine failed: {status.unprocessed_s:.1f} of {status.audio_s:.1f} s are unprocessed")


@contextmanager
def _ending(feed: Feed) -> Iterator[Callable[[], bool]]:
    """Close the feed on Ctrl-C, SIGTERM or SIGHUP, which ends everything in order; a second signal kills."""
    is_ended = False
    with ExitStack() as stack:

        def end(number: int, frame: object) -> None:
            nonlocal is_ended
            is_ended = True
            stack.close()
            feed.close()

        numbers = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)  # the terminal was closed
        stack.enter_context(handled(end, *numbers))
        yield lambda: is_ended


@contextmanager
def _recording(
    path: Path, rate_hz: int, channels: int, samples: int | None, overwrite: bool
) -> Iterator[AudioWriter]:
    like = AudioFile(Path(), rate_hz, channels, samples or 0, "", _SUBTYPE)
    with create_audio(path, like, overwrite=overwrite) as writer:
        yield writer


@contextmanager
def _meters(console: Console, status: LiveStatus, feed: Feed, playout: Playout | None) -> Iterator[None]:
    """Show levels and the real-time factor while the block runs, if there is a terminal."""
    if not console.is_terminal:
        yield
        return

    def render() -> Table:
        table = Table.grid(padding=(0, 1))
        for name, meter in (("in", status.input_level), ("out", status.output_level)):
            level_db = meter.level_db
            bar = ProgressBar(total=-_METER_FLOOR_DB, completed=max(level_db - _METER_FLOOR_DB, 0), width=40)
            table.add_row(name, bar, f"{level_db:6.1f} dB")
        line = f"{status.audio_s:7.1f} s  RTF {status.real_time_factor:.3f}{_losses(status, feed, playout)}"
        table.add_row("", line)
        return table

    with Live(get_renderable=render, console=console, refresh_per_second=10, transient=True):
        yield


def _summary(status: LiveStatus, feed: Feed, playout: Playout | None, output: Path | None) -> str:
    where = "" if output is None else f" -> {output}"
    factor = f", real-time factor {status.mean_real_time_factor:.3f}" if status.audio_s else ""
    return f"{status.audio_s:.1f} s{where}{factor}{_losses(status, feed, playout)}"


def _losses(status: LiveStatus, feed: Feed, playout: Playout | None) -> str:
    """Return what was lost, for the end of a line; "" if nothing was."""
    text = ""
    if feed.lost_samples:
        text += f", {feed.lost_samples / status.sample_rate_hz:.2f} s lost (computing too slow)"
    if feed.overflows:
        text += f", {feed.overflows} sound card overruns"
    if playout is not None and playout.late_samples:
        text += f", {playout.late_samples / status.sample_rate_hz:.2f} s silent (computed too late)"
    if status.unprocessed_s:
        text += f", {status.unprocessed_s:.2f} s unprocessed (the engine failed)"
    return text


def _show_devices(devices: list[Device]) -> None:
    table = Table("number", "name", "inputs", "outputs", "rate, Hz")
    for device in devices:
        numbers = (device.inputs, device.outputs, device.sample_rate_hz)
        table.add_row(str(device.number), escape(device.name), *map(str, numbers))
    Console().print(table if devices else "PortAudio finds no device on this machine.")
