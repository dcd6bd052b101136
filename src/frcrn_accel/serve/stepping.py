"""One thread that computes all live streams, many of them per call of the engine."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.serve.threads import contained
from frcrn_accel.serve.watch import EngineWatch
from frcrn_accel.streaming import Stream, process_streams

__all__ = ["Channel", "Stepper"]

_SLICE_S = 0.1
_CLOSE_S = 0.5
_Samples = NDArray[np.int16]


class Channel:
    """A stream in a stepper. Its work is done in order.

    Attributes:
        stream: The stream.
        processing_s: Time of the engine calls that computed it.
        audio_s: Duration of the audio computed so far.
        waiting: Work that is not done; for the stepper.
    """

    def __init__(self, stepper: Stepper, stream: Stream) -> None:
        self._stepper = stepper
        self.stream = stream
        self.processing_s = 0.0
        self.audio_s = 0.0
        self.waiting: deque[_Chunk | _Action] = deque()

    def process(self, samples: _Samples) -> Future[_Samples]:
        """Denoise `int16 (channels, samples)`, see `Stream.process`."""
        chunk = _Chunk(samples)
        self._stepper.put(self, chunk)
        return chunk.future

    def call(self, function: Callable[[Stream], object]) -> Future[object]:
        """Call a function with the stream, in the stepper's thread, between chunks."""
        action = _Action(function)
        self._stepper.put(self, action)
        return action.future

    def close(self) -> None:
        """Take the stream out of the stepper and cancel its work."""
        self._stepper.remove(self)


class Stepper:
    """The thread with its streams.

    In each round it computes at most 0.1 s of every stream that has audio waiting, so that a stream that sends more
    at a time does not delay the others.

    Args:
        observe: Called after each call of the engine with its number of streams and their seconds of audio.
        watch: Notes the calls of the engine.
    """

    def __init__(
        self,
        observe: Callable[[int, float], None] = lambda streams, audio_s: None,
        watch: EngineWatch | None = None,
    ) -> None:
        self._observe = observe
        self._watch = watch or EngineWatch(math.inf)
        self._channels: dict[object, list[Channel]] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="frcrn-accel-streams", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of streams that have work waiting."""
        with self._changed:
            return sum(len(group) for group in self._ready())

    def add(self, stream: Stream, group: object) -> Channel:
        """Add a stream.

        Args:
            stream: The stream. Nothing else may use it from now on.
            group: A key that is equal for streams that can share a call: those with one denoiser and one look-ahead.
        """
        channel = Channel(self, stream)
        with self._changed:
            self._channels.setdefault(group, []).append(channel)
        return channel

    def put(self, channel: Channel, work: _Chunk | _Action) -> None:
        """Add work of a channel."""
        with self._changed:
            channel.waiting.append(work)
            self._changed.notify()

    def remove(self, channel: Channel) -> None:
        """Remove a stream and cancel its work."""
        with self._changed:
            for channels in self._channels.values():
                if channel in channels:
                    channels.remove(channel)
            for work in channel.waiting:
                work.future.cancel()
            channel.waiting.clear()

    def close(self) -> None:
        """End the thread after its current round; if the engine hangs, leave it."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(_CLOSE_S)

    def _work(self) -> None:
        while self._run_round():  # a call of its own, so that no local variable keeps a stream that was removed
            pass

    def _run_round(self) -> bool:
        """Wait for work and do the first of each stream; return False if the stepper is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._ready())
            if self._is_closed:
                return False
            ready = self._ready()
        for group in ready:
            for channel, work in group:
                if isinstance(work, _Action):
                    self._act(channel, work)
            chunks = [(channel, work) for channel, work in group if isinstance(work, _Chunk)]
            if chunks:
                self._step(chunks)
        return True

    def _ready(self) -> list[list[tuple[Channel, _Chunk | _Action]]]:
        """Return the first work of each stream, by group."""
        groups = [
            [(channel, channel.waiting[0]) for channel in channels if channel.waiting]
            for channels in self._channels.values()
        ]
        return [group for group in groups if group]

    def _act(self, channel: Channel, action: _Action) -> None:
        try:
            with self._watch.call():
                result = action.function(channel.stream)
            _settle(action.future, result)
        except BaseException as error:  # the exit of an engine must not end the thread
            _fail(action.future, error)
        self._pop(channel, action)

    def _step(self, items: Sequence[tuple[Channel, _Chunk]]) -> None:
        slices = []
        for channel, chunk in items:
            stop = chunk.done + max(1, round(_SLICE_S * channel.stream.sample_rate_hz))
            slices.append(chunk.samples[:, chunk.done : stop])
        began = time.perf_counter()
        try:
            with self._watch.call():
                results = process_streams([channel.stream for channel, _ in items], slices)
        except BaseException as error:  # of the engine, even its exit: the chunks themselves were checked before
            self._watch.failed()
            for channel, chunk in items:
                _fail(chunk.future, error)
                self.remove(channel)  # the stream has lost audio, so it cannot continue
            return
        self._watch.succeeded()
        seconds = time.perf_counter() - began
        audio_s = 0.0
        for (channel, chunk), piece, result in zip(items, slices, results, strict=True):
            length_s = piece.shape[1] / channel.stream.sample_rate_hz
            channel.processing_s += seconds
            channel.audio_s += length_s
            audio_s += length_s
            chunk.done += piece.shape[1]
            chunk.results.append(result)
            if chunk.done == chunk.samples.shape[1]:
                self._pop(channel, chunk)
                chunk.finish()
        self._observe(len(items), audio_s)

    def _pop(self, channel: Channel, work: _Chunk | _Action) -> None:
        with self._changed:
            if channel.waiting and channel.waiting[0] is work:  # it may have been removed
                channel.waiting.popleft()


class _Chunk:
    """Audio to compute, and the results for its first samples."""

    def __init__(self, samples: _Samples) -> None:
        self.samples = samples
        self.done = 0
        self.results: list[_Samples] = []
        self.future: Future[_Samples] = Future()

    def finish(self) -> None:
        """Settle the future with all results."""
        try:
            result = np.concatenate(self.results, axis=1)
        except MemoryError as error:
            _fail(self.future, error)
        else:
            _settle(self.future, result)


class _Action:
    """A function to call."""

    def __init__(self, function: Callable[[Stream], object]) -> None:
        self.function = function
        self.future: Future[object] = Future()


def _settle(future: Future[_Samples] | Future[object], result: object) -> None:
    if future.set_running_or_notify_cancel():
        future.set_result(result)  # type: ignore[arg-type]


def _fail(future: Future[_Samples] | Future[object], error: BaseException) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(contained(error))
