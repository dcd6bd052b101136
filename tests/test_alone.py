"""Check what each extra provides without the others: `nox -s alone` runs this in an environment for each."""

from __future__ import annotations

import pytest

from frcrn_accel import Backend, BackendUnavailable, Denoiser, backend_statuses
from frcrn_accel.backends import resolve_backend
from frcrn_accel.cli import app
from frcrn_accel.models import DEFAULT_MODEL
from frcrn_accel.testing import BackendConformance

OF_ORT = {"ort", "ort-dynamic-int8", "ort-static-int8"}
# Extra: the backends that it brings, and all that can then run on a CPU.
BACKENDS = {
    "none": (set(), set()),
    "ort": (OF_ORT, OF_ORT),
    "export": ({"torch"}, {"torch", *OF_ORT}),
    "openvino": ({"openvino"}, {"openvino"}),
    "tensorrt-rtx": (set(), set()),
}
EXTRA_OF = {"ort-cuda": "cuda", "torch": "export", "ort-dynamic-int8": "ort", "ort-static-int8": "ort"}


@pytest.fixture(scope="session")
def extra(request) -> str:
    return request.config.getoption("alone")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        brought, _ = BACKENDS[metafunc.config.getoption("alone")]
        metafunc.parametrize("name", sorted(brought), scope="class")


class TestBackends(BackendConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def instance(cls, name) -> Backend:
        return resolve_backend(name)


def test_nothing_else_is_usable_and_says_what_to_install(extra):
    _, usable = BACKENDS[extra]
    for status in backend_statuses():
        if status.name in usable:
            assert status.usable
        elif status.name != extra:
            assert not status.usable
            assert f"pip install 'frcrn-accel[{EXTRA_OF.get(status.name, status.name)}]'" in status.problem.remedy


def test_auto_takes_what_is_there(extra):
    _, usable = BACKENDS[extra]
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
    options = ["--precision", "fp16", "--window-s", "1", "--compute-capability", "8.9"]
    app(["build-engine", DEFAULT_MODEL, str(plan), *options], standalone_mode=False)
    assert plan.stat().st_size > 1_000_000
