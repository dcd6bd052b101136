import numpy as np
from frcrn_accel_spectral_gate import SpectralGateBackend

from frcrn_accel import Denoiser, backend_statuses
from frcrn_accel.testing import BackendConformance


class TestSpectralGate(BackendConformance):
    backend = SpectralGateBackend
    reads_models = False


def test_it_is_found_by_its_name():
    assert {status.name: status.usable for status in backend_statuses()}["spectral-gate"]
    noise = (0.1 * np.random.default_rng(0).standard_normal(16_000)).astype(np.float32)
    with Denoiser(backend="spectral-gate") as denoiser:
        quieter = denoiser(noise, 16_000)
    # 12 dB less in the bins below the gate, so clearly less power overall.
    assert np.mean(quieter**2) < 0.5 * np.mean(noise**2)


def test_options_go_through_an_instance():
    noise = (0.1 * np.random.default_rng(0).standard_normal(16_000)).astype(np.float32)
    outputs = [Denoiser(backend=SpectralGateBackend(reduction_db))(noise, 16_000) for reduction_db in (0.0, 30.0)]
    np.testing.assert_allclose(outputs[0], noise, atol=1e-4)
    assert np.mean(outputs[1] ** 2) < np.mean(outputs[0] ** 2)
