"""The web page, in a headless Chromium."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

for _package in ("starlette", "uvicorn", "httpx", "websockets", "prometheus_client", "python_multipart", "selenium"):
    pytest.importorskip(_package, reason="needs [serve], httpx and selenium: nox -s page")

from selenium.webdriver import Chrome, ChromeOptions, ChromeService, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from frcrn_accel.serve.denoise import FORMATS
from serving import GatedBackend, Running, gated_denoiser, running, wav

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="needs Chromium and its driver: apt-get install chromium chromium-driver"
)

RATE = 16_000
NOISE_S = 20  # period of the noise that the fake microphone repeats
GAIN = 0.5  # of a live stream
TOKEN = "a-token-of-twenty-some-characters"
PHONE_PX = 360
WAIT_S = 120  # the machine may be busy
SYNC_S = (
    0.35e-3  # a stream's filters delay high tones by up to 0.25 ms, and positions are found to a sample at 16 kHz
)
# Taps what goes to the loudspeakers, so that the page needs no code for tests.
EARS = """
const connect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (target, ...rest) {
  if (target === this.context.destination) {
    window.ears ??= new Map();
    if (!window.ears.has(this.context)) {
      window.ears.set(this.context, new AnalyserNode(this.context, { fftSize: 32768 }));
    }
    connect.call(this, window.ears.get(this.context));
  }
  return connect.call(this, target, ...rest);
};
"""
HEARD = """
const [context, ear] = [...window.ears].at(-1);
const heard = new Float32Array(ear.fftSize);
ear.getFloatTimeDomainData(heard);
return [context.sampleRate, Array.from(heard)];
"""


# Presses X and records the output from before to after the switch, timed by the browser alone.
SWITCHED = f"""
const done = arguments[0];
document.body.dispatchEvent(new KeyboardEvent("keydown", {{ key: "x", bubbles: true }}));
setTimeout(() => done((() => {{ {HEARD} }})()), 250);
"""


class Backend(GatedBackend):
    """Turns a file into the differences of its samples, so that it sounds different and not only softer."""

    def _run_file(self, audio: np.ndarray) -> np.ndarray:
        return np.diff(super()._run_file(audio), axis=1, prepend=np.float32(0))


class Page:
    """The page in a browser.

    Attributes:
        driver: The browser.
        downloads: Folder of its downloads.
        server: Server of the page.
    """

    def __init__(self, driver: Chrome, downloads: Path, server: Running) -> None:
        self.driver = driver
        self.downloads = downloads
        self.server = server
        driver.get(server.url)
        self.until(lambda: "ready" in self.text("service"))

    def __getitem__(self, name: str) -> WebElement:
        return self.driver.find_element(By.ID, name)

    def until(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, WAIT_S, 0.05).until(lambda _: condition())

    def until_live(self, condition: Callable[[], Any]) -> Any:
        """Wait as `until` does while live audio runs; start it again when a busy machine was too slow for it."""

        def is_met() -> Any:
            if self.is_shown("live-error"):
                assert "too slow" in self.text("live-error")
                self["live-start"].click()
            return condition()

        return self.until(is_met)

    def text(self, name: str) -> str:
        return self[name].text

    def is_shown(self, name: str) -> bool:
        return self[name].is_displayed()

    def script(self, text: str, *arguments: Any) -> Any:
        return self.driver.execute_script(text, *arguments)

    def module(self, name: str, expression: str, *arguments: Any) -> Any:
        """Return the value of an expression with one of the page's modules, `m`, and the arguments `a`."""
        script = f"""
        const a = Array.from(arguments), done = a.pop();
        import("/page/{name}").then(async (m) => done({expression})).catch((error) => done(String(error)));
        """
        return self.driver.execute_async_script(script, *arguments)

    def focus(self) -> str:
        """Return the id of the element that has the focus, or its value or kind."""
        return self.script("const at = document.activeElement; return at.id || at.value || at.localName")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def send(self, path: Path) -> None:
        self["chosen"].send_keys(str(path))

    def denoise(self, path: Path) -> None:
        self.send(path)
        self.until(lambda: self.is_shown("result") or self.is_shown("file-error"))
        assert self.text("file-error") == ""
        assert self.text("result-title") == path.name

    def position_s(self) -> float:
        minutes, seconds = self.text("clock").split(" /")[0].split(":")
        return 60 * int(minutes) + float(seconds)

    def download(self) -> Path:
        """Press the button and return the downloaded file."""
        for path in self.downloads.iterdir():
            path.unlink()
        self["download"].click()

        def new() -> Path | None:
            paths = self.downloads.iterdir()
            return next((path for path in paths if path.suffix not in (".crdownload", ".tmp")), None)

        return self.until(new)

    def heard(self) -> tuple[int, np.ndarray]:
        """Return the rate of the output, and its last samples."""
        rate, samples = self.script(HEARD)
        return int(rate), np.array(samples, np.float64)

    def heard_across_a_switch(self) -> tuple[int, np.ndarray]:
        """Return the same, with X pressed in the middle."""
        rate, samples = self.driver.execute_async_script(SWITCHED)
        return int(rate), np.array(samples, np.float64)

    def heard_for(self, duration_s: float) -> np.ndarray:
        """Play from the start and return the last `duration_s` of the output."""
        self["tracks"].send_keys(Keys.HOME)
        assert self.text("play") == "Pause"
        self.until(lambda: self.position_s() > duration_s + 0.3)
        return self.heard()[1][-int(duration_s * RATE) :]

    def problems(self) -> list[str]:
        """Return the errors on the console since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Iterator[Chrome]:
    microphone = tmp_path_factory.mktemp("microphone") / "noise.wav"
    microphone.write_bytes(wav(microphone_noise()))
    options = ChromeOptions()
    options.binary_location = BROWSER or ""
    for argument in (
        "--headless=new",
        "--window-size=1100,1000",
        "--disable-dev-shm-usage",
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={microphone}",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options, ChromeService(DRIVER))
    driver.set_script_timeout(WAIT_S)
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": EARS})
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def backend() -> Backend:
    return Backend(GAIN)


@pytest.fixture(scope="module")
def server(backend: Backend, tmp_path_factory) -> Iterator[Running]:
    with gated_denoiser(backend) as denoiser, running(denoiser, tmp_path_factory.mktemp("server") / "work") as server:
        yield server


@pytest.fixture
def open_page(driver: Chrome, tmp_path: Path) -> Callable[[Running], Page]:
    """Opens the page of a server."""
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})
    return lambda server: Page(driver, downloads, server)


@pytest.fixture
def page(open_page: Callable[[Running], Page], server: Running) -> Iterator[Page]:
    """The page. Errors on the console fail the test; tests of errors collect those that they expect."""
    page = open_page(server)
    yield page
    problems = page.problems()
    page.driver.get("about:blank")
    assert problems == []


@pytest.fixture
def clip(tmp_path: Path, noisy: np.ndarray) -> Path:
    """Four seconds of noisy speech."""
    path = tmp_path / "clip.wav"
    path.write_bytes(wav(noisy[:64_000]))
    return path


def gain_db_of(part: np.ndarray, signal: np.ndarray) -> float:
    """Return the gain of a part relative to the same part of the signal; NaN if it is not a part of it."""
    size = 2 ** int(np.ceil(np.log2(len(signal) + len(part))))
    correlation = np.fft.irfft(np.fft.rfft(signal, size) * np.fft.rfft(part, size).conj(), size)
    at = int(np.argmax(correlation[: len(signal) - len(part) + 1]))
    expected = signal[at : at + len(part)]
    gain = float(part @ expected / (expected @ expected))
    is_it = np.abs(part - gain * expected).max() < 1e-4
    return 20 * float(np.log10(gain)) if is_it else np.nan


def microphone_noise() -> np.ndarray:
    """Return the audio of the fake microphone: noise up to 3 kHz, different at every position."""
    spectrum = np.random.default_rng(0).standard_normal((2, NOISE_S * RATE // 2 + 1))
    spectrum[:, 3_000 * NOISE_S :] = 0
    noise = np.fft.irfft(spectrum[0] + 1j * spectrum[1])
    return 0.5 * noise / np.abs(noise).max()


def place_and_gain(part: np.ndarray, rate: int, signal: np.ndarray) -> tuple[float, float]:
    """Return the position of a part in a periodic signal, s, and its gain; NaN if it is not a part of it."""
    part = soxr.resample(part, rate, RATE)
    part = part[len(part) // 10 : -len(part) // 10]  # without the ends, where the resampler lacks context
    correlation = np.fft.irfft(np.fft.rfft(signal) * np.fft.rfft(part, len(signal)).conj())
    at = int(np.argmax(correlation))
    expected = np.take(signal, np.arange(at, at + len(part)), mode="wrap")
    gain = float(part @ expected / (expected @ expected))
    # At 1 kHz a quarter of a sample is 0.1 radians.
    is_it = np.linalg.norm(part - gain * expected) < 0.4 * np.linalg.norm(part)
    return (at / RATE, gain) if is_it else (np.nan, np.nan)


class TestFile:
    def test_the_download_is_the_servers_answer(self, page: Page, clip: Path) -> None:
        page.denoise(clip)
        answer = page.server.client.post("/v1/denoise?format=wav", content=clip.read_bytes())
        assert answer.status_code == 200
        path = page.download()
        assert path.name == "clip.denoised.wav"
        assert path.read_bytes() == answer.content
        facts = page.text("facts")
        assert "4.00 s" in facts
        assert "16 kHz, mono" in facts
        assert answer.headers["X-Model"] in facts
        assert answer.headers["X-Backend"] in facts

    def test_other_formats_come_from_the_server(self, page: Page, clip: Path) -> None:
        page.denoise(clip)
        formats = page.script("return [...document.getElementById('format').options].map((option) => option.value)")
        assert set(formats) - {""} <= set(FORMATS)
        page["format"].find_element(By.CSS_SELECTOR, "[value=flac]").click()
        path = page.download()
        assert path.name == "clip.denoised.flac"
        answer = page.server.client.post("/v1/denoise?format=flac", content=clip.read_bytes())
        assert path.read_bytes() == answer.content

    def test_what_is_heard_is_what_is_chosen(self, page: Page, noisy_path: Path) -> None:
        before, _ = soundfile.read(noisy_path)
        page.denoise(noisy_path)
        after, _ = soundfile.read(page.download())
        (softer_db,) = (
            float(text) for text in re.findall(r"Before is played ([\d.]+) dB softer", page.text("loudness"))
        )
        page["play"].click()
        assert gain_db_of(page.heard_for(0.4), after) == pytest.approx(0, abs=0.001)
        page.driver.find_element(By.CSS_SELECTOR, "#file .ab .a").click()
        assert gain_db_of(page.heard_for(0.4), before) == pytest.approx(
            -softer_db, abs=0.051
        )  # shown with one decimal
        page["equal"].click()
        assert gain_db_of(page.heard_for(0.4), before) == pytest.approx(0, abs=0.001)
        page.press("x")
        assert gain_db_of(page.heard_for(0.4), after) == pytest.approx(0, abs=0.001)

    @pytest.mark.parametrize("name", ["clip.aiff", "clip.mp3"])
    def test_what_the_browser_decodes_not_or_differently_is_in_step(
        self, page: Page, tmp_path: Path, noisy: np.ndarray, name: str
    ) -> None:
        path = tmp_path / name
        soundfile.write(path, noisy, RATE)
        before, _ = soundfile.read(path)
        page.denoise(path)
        page["equal"].click()
        page["play"].click()
        page.press("a")
        assert gain_db_of(page.heard_for(0.4), before) == pytest.approx(0, abs=0.01)

    def test_an_attenuation_limit_is_asked_for(self, page: Page, clip: Path) -> None:
        page["file-limit"].send_keys(Keys.HOME, *[Keys.ARROW_RIGHT] * 11)
        assert page.text("file-limit-text") == "at most 12 dB"
        page.denoise(clip)
        answer = page.server.client.post("/v1/denoise?format=wav&attenuation_limit_db=12", content=clip.read_bytes())
        assert page.download().read_bytes() == answer.content
        page["file-limit"].send_keys(Keys.END)
        page["again"].click()
        page.until(lambda: page.is_shown("result"))
        without = page.server.client.post("/v1/denoise?format=wav", content=clip.read_bytes())
        assert page.download().read_bytes() == without.content != answer.content

    def test_it_can_be_cancelled(self, page: Page, backend: Backend, clip: Path) -> None:
        backend.files_gate.clear()
        try:
            page.send(clip)
            page.until(lambda: page.text("phase").startswith("Denoising"))
            page["cancel"].click()
            page.until(lambda: page.text("status") == "Cancelled")
            assert not page.is_shown("work")
        finally:
            backend.files_gate.set()
        assert page.server.line("the client left")
        page["again"].click()
        page.until(lambda: page.is_shown("result"))

    def test_a_file_can_be_dropped(self, page: Page, clip: Path) -> None:
        def drop(names: list[str]) -> None:
            page.script(
                """
                const dataTransfer = new DataTransfer();
                for (const name of arguments[0]) {
                  dataTransfer.items.add(new File([new Uint8Array(arguments[1])], name));
                }
                for (const type of ["dragenter", "dragover", "drop"]) {
                  document.getElementById("drop").dispatchEvent(new DragEvent(type, { dataTransfer, bubbles: true }));
                }
                """,
                names,
                list(clip.read_bytes()),
            )

        drop(["one.wav", "two.wav"])
        assert page.text("file-error").startswith("Drop one audio file.")
        drop(["one.wav"])
        page.until(lambda: page.is_shown("result"))
        assert page.text("result-title") == "one.wav"
        assert not page.is_shown("file-error")

    def test_a_server_that_is_gone(self, open_page, backend: Backend, tmp_path: Path, clip: Path) -> None:
        with gated_denoiser(backend) as denoiser, running(denoiser, tmp_path / "work") as server:
            page = open_page(server)
        page.send(clip)
        page.until(lambda: page.is_shown("file-error"))
        assert page.text("file-error") == "The server does not answer. Is it running, and are you online?"
        page["tab-live"].click()
        page["live-start"].click()
        page.until(lambda: page.is_shown("live-error"))
        assert page.text("live-error") == page.script("return document.getElementById('file-error').textContent")
        assert "ERR_CONNECTION_REFUSED" in page.problems()[0]

    def test_errors_are_in_words_and_the_next_file_works(self, page: Page, tmp_path: Path, clip: Path) -> None:
        text = tmp_path / "notes.wav"
        text.write_text("This is no audio.\n" * 100)
        page.send(text)
        page.until(lambda: page.is_shown("file-error"))
        detail = page.server.client.post("/v1/denoise?format=wav", content=text.read_bytes()).json()["detail"]
        assert page.text("file-error").lower() == f"{detail}.".lower()
        assert page["file-error"].get_attribute("role") == "alert"
        assert not page.is_shown("result")
        assert not page.is_shown("work")
        (problem,) = page.problems()  # Chromium logs every 4xx status
        assert "422" in problem
        page.denoise(clip)
        assert not page.is_shown("file-error")

    def test_audio_of_one_sample_and_silence(self, page: Page, tmp_path: Path) -> None:
        for samples in (1, RATE):
            path = tmp_path / f"{samples}.wav"
            path.write_bytes(wav(np.zeros(samples)))
            page.denoise(path)
            assert page.text("loudness") == "One of the signals is silent, so their loudness cannot be matched."
        empty = tmp_path / "empty.wav"
        empty.write_bytes(wav(np.zeros(0)))
        page.denoise(empty)
        assert page.text("not-playable") == "This file contains no audio."
        assert not page.is_shown("listening")

    def test_the_microphone_is_recorded(self, page: Page) -> None:
        page["record"].click()
        page.until(lambda: page.text("recorded") > "0:01.0")
        page["record"].click()
        page.until(lambda: page.is_shown("result"))
        assert page.text("result-title") == "recording.wav"
        samples, rate = soundfile.read(page.download())
        assert len(samples) > rate
        expected = np.diff(GAIN * microphone_noise(), prepend=0)
        _, gain = place_and_gain(samples[rate // 2 : rate // 2 + rate // 4], rate, expected)
        assert gain == pytest.approx(1, rel=0.05)


class TestLive:
    def test_the_microphone_comes_back_denoised_and_in_step(self, page: Page) -> None:
        page["tab-live"].click()
        page["live-start"].click()
        page.until_live(lambda: "Latency" in page.text("live-facts"))
        assert np.abs(page.heard()[1]).max() == 0  # silent until Listen is on, against feedback
        page["listen"].click()
        noise = microphone_noise()

        def ends(rate: int, heard: np.ndarray) -> list[tuple[float, float]]:
            """Return position and gain of the start and of the end; both positions are those of the start."""
            size = rate // 10
            first, last = (place_and_gain(part, rate, noise) for part in (heard[:size], heard[-size:]))
            between_s = (len(heard) - size) / rate
            return [first, (last[0] - between_s, last[1])]

        def is_steady(gain: float) -> bool:
            return all(found == pytest.approx(gain, rel=0.05) for _, found in ends(*page.heard()))

        def is_switched_in_step() -> bool:
            (first_s, first_gain), (last_s, last_gain) = ends(*page.heard_across_a_switch())
            gains = sorted((first_gain, last_gain))
            if gains != pytest.approx([GAIN, 1], rel=0.05):
                return False  # a gap: the machine is busy
            return abs((first_s - last_s + NOISE_S / 2) % NOISE_S - NOISE_S / 2) < SYNC_S

        page.until_live(lambda: is_steady(GAIN))
        page.until_live(is_switched_in_step)
        page.press("a")
        page.until_live(lambda: is_steady(1))
        level_db = float(page["level-in"].get_attribute("aria-valuenow") or "nan")
        assert level_db == pytest.approx(20 * np.log10(np.std(noise)), abs=2)  # a level over 50 ms varies
        page["live-start"].click()
        page.until(lambda: "Real-time factor" in page.text("live-facts"))
        assert page.text("live-start") == "Start"

    def test_the_limit_can_be_changed_while_it_runs(self, page: Page) -> None:
        page["tab-live"].click()
        page["listen"].click()
        page["live-start"].click()
        page.until_live(lambda: "Latency" in page.text("live-facts"))
        page["live-limit"].send_keys(Keys.HOME)
        dry = 10 ** (-1 / 20)

        def gain() -> float:
            rate, heard = page.heard()
            return place_and_gain(heard[-rate // 10 :], rate, microphone_noise())[1]

        page.until_live(lambda: gain() == pytest.approx(GAIN + dry * (1 - GAIN), rel=0.03))
        page["live-start"].click()
        page.until(lambda: "Real-time factor" in page.text("live-facts"))

    def test_an_engine_that_fails_is_an_error_in_words(self, page: Page, backend: Backend) -> None:
        page["tab-live"].click()
        page["live-start"].click()
        page.until_live(lambda: "Latency" in page.text("live-facts"))
        backend.broken = True
        try:
            page.until(lambda: page.is_shown("live-error"))
        finally:
            backend.broken = False
        assert "NaN or infinity" in page.text("live-error")
        assert page.text("live-start") == "Start"

    def test_no_microphone_is_an_error_in_words(self, page: Page) -> None:
        page.script(
            "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotFoundError') }"
        )
        page["record"].click()
        page.until(lambda: page.is_shown("file-error"))
        assert page.text("file-error") == "No microphone was found. Connect one and try again."
        page["tab-live"].click()
        page.script("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
        page["live-start"].click()
        page.until(lambda: page.is_shown("live-error"))
        assert page.text("live-error").startswith("This browser cannot record.")


class TestToken:
    def test_it_is_asked_for(self, open_page, backend: Backend, tmp_path: Path, clip: Path) -> None:
        with gated_denoiser(backend) as denoiser, running(denoiser, tmp_path / "work", tokens=[TOKEN]) as server:
            page = open_page(server)
            page.send(clip)
            page.until(lambda: page.is_shown("ask-token"))
            page["no-token"].click()
            page.until(lambda: page.is_shown("file-error"))
            assert "token" in page.text("file-error")
            page["again"].click()
            page.until(lambda: page.is_shown("ask-token"))
            assert page.focus() == "token"
            page.press("wrong", Keys.ENTER)
            page.until(lambda: page.is_shown("ask-token") and "rejected" in page.text("token-text"))
            page.press(TOKEN, Keys.ENTER)
            page.until(lambda: page.is_shown("result"))
            page["tab-live"].click()
            page["live-start"].click()
            page.until_live(lambda: "Latency" in page.text("live-facts"))
            page["live-start"].click()
            page.until(lambda: "Real-time factor" in page.text("live-facts"))
            assert all("401" in problem for problem in page.problems())
            page.driver.get("about:blank")


class TestKeyboard:
    def test_all_of_it_works_without_a_mouse(self, page: Page, clip: Path) -> None:
        page.press(Keys.TAB)
        order = [page.focus()]
        while order[-1] != "file-limit":
            page.press(Keys.TAB)
            order.append(page.focus())
        assert order == ["tab-file", "choose", "record", "file-limit"]
        page.script("document.getElementById('choose').focus()")  # as after the browser's own dialog
        page.denoise(clip)
        page.until(lambda: page.focus() == "play")
        page.press(" ")
        page.until(lambda: page.text("play") == "Pause")
        page.press("a")
        assert page["tracks"].find_element(By.CSS_SELECTOR, ".track.selected .name").text == "A Before"
        page.press("x")
        assert page["tracks"].find_element(By.CSS_SELECTOR, ".track.selected .name").text == "B After"
        page.press(" ")
        page.until(lambda: page.text("play") == "Play")
        order = []
        while not order or order[-1] != "a":
            page.press(Keys.TAB)
            order.append(page.focus())
            style, width = page.script(
                """
                const at = document.activeElement, seen = at.type === "radio" ? at.nextElementSibling : at;
                const { outlineStyle, outlineWidth } = getComputedStyle(seen);
                return [outlineStyle, outlineWidth];
                """
            )
            assert (style, width) in (("solid", "2px"), ("solid", "3px"))
        assert order == ["after", "equal", "tracks", "format", "download", "summary", "a"]
        page.script("document.getElementById('tracks').focus()")
        page.press(Keys.HOME)
        assert page.position_s() == 0
        page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
        assert page.position_s() == 2
        assert page["tracks"].get_attribute("aria-valuetext") == "2.0 of 4.0 s"
        page.press(" ")
        page.until(lambda: page.text("play") == "Pause")
        page.press(Keys.END)
        assert (page.position_s(), page.text("play")) == (4, "Play")

    def test_tabs_and_keys_that_are_off(self, page: Page, clip: Path) -> None:
        page.denoise(clip)
        page.script("document.getElementById('tab-file').focus()")
        page.press(Keys.ARROW_RIGHT)
        assert (page.focus(), page.is_shown("live"), page.is_shown("file")) == ("tab-live", True, False)
        page.press(Keys.ARROW_LEFT)
        assert (page.focus(), page.is_shown("live"), page.is_shown("file")) == ("tab-file", False, True)
        page.driver.find_element(By.TAG_NAME, "summary").click()
        page["keys"].click()
        page.press("a")
        assert page["tracks"].find_element(By.CSS_SELECTOR, ".track.selected .name").text == "B After"


class TestLook:
    @pytest.fixture(autouse=True)
    def plain(self, driver: Chrome) -> Iterator[None]:
        yield
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})

    def test_a_phone_need_not_scroll_sideways(self, page: Page, clip: Path) -> None:
        metrics = {"width": PHONE_PX, "height": 740, "deviceScaleFactor": 2, "mobile": True}
        page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        long_name = clip.rename(clip.with_name(f"{'a-recording-with-a-long-name' * 5}.wav"))
        page.denoise(long_name)
        page.driver.find_element(By.TAG_NAME, "summary").click()
        assert page.script("return document.documentElement.scrollWidth") == PHONE_PX
        for name in ("play", "download", "choose", "again"):
            assert page[name].rect["x"] + page[name].rect["width"] <= PHONE_PX
            assert page[name].rect["height"] >= 44
        page["tab-live"].click()
        assert page.script("return document.documentElement.scrollWidth") == PHONE_PX

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_text_has_contrast(self, page: Page, scheme: str, clip: Path) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        page.denoise(clip)
        page.script("for (const node of document.querySelectorAll('[hidden]')) node.hidden = false")
        found = page.script(
            """
            const painted = (node) => {
              const colour = getComputedStyle(node).backgroundColor;
              return colour === "rgba(0, 0, 0, 0)" ? painted(node.parentElement) : colour;
            };
            return [...document.querySelectorAll("body *")]
              .filter((node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()))
              .filter((node) => node.checkVisibility())
              .map((node) => [node.textContent.trim().slice(0, 30), getComputedStyle(node).color, painted(node)]);
            """
        )
        assert len(found) > 40
        ground = luminance(page.script("return getComputedStyle(document.body).backgroundColor"))
        assert (ground < 0.05) == (scheme == "dark")
        too_weak = []
        for text, colour, behind in found:
            low, high = sorted((luminance(colour), luminance(behind)))
            if (high + 0.05) / (low + 0.05) < 4.5:
                too_weak.append((text, colour, behind))
        assert too_weak == []

    def test_reduced_motion(self, page: Page) -> None:
        names = "return getComputedStyle(document.getElementById('progress')).animationName"
        page.script("document.getElementById('work').hidden = false")
        assert page.script(names) == "sweep"
        features = [{"name": "prefers-reduced-motion", "value": "reduce"}]
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        assert page.script(names) == "none"

    def test_the_pictures_show_the_sound(self, page: Page, tmp_path: Path) -> None:
        """Draw a tone of 1 kHz in the second half: nothing else is bright."""
        samples = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(2 * RATE) / RATE)
        samples[:RATE] = 0
        path = tmp_path / "tone.wav"
        path.write_bytes(wav(samples))
        page.denoise(path)
        size, pixels = page.script(
            """
            const canvas = document.querySelector(".track.a .spectrogram");
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            return [[canvas.height, canvas.width], Array.from(data)];
            """
        )
        brightness = np.array(pixels, np.uint8).reshape(*size, 4)[:, :, :3].sum(axis=2) > 600
        brightness[:, :100] = False  # the frequency labels
        rows, columns = np.nonzero(brightness)
        assert columns.min() == pytest.approx(size[1] / 2, abs=0.02 * size[1])
        assert columns.max() == size[1] - 1
        height = np.log1p(1000 / 700) / np.log1p(RATE / 2 / 700)
        assert 1 - np.median(rows) / size[0] == pytest.approx(height, abs=0.02)


class TestMeasures:
    def test_loudness_is_that_of_the_standard(self, page: Page) -> None:
        """Measure a sine: in BS.1770-4, 997 Hz at full scale has -3.01 LUFS, and soft blocks do not count."""
        for rate in (8_000, 16_000, 48_000):
            loudness = page.module(
                "loudness.js",
                """await m.gatedLoudness(
                  [Float32Array.from({ length: 12 * a[0] }, (_, n) =>
                    (n < 8 * a[0] ? 0.1 : 0.0001) * Math.sin(2 * Math.PI * 997 * n / a[0]))],
                  a[0], { next: async () => {} })""",
                rate,
            )
            # Two or three blocks at its end are softer, but not by enough to be excluded.
            assert loudness == pytest.approx(-23.01, abs=0.1)
        silent = "await m.gatedLoudness([new Float32Array(9)], 8000, { next: async () => {} }) === -Infinity"
        silence = page.module("loudness.js", silent)
        assert silence is True

    def test_spectra_are_those_of_numpy(self, page: Page) -> None:
        frame = np.random.default_rng(0).standard_normal(256)
        found = page.module(
            "spectrum.js",
            "(() => { const p = new Float64Array(129); new m.Fft(256).addPowers(a[0], p); return Array.from(p); })()",
            frame.tolist(),
        )
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(256) / 256)
        np.testing.assert_allclose(found, np.abs(np.fft.rfft(frame * window) * 4 / 256) ** 2, rtol=1e-9, atol=1e-15)


def test_a_browser_that_is_too_old(driver: Chrome, server: Running) -> None:
    source = {"source": "delete AbortSignal.prototype.throwIfAborted"}
    script = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", source)
    try:
        driver.get(server.url)
        assert driver.find_element(By.ID, "unsupported").is_displayed()
        assert not driver.find_element(By.ID, "modes").is_displayed()
    finally:
        driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


def test_nothing_comes_from_another_host(server: Running) -> None:
    """Also check that no file of the page contains what the server's policy forbids."""
    folder = Path(__file__).parents[1] / "src" / "frcrn_accel" / "serve" / "page"
    files = [path for path in folder.iterdir() if path.suffix in (".html", ".css", ".js", ".svg")]
    assert len(files) > 10
    for path in files:
        text = path.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?:|\bstyle=|\son\w+=\"|<script>|innerHTML|\beval\b", text), path.name
        response = server.client.get(f"/page/{path.name}")
        assert response.status_code == 200
    policy = server.client.get("/").headers["Content-Security-Policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy


def luminance(colour: str) -> float:
    """Return the relative luminance of `rgb(r, g, b)`, as in WCAG 2."""
    values = np.array([int(value) for value in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
