"""One thread that computes all live streams, many in one call of the engine."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.streaming import Stream, process_streams

__all__ = ["Channel", "Stepper"]

_SLICE_S = 0.1
_Samples = NDArray[np.int16]


class Channel:
    """A stream in a stepper. What is asked of it is done in order.

    Attributes:
        stream: The stream.
        processing_s: Time of the calls of the engine that it was in.
        audio_s: Audio that it has taken in.
    """

    def __init__(self, stepper: Stepper, stream: Stream) -> None:
        self._stepper = stepper
        self.stream = stream
        self.processing_s = 0.0
        self.audio_s = 0.0
        self.waiting: deque[_Chunk | _Action] = deque()

    def process(self, samples: _Samples) -> Future[_Samples]:
        """`Stream.process`: `int16 (channels, samples)`."""
        chunk = _Chunk(samples)
        self._stepper.put(self, chunk)
        return chunk.future

    def call(self, function: Callable[[Stream], object]) -> Future[object]:
        """Have something else done with the stream, between chunks."""
        action = _Action(function)
        self._stepper.put(self, action)
        return action.future

    def close(self) -> None:
        """Forget what waits."""
        self._stepper.remove(self)


class Stepper:
    """The thread.

    In each round it takes a little audio, 0.1 s at most, of every stream that has some waiting: a stream that sends
    more at a time does not hold up the others.

    Args:
        observe: Called with the number of streams of each call, and the seconds of audio of all of them.
    """

    def __init__(self, observe: Callable[[int, float], None] = lambda streams, audio_s: None) -> None:
        self._observe = observe
        self._channels: dict[object, list[Channel]] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="frcrn-accel-streams", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Streams that something waits for."""
        with self._changed:
            return sum(len(group) for group in self._ready())

    def add(self, stream: Stream, group: object) -> Channel:
        """Take in a stream.

        Args:
            stream: Nobody else uses it from now on.
            group: Equal for streams of one denoiser and one look-ahead, which can be in one call.
        """
        channel = Channel(self, stream)
        with self._changed:
            self._channels.setdefault(group, []).append(channel)
        return channel

    def put(self, channel: Channel, work: _Chunk | _Action) -> None:
        """Add to what a channel waits for."""
        with self._changed:
            channel.waiting.append(work)
            self._changed.notify()

    def remove(self, channel: Channel) -> None:
        """Take out a stream; its work is dropped."""
        with self._changed:
            for channels in self._channels.values():
                if channel in channels:
                    channels.remove(channel)
            for work in channel.waiting:
                work.future.cancel()
            channel.waiting.clear()

    def close(self) -> None:
        """End the thread, after the round it is in."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or self._ready())
                if self._is_closed:
                    return
                ready = self._ready()
            for round_ in ready:
                actions = [(channel, work) for channel, work in round_ if isinstance(work, _Action)]
                for channel, action in actions:
                    self._act(channel, action)
                chunks = [(channel, work) for channel, work in round_ if isinstance(work, _Chunk)]
                if chunks:
                    self._step(chunks)

    def _ready(self) -> list[list[tuple[Channel, _Chunk | _Action]]]:
        """What is first in line of each stream, by group."""
        groups = [
            [(channel, channel.waiting[0]) for channel in channels if channel.waiting]
            for channels in self._channels.values()
        ]
        return [group for group in groups if group]

    def _act(self, channel: Channel, action: _Action) -> None:
        try:
            _settle(action.future, action.function(channel.stream))
        except Exception as error:
            _fail(action.future, error)
        self._pop(channel, action)

    def _step(self, items: Sequence[tuple[Channel, _Chunk]]) -> None:
        slices = []
        for channel, chunk in items:
            stop = chunk.done + max(1, round(_SLICE_S * channel.stream.sample_rate_hz))
            slices.append(chunk.samples[:, chunk.done : stop])
        began = time.perf_counter()
        try:
            results = process_streams([channel.stream for channel, _ in items], slices)
        except Exception as error:  # of the engine: the chunks were looked at when they came in
            for channel, chunk in items:
                _fail(chunk.future, error)
                self.remove(channel)  # the stream has lost audio: what follows is of no use
            return
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
                _settle(chunk.future, np.concatenate(chunk.results, axis=1))
        self._observe(len(items), audio_s)

    def _pop(self, channel: Channel, work: _Chunk | _Action) -> None:
        with self._changed:
            if channel.waiting and channel.waiting[0] is work:  # it may have been removed
                channel.waiting.popleft()


class _Chunk:
    """Audio that waits, and what has become of the first of it."""

    def __init__(self, samples: _Samples) -> None:
        self.samples = samples
        self.done = 0
        self.results: list[_Samples] = []
        self.future: Future[_Samples] = Future()


class _Action:
    """Something else that waits."""

    def __init__(self, function: Callable[[Stream], object]) -> None:
        self.function = function
        self.future: Future[object] = Future()


def _settle(future: Future[_Samples] | Future[object], result: object) -> None:
    if future.set_running_or_notify_cancel():
        future.set_result(result)  # type: ignore[arg-type]


def _fail(future: Future[_Samples] | Future[object], error: Exception) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(error)
