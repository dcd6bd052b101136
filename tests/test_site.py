"""The page as a static site, in a headless Chromium without a network: `nox -s site` builds and tests it."""

from __future__ import annotations

import functools
import http.server
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

for _package in ("httpx", "selenium", "uvicorn"):
    pytest.importorskip(_package, reason="needs [serve], httpx and selenium: nox -s site")

from selenium.webdriver import Chrome, Keys

from browsing import BROWSER, DRIVER, RATE, Page, microphone_noise, open_browser, place_and_gain, weak_texts
from frcrn_accel import Denoiser
from frcrn_accel.audio import measure_levels
from frcrn_accel.high_band import HighBand
from frcrn_accel.streaming.level import RunningLevel
from frcrn_accel.streaming.offset import RunningOffset
from frcrn_accel.streaming.resampling import StreamResampler
from frcrn_accel.windows import Windowing
from serving import wav

SITE = os.environ.get("FRCRN_ACCEL_SITE", "")
pytestmark = [
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs Chromium and its driver"),
    pytest.mark.skipif(not SITE, reason="needs a built site: nox -s site"),
]
TOLERANCE = 1e-3  # of the peak


def with_bang(audio: np.ndarray, first: int, samples: int, level: float) -> np.ndarray:
    """Return a signal with a bang in it."""
    banged = audio.copy()
    banged[first : first + samples] += level * np.random.default_rng(1).standard_normal(samples)
    return banged


class Handler(http.server.SimpleHTTPRequestHandler):
    extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript"}  # noqa: RUF012

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Iterator[Chrome]:
    with open_browser(tmp_path_factory.mktemp("microphone")) as driver:
        yield driver


