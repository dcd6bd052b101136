"""Upstream's code as backends, which benchmarks compare with: it is the same network."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from frcrn_accel import BackendUnavailable
from frcrn_accel.backends import resolve_backend

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "upstream_plugin"))
from frcrn_accel_upstream import TextbookInt8Backend, UpstreamOrtBackend, UpstreamTorchBackend


@pytest.mark.filterwarnings("ignore")  # those of the exporter and the quantizer, about the code that they are given
@pytest.mark.parametrize(
    ("kind", "share_of_peak"), [(UpstreamTorchBackend, 1e-4), (UpstreamOrtBackend, 1e-4), (TextbookInt8Backend, 0.2)]
)
def test_it_gives_what_this_package_gives(kind, share_of_peak, tiny):
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
        UpstreamTorchBackend.check()
