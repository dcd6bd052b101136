from __future__ import annotations

import dataclasses
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile

from frcrn_accel import AudioError, BackendUnavailable, EngineError, QuantizeError
from frcrn_accel.backends.ort import OrtBackend
from frcrn_accel.models import DEFAULT_MODEL, ModelFile, find_model, packaged_variant, read_weights
from frcrn_accel.quality import Dnsmos
from frcrn_accel.quality.clips import read_clips
from frcrn_accel.quantize import CALIBRATION_AUDIO, GATE_AUDIO, GateThresholds, Source, quantize_model
from frcrn_accel.quantize.gate import compare
from frcrn_accel.quantize.parallel import map_parallel, plan_threads, workers
from frcrn_accel.quantize.recordings import digest_of, model_inputs
from frcrn_accel.quantize.reference import DNSMOS, Reference
from frcrn_accel.quantize.sensitivity import Sensitivity
from frcrn_accel.testing import FunctionBackend

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
from frcrn_accel.graph.forms import build_graph


@pytest.fixture(scope="module")
def packaged_source() -> Source:
    """The packaged model, whose outputs and scores on the gate audio are computed once."""
    return Source(find_model(DEFAULT_MODEL))


class Identity(FunctionBackend):
    """A "quantized model" that does not denoise."""


class NotANumber(FunctionBackend):
    def __init__(self) -> None:
        super().__init__(lambda audio: audio * np.float32(np.nan))


class Silent(FunctionBackend):
    def __init__(self) -> None:
        super().__init__(np.zeros_like)


class Unavailable(FunctionBackend):
    @classmethod
    def check(cls) -> None:
        raise BackendUnavailable("none", "it is not there", "get it")


def quiet(what: str, done: int, total: int) -> None:
    pass


def run(model, backend, folder, thresholds=None, progress=quiet):
    reference = Reference(model, read_clips(folder, 16_000))
    with workers(reference.threads.clips) as pool:
        return compare(reference, model, backend, thresholds or GateThresholds(), pool, progress)