@pytest.fixture(scope="module")
def url(driver: Chrome, tmp_path_factory) -> str:
    """Address of the site, which was loaded once, and whose server is gone."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=SITE))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        page = Page(driver, tmp_path_factory.mktemp("downloads"), address)
        page.until(lambda: page.script("return navigator.serviceWorker.controller !== null"))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    return address


@pytest.fixture
def page(driver: Chrome, url: str, tmp_path: Path) -> Iterator[Page]:
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    page = Page(driver, downloads, url)
    yield page
    problems = page.problems()
    assert problems == []


@pytest.fixture(scope="module")
def denoiser() -> Iterator[Denoiser]:
    with Denoiser(backend="ort") as denoiser:
        yield denoiser


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, as a share of the peak."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


class TestFiles:
    def test_a_file_is_that_of_python(
        self, page: Page, denoiser: Denoiser, tmp_path: Path, noisy: np.ndarray
    ) -> None:
        path = tmp_path / "noisy.wav"
        soundfile.write(path, noisy, RATE, "FLOAT")
        page.denoise(path)
        found, rate = soundfile.read(page.download(), dtype="float32")
        assert rate == RATE
        assert difference(found, denoiser(noisy.astype(np.float32), RATE)) < TOLERANCE
        assert "frcrn-small on this device" in page.text("service")

    def test_windows_are_joined_as_in_python(
        self, page: Page, denoiser: Denoiser, tmp_path: Path, noisy: np.ndarray
    ) -> None:
        audio = np.resize(noisy, 21 * RATE)
        path = tmp_path / "long.wav"
        soundfile.write(path, audio, RATE, "PCM_24")
        page.denoise(path)
        found, _ = soundfile.read(page.download(), dtype="float32")
        assert soundfile.info(page.download()).subtype == "PCM_24"
        assert difference(found, denoiser(audio.astype(np.float32), RATE)) < TOLERANCE

    def test_a_bang_beside_quiet_speech(
        self, page: Page, denoiser: Denoiser, tmp_path: Path, noisy: np.ndarray
    ) -> None:
        audio = with_bang(0.02 * noisy[: 4 * RATE], RATE, 3000, 0.3).astype(np.float32)
        path = tmp_path / "bang.wav"
        soundfile.write(path, audio, RATE, "FLOAT")
        page.denoise(path)
        found, _ = soundfile.read(page.download(), dtype="float32")
        expected = denoiser(audio, RATE)
        assert difference(found, expected) < TOLERANCE
        assert difference(found[2 * RATE :], expected[2 * RATE :]) < TOLERANCE  # of the peak of the speech alone

    @pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
    def test_what_the_browser_decodes(
        self, page: Page, denoiser: Denoiser, tmp_path: Path, noisy: np.ndarray, suffix: str
    ) -> None:
        path = tmp_path / f"clip.{suffix}"
        soundfile.write(path, noisy[: 3 * RATE], RATE)
        page.denoise(path)
        found, rate = soundfile.read(page.download(), dtype="float32")
        assert rate == RATE
        decoded, _ = soundfile.read(path, dtype="float32")
        expected = denoiser(decoded, RATE)
        # Chromium does not take away what an MP3 encoder adds at the start, and decodes with its own rounding.
        offset = int(np.argmax(np.correlate(found, expected[:RATE], "valid")))
        assert difference(found[offset : offset + RATE], expected[:RATE]) < (0.02 if suffix == "mp3" else TOLERANCE)

    @pytest.mark.parametrize(("rate", "channels"), [(48_000, 2), (44_100, 1), (8_000, 1)])
    def test_other_rates(
        self, page: Page, denoiser: Denoiser, tmp_path: Path, noisy: np.ndarray, rate: int, channels: int
    ) -> None:
        mono = soxr.resample(noisy[: 2 * RATE], RATE, rate)
        mono += 0.003 * np.random.default_rng(0).standard_normal(len(mono))  # also above 8 kHz
        mono[: rate // 4] *= np.linspace(0, 1, rate // 4)  # the resamplers differ at the ends
        mono[-rate // 4 :] *= np.linspace(1, 0, rate // 4)
        audio = np.stack([mono, mono[::-1]][:channels])
        path = tmp_path / "clip.wav"
        soundfile.write(path, audio.T, rate, "FLOAT")
        page.denoise(path)
        found, found_rate = soundfile.read(page.download(), dtype="float32", always_2d=True)
        assert found_rate == rate
        expected = denoiser(audio.astype(np.float32), rate)
        assert np.linalg.norm(found.T - expected) < 0.03 * np.linalg.norm(expected)  # another resampler

    def test_a_limit(self, page: Page, denoiser: Denoiser, tmp_path: Path, noisy: np.ndarray) -> None:
        path = tmp_path / "clip.wav"
        path.write_bytes(wav(noisy[: 3 * RATE]))
        page.denoise(path)
        page["file-limit"].send_keys(Keys.HOME, *[Keys.ARROW_RIGHT] * 11)
        found, _ = soundfile.read(page.download(), dtype="float32")
        before, _ = soundfile.read(path, dtype="float32")
        share = np.float32(10 ** (-12 / 20))
        expected = (1 - share) * denoiser(before, RATE) + share * before
        assert difference(found, expected) < TOLERANCE

    @pytest.mark.parametrize("name", ["train", "rain", "night"])
    def test_an_example(self, page: Page, denoiser: Denoiser, name: str) -> None:
        page[f"example-{name}"].click()
        page.until(lambda: page.is_shown("result"))
        assert page.text("summary").startswith("The noise in pauses is down by ")
        before, _ = soundfile.read(Path(SITE, "page", "examples", f"{name}.flac"), dtype="float32")
        found, _ = soundfile.read(page.download(), dtype="float32")
        assert difference(found, denoiser(before, RATE)) < TOLERANCE

    def test_the_microphone_is_recorded(self, page: Page) -> None:
        page.record()

    def test_it_can_be_cancelled(self, page: Page, tmp_path: Path, noisy: np.ndarray) -> None:
        path = tmp_path / "long.wav"
        path.write_bytes(wav(np.resize(noisy, 90 * RATE)))
        page.send(path)
        page.until(lambda: page.text("phase").startswith("Denoising"))
        page["cancel"].click()
        page.until(lambda: page.text("status") == "Cancelled")
        page["example-night"].click()
        page.until(lambda: page.is_shown("result"))
        assert page.text("result-title") == "night.flac"

    def test_what_is_no_audio_is_an_error_in_words(self, page: Page, tmp_path: Path) -> None:
        texts = {"notes.txt": b"This is no audio.", "half.wav": b"RIFF\0\0\0\0WAVE", "empty.mp3": b""}
        for name, content in texts.items():
            path = tmp_path / name
            path.write_bytes(content)
            page.send(path)
            page.until(lambda name=name: name in page.text("file-error"))
            assert page.text("file-error").startswith(f"This browser cannot read {name}.")
        for rate, value in ((4_000, 0.1), (RATE, np.nan)):
            path = tmp_path / f"{rate}.wav"
            soundfile.write(path, np.full(rate, value), rate, "FLOAT")
            page.send(path)
            words = "The sample rate must be" if rate == 4_000 else "The audio contains NaN or infinity."
            page.until(lambda words=words: page.text("file-error").startswith(words))

    def test_audio_of_no_and_of_one_sample(self, page: Page, tmp_path: Path) -> None:
        for samples in (0, 1):
            path = tmp_path / f"{samples}.wav"
            path.write_bytes(wav(np.full(samples, 0.5)))
            page.denoise(path)
            assert len(soundfile.read(page.download())[0]) == samples


class TestLive:
    @pytest.mark.parametrize("rate", [16_000, 48_000])
    def test_the_stream_is_that_of_python(self, page: Page, noisy: np.ndarray, rate: int) -> None:
        chunk = 960
        heard = with_bang(0.2 * noisy[: 3 * RATE], RATE, 3000, 0.2)
        heard[2 * RATE :] += 0.1  # a constant offset
        signal = soxr.resample(heard, RATE, rate)
        signal += 0.003 * np.random.default_rng(0).standard_normal(len(signal))
        audio = np.rint(signal[: len(signal) // chunk * chunk] * 32768).astype(np.int16)
        found, latency = page.module(
            "engine.js",
            """await (async () => {
              const { stream, started } = await m.LiveStream.open(a[2], 20);
              const out = [];
              stream.onSamples = (samples) => out.push(...samples);
              for (let at = 0; at < a[0].length; at += a[1]) stream.send(Int16Array.from(a[0].slice(at, at + a[1])));
              await stream.finish();
              return [out, started.latency_samples];
            })()""",
            audio.tolist(),
            chunk,
            rate,
        )
        with Denoiser("frcrn-small-stream", backend="ort") as denoiser:
            stream = denoiser.stream(rate, step_s=0.04, attenuation_limit_db=20)
            expected = np.concatenate([stream.process(part) for part in audio.reshape(-1, chunk)])
        assert latency == stream.latency_samples
        assert difference(np.array(found, float), expected.astype(float)) < TOLERANCE

    def test_the_microphone_is_denoised_live(self, page: Page) -> None:
        page["tab-live"].click()
        page["live-start"].click()
        page.until_live(lambda: "Latency" in page.text("live-facts"))
        assert "frcrn-small-stream" in page.text("live-facts")
        (model_ms,) = re.findall(r"Model latency\s+(\d+) ms", page.text("live-facts"))
        assert 140 <= int(model_ms) <= 160
        page["listen"].click()
        page["live-limit"].send_keys(Keys.HOME)
        page["tab-live"].send_keys("a")

        def is_heard() -> bool:
            rate, heard = page.heard()
            return place_and_gain(heard[-rate // 10 :], rate, microphone_noise())[1] == pytest.approx(1, rel=0.05)

        page.until_live(is_heard)
        page["live-start"].click()
        page.until(lambda: page.text("live-start") == "Start")


class TestModules:
    """Each part against its twin in Python."""

    def test_windows(self, page: Page) -> None:
        lengths = [320 * count for count in (1, 999, 1000, 1001, 1717, 3000, 5432, 180_000)]
        found = page.module("tab/windows.js", "a[0].map((length) => m.planWindows(length, 16000, 320))", lengths)
        for length, plan in zip(lengths, found, strict=True):
            expected = Windowing().plan(length, RATE, 320)
            assert [
                (each["start"], each["stop"], tuple(each["fadeIn"]), tuple(each["fadeOut"])) for each in plan
            ] == [(each.start, each.stop, each.fade_in, each.fade_out) for each in expected]
        plan = Windowing().plan(320 * 1717, RATE, 320)
        weights = page.module("tab/windows.js", "Array.from(m.weightsOf(m.planWindows(549440, 16000, 320)[1]))")
        np.testing.assert_allclose(weights, plan[1].weights(), atol=1e-6)

    def test_levels(self, page: Page, noisy: np.ndarray) -> None:
        rng = np.random.default_rng(0)
        signals = [
            noisy[: 2 * RATE],
            with_bang(0.01 * noisy[: 4 * RATE], RATE, 3000, 1.0),
            with_bang(0.1 * noisy[: 4 * RATE], RATE, 9600, 0.05),
            0.2 + noisy[: 2 * RATE],
            1e-9 * rng.standard_normal(999),
            np.zeros(RATE),
            np.sign(np.sin(np.arange(RATE) / 9)),
            np.concatenate([1e-5 * rng.standard_normal(3 * RATE), rng.standard_normal(2000)]),
            np.full(1, 0.5),  # a constant that float32 sums hold exactly
        ]
        for signal in signals:
            audio = signal.astype(np.float32)
            found = page.module(
                "tab/level.js",
                """await m.measureLevel(async function* () {
                  for (let at = 0; at < a[0].length; at += 777) yield Float32Array.from(a[0].slice(at, at + 777));
                })""",
                audio.tolist(),
            )
            expected = measure_levels(lambda audio=audio: [audio[None]], 1)
            assert found["samples"] == expected.samples
            assert found["gain"] == pytest.approx(float(expected.gains[0]), rel=1e-4)
            assert found["offset"] == pytest.approx(float(expected.offsets[0]), abs=1e-6)

    def test_running_levels(self, page: Page, noisy: np.ndarray) -> None:
        speech = noisy[: 2 * RATE]
        signals = [
            np.concatenate([speech, 0.001 * speech, np.zeros(3200), noisy[:RATE]]),
            with_bang(with_bang(0.02 * noisy[: 5 * RATE], 3200, 3000, 1.0), 4 * RATE, 9600, 0.1),
            np.sign(np.sin(np.arange(RATE) / 9)),
            np.zeros(RATE),
        ]
        for signal in signals:
            hops = signal.astype(np.float32).reshape(-1, 320)
            found = page.module(
                "tab/level.js",
                "(() => { const l = new m.RunningLevel(); "
                "return a[0].map((h) => l.update(Float32Array.from(h))); })()",
                hops.tolist(),
            )
            expected, _ = RunningLevel.silent(1, 1000).update(hops[None])
            np.testing.assert_allclose(found, expected[0], rtol=1e-4)

    def test_running_offsets(self, page: Page, noisy: np.ndarray) -> None:
        speech = noisy[:RATE]
        tone = 0.3 * np.sin(2 * np.pi * 3 * np.arange(RATE) / RATE)
        audio = np.concatenate([speech, speech + 0.1, speech + 0.02, speech, tone, speech])
        hops = audio.astype(np.float32).reshape(-1, 320)
        found = page.module(
            "tab/offset.js",
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
    def test_resampling(self, page: Page, from_hz: int, to_hz: int) -> None:
        signal = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
        found = page.module(
            "tab/resample.js",
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
    def test_the_high_band(self, page: Page, rate: int) -> None:
        rng = np.random.default_rng(0)
        dry = rng.standard_normal(RATE).astype(np.float32) * np.repeat(rng.uniform(0.001, 0.2, 10), RATE // 10)
        wet = dry * np.repeat(rng.uniform(0, 1, 20) ** 3, RATE // 20)
        band = (0.1 * rng.standard_normal(rate)).astype(np.float32)
        shares = np.clip(np.arange(RATE) / RATE - 0.3, 0, 0.1)  # of a limit that is set while it runs
        signals = [signal.astype(np.float32) for signal in (band, dry, wet, shares)]
        found = page.module(
            "tab/high-band.js",
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


class TestSite:
    def test_it_is_isolated_and_asks_nobody(self, page: Page) -> None:
        assert page.script("return crossOriginIsolated")
        policy = page.script("return document.querySelector('meta[http-equiv]').content")
        assert "connect-src 'self'" in policy
        assert "default-src 'none'" in policy

    def test_texts_have_contrast(self, page: Page) -> None:
        page["example-night"].click()
        page.until(lambda: page.is_shown("result"))
        assert weak_texts(page) == []

    def test_licences_are_kept(self) -> None:
        assert "Copyright (c) Microsoft Corporation" in Path(SITE, "page", "ort", "LICENSE").read_text()
        assert "CC0" in Path(SITE, "page", "examples", "CREDITS.md").read_text()
