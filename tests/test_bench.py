from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from frcrn_accel import BackendUnavailable, BenchError, MissingExtraError, UnknownBackendError, Windowing
from frcrn_accel.backends import registry
from frcrn_accel.bench import (
    SCHEMA_PATH,
    BenchModel,
    BenchReport,
    Change,
    Group,
    LeftOut,
    Machine,
    Quality,
    Row,
    Setting,
    SettingRow,
    Throughput,
    model_to_measure,
    released_size_model,
    run_speed,
    run_throughput,
    times_faster,
)
from frcrn_accel.bench import configurations as configurations_module
from frcrn_accel.bench.configurations import Configuration, find_configurations
from frcrn_accel.bench.ratios import median_ranks, spread_percent
from frcrn_accel.bench.sound import compare_quality
from frcrn_accel.bench.speed import reference_of
from frcrn_accel.bench.tables import (
    TIME_COLUMNS,
    left_out_lines,
    markdown,
    notes,
    speed_table,
    throughput_advice,
    throughput_table,
)
from frcrn_accel.bench.throughput import settings_for
from frcrn_accel.denoiser import DenoiserOptions
from frcrn_accel.models import DEFAULT_MODEL, cache_folder, find_model
from frcrn_accel.network.topology import Config
from frcrn_accel.processes import DENOISER_WORKER, DenoiserProcess
from frcrn_accel.quality import MAX_AGREEMENT_DB
from frcrn_accel.quality.clips import Clip
from frcrn_accel.testing import FunctionBackend

needs_ort = pytest.mark.skipif(
    not any(status.name == "ort" and status.usable for status in registry.backend_statuses()),
    reason="ONNX Runtime is not installed",
)