class TestCompare:
    @pytest.mark.usefixtures("no_eval")
    def test_a_model_equals_itself(self, tiny, short_audio):
        steps = []
        report = run(tiny, OrtBackend, short_audio, progress=lambda *step: steps.append(step))
        assert report.passed
        assert [clip.si_sdr_db for clip in report.clips] == [120, 120]
        assert [(clip.name, clip.duration_s) for clip in report.clips] == [("a.wav", 2), ("b.flac", 2)]
        assert report.source_device == report.candidate_device
        assert report.source_device.startswith("ort: CPUExecutionProvider, ")
        assert 0 < report.source_real_time_factor < 10
        assert report.speedup > 0
        assert [step for step in steps if step[0] == "gate"] == [("gate", 0, 2), ("gate", 1, 2), ("gate", 2, 2)]
        assert not [step for step in steps if step[0] == "score"]  # neither metric can be had

    @pytest.mark.usefixtures("no_eval")
    def test_metrics_that_are_not_installed_are_noted_and_do_not_count(self, tiny, short_audio):
        report = run(tiny, OrtBackend, GATE_AUDIO)
        agreement, *others = report.measures
        assert agreement.passed
        extras = (("PESQ-WB", "pesq"), ("DNSMOS OVRL", "eval"))
        for measure, (name, extra) in zip(others, extras, strict=True):
            assert (measure.metric, measure.value, measure.passed, measure.clips) == (name, None, None, 0)
            assert f"pip install 'frcrn-accel[{extra}]'" in measure.note
        assert report.passed

    @pytest.mark.usefixtures("no_eval")
    def test_too_far_from_the_source(self, tiny, short_audio):
        report = run(tiny, Identity, short_audio)
        assert not report.passed
        (agreement, *_) = report.measures
        assert agreement.value == pytest.approx(np.mean([clip.si_sdr_db for clip in report.clips]))
        assert agreement.value < 15
        assert agreement.passed is False
        assert report.candidate_device == "function: numpy"
        generous = GateThresholds(min_si_sdr_db=agreement.value - 0.1)
        assert run(tiny, Identity, short_audio, generous).passed

    @pytest.mark.usefixtures("no_eval")
    @pytest.mark.parametrize("backend", [NotANumber, Silent])
    def test_a_model_that_gives_no_audio_fails(self, tiny, short_audio, backend):
        report = run(tiny, backend, short_audio, GateThresholds(min_si_sdr_db=-100))
        assert not report.passed
        assert report.measures[0].value == -120
        if backend is NotANumber:
            assert report.measures[0].note == "on a.wav: the engine returned NaN or infinity for finite audio"
            assert (report.clips, report.speedup) == ((), None)

    @pytest.mark.usefixtures("no_eval")
    def test_clips_before_the_one_that_fails_are_reported(self, tiny, short_audio):
        _, second = model_inputs(read_clips(short_audio, 16_000), tiny.metadata)

        def fails_on_the_second(audio):
            return audio * np.float32(np.nan) if np.array_equal(audio, second) else audio

        report = run(tiny, lambda: FunctionBackend(fails_on_the_second), short_audio)
        whole = run(tiny, Identity, short_audio)
        assert [(clip.name, clip.si_sdr_db) for clip in report.clips] == [("a.wav", whole.clips[0].si_sdr_db)]
        assert report.measures[0].note == "on b.flac: the engine returned NaN or infinity for finite audio"
        assert report.measures[0].value == -120

    @pytest.mark.usefixtures("no_eval")
    def test_a_clip_at_a_time_or_several_give_the_same(self, tiny, short_audio, monkeypatch):
        found = []
        for cpus in (1, 3):
            monkeypatch.setattr("frcrn_accel.quantize.parallel.available_cpus", lambda cpus=cpus: cpus)
            found.append([clip.si_sdr_db for clip in run(tiny, Identity, short_audio).clips])
        assert found[0] == found[1]

    @pytest.mark.usefixtures("no_eval")
    def test_a_model_is_not_loaded_beside_timed_runs_on_all_cpus(self, tiny, short_audio, monkeypatch):
        monkeypatch.setattr("frcrn_accel.quantize.parallel.available_cpus", lambda: 1)
        reference = Reference(tiny, read_clips(short_audio, 16_000))
        free = []

        class Loaded(FunctionBackend):
            def load(self, model, threads):
                free.append(reference.places.acquire(blocking=False))
                return super().load(model, threads)

        with workers(reference.threads.clips) as pool:
            report = compare(reference, tiny, Loaded, GateThresholds(), pool, quiet)
        assert free == [False]
        assert report.speedup > 0

    def test_pesq_and_dnsmos_against_the_source(self, packaged_source):
        """The packaged model and one that does nothing, on the packaged audio."""
        pytest.importorskip("pesq")
        pytest.importorskip("speechmos")
        reference = packaged_source.reference(GATE_AUDIO)
        with workers(reference.threads.clips) as pool:
            report = compare(reference, packaged_source.model, Identity, GateThresholds(), pool, quiet)
        _, pesq, dnsmos = report.measures
        for measure, drop in ((pesq, -20), (dnsmos, -0.1)):
            assert measure.passed is False
            assert measure.clips == 8
            assert measure.value < drop
            assert measure.candidate < measure.source
        assert pesq.value == pytest.approx(100 * (pesq.candidate / pesq.source - 1))
        assert dnsmos.value == pytest.approx(dnsmos.candidate - dnsmos.source)
        assert pesq.source == pytest.approx(np.mean([clip.pesq_source for clip in report.clips]))

    def test_a_refused_model_is_not_scored_but_the_source_is(self, tiny, short_audio, monkeypatch):
        rated = []

        def dnsmos(audio):
            rated.append(audio)
            return Dnsmos(1, 2, 3)

        monkeypatch.setattr("frcrn_accel.quantize.reference.dnsmos", dnsmos)
        reference = Reference(tiny, read_clips(short_audio, 16_000))
        with ThreadPoolExecutor(1) as pool:  # waits for what was begun
            report = compare(reference, tiny, Identity, GateThresholds(), pool, quiet, complete=False)
        assert [measure.passed for measure in report.measures] == [False, None, None]
        outputs = [reference.output(number)[0] for number in range(2)]
        assert len(rated) >= 2
        assert all(found is output for found, output in zip(rated, outputs, strict=False))
        rated.clear()
        assert [reference.score(DNSMOS, number) for number in range(2)] == [3, 3]
        assert rated == []

    @pytest.mark.usefixtures("no_eval")
    def test_a_candidate_that_does_not_improve_enough_is_refused_on_a_part(self, tiny, short_audio):
        clips = [
            dataclasses.replace(clip, name=f"{part}-{clip.name}", noisy=np.tile(clip.noisy, 2), duration_s=4.0)
            for part in range(2)
            for clip in read_clips(short_audio, 16_000)
        ]
        reference = Reference(tiny, clips)

        def compared(backend, least_db, first=None):
            limits = GateThresholds(min_si_sdr_db=least_db)
            with workers(reference.threads.clips) as pool:
                return compare(reference, tiny, backend, limits, pool, quiet, complete=False, first=first)

        first = compared(Identity, 60)
        reached_db = first.measures[0].value
        assert [clip.name for clip in first.clips] == [clip.name for clip in clips]
        refused = compared(Identity, 60, first)
        assert [clip.name for clip in refused.clips] == [clips[0].name, clips[2].name]
        assert (refused.passed, refused.measures[0].clips) == (False, 2)
        assert refused.clips[1].si_sdr_db == pytest.approx(first.clips[2].si_sdr_db, abs=1e-4)
        # Near the limit, above it, or with nothing to go by, the mean of all clips decides.
        for report in (
            compared(Identity, reached_db + 1, first),
            compared(Identity, reached_db - 1, first),
            compared(Identity, 60, compared(NotANumber, 60)),
            compared(OrtBackend, 60, first),
        ):
            assert [clip.name for clip in report.clips] == [clip.name for clip in clips]
            assert report.measures[0].clips == 4
        broken = compared(NotANumber, 60, first)
        assert (broken.passed, broken.clips) == (False, ())

    def test_pesq_wants_clean_speech(self, tiny, short_audio, monkeypatch):
        monkeypatch.setitem(sys.modules, "speechmos", None)
        assert run(tiny, OrtBackend, short_audio).measures[1].note == "no clip with clean speech"

    def test_an_engine_that_is_not_there(self, tiny, short_audio):
        with pytest.raises(BackendUnavailable, match="it is not there"):
            run(tiny, Unavailable, short_audio)


