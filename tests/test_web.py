"""The modules of the static site that compute, in Node.js, each against its twin in Python."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr

from frcrn_accel import Denoiser
from frcrn_accel.audio import measure_levels
from frcrn_accel.high_band import HighBand
from frcrn_accel.streaming.level import RunningLevel
from frcrn_accel.streaming.offset import RunningOffset
from frcrn_accel.streaming.resampling import StreamResampler
from frcrn_accel.testing import FunctionBackend
from frcrn_accel.windows import Windowing
from twins import difference, with_bang

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="needs Node.js")
ROOT = Path(__file__).parents[1]
TAB = ROOT / "web" / "tab"
PAGE = ROOT / "src" / "frcrn_accel" / "serve" / "page"
RATE = 16_000


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Return a function that gives the value of an expression with a module, `m`, and the arguments `a`."""
    folder = tmp_path_factory.mktemp("web")
    shutil.copytree(TAB, folder, dirs_exist_ok=True)
    shutil.copy(PAGE / "gaps.js", folder)
    (folder / "package.json").write_text('{"type": "module"}')

    def evaluate(name: str, expression: str, *arguments: Any) -> Any:
        script = f"""
        import {{ readFileSync }} from "node:fs";
        import * as m from "./{name}";
        const a = JSON.parse(readFileSync(0));
        console.log(JSON.stringify({expression}));
        """
        (folder / "run.js").write_text(script)
        assert NODE is not None
        command = [NODE, folder / "run.js"]
        done = subprocess.run(command, input=json.dumps(arguments), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return evaluate


def test_windows(module: Callable[..., Any]) -> None:
    lengths = [320 * count for count in (1, 999, 1000, 1001, 1717, 3000, 5432, 180_000)]
    found = module("windows.js", "a[0].map((length) => m.planWindows(length, 16000, 320))", lengths)
    for length, plan in zip(lengths, found, strict=True):
        expected = Windowing().plan(length, RATE, 320)
        assert [(each["start"], each["stop"], tuple(each["fadeIn"]), tuple(each["fadeOut"])) for each in plan] == [
            (each.start, each.stop, each.fade_in, each.fade_out) for each in expected
        ]
    plan = Windowing().plan(320 * 1717, RATE, 320)
    weights = module("windows.js", "Array.from(m.weightsOf(m.planWindows(549440, 16000, 320)[1]))")
    np.testing.assert_allclose(weights, plan[1].weights(), atol=1e-6)


def test_levels(module: Callable[..., Any], noisy: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    signals = [
        noisy[: 2 * RATE],
        with_bang(0.01 * noisy[: 4 * RATE], RATE, 3000, 1.0),
        with_bang(0.1 * noisy[: 4 * RATE], RATE, 9600, 0.05),
        0.05 * noisy[: 4 * RATE] + np.r_[np.zeros(RATE), np.geomspace(1, 0.05, 7000), np.zeros(3 * RATE - 7000)],
        0.2 + noisy[: 2 * RATE],
        0.02 * noisy[: 2 * RATE] + np.repeat([0.1, 1.1, 0.1], [RATE, 8_000, 8_000]),  # a jump beside an offset
        1e-9 * rng.standard_normal(999),
        np.zeros(RATE),
        np.sign(np.sin(np.arange(RATE) / 9)),
        np.concatenate([1e-5 * rng.standard_normal(3 * RATE), rng.standard_normal(2000)]),
        np.full(1, 0.5),  # a constant that float32 sums hold exactly
    ]
    for signal in signals:
        audio = signal.astype(np.float32)
        found = module(
            "level.js",
            """await m.measureLevel(async function* () {
              for (let at = 0; at < a[0].length; at += 777) yield Float32Array.from(a[0].slice(at, at + 777));
            })""",
            audio.tolist(),
        )
        expected = measure_levels(lambda audio=audio: [audio[None]], 1)
        assert found["samples"] == expected.samples
        assert found["gain"] == pytest.approx(float(expected.gains[0]), rel=1e-4)
        assert found["offset"] == pytest.approx(float(expected.offsets[0]), abs=1e-6)


def test_running_levels(module: Callable[..., Any], noisy: np.ndarray) -> None:
    speech = noisy[: 2 * RATE]
    signals = [
        np.concatenate([speech, 0.001 * speech, np.zeros(3200), noisy[:RATE]]),
        with_bang(with_bang(0.02 * noisy[: 5 * RATE], 3200, 3000, 1.0), 4 * RATE, 9600, 0.1),
        with_bang(noisy[: 4 * RATE] * np.repeat([0.05, 0.01, 0.05], [RATE, RATE, 2 * RATE]), 8000, 6400, 0.4),
        np.sign(np.sin(np.arange(RATE) / 9)),
        np.zeros(RATE),
    ]
    for signal in signals:
        hops = signal.astype(np.float32).reshape(-1, 320)
        found = module(
            "level.js",
            "(() => { const l = new m.RunningLevel(); return a[0].map((h) => l.update(Float32Array.from(h))); })()",
            hops.tolist(),
        )
        expected, _ = RunningLevel.silent(1).update(hops[None])
        np.testing.assert_allclose(found, expected[0], rtol=1e-4)


def test_running_offsets(module: Callable[..., Any], noisy: np.ndarray) -> None:
    speech = noisy[:RATE]
    tone = 0.3 * np.sin(2 * np.pi * 3 * np.arange(RATE) / RATE)
    jump = np.repeat([0.0, 1.0, 0.0], [3_200, 8_000, 4_800])
    audio = np.concatenate(
        [speech + jump, speech, speech + 0.1, speech + 0.02, speech, tone, speech, speech + jump, speech]
    )
    hops = audio.astype(np.float32).reshape(-1, 320)
    found = module(
        "offset.js",
        "(() => { const o = new m.RunningOffset(); "
        "return a[0].map((h) => Array.from(o.takenOut(Float32Array.from(h)))); })()",
        hops.tolist(),
    )
    expected, _ = RunningOffset.none(1).taken_out(hops[None])
    assert np.abs(expected[0] - hops).max() > 0.05
    np.testing.assert_allclose(found, expected[0], atol=1e-6)


@pytest.mark.parametrize(
    ("from_hz", "to_hz"), [(48_000, RATE), (44_100, RATE), (RATE, 44_100), (8_000, RATE), (RATE, 31_999)]
)
def test_resampling(module: Callable[..., Any], from_hz: int, to_hz: int) -> None:
    signal = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
    found = module(
        "resample.js",
        """(() => {
          const resampler = new m.Resampler(a[1], a[2]);
          const out = [];
          for (let at = 0; at < a[0].length; at += 100) {
            resampler.write(Float32Array.from(a[0].slice(at, at + 100)));
            out.push(...resampler.read());
          }
          return out;
        })()""",
        signal.tolist(),
        from_hz,
        to_hz,
    )
    twin = StreamResampler(from_hz, to_hz, 1)
    twin.write(signal[None])
    expected = twin.read(twin.ready)[0]
    assert difference(np.array(found), expected) < 1e-4


@pytest.mark.parametrize("rate", [48_000, 44_100])
def test_the_high_band(module: Callable[..., Any], rate: int) -> None:
    rng = np.random.default_rng(0)
    dry = rng.standard_normal(RATE).astype(np.float32) * np.repeat(rng.uniform(0.001, 0.2, 10), RATE // 10)
    wet = dry * np.repeat(rng.uniform(0, 1, 20) ** 3, RATE // 20)
    band = (0.1 * rng.standard_normal(rate)).astype(np.float32)
    shares = np.clip(np.arange(RATE) / RATE - 0.3, 0, 0.1)  # of a limit that is set while it runs
    signals = [signal.astype(np.float32) for signal in (band, dry, wet, shares)]
    found = module(
        "high-band.js",
        """(() => {
          const highBand = new m.HighBand(a[1]);
          const [band, dry, wet, shares] = a[0].map((signal) => Float32Array.from(signal));
          const out = [];
          for (let at = 0; at < 100; at++) {
            highBand.writeModel(...[dry, wet, shares].map((each) => each.subarray(160 * at, 160 * (at + 1))));
            highBand.write(band.subarray((a[1] / 100) * at, (a[1] / 100) * (at + 1)));
            out.push(...highBand.read());
          }
          return out.concat(Array.from(highBand.finish()));
        })()""",
        [signal.tolist() for signal in signals],
        rate,
    )
    twin = HighBand(rate, RATE, 1)
    twin.write_model(signals[1][None], signals[2][None], signals[3])
    twin.write(band[None])
    expected = np.concatenate([twin.read(), twin.finish()], axis=1)[0]
    assert difference(np.array(found), expected) < 1e-4


@pytest.mark.parametrize("rate", [RATE, 48_000])
def test_files(module: Callable[..., Any], noisy: np.ndarray, rate: int) -> None:
    """Denoise quiet speech with a bang and an offset, with a function in place of the model."""
    signal = with_bang(0.03 * noisy[: 21 * RATE // 10], RATE, 3000, 0.3) + 0.05
    signal = np.tile(signal, 10 if rate == RATE else 1)  # two windows, or one
    audio = soxr.resample(signal, RATE, rate).astype(np.float32)
    found = module(
        "denoise.js",
        """await (async () => {
          const audio = Float32Array.from(a[0]);
          const blocks = async function* () {
            for (let at = 0; at < audio.length; at += a[1]) yield audio.subarray(at, at + a[1]);
          };
          const source = { rateHz: a[1], channels: 1, samples: audio.length, bits: 16, blocks };
          const model = { run: async (window) => window.map(Math.tanh) };
          const out = [];
          const options = { dryShare: 0.25, highBand: "follow" };
          const denoised = m.denoiseChannel(source, 0, model, options, () => {});
          for await (const block of denoised) out.push(Array.from(block));
          return out.flat();
        })()""",
        audio.tolist(),
        rate,
    )
    with Denoiser(backend=FunctionBackend(np.tanh)) as denoiser:
        expected = denoiser(audio, rate, attenuation_limit_db=-20 * np.log10(0.25))
    assert np.linalg.norm(found - expected) < (1e-5 if rate == RATE else 0.03) * np.linalg.norm(expected)


def test_gaps_of_live_audio(module: Callable[..., Any]) -> None:
    """Five gaps in ten seconds are many; live audio is stopped when they have been many for half a minute."""

    def judged(gap_times_s: list[float]) -> dict[str, float]:
        """Return when each verdict was given first."""
        found = module(
            "gaps.js",
            "((watch) => a[0].map((at, index) => watch.update(at, a[1][index])))(new m.GapWatch())",
            seconds,
            [sum(gap <= at for gap in gap_times_s) for at in seconds],
        )
        return {verdict: seconds[found.index(verdict)] for verdict in found}

    seconds = [0.5 * step for step in range(200)]
    assert judged([]) == {"few": 0}
    assert judged([1, 2, 3, 4]) == {"few": 0}
    assert judged([3 * index for index in range(33)]) == {"few": 0}
    assert judged([1, 2, 3, 4, 5]) == {"few": 0, "many": 5}
    assert judged([2 * index for index in range(1, 50)]) == {"few": 0, "many": 10, "lasting": 40}
    assert judged([2 * index for index in range(1, 20)]) == {"few": 0, "many": 10}
