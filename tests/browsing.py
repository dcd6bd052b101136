"""The web page in a headless Chromium, for its tests with a server and as a static site."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from selenium.webdriver import Chrome, ChromeOptions, ChromeService, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from serving import wav
from web_server import served

__all__ = [
    "AXE",
    "BROWSER",
    "DRIVER",
    "NOISE_S",
    "RATE",
    "WAIT_S",
    "Page",
    "axe_findings",
    "gain_db_of",
    "look",
    "luminance",
    "microphone_noise",
    "open_browser",
    "place_and_gain",
    "served",
    "weak_texts",
]

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
DRIVER = shutil.which("chromedriver")
AXE = os.environ.get("FRCRN_ACCEL_AXE", "")  # a copy of axe-core
RATE = 16_000
NOISE_S = 20  # period of the noise that the fake microphone repeats
WAIT_S = 120  # the machine may be busy
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


# What axe-core finds, by its own rules and those of good practice: the rule, the element, and what is wrong.
FIND = """
const done = arguments[0];
const line = (id, node) => `${id}: ${node.target.flat().join(" ")}: ${node.failureSummary}`;
const lines = ({ id, nodes }) => nodes.map((node) => line(id, node));
axe.run({ resultTypes: ["violations"], rules: { "target-size": { enabled: true } } }).then(
  ({ violations }) => done(violations.flatMap(lines)),
  (error) => done([String(error)]),
);
"""
# Presses X and records the output from before to after the switch, timed by the browser alone.
SWITCHED = f"""
const done = arguments[0];
document.body.dispatchEvent(new KeyboardEvent("keydown", {{ key: "x", bubbles: true }}));
setTimeout(() => done((() => {{ {HEARD} }})()), 250);
"""


class Page:
    """The page in a browser.

    Attributes:
        driver: The browser.
        downloads: Folder of its downloads.
        url: Its address.
    """

    def __init__(self, driver: Chrome, downloads: Path, url: str) -> None:
        self.driver = driver
        self.downloads = downloads
        self.url = url
        self.driver.execute_cdp_cmd(
            "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)}
        )
        driver.get(url)
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
        import("{self.url}/page/{name}").then(async (m) => done({expression})).catch((error) => done(String(error)));
        """
        return self.driver.execute_async_script(script, *arguments)

    def record(self) -> tuple[np.ndarray, int]:
        """Record the microphone for a second or more, denoise it, and return the result with its rate."""
        self["record"].click()
        self.until(lambda: self.text("recorded") > "0:01.0")
        self["record"].click()
        self.until(lambda: self.is_shown("result"))
        assert self.text("result-title") == "recording.wav"
        samples, rate = soundfile.read(self.download())
        assert len(samples) > rate
        return samples, rate

    def focus(self) -> str:
        """Return the id of the element that has the focus, or its value or kind."""
        return self.script("const at = document.activeElement; return at.id || at.value || at.localName")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def send(self, path: Path | str) -> None:
        self["chosen"].send_keys(str(path))

    def denoise(self, path: Path) -> None:
        self.send(path)
        self.until(lambda: self.is_shown("result") or self.is_shown("file-error"))
        assert self.text("file-error") == ""
        assert self.text("result-title") == path.name

    def position_s(self) -> float:
        minutes, seconds = self.text("clock").split(" /")[0].split(":")
        return 60 * int(minutes) + float(seconds)

    def download(self, button: str = "download") -> Path:
        """Press the button and return the downloaded file."""
        for path in self.downloads.iterdir():
            path.unlink()
        self[button].click()

        def new() -> Path | None:
            paths = [path for path in self.downloads.iterdir() if path.suffix not in (".crdownload", ".tmp")]
            # The browser reserves the name with an empty file, and replaces it in the end.
            return next((path for path in paths if path.stat().st_size), None)

        return self.until(new)

    def heard(self) -> tuple[int, np.ndarray]:
        """Return the rate of the output, and its last samples."""
        rate, samples = self.script(HEARD)
        return int(rate), np.array(samples, np.float64)

    def heard_across_a_switch(self) -> tuple[int, np.ndarray]:
        """Press X and return the rate of the output, and its samples before and after the switch."""
        rate, samples = self.driver.execute_async_script(SWITCHED)
        return int(rate), np.array(samples, np.float64)

    def heard_for(self, duration_s: float) -> np.ndarray:
        """Play from the start and return the last `duration_s` of the output."""
        self.until(lambda: self.text("play") == "Pause")  # it starts a moment after the click
        self["tracks"].send_keys(Keys.HOME)
        self.until(lambda: self.position_s() > duration_s + 0.3)
        return self.heard()[1][-int(duration_s * RATE) :]

    def problems(self) -> list[str]:
        """Return the errors on the console since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@contextmanager
def open_browser(folder: Path) -> Iterator[Chrome]:
    """Open a browser whose microphone gives `microphone_noise`, from a file in a folder."""
    microphone = folder / "noise.wav"
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
    try:
        yield driver
    finally:
        driver.quit()


def axe_findings(driver: Chrome) -> list[str]:
    """Return what axe-core finds wrong with the page for those who use it without seeing it or without a mouse."""
    driver.execute_script(Path(AXE).read_text(encoding="utf-8"))
    return driver.execute_async_script(FIND)


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


def weak_texts(page: Page) -> list[tuple[str, str, str]]:
    """Return the texts with a contrast of less than 4.5, their colours, and what is behind them.

    It first unhides the whole page.
    """
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
    too_weak = []
    for text, colour, behind in found:
        low, high = sorted((luminance(colour), luminance(behind)))
        if (high + 0.05) / (low + 0.05) < 4.5:
            too_weak.append((text, colour, behind))
    return too_weak


def look(driver: Chrome, scheme: str, width: int, height: int = 900) -> None:
    """Show pages in a window of this size, light or dark, until `look` is called again."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def luminance(colour: str) -> float:
    """Return the relative luminance of `rgb(r, g, b)`, as in WCAG 2."""
    values = np.array([int(value) for value in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
