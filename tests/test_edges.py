"""Streams and denoisers at their edges: forms of audio, closing, pickling, changes while they run."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delaying import DelayingBackend
from frcrn_accel import AudioError, Denoiser


@pytest.fixture(scope="module")
def delay() -> Iterator[Denoiser]:
    with Denoiser(backend=DelayingBackend()) as denoiser:
        yield denoiser


def signal(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    audio = 0.1 * np.random.default_rng(0).standard_normal(shape)
    kind = np.dtype(dtype)
    return (audio * np.iinfo(kind).max).astype(kind) if kind.kind == "i" else audio.astype(kind)


class TestFlush:
    @given(
        dtype=st.sampled_from(["f4", "f8", "i2", "i4", ">i2", ">f4"]),
        channels=st.sampled_from([None, 1, 2]),
        rate=st.sampled_from([8_000, 16_000, 44_100]),
        sizes=st.lists(st.integers(0, 900), min_size=1, max_size=4),
    )
    def test_it_joins_what_process_gave(
        self, delay: Denoiser, dtype: str, channels: int | None, rate: int, sizes: list[int]
    ) -> None:
        audio = signal((*([] if channels is None else [channels]), sum(sizes)), dtype)
        stream = delay.stream(rate, channels=channels or 1)
        chunks = np.split(audio, np.cumsum(sizes)[:-1], axis=-1)
        whole = np.concatenate([*map(stream.process, chunks), stream.flush()], axis=-1)
        assert whole.dtype == audio.dtype.newbyteorder("=")
        assert whole.shape == (*audio.shape[:-1], audio.shape[-1] + stream.latency_samples)
        if rate == 16_000:
            exact = 1 if audio.dtype.kind == "i" else 1e-6
            error = whole[..., stream.latency_samples :].astype(float) - audio
            assert np.abs(error).max(initial=0) <= (300 if dtype == "i4" else exact)

    def test_bytes(self, delay: Denoiser) -> None:
        pcm = signal((2_000, 2), "i2")
        stream = delay.stream(16_000, channels=2)
        whole = b"".join([stream.process(pcm.tobytes()), stream.flush()])
        found = np.frombuffer(whole, np.int16).reshape(-1, 2)[stream.latency_samples :]
        assert np.abs(found.astype(int) - pcm).max() <= 1

    def test_a_tensor(self, delay: Denoiser) -> None:
        torch = pytest.importorskip("torch")
        stream = delay.stream(16_000)
        whole = torch.cat([stream.process(torch.zeros(700, dtype=torch.int16)), stream.flush()])
        assert whole.dtype == torch.int16
        assert whole.shape == (700 + stream.latency_samples,)

    def test_the_form_is_that_of_the_last_good_chunk_of_this_signal(self, delay: Denoiser) -> None:
        stream = delay.stream(16_000)
        stream.process(np.zeros(10, np.float64))
        stream.process(np.zeros(10, np.int16))
        with pytest.raises(AudioError, match="NaN"):
            stream.process(np.full((1, 10), np.nan))
        rest = stream.flush()
        assert (rest.dtype, rest.ndim) == (np.int16, 1)
        stream.reset()
        rest = stream.flush()
        assert (rest.dtype, rest.shape) == (np.float32, (1, stream.latency_samples))
