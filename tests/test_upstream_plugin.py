"""Upstream's code as backends, the baselines of benchmarks: it is the same network."""

from __future__ import annotations

import numpy as np
import pytest

from frcrn_accel import BackendUnavailable
from frcrn_accel.backends import resolve_backend

plugin = pytest.importorskip("frcrn_accel_upstream", reason="benchmarks/upstream_plugin is not installed")


@pytest.mark.filterwarnings("ignore")  # of the exporter and the quantizer, about upstream's code
@pytest.mark.parametrize(
    ("name", "share_of_peak"),
    [("UpstreamTorchBackend", 1e-4), ("UpstreamOrtBackend", 1e-4), ("TextbookInt8Backend", 0.2)],
)
def test_it_gives_what_this_package_gives(name, share_of_peak, tiny):
    kind = getattr(plugin, name)
    try:
        kind.check()
    except BackendUnavailable as error:
        pytest.skip(str(error))
    audio = (0.05 * np.random.default_rng(0).standard_normal((2, 16_000))).astype(np.float32)
    expected = resolve_backend("ort").load(tiny, 1).run(audio)
    found = kind().load(tiny, 1).run(audio)
    assert found.shape == audio.shape
    assert np.abs(found - expected).max() <= share_of_peak * np.abs(expected).max()


def test_it_says_what_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"no module clearvoice, .*; run it with 'nox -s speed'"):
        plugin.UpstreamTorchBackend.check()


def test_the_plugin_of_version_0_1_0_finds_what_it_imports():
    from frcrn_accel.export import read_weights as read_weights_of_0_1_0
    from frcrn_accel.models import cached_file, read_weights

    assert read_weights_of_0_1_0 is read_weights
    assert callable(cached_file)
