"""Which file a backend gets for a model, and what is reported while one is made."""

from __future__ import annotations

import dataclasses
import sys
from typing import ClassVar

import numpy as np
import pytest

from frcrn_accel import BackendUnavailable, Denoiser, ModelError, ModelFile
from frcrn_accel.models import (
    DEFAULT_MODEL,
    LIVE_MODEL,
    STEP,
    Form,
    Recipe,
    find_model,
    packaged_variant,
    usual_lookahead,
)
from frcrn_accel.prepare import prepare, prepare_step
from frcrn_accel.testing import FunctionBackend


class Asking(FunctionBackend):
    """Loads nothing, and asks for the recipe that it is given."""

    methods: ClassVar[frozenset[str]] = frozenset({"fp32", "dynamic"})

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.wanted = recipe

    def recipe(self, model: ModelFile) -> Recipe:
        return self.wanted

    def step_recipe(self, model: ModelFile, lookahead_frames: int) -> Recipe:
        return dataclasses.replace(self.wanted, lookahead_frames=lookahead_frames)


pytestmark = pytest.mark.usefixtures("empty_cache")


def test_a_backend_without_a_recipe_gets_the_model_as_it_is(empty_cache):
    model = find_model(DEFAULT_MODEL)
    assert prepare(model, FunctionBackend()) is model
    assert prepare_step(model, FunctionBackend(), 1, 7) is model
    quantized = packaged_variant(model, "dynamic")
    assert prepare(quantized, FunctionBackend()) is quantized
    assert not empty_cache.exists()


@pytest.mark.parametrize("form", ["direct", "plain", "half"])
def test_a_form_is_written_once_with_progress(tiny, empty_cache, form: Form):
    reported: list[tuple[str, int, int]] = []
    backend = Asking(Recipe(form=form))
    made = prepare(tiny, backend, lambda *step: reported.append(step))
    assert reported == [("write the graph", 0, 1), ("write the graph", 1, 1)]
    assert made.metadata == dataclasses.replace(tiny.metadata, form=form)
    assert list(empty_cache.iterdir()) == [made.path]
    assert prepare(tiny, backend, lambda *step: reported.append(step)) == made
    assert len(reported) == 2


def test_a_packaged_variant_is_taken_before_any_other(empty_cache):
    model = find_model(DEFAULT_MODEL)
    assert prepare(model, Asking(Recipe(method="dynamic"))) == packaged_variant(model, "dynamic")
    assert not empty_cache.exists()


def test_a_model_of_another_method_is_refused():
    quantized = packaged_variant(find_model(DEFAULT_MODEL), "static")
    with pytest.raises(ModelError, match=r"method 'static', and backend 'function' runs 'dynamic'"):
        prepare(quantized, Asking(Recipe(method="dynamic")))


@pytest.mark.parametrize("name", [DEFAULT_MODEL, LIVE_MODEL])
def test_the_packaged_step_is_for_the_usual_lookahead(empty_cache, name):
    model = find_model(name)
    backend = Asking(Recipe(form="step"))
    step = prepare_step(model, backend, 1, usual_lookahead(model))
    assert step == packaged_variant(model, STEP)
    assert step.metadata.is_step
    assert not empty_cache.exists()


def test_a_step_of_another_lookahead_is_made_with_progress(tiny, empty_cache):
    ort = pytest.importorskip("frcrn_accel.backends.ort")
    pytest.importorskip("onnxruntime")
    reported: list[tuple[str, int, int]] = []
    step = prepare_step(tiny, ort.OrtBackend(), 1, 3, lambda *values: reported.append(values))
    assert reported == [("prepare streams", 0, 1), ("prepare streams", 1, 1)]
    assert (step.metadata.is_step, step.metadata.form) == (True, "step")
    assert len(step.metadata.start_means) > 0
    assert prepare_step(tiny, ort.OrtBackend(), 1, 3) == step
    assert list(empty_cache.glob("*.onnx")) == [step.path]


def test_a_step_is_not_a_model(tiny):
    step = packaged_variant(find_model(DEFAULT_MODEL), STEP)
    with pytest.raises(ModelError, match=r"is a step of a stream, not a model: give the file that it was made from"):
        find_model(step.path)


def test_a_step_of_a_quantized_file_needs_the_original_weights():
    quantized = packaged_variant(find_model(DEFAULT_MODEL), "dynamic")
    with pytest.raises(ModelError, match=r"is quantized, and a stream's graph is made of the original weights"):
        prepare_step(quantized, Asking(Recipe(method="dynamic")), 1, 7)


def test_a_missing_package_is_the_backends_own_error(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "frcrn_accel.graph.forms", None)
    with pytest.raises(
        BackendUnavailable, match="it runs another form of the graph, and packages are missing"
    ) as found:
        prepare(tiny, Asking(Recipe(form="plain")))
    assert found.value.remedy == "pip install 'frcrn-accel[quantize]'"


def test_a_denoiser_reports_what_is_prepared(tiny):
    reported: list[tuple[str, int, int]] = []
    with Denoiser(
        tiny.path, backend=Asking(Recipe(form="plain")), progress=lambda *s: reported.append(s)
    ) as denoiser:
        audio = np.zeros(16_000, np.float32)
        np.testing.assert_array_equal(denoiser(audio, 16_000), audio)
    assert reported == [("write the graph", 0, 1), ("write the graph", 1, 1)]