class Noisy(OrtBackend):
    """Adds the noise of each group that is quantized; the name of a model has their levels."""

    def load(self, model, threads):
        session = super().load(model, threads)
        run, levels = session.run, [float(level) for level in model.metadata.name.split()]

        def noisy(audio):
            out = run(audio)
            noise = sum(
                level * np.random.default_rng(seed).standard_normal(out.shape) for seed, level in enumerate(levels)
            )
            return out + (np.std(out) * noise).astype(np.float32)

        session.run = noisy
        return session


def reference_output(tiny, folder):
    """Return the source's output for the first clip of a folder."""
    (audio, *_) = model_inputs(read_clips(folder, 16_000)[:1], tiny.metadata)
    return OrtBackend().load(tiny, 1).run(audio)


class TestSensitivity:
    def of(self, tiny, short_audio, levels, backend=Noisy, always=()):
        """Measure a model whose groups have errors of these levels; also return the sets that were measured."""
        measured = []

        def build_only(groups):
            measured.append(tuple(groups))
            names = [str(level if group in (*groups, *always) else 0) for group, level in levels.items()]
            return dataclasses.replace(tiny, metadata=dataclasses.replace(tiny.metadata, name=" ".join(names)))

        reference = Reference(tiny, read_clips(short_audio, 16_000)[:1])
        return Sensitivity(reference, build_only, backend, quiet), measured

    def test_the_group_that_costs_most_comes_first(self, tiny, short_audio):
        levels = {"a": 0.01, "b": 0.1, "c": 0.001}
        sensitivity, _ = self.of(tiny, short_audio, levels)
        costs = sensitivity.all(list(levels))
        assert [cost.group for cost in costs] == ["b", "a", "c"]
        assert [cost.si_sdr_db for cost in costs] == pytest.approx([20, 40, 60], abs=1)
        assert list(sensitivity.worst(list(levels), 20)) == list(costs)

    def test_the_worst_are_found_by_halves(self, tiny, short_audio):
        levels = {f"g{i}": 0.001 for i in range(8)} | {"g5": 0.1, "g2": 0.03}
        sensitivity, measured = self.of(tiny, short_audio, levels)
        worst = sensitivity.worst(list(levels), 19)
        assert next(worst).group == "g5"
        assert measured == [(), ("g0", "g1", "g2", "g3"), ("g4", "g5"), ("g4",), ("g5",)]
        assert next(worst).group == "g2"
        assert len(measured) == 8
        assert len(list(worst)) == 6

    @pytest.mark.parametrize("seed", range(3))
    def test_the_worst_of_many_in_their_order(self, tiny, short_audio, seed):
        rng = np.random.default_rng(seed)
        levels = {f"g{i}": float(level) for i, level in enumerate(0.01 * rng.lognormal(0, 1, 48))}
        known = reference_output(tiny, short_audio)
        noises = rng.standard_normal((48, *known.shape))

        class Added(FunctionBackend):
            """Gives the source's output with the noise of each group that is quantized."""

            def load(self, model, threads):
                added = np.array([float(level) for level in model.metadata.name.split()])
                out = known + np.std(known) * np.tensordot(added, noises, 1).astype(np.float32)
                return FunctionBackend(lambda audio: out).load(model, threads)

        sensitivity, measured = self.of(tiny, short_audio, levels, Added)
        whole_db = -10 * np.log10(sum(level**2 for level in levels.values()))
        worst = sensitivity.worst(list(levels), whole_db)
        expected = sorted(levels, key=levels.__getitem__, reverse=True)
        for group in expected[:4]:  # among those that hardly differ, any may be first
            assert levels[next(worst).group] >= 0.9 * levels[group]
        assert len(measured) == len(set(measured)) <= 36
        assert len(list(worst)) == 44

    def test_the_second_half_is_measured_where_errors_do_not_add_up(self, tiny, short_audio):
        """The whole has hardly more error than its first half, as if errors cancelled out."""
        levels = {"a": 0.1, "b": 0.001, "c": 0.09, "d": 0.001}
        sensitivity, measured = self.of(tiny, short_audio, levels)
        worst = sensitivity.worst(list(levels), 20)
        assert [next(worst).group, next(worst).group] == ["a", "c"]
        assert ("c", "d") in measured

    def test_an_error_that_is_always_there(self, tiny, short_audio):
        """Layers that are in no group have half of the error."""
        levels = {"a": 0.001, "b": 0.002, "c": 0.003, "d": 0.03}
        sensitivity, measured = self.of(tiny, short_audio, {"other": 0.03} | levels, always=("other",))
        whole_db = -10 * np.log10(0.03**2 + sum(level**2 for level in levels.values()))
        assert next(sensitivity.worst(list(levels), whole_db)).group == "d"
        assert len(measured) <= 5

    def test_no_groups(self, tiny, short_audio):
        sensitivity, measured = self.of(tiny, short_audio, {})
        assert list(sensitivity.worst([], 30)) == measured == []

    def test_a_group_that_breaks_it_costs_most(self, tiny, short_audio):
        sensitivity, _ = self.of(tiny, short_audio, {"x": 0}, NotANumber)
        (cost,) = sensitivity.all(["x"])
        assert cost.si_sdr_db == -120


