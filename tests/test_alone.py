"""What one extra brings without the others: `nox -s alone` runs this in an environment for each."""

from __future__ import annotations

import pytest

from frcrn_accel import Backend, BackendUnavailable, Denoiser, backend_statuses
from frcrn_accel.backends import resolve_backend
from frcrn_accel.cli import app
from frcrn_accel.models import DEFAULT_MODEL
from frcrn_accel.testing import BackendConformance

OF_ORT = {"ort", "ort-dynamic-int8", "ort-static-int8"}
# Extra: the backend that is tested, and all that can run on a CPU.
USABLE = {
    "none": (None, set()),
    "ort": ("ort", OF_ORT),
    "export": ("torch", {"torch", *OF_ORT}),
    "openvino": ("openvino", {"openvino"}),
    "tensorrt-rtx": (None, set()),
}
EXTRA_OF = {"ort-cuda": "cuda", "torch": "export", "ort-dynamic-int8": "ort", "ort-static-int8": "ort"}


@pytest.fixture(scope="session")
def extra(request) -> str:
    return request.config.getoption("alone")


class TestBackend(BackendConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def instance(cls, extra) -> Backend:
        name, _ = USABLE[extra]
        return resolve_backend(name) if name else pytest.skip(f"[{extra}] brings no backend that runs on a CPU")


def test_nothing_else_is_usable_and_says_what_to_install(extra):
    _, usable = USABLE[extra]
    for status in backend_statuses():
        if status.name in usable:
            assert status.usable
        elif status.name != extra:
            assert not status.usable
            assert f"pip install 'frcrn-accel[{EXTRA_OF.get(status.name, status.name)}]'" in status.problem.remedy


def test_auto_takes_what_is_there(extra):
    _, usable = USABLE[extra]
    if usable:
        with Denoiser() as denoiser:
            assert denoiser.backend in usable
    elif not any(status.usable for status in backend_statuses()):
        with pytest.raises(BackendUnavailable, match=r"no backend can run.*pip install 'frcrn-accel\[ort\]'"):
            Denoiser()


def test_a_plan_is_built_without_a_card(extra, tmp_path):
    if extra != "tensorrt-rtx":
        pytest.skip("only TensorRT for RTX builds plans without a card")
    plan = tmp_path / "small.plan"
    options = ["--precision", "fp16", "--window-s", "0.4", "--compute-capability", "8.9"]
    app(["build-engine", DEFAULT_MODEL, str(plan), *options], standalone_mode=False)
    assert plan.stat().st_size > 1_000_000
