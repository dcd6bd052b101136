"""What engines compile from a model is cached, checked before it is loaded, and changes no bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from frcrn_accel import Backend, Denoiser, ModelFile
from frcrn_accel.backends.openvino import OpenVinoBackend
from frcrn_accel.backends.ort import OrtBackend, cpu_session
from frcrn_accel.cpu import available_cpus, cpu_identity
from frcrn_accel.models import loaded_once
from frcrn_accel.prepare import prepare

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

BACKENDS = [OrtBackend(), OpenVinoBackend("fp32")]
SUFFIXES = {"ort": ".optimized", "openvino": ".compiled"}


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def backend(request) -> Backend:
    return request.param


def denoised(backend: Backend, model: ModelFile) -> np.ndarray:
    session = backend.load(model, 1)
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 16_000)).astype(np.float32)
    try:
        return session.run(audio)
    finally:
        session.close()


def compiled(backend: Backend, empty_cache: Path) -> list[Path]:
    return list(empty_cache.glob(f"*{SUFFIXES[backend.name]}"))


def test_it_is_made_once_and_changes_no_bit(backend, tiny, empty_cache):
    first = denoised(backend, tiny)
    (path,) = compiled(backend, empty_cache)
    made_ns = path.stat().st_mtime_ns
    np.testing.assert_array_equal(denoised(backend, tiny), first)
    assert [path.stat().st_mtime_ns for path in compiled(backend, empty_cache)] == [made_ns]


def test_onnx_runtime_gives_what_it_gives_without_a_cache(tiny, empty_cache):
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 16_000)).astype(np.float32)
    session = cpu_session(str(tiny.path), 1)
    (expected,) = session.run(None, {session.get_inputs()[0].name: audio})
    np.testing.assert_array_equal(denoised(OrtBackend(), tiny), expected)


def test_a_damaged_one_is_made_again(backend, tiny, empty_cache, caplog):
    first = denoised(backend, tiny)
    (path,) = compiled(backend, empty_cache)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    np.testing.assert_array_equal(denoised(backend, tiny), first)
    assert "is damaged and is made again" in caplog.text
    (path,) = compiled(backend, empty_cache)
    assert path.read_bytes() != bytes(content)


def test_a_cache_that_cannot_be_written_only_costs_time(backend, tiny, empty_cache):
    expected = denoised(backend, tiny)
    for path in empty_cache.iterdir():
        path.unlink()
    empty_cache.rmdir()
    empty_cache.write_text("a file where the folder should be")
    np.testing.assert_array_equal(denoised(backend, tiny), expected)


def test_what_is_loaded_once_is_not_kept(backend, tiny, empty_cache):
    with loaded_once():
        first = denoised(backend, tiny)
    assert compiled(backend, empty_cache) == []
    np.testing.assert_array_equal(denoised(backend, tiny), first)
    assert len(compiled(backend, empty_cache)) == 1


def test_the_number_of_threads_is_that_of_the_session(tiny, empty_cache):
    backend = OpenVinoBackend("fp32")
    for threads in (1, min(2, available_cpus()), 1):
        assert f"{threads} thread" in backend.load(tiny, threads).device
    assert len(compiled(backend, empty_cache)) == 1


def test_steps_of_streams_are_cached_too(backend, tiny, empty_cache):
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, 8_000).astype(np.float32)
    found, files = [], []
    for _ in range(2):
        with Denoiser(tiny.path, backend=backend, threads=1) as denoiser:
            found.append(denoiser.stream(16_000).process(audio))
        files.append(sorted(path.name for path in compiled(backend, empty_cache)))
    np.testing.assert_array_equal(found[0], found[1])
    assert files[0] == files[1] != []


def test_bf16_is_another_file(tiny, empty_cache):
    backend = OpenVinoBackend("bf16")
    if OpenVinoBackend.default_precision() != "bf16":
        pytest.skip("this CPU does not compute in bfloat16")
    first = denoised(backend, prepare(tiny, backend))
    np.testing.assert_array_equal(denoised(backend, prepare(tiny, backend)), first)
    denoised(OpenVinoBackend("fp32"), tiny)
    assert len(compiled(backend, empty_cache)) == 2


def test_the_cpu_is_a_part_of_the_name(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("processor: 0\nmodel name: A\nflags: avx2\ncpu MHz: 1\n\nprocessor: 1\nmodel name: A\n")
    other.write_text("processor: 0\nmodel name: A\nflags: avx2 avx512f\ncpu MHz: 2\n")
    assert cpu_identity(one).endswith("model name=A; flags=avx2")
    assert cpu_identity(other).endswith("model name=A; flags=avx2 avx512f")
    assert "model name=" in cpu_identity(tmp_path / "none")