class TestParallel:
    @pytest.mark.parametrize(
        ("samples", "cpus", "plan"),
        [
            ([64_000] * 8, 2, (2, 1)),
            ([64_000] * 8, 8, (5, 1)),  # 20 s at once
            ([64_000], 4, (1, 4)),
            ([960_000, 64_000], 2, (1, 2)),
            ([], 2, (1, 2)),
        ],
    )
    def test_as_many_at_once_as_fit(self, samples, cpus, plan):
        assert plan_threads(samples, cpus) == plan

    def test_what_has_not_begun_is_dropped_at_the_end(self):
        begun, go_on = threading.Event(), threading.Event()

        def work():
            begun.set()
            go_on.wait(10)

        with workers(1) as pool:
            first, second = pool.submit(work), pool.submit(work)
            second.add_done_callback(lambda future: go_on.set())
            begun.wait(10)
        assert first.done()
        assert second.cancelled()

    def test_results_are_in_order(self):
        reported = []
        with workers(3) as pool:
            assert map_parallel(lambda x: x * x, range(20), pool, reported.append) == [x * x for x in range(20)]
        assert reported == list(range(1, 21))


class TestThresholds:
    @pytest.mark.parametrize(
        "wrong", [{"max_pesq_drop_percent": -1}, {"max_dnsmos_drop": float("nan")}, {"min_si_sdr_db": -120}]
    )
    def test_nonsense_is_refused(self, wrong):
        with pytest.raises(QuantizeError, match="drops must be 0 or more"):
            GateThresholds(**wrong)


