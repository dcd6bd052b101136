"""The `Denoiser`, the main class of the library, and its options."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
from typing_extensions import Self

from frcrn_accel.arguments import file_path, real_number, shown, whole_number
from frcrn_accel.audio import check_attenuation_limit, check_format, dry_share_of, unpack, whole_hz
from frcrn_accel.backends import Backend, Session, StepSession, resolve_backend
from frcrn_accel.cpu import available_cpus
from frcrn_accel.file_denoising import KEEPS, FileJob, FileReport, Keep, check_keep
from frcrn_accel.high_band import HighBandMode, check_high_band
from frcrn_accel.in_use import InUse
from frcrn_accel.models import DEFAULT_MODEL, ModelMetadata, find_model, usual_lookahead
from frcrn_accel.network.topology import LOOKAHEAD_FRAMES
from frcrn_accel.notices import notify
from frcrn_accel.pipeline import Engine, Signal, Treatment, denoise_signal
from frcrn_accel.prepare import prepare, prepare_step
from frcrn_accel.progress import Progress, no_progress
from frcrn_accel.streaming.averaging import Averaging
from frcrn_accel.streaming.engine import StreamEngine
from frcrn_accel.streaming.stream import Stream, check_stream_options
from frcrn_accel.windows import Windowing

__all__ = ["KEEPS", "MAX_DURATION_S", "Denoiser", "DenoiserOptions", "FileReport", "Keep", "StreamOptions"]

MAX_DURATION_S = 24 * 3600.0
_MAX_THREADS = 1024  # engines start them all, and fail in ways of their own if they cannot
_ARRAY_BLOCK_SAMPLES = 1 << 20
_CLOSED = "this Denoiser is closed: open a new one"

AudioT = TypeVar("AudioT")


@dataclass(frozen=True)
class DenoiserOptions:
    """Validated options of a `Denoiser`, for code that opens one elsewhere.

    >>> options = DenoiserOptions(backend="ort", threads=1)
    >>> with options.open() as denoiser:
    ...     denoiser.backend
    'ort'

    Attributes:
        model, backend, precision, calibration, threads, attenuation_limit_db, windowing, batch_size, high_band: See
            `Denoiser`.

    Raises:
        ValueError: A value is out of range.
    """

    model: str | Path = DEFAULT_MODEL
    backend: str | type[Backend] | Backend = "auto"
    precision: str | None = None
    calibration: str | Path | None = None
    threads: int | None = None
    attenuation_limit_db: float | None = None
    windowing: Windowing = Windowing()  # noqa: RUF009 - frozen
    batch_size: int | None = None
    high_band: HighBandMode = "follow"

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.threads is not None and whole_number("threads", self.threads) < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")
        if self.threads is not None and self.threads > _MAX_THREADS:
            raise ValueError(f"threads must be at most {_MAX_THREADS}, got {shown(self.threads)}")
        if self.batch_size is not None and whole_number("batch_size", self.batch_size) < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if not isinstance(self.windowing, Windowing):
            raise TypeError(f"windowing must be a Windowing, got {type(self.windowing).__name__}")
        check_attenuation_limit(self.attenuation_limit_db)
        check_high_band(self.high_band)

    def open(
        self, *, wrap_session: Callable[[Session], Session] | None = None, progress: Progress = no_progress
    ) -> Denoiser:
        """Open a denoiser with these options.

        Args:
            wrap_session: See `Denoiser`.
            progress: See `Denoiser`.

        Raises:
            Exception: See `Denoiser`.
        """
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Denoiser(**options, wrap_session=wrap_session, progress=progress)


@dataclass(frozen=True)
class StreamOptions:
    """Validated options of a `Stream`, for code that opens one elsewhere.

    >>> from frcrn_accel import Denoiser
    >>> options = StreamOptions(step_s=0.1)
    >>> with Denoiser("frcrn-small-stream", backend="ort") as denoiser:
    ...     options.open(denoiser, 16_000, channels=2).channels
    2

    Attributes:
        step_s, lookahead_s, averaging, gain_db, attenuation_limit_db, high_band: See `Denoiser.stream`.

    Raises:
        ValueError: A value is out of range. The bounds of `lookahead_s` depend on the model: `check` and `open` check
            them.
        TypeError: `averaging` is something else.
    """

    step_s: float = 0.02
    lookahead_s: float | None = None
    averaging: Averaging | None = None
    gain_db: float | None = None
    attenuation_limit_db: float | None = None
    high_band: HighBandMode | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_stream_options(self.step_s, self.gain_db, self.averaging)
        check_attenuation_limit(self.attenuation_limit_db)
        if self.high_band is not None:
            check_high_band(self.high_band)

    def check(self, denoiser: Denoiser) -> None:
        """Check the look-ahead, whose bounds depend on the model.

        Args:
            denoiser: The denoiser that will open the streams.

        Raises:
            ValueError: It is out of range, or the denoiser is closed.
        """
        denoiser._lookahead_frames(self.lookahead_s)

    def open(self, denoiser: Denoiser, sample_rate: int, *, channels: int = 1) -> Stream:
        """Open a stream of a denoiser with these options.

        Args:
            denoiser: The denoiser.
            sample_rate: See `Denoiser.stream`.
            channels: See `Denoiser.stream`.

        Raises:
            Exception: See `Denoiser.stream`.
        """
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return denoiser.stream(sample_rate, channels=channels, **options)


class Denoiser:
    """A speech denoiser: one loaded model, for any number of signals and threads.

    It can be pickled, for a pool of processes: each process opens the model again, with the same options.

    >>> import numpy as np
    >>> noisy = np.zeros(48_000, np.float32)
    >>> denoiser = Denoiser()
    >>> clean = denoiser(noisy, sample_rate=48_000)
    >>> clean.shape
    (48000,)

    Args:
        model: Name of a known or imported model (see `frcrn-accel models list`), or path of a file written by
            `frcrn-accel export`.
        backend: Name of a backend, `"auto"` for the fastest usable one, a `Backend` class or an instance.
        precision: Number format to compute in, one of the backend's (see `frcrn-accel backends`). By default the
            fastest that does not change the sound.
        calibration: Folder of noisy speech similar to what will be denoised, for backends that calibrate:
            `"ort-static-int8"`, and `"openvino"` and TensorRT with precision `"int8"`.
        threads: CPU threads to compute with; by default as many as this process may use.
        attenuation_limit_db: Maximum attenuation of noise, dB, reached by mixing in some of the unprocessed signal;
            None for no limit. Listeners and speech recognizers often do better with some noise left.
        windowing: How to cut long signals into windows.
        batch_size: Windows per call of the engine; by default what suits the backend.
        high_band: What to do with the band above 8 kHz, which the model does not see: `"follow"` attenuates noise in
            it in step with the model, `"drop"` leaves the band out. Signals of 16 kHz and less have none.
        wrap_session: Called with the loaded model; returns the session to use instead. `batching.BatchingSession`
            joins the calls of many threads.
        progress: Called while a file that the backend needs is made, which happens once for a model: quantizing
            takes minutes.

    Attributes:
        options: The options that it was opened with.
        backend: Name of the backend.
        precision: Number format that it computes in.
        threads: CPU threads that it computes with.
        attenuation_limit_db, high_band: As given.

    Raises:
        UnknownBackendError: No backend of that name is installed.
        UnsupportedPrecisionError: The backend does not compute in that precision.
        BackendUnavailable: The backend cannot run here; the message says why and what to install.
        ModelError: The model is unknown, missing or damaged.
        QualityError: The backend runs a quantized model, and the quality gate refused it.
        ValueError: An argument is out of range, or has no effect with this backend.
    """

    def __init__(
        self,
        model: str | Path = DEFAULT_MODEL,
        *,
        backend: str | type[Backend] | Backend = "auto",
        precision: str | None = None,
        calibration: str | Path | None = None,
        threads: int | None = None,
        attenuation_limit_db: float | None = None,
        windowing: Windowing | None = None,
        batch_size: int | None = None,
        high_band: HighBandMode = "follow",
        wrap_session: Callable[[Session], Session] | None = None,
        progress: Progress = no_progress,
    ) -> None:
        windowing = Windowing() if windowing is None else windowing
        self.options = DenoiserOptions(
            model, backend, precision, calibration, threads, attenuation_limit_db, windowing, batch_size, high_band
        )
        self._model = find_model(model)
        self._options_anywhere = dataclasses.replace(
            self.options,
            model=_name_or_absolute(model, self._model.path),
            calibration=None if calibration is None else Path(calibration).absolute(),
        )
        self._backend = resolve_backend(backend, precision, calibration, self._model)
        _check_effect(self.options, self._backend)
        self.backend = self._backend.name
        self.precision = self._backend.precision_for(self._model)
        self.threads = threads or available_cpus()
        self.attenuation_limit_db = attenuation_limit_db
        self.high_band: HighBandMode = high_band
        self._progress = progress
        self._is_wrapped = wrap_session is not None
        self._stream_engines: dict[int, StreamEngine] = {}  # by look-ahead
        # Making a step can take minutes; those with another look-ahead do not wait for it.
        self._stream_locks = tuple(threading.Lock() for _ in range(LOOKAHEAD_FRAMES + 1))
        self._in_use = InUse(_CLOSED)
        session = self._backend.load(prepare(self._model, self._backend, progress), self.threads)
        with _closed_on_error(session):
            wrapped = session if wrap_session is None else wrap_session(session)
        self._engine: Engine | None = Engine(
            session=wrapped,
            metadata=self._model.metadata,
            windowing=dataclasses.replace(windowing, fixed=windowing.fixed or self._backend.fixed_windows),
            batch_size=batch_size or self._backend.batch_size,
        )

    @property
    def model(self) -> ModelMetadata:
        """Metadata of the model."""
        return self._loaded_engine().metadata

    @property
    def model_path(self) -> Path:
        """Path of the chosen model file; the backend may run a file made from it."""
        return self._model.path

    @property
    def device(self) -> str:
        """Device that the engine runs on, as the engine reports it."""
        return self._loaded_engine().session.device

    def __call__(
        self,
        audio: AudioT,
        sample_rate: int,
        *,
        attenuation_limit_db: float | None = None,
        high_band: HighBandMode | None = None,
        keep: Keep = "speech",
    ) -> AudioT:
        """Denoise audio in memory.

        Args:
            audio: numpy array or torch tensor, `(samples,)` or `(channels, samples)`; float16, float32 or float64
                with full scale at 1.0, or int16 or int32. Each channel is denoised independently.
            sample_rate: Its sample rate, 8,000 to 192,000 Hz. The model processes audio up to 8 kHz, see `high_band`.
            attenuation_limit_db: Limit for this signal alone, `math.inf` for none; None for the denoiser's own.
            high_band: What to do with the band above 8 kHz of this signal; None for the denoiser's own choice.
            keep: `"speech"`, or `"noise"` for what was removed: the input minus the speech, sample by sample.

        Returns:
            The same kind of object: type, dtype, shape, rate and level. Integers are clipped, never wrapped.
            Subclasses of numpy's array, such as `np.matrix`, come back as plain arrays.

        Raises:
            AudioError: The type, dtype, shape or sample rate is not supported, a sample is NaN or infinite, or the
                array is masked.
            EngineError: The engine failed.
            ValueError: The attenuation limit is out of range, `high_band` or `keep` is unknown, or the denoiser is
                closed.
        """
        treatment = self._treatment(attenuation_limit_db, high_band)
        check_keep(keep)
        samples, layout = unpack(audio)
        rate_hz = whole_hz(sample_rate)
        check_format(rate_hz, samples.shape[0])
        starts = range(0, samples.shape[1], _ARRAY_BLOCK_SAMPLES)
        signal = Signal(
            lambda: (samples[:, start : start + _ARRAY_BLOCK_SAMPLES] for start in starts),
            rate_hz,
            samples.shape[0],
        )
        with self._in_use:
            blocks = [samples[:, :0], *denoise_signal(signal, self._loaded_engine(), treatment)]
        result = np.concatenate(blocks, axis=1)
        packed: AudioT = layout.pack(result if keep == "speech" else samples - result)
        return packed

    def denoise_file(
        self,
        source: str | Path,
        target: str | Path,
        *,
        overwrite: bool = False,
        progress: Callable[[float, float], None] | None = None,
        max_duration_s: float = MAX_DURATION_S,
        attenuation_limit_db: float | None = None,
        high_band: HighBandMode | None = None,
        keep: Keep = "speech",
        noise_target: str | Path | None = None,
        track: int | None = None,
        run: Callable[[FileJob], FileReport] = FileJob.run,
    ) -> FileReport:
        """Denoise a file, from disk to disk, in memory that does not grow with its length.

        Args:
            source: Any file that libsndfile or FFmpeg reads: WAV, FLAC, MP3, Ogg, M4A, WMA, AIFF and more, a film, or
                a pipe.
            target: The file to write, in the format of its suffix. Rate, channels, tags and, where the format has
                it, encoding are those of the source. From a film to a film (MP4, MOV, MKV, WebM, TS ...), the sound
                is replaced, and everything else is copied. The file appears once it is complete.
            overwrite: Replace `target` if it exists.
            progress: Called regularly with the seconds of audio that are done and the total. An exception from it
                stops the work, and nothing is written.
            max_duration_s: Refuse audio longer than this, by default 24 h; `math.inf` for no limit.
            attenuation_limit_db: Limit for this file alone, `math.inf` for none; None for the denoiser's own.
            high_band: What to do with the band above 8 kHz of this file; None for the denoiser's own choice.
            keep: What to write to `target`: `"speech"`, or `"noise"` for what was removed, the input minus the
                speech.
            noise_target: Also write the noise, to this file; only with `keep="speech"`, and not of films.
            track: Number of the audio track to denoise, from 0. None for all tracks of a film, or the first one if
                only sound is written.
            run: Where to run the job; `processes.FileProcesses.run` decodes and encodes in a process with limits, for
                untrusted files.

        Raises:
            AudioTooLongError: `source` is longer than `max_duration_s`.
            AudioError: `source` cannot be read or denoised, or `target` cannot be written.
            OutputExistsError: `target` or `noise_target` exists and `overwrite` is false.
            EngineError: The engine failed.
            ValueError: The attenuation limit or `max_duration_s` is out of range, `high_band` or `keep` is unknown,
                `noise_target` is given with `keep="noise"` or is `target` itself, or the denoiser is closed.
            TypeError: A path is none.
        """
        source, target = file_path("source", source), file_path("target", target)
        noise_target = None if noise_target is None else file_path("noise_target", noise_target)
        check_keep(keep, target, noise_target)
        max_duration_s = real_number("max_duration_s", max_duration_s)
        if not max_duration_s >= 0:
            raise ValueError(f"max_duration_s must be 0 or more, got {max_duration_s}")
        job = FileJob(
            engine=self._loaded_engine(),
            treatment=self._treatment(attenuation_limit_db, high_band),
            source=source,
            target=target,
            overwrite=overwrite,
            progress=progress,
            max_duration_s=max_duration_s,
            keep=keep,
            noise_target=noise_target,
            track=track,
        )
        with self._in_use:
            report = run(job)
        for warning in report.warnings:
            notify(warning)
        return report

    def stream(
        self,
        sample_rate: int,
        *,
        channels: int = 1,
        step_s: float = 0.02,
        lookahead_s: float | None = None,
        averaging: Averaging | None = None,
        gain_db: float | None = None,
        attenuation_limit_db: float | None = None,
        high_band: HighBandMode | None = None,
    ) -> Stream:
        """Start denoising a live signal. Any number of streams share the model.

        Args:
            sample_rate: Its sample rate, 8,000 to 192,000 Hz.
            channels: Its channels; each is denoised separately.
            step_s: Audio that is computed at a time, a multiple of 0.02 s up to 1 s. Longer steps take less time per
                second of audio and add latency.
            lookahead_s: How far the model looks ahead, a multiple of 0.02 s for each U-Net. None for the look-ahead
                that the model was trained for, or all of it (0.14 s for each U-Net) if it was not trained for
                streams. Less look-ahead means less latency and less quality (`docs/streaming.md`).
            averaging: How to estimate the means over the whole signal, which a stream cannot know; see
                `streaming.Averaging`.
            gain_db: Gain that brings active speech to -25 dBFS, if known, -200 to 200 dB; by default the level is
                tracked.
            attenuation_limit_db: See the property of the stream; None for the denoiser's own.
            high_band: What to do with the band above 8 kHz; None for the denoiser's own choice. It adds no delay.

        Raises:
            AudioError: The sample rate or the number of channels is out of range.
            BackendUnavailable: The backend does not run streams, or packages needed to make their file are missing.
            ModelError: The model is quantized, and the file for streams needs the original weights.
            ValueError: An argument is out of range, or the denoiser is closed.
        """
        frames = self._lookahead_frames(lookahead_s)
        treatment = self._treatment(attenuation_limit_db, high_band)
        with self._in_use, self._stream_locks[frames]:
            engine = self._stream_engines.get(frames)
            if engine is None:
                step = prepare_step(self._model, self._backend, self.threads, frames, self._progress)
                session = self._backend.load_step(step, self.threads, frames)
                with _closed_on_error(session):
                    engine = StreamEngine(session, self._model.metadata, self._in_use)
                self._stream_engines[frames] = engine
        return Stream(
            engine,
            sample_rate,
            channels=channels,
            step_s=step_s,
            attenuation_limit_db=self._limit_db(attenuation_limit_db),
            averaging=averaging,
            gain_db=gain_db,
            high_band=treatment.high_band,
        )

    def __reduce__(self) -> tuple[Callable[[DenoiserOptions], Denoiser], tuple[DenoiserOptions]]:
        """Pickle the options: the copy, for example in a process of a pool, opens the model again.

        `progress` is not kept. Copies of this object (`copy.copy`) open the model again, too.

        Raises:
            TypeError: It was opened with `wrap_session` or an instance of a backend, which cannot be copied.
            ValueError: The denoiser is closed.
        """
        self._loaded_engine()
        if self._is_wrapped or isinstance(self.options.backend, Backend):
            given = "wrap_session" if self._is_wrapped else "an instance of a backend"
            raise TypeError(f"a Denoiser with {given} cannot be pickled: open one in each process")
        options = dataclasses.replace(
            self._options_anywhere,
            attenuation_limit_db=self.attenuation_limit_db,
            high_band=self.high_band,
        )
        return DenoiserOptions.open, (options,)

    def close(self) -> None:
        """Free the engine, once the calls of other threads are done. Closing twice is allowed.

        The denoiser and its streams cannot be used afterwards: further calls raise `ValueError`.

        Raises:
            RuntimeError: It is called while this thread uses the denoiser, for example by `progress`.
        """
        self._in_use.close(self._free)

    def _free(self) -> None:
        if self._engine is not None:
            self._engine.session.close()
            self._engine = None
        while self._stream_engines:
            self._stream_engines.popitem()[1].session.close()

    def __enter__(self) -> Self:
        """Return the denoiser; leaving the block closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the denoiser."""
        self.close()

    def _limit_db(self, limit_db: float | None) -> float | None:
        """Return the attenuation limit for one signal."""
        limit_db = self.attenuation_limit_db if limit_db is None else limit_db
        check_attenuation_limit(limit_db)
        return limit_db

    def _treatment(self, limit_db: float | None, high_band: HighBandMode | None) -> Treatment:
        """Return the treatment of one signal."""
        mode = self.high_band if high_band is None else high_band
        check_high_band(mode)
        return Treatment(dry_share_of(self._limit_db(limit_db)), mode)

    def _lookahead_frames(self, lookahead_s: float | None) -> int:
        """Convert a look-ahead to frames of each U-Net."""
        if lookahead_s is None:
            return usual_lookahead(self._model)
        metadata = self.model
        frame_s = metadata.unets * metadata.hop_samples / metadata.sample_rate_hz
        lookahead_s = real_number("lookahead_s", lookahead_s)
        frames = round(lookahead_s / frame_s) if abs(lookahead_s) < 1_000 else -1  # NaN, too
        if not (0 <= frames <= LOOKAHEAD_FRAMES and abs(frames * frame_s - lookahead_s) < 1e-6):
            raise ValueError(
                f"lookahead_s must be a multiple of {frame_s:g} s, up to {LOOKAHEAD_FRAMES * frame_s:g} s, "
                f"got {lookahead_s:g} s"
            )
        return frames

    def _loaded_engine(self) -> Engine:
        """Return the engine, or raise `ValueError` if it was closed."""
        if self._engine is None:
            raise ValueError(_CLOSED)
        return self._engine


@contextmanager
def _closed_on_error(session: Session | StepSession) -> Iterator[None]:
    """Close a session if the block fails."""
    try:
        yield
    except BaseException:
        session.close()
        raise


def _name_or_absolute(model: str | Path, path: Path) -> str | Path:
    """Return a name as it is, and a path as an absolute one, which means the same in every folder."""
    is_name = isinstance(model, str) and Path(model).expanduser() != path
    return model if is_name else path.absolute()


def _check_effect(options: DenoiserOptions, backend: Backend) -> None:
    """Refuse options that the backend would ignore."""
    if options.threads is not None and not backend.uses_threads:
        raise ValueError(f"backend {backend.name!r} does not compute on the CPU: leave threads out")
    if options.batch_size is not None and options.batch_size > 1 and not backend.computes_batches:
        raise ValueError(f"backend {backend.name!r} computes one window per call: leave batch_size out")