class TestRatios:
    @pytest.mark.parametrize(
        ("count", "ranks"), [(6, (0, 5)), (8, (0, 7)), (9, (1, 7)), (15, (3, 11)), (20, (5, 14))]
    )
    def test_ranks_of_tables(self, count, ranks):
        # From printed tables of the interval of the sign test, which count from 1.
        assert median_ranks(count) == ranks

    @pytest.mark.parametrize("count", range(6, 60))
    def test_the_interval_holds_the_median_with_95_percent_and_a_narrower_one_does_not(self, count):
        def coverage(rank: int) -> float:
            return 1 - 2 * sum(math.comb(count, i) for i in range(rank + 1)) / 2**count

        low, high = median_ranks(count)
        assert low + high == count - 1
        assert coverage(low) >= 0.95 > coverage(low + 1)

    def test_a_ratio_is_taken_round_by_round(self):
        slow_phase = np.array([1, 1, 1, 5, 5, 5, 1, 1, 1])  # of the machine, which affects both
        ratio = times_faster(list(0.1 * slow_phase), list(0.3 * slow_phase))
        assert (ratio.median, ratio.low, ratio.high) == pytest.approx((3, 3, 3))
        assert ratio.is_clear

    def test_noise_makes_it_unclear(self):
        ratio = times_faster([1, 1, 1, 1, 1, 1], [0.9, 0.95, 1.1, 1.2, 1.3, 1.4])
        assert (ratio.median, ratio.low, ratio.high) == pytest.approx((1.15, 0.9, 1.4))
        assert not ratio.is_clear

    def test_one_wild_round_does_not_move_it(self):
        ratio = times_faster([1] * 9, [2] * 8 + [50])
        assert (ratio.low, ratio.high) == (2, 2)

    def test_few_rounds_are_an_error(self):
        with pytest.raises(BenchError, match="5 rounds are too few for a confidence interval: use at least 6"):
            times_faster([1] * 5, [1] * 5)

    def test_spread(self):
        assert spread_percent([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(100 * 2 / 3)


def row(configuration: str, times_s: list[float], **changed: object) -> Row:
    return dataclasses.replace(
        Row(
            configuration=configuration,
            backend=configuration.partition(":")[0],
            precision="fp32",
            device="CPU",
            file_bytes=2_000_000,
            load_s=0.5,
            first_s=0.25,
            times_s=tuple(times_s),
            cpu_s=tuple(times_s),
            idle_cpu_s=0.0,
            peak_memory_bytes=150_000_000,
        ),
        **changed,
    )


def report(groups: tuple[Group, ...] = (), throughput: tuple[Throughput, ...] = ()) -> BenchReport:
    machine = Machine("A CPU", ("AVX2",), 2, (), "Linux x86_64", "3.13.0", {"onnxruntime": "1.32.0"}, 0.5)
    left_out = (("small", LeftOut("torch", f"{Path.home()}/x is not there")),)
    began = "2026-01-02T03:04:05Z"
    return BenchReport("1.2.3", began, machine, 6, ("ort",), groups, throughput, left_out)


@pytest.fixture
def group() -> Group:
    """Three configurations: one twice as fast as `ort`, one that does not clearly differ from it."""
    quality = Quality(8, 40.0, 2.5, Change(-0.25, -0.5, 0.0004), 3.0, Change(-0.0001, -0.002, 0.001), "no DNSMOS")
    fp32 = Quality(8, None, 2.5, None, 3.0, None)
    rows = (
        row("ort", [0.1, 0.1, 0.1, 0.1, 0.1, 0.2], quality=fp32),
        row("openvino:bf16", [0.05, 0.05, 0.05, 0.05, 0.05, 0.1], quality=quality),
        row("torch", [0.09, 0.12, 0.1, 0.11, 0.1, 0.3], peak_memory_bytes=None),
    )
    return Group("small", 32, 1, False, 5.0, 2, rows)


@pytest.fixture
def many_files() -> Throughput:
    rows = (
        SettingRow(Setting(1, 2, 1), (1.0,) * 6, 200_000_000),
        SettingRow(Setting(2, 1, 1), (1.6, 1.6, 1.6, 1.6, 1.6, 1.5), 400_000_000),
        SettingRow(Setting(2, 1, 4), (1.5, 1.7, 1.5, 1.7, 1.5, 1.5), 900_000_000),
    )
    return Throughput("small", "openvino:bf16", 60.0, rows)


def validate(values: object) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(values, json.loads(SCHEMA_PATH.read_text()), jsonschema.Draft202012Validator)


class TestReport:
    def test_what_is_worked_out(self, group):
        (found,) = report((group,)).to_json()["groups"]
        ort, openvino, torch = found["rows"]
        assert ort["median_s"] == pytest.approx(0.1)
        assert ort["p95_s"] == pytest.approx(0.175)
        assert ort["real_time_factor"] == pytest.approx(0.02)
        assert openvino["times_faster"]["ort"]["median"] == pytest.approx(2)
        assert [pair["configurations"] for pair in found["alike"]] == [["ort", "torch"]]
        assert found["noise_percent"] == pytest.approx(0)
        assert found["other_cpus"] is None
        assert torch["quality"] is None

    def test_it_follows_its_schema(self, group, many_files):
        values = json.loads(json.dumps(report((group,), (many_files,)).to_json()))
        validate(values)
        assert values["left_out"][0]["reason"] == "~/x is not there"

    def test_the_schema_refuses_what_is_missing_or_unknown(self, group):
        jsonschema = pytest.importorskip("jsonschema")
        values = json.loads(json.dumps(report((group,)).to_json()))
        for field in values:
            with pytest.raises(jsonschema.ValidationError, match=f"'{field}' is a required property"):
                validate({name: value for name, value in values.items() if name != field})
        with pytest.raises(jsonschema.ValidationError, match="Additional properties"):
            validate({**values, "hostname": "box"})

    def test_the_schema_is_one_and_describes_every_field(self):
        jsonschema = pytest.importorskip("jsonschema")
        schema = json.loads(SCHEMA_PATH.read_text())
        jsonschema.Draft202012Validator.check_schema(schema)
        assert len(fields(schema)) > 60
        for name, field in fields(schema):
            assert field.get("description"), name

    def test_the_documentation_names_every_field(self):
        text = (Path(__file__).parents[1] / "docs" / "bench.md").read_text(encoding="utf-8")
        for name, _ in fields(json.loads(SCHEMA_PATH.read_text())):
            if name not in ("mean", "threads", "batch", "model"):  # mentioned in the text
                assert f"`{name}`" in text, name

    def test_throughput(self, many_files):
        # The second and the third do not clearly differ: the one with less memory is the best.
        assert many_files.best.setting == Setting(2, 1, 1)
        assert many_files.times_real_time(many_files.rows[0]) == 60
        assert many_files.times_real_time(many_files.rows[1]) == pytest.approx(75)
        (found,) = report(throughput=(many_files,)).to_json()["throughput"]
        assert found["best"] == {"workers": 2, "threads": 1, "batch": 1}
        assert found["rows"][0]["to_best"]["median"] == pytest.approx(0.8)

    @pytest.mark.parametrize(
        ("cpus", "shares"), [(1, [(1, 1)]), (2, [(1, 2), (2, 1)]), (6, [(1, 6), (2, 3), (4, 1), (6, 1)])]
    )
    def test_settings(self, cpus, shares):
        ort = Configuration("ort", "ort", None, find_model(DEFAULT_MODEL))
        assert settings_for(ort, cpus, (1,)) == [Setting(workers, threads, 1) for workers, threads in shares]

    def test_settings_vary_what_has_an_effect(self):
        gpu = Configuration("gpu", "gpu", None, find_model(DEFAULT_MODEL), uses_threads=False)
        assert settings_for(gpu, 2) == [Setting(workers, None, batch) for workers in (1, 2) for batch in (1, 2, 4)]
        single = Configuration("int8", "int8", None, find_model(DEFAULT_MODEL), computes_batches=False)
        assert settings_for(single, 2) == [Setting(1, 2, 1), Setting(2, 1, 1)]


def fields(schema: dict) -> list[tuple[str, dict]]:
    """Return all properties in a schema, at any depth."""
    found = list(schema.get("properties", {}).items())
    for part in (*schema.get("properties", {}).values(), *schema.get("$defs", {}).values()):
        found += fields(part.get("items", part))
    return found


class TestTables:
    def test_the_fastest_is_first(self, group):
        found = report((group,)).to_json()["groups"][0]
        table = speed_table(found, ["ort"])
        assert table.heads == (
            *("configuration", "median s", "p95 s", "RTF", "first s", "load s", "peak MB", "file MB"),
            *("times faster than ort", "SI-SDR to fp32, dB", "PESQ-WB, %", "DNSMOS OVRL"),
        )
        assert [cells[0] for cells in table.rows] == ["openvino:bf16", "ort", "torch"]
        assert table.rows[0] == (
            *("openvino:bf16", "0.050", "0.088", "0.010", "0.25", "0.50", "150", "2.0"),
            *("2.00 (2.00 to 2.00)", "40.0", "-0.25 (-0.50 to +0.00)", "+0.000 (-0.002 to +0.001)"),
        )
        assert table.rows[1][8:] == ("1", "", "", "")
        assert table.rows[2][6] == ""

    def test_empty_columns_are_left_out(self, group):
        silent = dataclasses.replace(group, rows=tuple(dataclasses.replace(r, quality=None) for r in group.rows))
        found = report((silent,)).to_json()["groups"][0]
        assert speed_table(found, []).heads[-1] == "file MB"
        assert speed_table(found, [], ("rtf",)).heads == ("configuration", "RTF")
        assert len(speed_table(found, ["ort"], TIME_COLUMNS).heads) == 8

    def test_notes(self, group):
        values = report((group,)).to_json()
        assert notes(values["groups"][0]) == [
            "too noisy to tell apart: ort and torch, 1.05 (0.90 to 1.50)",
            "no DNSMOS",
        ]
        assert left_out_lines(values) == ["left out: torch (small): ~/x is not there"]

    @pytest.mark.parametrize(("cpus", "said"), [(0.05, False), (0.93, True)])
    def test_other_work_is_noted(self, group, cpus, said):
        values = report((dataclasses.replace(group, other_cpus=cpus),)).to_json()
        validate(values)
        line = "other work kept 0.9 CPU(s) busy on average: measure again on an idle machine"
        assert (line in notes(values["groups"][0])) is said

    def test_markdown(self, group, many_files):
        lines = markdown(report((group,), (many_files,)).to_json()).splitlines()
        assert (
            lines[0] == "A CPU (AVX2), 2 CPU(s), Linux x86_64, Python 3.13.0, frcrn-accel 1.2.3, onnxruntime 1.32.0"
        )
        title = "**small (32 channels, 1 U-Net(s)), 5 s clip, 2 thread(s), 6 rounds, noise 0 %**"
        assert lines[2] == title
        assert lines[4].startswith("| configuration | median s | ")
        assert lines[5] == "|---" * 12 + "|"
        assert lines[6].startswith("| `openvino:bf16` | 0.050 | ")
        assert "- too noisy to tell apart: ort and torch, 1.05 (0.90 to 1.50)" in lines
        assert lines[-1] == "| `2 x 1 x 4` | 80.0 | 1.03 (0.94 to 1.07) | 900 |"

    def test_throughput(self, many_files):
        (found,) = report(throughput=(many_files,)).to_json()["throughput"]
        assert throughput_table(found).rows[1] == ("2 x 1 x 1", "75.0", "best", "400")
        assert throughput_advice(found) == (
            "best: 2 process(es) side by side, each with Denoiser(backend='openvino', precision='bf16', threads=1, "
            "batch_size=1)"
        )

    def test_throughput_without_threads(self, many_files):
        rows = (SettingRow(Setting(2, None, 4), (1.0,) * 6, 200_000_000),)
        values = report(throughput=(dataclasses.replace(many_files, configuration="tensorrt:fp16", rows=rows),))
        validate(json.loads(json.dumps(values.to_json())))
        (found,) = values.to_json()["throughput"]
        assert throughput_table(found).rows == (("2 x - x 4", "120.0", "best", "200"),)
        assert throughput_advice(found).endswith("Denoiser(backend='tensorrt', precision='fp16', batch_size=4)")


class TestPlot:
    def test_it_is_a_picture(self, group, tmp_path):
        pytest.importorskip("matplotlib")
        from frcrn_accel.bench.plot import plot_speed_and_quality

        plot_speed_and_quality(report((group,)).to_json(), tmp_path / "a.png")
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")

    def test_a_configuration_that_is_far_worse_does_not_hide_the_others(self, group, tmp_path, monkeypatch):
        figure = pytest.importorskip("matplotlib.figure")
        from frcrn_accel.bench.plot import plot_speed_and_quality

        scales = []
        save = figure.Figure.savefig

        def keep(self, *args, **options):
            scales.append(self.axes[0].get_yscale())
            save(self, *args, **options)

        monkeypatch.setattr(figure.Figure, "savefig", keep)
        values = report((group,)).to_json()
        plot_speed_and_quality(values, tmp_path / "a.png")
        values["groups"][0]["rows"][1]["quality"]["pesq_change_percent"] = {"mean": -30, "low": -50, "high": -9}
        plot_speed_and_quality(values, tmp_path / "a.png")
        assert scales == ["linear", "symlog"]

    def test_without_quality(self, group, tmp_path):
        pytest.importorskip("matplotlib")
        from frcrn_accel.bench.plot import plot_speed_and_quality

        silent = dataclasses.replace(group, rows=(row("ort", [1.0] * 6),))
        with pytest.raises(BenchError, match="there is no quality to plot"):
            plot_speed_and_quality(report((silent,)).to_json(), tmp_path / "a.png")

    def test_without_matplotlib(self, monkeypatch):
        from frcrn_accel.bench.plot import check_plot

        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(MissingExtraError, match=r"A plot needs more packages .*\[eval\]"):
            check_plot()


class TestQuality:
    @pytest.fixture
    def clips(self, noisy) -> list[Clip]:
        return [
            Clip("a", Path("a"), 2.0, noisy[:32_000], None),
            Clip("b", Path("b"), 2.0, noisy[32_000:64_000], None),
        ]

    def test_against_the_reference(self, clips, no_eval):
        outputs = {
            "ort": [clip.noisy for clip in clips],
            "same": [0.5 * clip.noisy for clip in clips],
            "other": [clip.noisy + 0.1 * np.std(clip.noisy) * orthogonal(clip.noisy) for clip in clips],
        }
        found = compare_quality(outputs, "ort", clips)
        assert found["ort"].si_sdr_to_fp32_db is None
        assert found["same"].si_sdr_to_fp32_db == MAX_AGREEMENT_DB
        assert found["other"].si_sdr_to_fp32_db == pytest.approx(20, abs=0.01)
        assert found["other"].clips == 2
        assert (found["other"].pesq_wb, found["other"].dnsmos_ovrl) == (None, None)
        assert "DNSMOS needs more packages" in found["other"].note
        assert "PESQ" not in found["other"].note  # there is no clean speech to compare with

    def test_changes_of_scores(self, clips, monkeypatch):
        clean = [dataclasses.replace(clip, clean=clip.noisy) for clip in clips]
        scores = {0.5: 2.0, 1.0: 4.0}
        monkeypatch.setattr("frcrn_accel.bench.sound.pesq_wb", lambda clean, audio: scores[audio[0]])
        monkeypatch.setattr("frcrn_accel.bench.sound.dnsmos", lambda audio: type("D", (), {"ovrl": audio[0]}))
        one, half = np.full(100, 1.0, np.float32), np.full(100, 0.5, np.float32)
        one[1], half[1] = -1, -0.5
        found = compare_quality({"ort": [one, one], "low": [one, half]}, "ort", clean)
        assert found["low"].pesq_wb == 3
        assert found["low"].pesq_change_percent.mean == pytest.approx(-25)
        assert found["low"].dnsmos_change.mean == pytest.approx(-0.25)
        assert found["ort"].pesq_change_percent is None

    def test_silence(self, clips, no_eval):
        silent = [np.zeros_like(clip.noisy) for clip in clips]
        found = compare_quality({"ort": [clip.noisy for clip in clips], "dead": silent}, "ort", clips)
        assert found["dead"].si_sdr_to_fp32_db == -MAX_AGREEMENT_DB


def orthogonal(audio: np.ndarray) -> np.ndarray:
    """Return noise of unit level that is orthogonal to the audio."""
    noise = np.random.default_rng(0).standard_normal(len(audio))
    centred = audio - audio.mean()
    noise -= noise.mean()
    noise -= np.dot(noise, centred) / np.dot(centred, centred) * centred
    return (noise / noise.std()).astype(np.float32)


class Fine(FunctionBackend):
    name, description, priority = "fine", "gives back what it gets", 5
    precisions = ("fp32", "int8")


class Refusing(FunctionBackend):
    name, priority = "refusing", 900

    @classmethod
    def check(cls) -> None:
        raise BackendUnavailable(cls.name, "it has no engine", "pip install engine")


class TestConfigurations:
    @pytest.fixture
    def backends(self, monkeypatch) -> None:
        """Two plug-ins, instead of all backends."""
        points = [
            EntryPoint(kind.name, f"{__name__}:{kind.__name__}", registry.ENTRY_POINT_GROUP)
            for kind in (Fine, Refusing)
        ]
        monkeypatch.setattr(registry, "entry_points", lambda group: points)

    def test_every_precision_of_what_can_run(self, backends):
        found, left_out = find_configurations(model_to_measure(DEFAULT_MODEL))
        assert [(v.name, v.backend, v.precision) for v in found] == [
            ("fine:fp32", "fine", "fp32"),
            ("fine:int8", "fine", "int8"),
        ]
        assert {v.file.path for v in found} == {find_model(DEFAULT_MODEL).path}
        assert [(one.configuration, "pip install engine" in one.reason) for one in left_out] == [("refusing", True)]
        assert reference_of(found) == "fine:fp32"

    def test_those_that_are_asked_for(self, backends):
        model = model_to_measure(DEFAULT_MODEL)
        assert [v.name for v in find_configurations(model, ["auto"])[0]] == ["fine:fp32", "fine:int8"]
        assert [v.name for v in find_configurations(model, ["fine:int8", "fine"])[0]] == ["fine:int8", "fine:fp32"]
        with pytest.raises(BackendUnavailable, match="it has no engine"):
            find_configurations(model, ["refusing"])
        with pytest.raises(UnknownBackendError, match="unknown backend 'nope'"):
            find_configurations(model, ["nope"])
        with pytest.raises(ValueError, match="no precision 'int4'"):
            find_configurations(model, ["fine:int4"])

    def test_without_any(self, monkeypatch):
        monkeypatch.setattr(registry, "entry_points", lambda group: [])
        with pytest.raises(BenchError, match=r"^no backend can run: pip install 'frcrn-accel\[ort\]' installs one"):
            find_configurations(model_to_measure(DEFAULT_MODEL))

    def test_a_file_that_is_for_no_backend_here(self, backends):
        file = find_model(DEFAULT_MODEL).path.with_name("frcrn-small.dynamic.onnx")
        with pytest.raises(BenchError, match=r"nothing can run 'frcrn-small' here: backend 'refusing' cannot run"):
            find_configurations(model_to_measure(str(file)))

    @needs_ort
    def test_int8_files_are_the_packaged_ones(self):
        (found,), left_out = find_configurations(model_to_measure(DEFAULT_MODEL), ["ort-dynamic-int8"])
        assert found.file.metadata.method == "dynamic"
        assert found.file.path.parent == find_model(DEFAULT_MODEL).path.parent
        assert left_out == []

    @needs_ort
    def test_others_are_made_and_found_by_benchmarks_only(self, tiny):
        from frcrn_accel.prepare.variants import ready_variant

        steps: list[list[str]] = []
        model = BenchModel(tiny)
        for _ in range(2):
            reported: list[str] = []
            (found,), _ = find_configurations(
                model, ["ort-dynamic-int8"], lambda what, done, total, to=reported: to.append(what)
            )
            steps.append(reported)
            assert (found.file.metadata.method, found.file.metadata.gate) == ("dynamic", "skipped")
            assert found.file.path.parent == cache_folder()
        assert {step.partition(": ")[0] for step in steps[0]} == {"dynamic"}
        assert steps[1] == []  # cached
        assert ready_variant(tiny, "dynamic") is None

    @needs_ort
    def test_of_a_quantized_file(self):
        file = find_model(DEFAULT_MODEL).path.with_name("frcrn-small.dynamic.onnx")
        found, _ = find_configurations(model_to_measure(str(file)))
        assert [(v.name, v.precision, v.file.path) for v in found] == [("ort-dynamic-int8", None, file)]

    def test_the_released_size(self, tmp_path, monkeypatch):
        pytest.importorskip("onnx")
        monkeypatch.setattr(configurations_module, "Config", lambda: Config(8, 2))  # the real one takes seconds
        one = released_size_model(tmp_path)
        content = one.file.path.read_bytes()
        assert one.random_weights
        assert (one.file.metadata.channels, one.file.metadata.unets) == (8, 2)
        assert released_size_model(tmp_path).file.path.read_bytes() == content
        monkeypatch.undo()
        assert Config() == Config(128, 2)

    def test_the_released_size_without_onnx(self, tmp_path):
        """In a process of its own, since modules that were imported without onnx would stay in this one."""
        code = (
            "import sys; sys.modules['onnx'] = None\n"
            "from pathlib import Path; from frcrn_accel.bench.configurations import released_size_model\n"
            f"released_size_model(Path({str(tmp_path)!r}))"
        )
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert found.returncode == 1
        last = found.stderr.strip().splitlines()[-1]
        assert re.search(r"MissingExtraError: A model of the released size needs .*\[quantize\]", last)


@pytest.fixture(scope="module")
def process():
    with DenoiserProcess("ort", DenoiserOptions(backend="ort", threads=1)) as process:
        yield process


@needs_ort
class TestProcess:
    def test_what_it_loaded(self, process):
        assert (process.loaded.backend, process.loaded.precision) == ("ort", "fp32")
        assert process.loaded.device == "CPUExecutionProvider, 1 thread"
        assert process.loaded.load_s > 0

    def test_it_gives_what_a_denoiser_gives(self, process, noisy):
        from frcrn_accel import Denoiser

        with Denoiser(backend="ort", threads=1) as denoiser:
            np.testing.assert_array_equal(process.denoise(noisy[:16_000]), denoiser(noisy[:16_000], 16_000))

    def test_a_turn(self, process):
        process.run(1.0)
        run = process.run(1.0)
        assert run.wall_s > 0
        assert 0 < run.cpu_s < 10
        assert run.idle_cpu_s < 0.5  # an idle engine sleeps

    @pytest.mark.skipif(not sys.platform.startswith(("linux", "darwin")), reason="this system does not report it")
    def test_memory_is_of_that_process(self, process):
        # Python, numpy and an engine with a small model; this process has imported far more.
        assert 30e6 < process.peak_memory_bytes() < 1e9

    def test_errors_come_back(self):
        with pytest.raises(BenchError, match="mine: unknown backend 'nope'"):
            DenoiserProcess("mine", DenoiserOptions(backend="nope"))
        with pytest.raises(
            BenchError, match="mine: ValueError: backend 'ort-dynamic-int8' computes one window per call"
        ):
            DenoiserProcess("mine", DenoiserOptions(backend="ort-dynamic-int8", batch_size=2))

    def test_every_option_gets_there(self, noisy):
        from frcrn_accel import Denoiser

        windowing = Windowing(window_s=1.0, past_s=0.2, future_s=0.04, fade_s=0.05)
        options = DenoiserOptions(
            find_model(DEFAULT_MODEL).path, "ort", "fp32", None, 1, 6.0, windowing, batch_size=2
        )
        with DenoiserProcess("ort", options) as process, Denoiser(backend="ort", threads=1) as other:
            denoised = process.denoise(noisy[:32_000])
            assert np.abs(denoised - other(noisy[:32_000], 16_000)).max() > 0
            with options.open() as denoiser:
                np.testing.assert_array_equal(denoised, denoiser(noisy[:32_000], 16_000))

    @pytest.fixture
    def python_with(self, tmp_path):
        """An interpreter that imports other code as `frcrn_accel`."""

        def python_with(code: str) -> Path:
            (tmp_path / "frcrn_accel.py").write_text(code)
            python = tmp_path / "python"
            python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}" exec "{sys.executable}" "$@"\n')
            python.chmod(0o755)
            return python

        return python_with

    def test_a_process_that_dies(self, python_with):
        python = python_with("import os, sys; print('no memory', file=sys.stderr, flush=True); os._exit(7)")
        with pytest.raises(BenchError, match="mine: its process ended with code 7: no memory"):
            DenoiserProcess("mine", DenoiserOptions(), python)

    def test_output_of_an_engine_does_not_disturb_the_answers(self, python_with):
        python = python_with(
            "class Denoiser:\n"
            "    def __init__(self, **options):\n"
            "        print('engine version 3')\n"
            "        self.backend, self.precision, self.device = 'ort', 'fp32', repr(options)\n"
        )
        with DenoiserProcess("mine", DenoiserOptions(backend="ort", threads=1), python) as process:
            # An earlier version of the library must not be given options that it does not know.
            assert process.loaded.device == "{'backend': 'ort', 'threads': 1}"

    def test_memory_of_an_idle_interpreter(self):
        done = subprocess.run(
            [sys.executable, str(DENOISER_WORKER)],
            input='{"do": "memory"}\n',
            capture_output=True,
            text=True,
            check=True,
        )
        assert set(json.loads(done.stdout)) == {"peak_memory_bytes"}


@needs_ort
class TestRuns:
    @pytest.mark.skipif(not Path("/proc/stat").exists(), reason="this system does not report it")
    def test_other_work_is_seen(self):
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as spinning:
            try:
                found = run_speed(
                    [model_to_measure(DEFAULT_MODEL)], configurations=["ort"], lengths_s=[0.2], threads=[1], rounds=6
                )
            finally:
                spinning.kill()
        assert found.groups[0].other_cpus > 0.3

    def test_speed(self, tmp_path, no_eval, noisy):
        clips = [Clip("a", Path("a"), 1.0, noisy[16_000:32_000], None)]
        steps: list[str] = []
        found = run_speed(
            [model_to_measure(DEFAULT_MODEL)],
            configurations=["ort", "ort-dynamic-int8"],
            lengths_s=[0.2, 0.4],
            threads=[1],
            rounds=6,
            quality=clips,
            progress=lambda what, done, total: steps.append(f"{what} {done}/{total}"),
        )
        assert found.baselines == ("ort",)
        assert [(group.length_s, group.threads) for group in found.groups] == [(0.2, 1), (0.4, 1)]
        ort, int8 = found.groups[0].rows
        assert (ort.configuration, int8.configuration) == ("ort", "ort-dynamic-int8")
        assert len(ort.times_s) == len(int8.times_s) == len(int8.cpu_s) == 6
        assert (ort.file_bytes, int8.file_bytes) == tuple(
            find_model(DEFAULT_MODEL).path.with_name(name).stat().st_size
            for name in ("frcrn-small.onnx", "frcrn-small.dynamic.onnx")
        )
        assert ort.quality.si_sdr_to_fp32_db is None
        assert 25 < int8.quality.si_sdr_to_fp32_db < 60
        assert [row.quality for row in found.groups[1].rows] == [None, None]  # it does not depend on the length
        validate(json.loads(json.dumps(found.to_json())))
        assert steps[0] == "frcrn-small: trying out 1/2"
        assert "frcrn-small, 0.2 s, 1 thread(s): rounds 6/6" in steps

    def test_random_weights_have_no_sound(self, tiny, no_eval, noisy):
        clips = [Clip("a", Path("a"), 1.0, noisy[:16_000], None)]
        found = run_speed(
            [BenchModel(tiny, random_weights=True)],
            configurations=["ort"],
            lengths_s=[0.2],
            threads=[1],
            rounds=6,
            quality=clips,
        )
        assert found.groups[0].rows[0].quality is None

    def test_throughput(self, monkeypatch):
        monkeypatch.setattr("frcrn_accel.bench.report.settings_for", lambda configuration, cpus: [Setting(2, 1, 2)])
        found = run_throughput([model_to_measure(DEFAULT_MODEL)], configurations=["ort"], file_s=0.2, rounds=6)
        (one,) = found.throughput
        assert (one.model, one.configuration, one.file_s) == ("frcrn-small", "ort", 0.2)
        assert one.best is one.rows[0]
        assert one.best.setting == Setting(2, 1, 2)
        assert len(one.best.times_s) == 6
        if sys.platform.startswith("linux"):
            assert one.best.peak_memory_bytes > 2 * 30e6  # of both processes
        validate(json.loads(json.dumps(found.to_json())))

    def test_what_cannot_be(self):
        models = [model_to_measure(DEFAULT_MODEL)]
        with pytest.raises(BenchError, match="5 rounds are too few"):
            run_speed(models, rounds=5)
        with pytest.raises(BenchError, match="baseline 'torch' is not measured; choose one of: ort"):
            run_speed(models, configurations=["ort"], baselines=["torch"])


def test_importing_the_package_brings_no_engine():
    engines = ("onnx", "onnxruntime", "torch", "openvino", "matplotlib")
    code = f"import sys, frcrn_accel.bench; print([name for name in {engines} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.stdout == "[]\n"