class TestClips:
    def test_the_packaged_sets(self):
        gate, calibration = read_clips(GATE_AUDIO, 16_000), read_clips(CALIBRATION_AUDIO, 16_000)
        assert len(gate) == len(calibration) == 8
        for clip in gate:
            assert clip.duration_s == 4
            assert clip.clean.shape == clip.noisy.shape == (64_000,)
            assert 0.01 < np.std(clip.clean) < np.std(clip.noisy) < 0.1
        assert all(clip.clean is None and len(clip.noisy) == 64_000 for clip in calibration)
        size = sum(path.stat().st_size for path in GATE_AUDIO.parent.rglob("*.opus"))
        assert size < 400_000
        credits = (GATE_AUDIO.parent / "CREDITS.md").read_text()
        sentences = [line.split("|")[5].split("/") for line in credits.splitlines() if ".opus` |" in line]
        used = [sentence.strip() for row in sentences for sentence in row]
        assert len(sentences) == 16
        assert len(used) == len(set(used))

    def test_channels_and_rates(self, tmp_path, noisy):
        stereo = np.stack([noisy[:44_100], noisy[44_100:88_200]], axis=1)
        (tmp_path / "deep").mkdir()
        soundfile.write(tmp_path / "deep" / "x.wav", stereo, 44_100)
        (tmp_path / "notes.txt").write_text("no audio")
        left, right = read_clips(tmp_path, 16_000)
        assert [left.name, right.name] == ["deep/x.wav channel 0", "deep/x.wav channel 1"]
        assert left.duration_s == pytest.approx(1, abs=0.001)
        assert not np.array_equal(left.noisy, right.noisy)

    def test_pairs(self, tmp_path, noisy):
        for name in ("noisy", "clean"):
            (tmp_path / name).mkdir()
            soundfile.write(tmp_path / name / "x.wav", noisy[:16_000], 16_000)
        (clip,) = read_clips(tmp_path, 16_000)
        np.testing.assert_array_equal(clip.clean, clip.noisy)
        soundfile.write(tmp_path / "clean" / "x.wav", noisy[:15_000], 16_000)
        with pytest.raises(AudioError, match="differ in length or channels"):
            read_clips(tmp_path, 16_000)
        (tmp_path / "clean" / "x.wav").unlink()
        with pytest.raises(AudioError, match=r"noisy/x\.wav' has no clean counterpart '.*clean/x\.wav'"):
            read_clips(tmp_path, 16_000)
        shutil.rmtree(tmp_path / "clean")
        (clip,) = read_clips(tmp_path, 16_000)
        assert clip.clean is None

    def test_folders_that_will_not_do(self, tmp_path):
        with pytest.raises(AudioError, match="is not a folder: give a folder"):
            read_clips(tmp_path / "none", 16_000)
        with pytest.raises(AudioError, match="contains no audio files"):
            read_clips(tmp_path, 16_000)
        soundfile.write(tmp_path / "silence.wav", np.zeros(16_000), 16_000)
        soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
        with pytest.raises(AudioError, match="has only silent or empty files"):
            read_clips(tmp_path, 16_000)
        (tmp_path / "text.wav").write_text("no audio")
        with pytest.raises(AudioError, match=r"text\.wav' cannot be read"):
            read_clips(tmp_path, 16_000)

    def test_the_model_sees_its_own_level(self, short_audio, tiny):
        found = read_clips(short_audio, 16_000)
        inputs = model_inputs(found, tiny.metadata)
        assert [audio.shape for audio in inputs] == [(1, 32_640)] * 2  # a hop of silence at each end
        for audio in inputs:
            active = audio[audio**2 > np.mean(audio**2)]
            assert 20 * np.log10(np.sqrt(np.mean(active**2))) == pytest.approx(-25, abs=0.2)
        assert digest_of(found) == digest_of(read_clips(short_audio, 16_000)) != digest_of(found[:1])


@pytest.mark.parametrize("method", ["dynamic", pytest.param("fp16", marks=pytest.mark.thorough)])
def test_the_packaged_model_passes_with_all_measures(packaged_source, tmp_path, method):
    pytest.importorskip("pesq")
    pytest.importorskip("speechmos")
    report = quantize_model(packaged_source, tmp_path / "a.onnx", method, gate_audio=GATE_AUDIO)
    assert report.verdict == "passed"
    packaged = packaged_variant(packaged_source.model, method)
    assert report.kept_float == (packaged.metadata.kept_float if packaged is not None else ())
    assert [(measure.passed, measure.clips) for measure in report.gate.measures] == [(True, 8)] * 3


def test_a_source_that_fails_is_an_error(tiny, short_audio, tmp_path):
    weights = dict(read_weights(tiny.path))
    weights["unet.linear.conv_re.bias"] = np.full(1, np.nan, np.float32)
    broken = tmp_path / "broken.onnx"
    graph = build_graph(weights, "broken", "0", tiny.metadata.to_properties())
    broken.write_bytes(graph.SerializeToString())
    with pytest.raises(EngineError, match="NaN or infinity"):
        run(ModelFile.open(broken), OrtBackend, short_audio)
