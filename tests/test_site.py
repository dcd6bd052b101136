"""The page as a static site, in a headless Chromium without a network: `nox -s site` builds and tests it."""

from __future__ import annotations

import functools
import http.server
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

for _package in ("httpx", "selenium", "uvicorn"):
    pytest.importorskip(_package, reason="needs [serve], httpx and selenium: nox -s site")

from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By

from browsing import (
    AXE,
    BROWSER,
    DRIVER,
    RATE,
    Page,
    axe_findings,
    look,
    microphone_noise,
    open_browser,
    place_and_gain,
    served,
    weak_texts,
)
from frcrn_accel import Denoiser
from serving import wav
from twins import difference, with_bang

SITE = os.environ.get("FRCRN_ACCEL_SITE", "")
pytestmark = [
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs Chromium and its driver"),
    pytest.mark.skipif(not SITE, reason="needs a built site: nox -s site"),
]
needs_axe = pytest.mark.skipif(not AXE, reason="needs axe-core: nox -s site fetches it")
TOLERANCE = 1e-3  # of the peak


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
    with served(functools.partial(Handler, directory=SITE)) as address:
        page = Page(driver, tmp_path_factory.mktemp("downloads"), address)
        page.until(lambda: page.script("return navigator.serviceWorker.controller !== null"))
    return address


@pytest.fixture
def page(driver: Chrome, url: str, tmp_path: Path) -> Iterator[Page]:
    look(driver, "light", 1280)
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

    def test_without_the_sound_above_8_khz(self, page: Page, tmp_path: Path, noisy: np.ndarray) -> None:
        rate = 48_000
        audio = soxr.resample(noisy[: 2 * RATE], RATE, rate)
        audio += 0.003 * np.random.default_rng(0).standard_normal(len(audio))
        audio *= np.interp(np.arange(len(audio)), [0, 9_600, len(audio) - 9_600, len(audio)], [0, 1, 1, 0])
        soundfile.write(tmp_path / "clip.wav", audio, rate, "FLOAT")
        page.denoise(tmp_path / "clip.wav")
        page["file-band"].click()
        page.until(lambda: page.is_shown("result"))
        found, _ = soundfile.read(page.download(), dtype="float32")
        with Denoiser(high_band="drop") as denoiser:
            expected = denoiser(audio.astype(np.float32), rate)
        assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)  # another resampler
        above = np.abs(np.fft.rfft(found))[round(9_000 / rate * len(found)) :]
        assert np.linalg.norm(above) < 1e-3 * np.linalg.norm(np.fft.rfft(found))

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

    @needs_axe
    @pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
    def test_axe_finds_nothing(self, page: Page, scheme: str, width: int, tmp_path: Path) -> None:
        look(page.driver, scheme, width)
        found = {"empty": axe_findings(page.driver)}
        page["example-night"].click()
        page.until(lambda: page.is_shown("result"))
        found["result"] = axe_findings(page.driver)
        (tmp_path / "notes.txt").write_text("This is no audio.")
        page.send(tmp_path / "notes.txt")
        page.until(lambda: page.is_shown("file-error"))
        found["error"] = axe_findings(page.driver)
        page["tab-live"].click()
        found["live"] = axe_findings(page.driver)
        assert not any(found.values()), found


DOCS = Path(SITE).parent
DOC_PAGES = [path.parent.relative_to(DOCS) for path in sorted(DOCS.rglob("index.html"))] if SITE else []


@pytest.fixture(scope="module")
def docs() -> Iterator[str]:
    with served(functools.partial(Handler, directory=DOCS)) as address:
        yield address


class TestDocs:
    """The documentation, which `nox -s site` builds around the page."""

    MOST_PX = 3_000  # of tables before a sentence
    # Height of the longest run of blocks without a sentence: tables, code, headings.
    LONGEST = """
    let run = 0, longest = 0;
    for (const block of document.querySelector("article").children) {
      run = block.matches("p, ul, ol, dl, div.admonition, div.doc") ? 0 : run + block.getBoundingClientRect().height;
      longest = Math.max(longest, run);
    }
    return longest;
    """

    @needs_axe
    @pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
    @pytest.mark.parametrize("name", [name for name in DOC_PAGES if name.parts != ("try",)], ids=str)
    def test_a_page(self, driver: Chrome, docs: str, name: Path, scheme: str, width: int) -> None:
        look(driver, scheme, width)
        driver.get(f"{docs}/{name.as_posix()}/")
        assert axe_findings(driver) == []
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        assert driver.execute_script("return document.querySelector('article p') !== null")
        if width == 1280:
            assert driver.execute_script(self.LONGEST) < self.MOST_PX

    def test_commands_are_copied_without_the_prompt(self, driver: Chrome, docs: str) -> None:
        driver.get(f"{docs}/start/")
        copied = driver.execute_script(
            """
            const codes = [...document.querySelectorAll(".highlight code")];
            for (const code of codes) code.dataset.mdCopying = ""; // as the theme does
            return codes.map((code) => code.innerText).join("\\n");
            """
        )
        lines = copied.splitlines()
        assert "pip install 'frcrn-accel[ort]'" in lines
        assert not any(line.startswith("$") for line in lines)

    def test_it_links_to_the_page_and_back(self, driver: Chrome, docs: str) -> None:
        driver.get(docs)
        driver.find_element(By.LINK_TEXT, "Try it in the browser").click()
        assert driver.title == "frcrn-accel: remove noise from speech"
        driver.find_element(By.LINK_TEXT, "Documentation").click()
        assert driver.title == "Overview - frcrn-accel"
