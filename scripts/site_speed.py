"""Measure the static site in a headless Chromium: time to the first sound on a slow line, bytes, memory, live speed.

    nox -s site && nox -s site-speed -- [--mbit 10] [--latency-ms 40] [--rounds 3] [--live-s 30]

A server on loopback delays each answer by the latency, and sends all of them together at no more than the given rate.
An example is chosen as soon as the page has its button, and played as soon as it can be. The first visit starts with
an empty profile; in the second, the service worker has all files. Memory is that of the tab's process, with its
workers. Use an idle machine. It needs Linux, Chromium and its driver.
"""

from __future__ import annotations

import argparse
import http.server
import io
import re
import tempfile
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO

import numpy as np
import soundfile
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from browsing import open_browser, served

BLOCK = 4096
WAIT_S = 180
LONG_S = 150
RATE = 16_000
NOISY = Path(__file__).parents[1] / "examples" / "noisy.wav"


class Line:
    """A line that all connections share.

    Args:
        mbit: Its rate, Mbit/s.
        latency_s: Delay of each answer.

    Attributes:
        sent: Bytes that went over it.
    """

    def __init__(self, mbit: float, latency_s: float) -> None:
        self.latency_s = latency_s
        self.sent = 0
        self._byte_s = 8 / (mbit * 1e6)
        self._free_at = 0.0
        self._lock = threading.Lock()

    def send(self, target: BinaryIO, content: bytes) -> None:
        """Send, together with what others send."""
        for at in range(0, len(content), BLOCK):
            block = content[at : at + BLOCK]
            with self._lock:
                self.sent += len(block)
                self._free_at = max(self._free_at, time.monotonic()) + len(block) * self._byte_s
                wait_s = self._free_at - time.monotonic()
            time.sleep(max(0.0, wait_s))
            target.write(block)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files over a line."""

    protocol_version = "HTTP/1.1"
    extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript"}  # noqa: RUF012

    def __init__(self, *arguments: Any, line: Line, **options: Any) -> None:
        self._line = line
        super().__init__(*arguments, **options)

    def send_head(self) -> io.BytesIO | BinaryIO | None:
        time.sleep(self._line.latency_s)
        return super().send_head()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        self._line.send(outputfile, source.read())

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def wait_until(driver: Chrome, expression: str) -> None:
    """Wait until an expression in the page is true."""
    WebDriverWait(driver, WAIT_S, 0.02).until(lambda _: driver.execute_script(f"return {expression}"))


def first_sound_s(driver: Chrome, url: str) -> dict[str, float]:
    """Open the page, choose an example and play it; return when each step was done, s after opening."""
    began = time.monotonic()
    steps = {}
    driver.get("about:blank")
    driver.execute_script(f"location.href = '{url}'")  # does not wait for the page to be loaded
    wait_until(driver, "document.getElementById('example-night') !== null")
    steps["example chosen"] = time.monotonic() - began
    driver.find_element(By.ID, "example-night").click()
    wait_until(driver, "!document.getElementById('result').hidden")
    driver.find_element(By.ID, "play").click()
    wait_until(driver, "document.getElementById('play').textContent === 'Pause'")
    steps["first sound"] = time.monotonic() - began
    return steps


def memory(driver: Chrome) -> str:
    """Return the memory of the tab and its workers, and the most that it was."""
    parents, kinds = {}, {}
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):  # it ended meanwhile
            process = int(status.parent.name)
            parents[process] = int(re.findall(r"PPid:\s+(\d+)", status.read_text())[0])
            kinds[process] = status.with_name("cmdline").read_text()

    def is_ours(process: int) -> bool:
        return process == driver.service.process.pid or (process in parents and is_ours(parents[process]))

    tabs = [process for process, line in kinds.items() if "--type=renderer" in line and is_ours(process)]
    sizes = [re.findall(r"Vm(?:HWM|RSS):\s+(\d+) kB", Path(f"/proc/{tab}/status").read_text()) for tab in tabs]
    most, now = max([int(size) for size in pair] for pair in sizes)
    return f"{now / 1e3:.0f} MB, at most {most / 1e3:.0f} MB"


def denoise_long(driver: Chrome, duration_s: int) -> None:
    """Denoise a long WAV."""
    audio, _ = soundfile.read(NOISY, dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "long.wav")
        soundfile.write(path, np.resize(audio, duration_s * RATE), RATE)
        driver.find_element(By.ID, "tab-file").click()
        driver.find_element(By.ID, "chosen").send_keys(str(path))
        wait_until(driver, "document.getElementById('result-title').textContent === 'long.wav'")
        wait_until(driver, "!document.getElementById('result').hidden")


def wait_until_kept(driver: Chrome) -> None:
    """Wait until the service worker has all files."""
    wait_until(driver, "navigator.serviceWorker.controller !== null")


def live(driver: Chrome, duration_s: float) -> str:
    """Denoise the fake microphone; return what the page shows then."""
    driver.find_element(By.ID, "tab-live").click()
    driver.find_element(By.ID, "live-start").click()
    shown = "document.getElementById('live-facts').textContent"
    problem = "document.getElementById('live-error').textContent"
    wait_until(driver, f"{shown}.includes('Gaps') || {problem}")
    time.sleep(duration_s)
    during = driver.find_element(By.ID, "live-facts").text
    if driver.execute_script(f"return {problem}"):
        return str(driver.find_element(By.ID, "live-error").text)
    driver.find_element(By.ID, "live-start").click()
    wait_until(driver, f"{shown}.includes('Processing time')")
    after = driver.find_element(By.ID, "live-facts").text
    return " ".join(f"{during}\n{after}".split())


def measure(folder: Path, line: Line, live_s: float, is_last: bool) -> dict[str, float]:
    """Visit the site twice with a new profile; print bytes, and in the last round memory and live speed, too."""
    handler = partial(Handler, directory=str(folder), line=line)
    with tempfile.TemporaryDirectory() as place, served(handler) as address, open_browser(Path(place)) as driver:
        found = {f"first visit: {step}": at for step, at in first_sound_s(driver, f"{address}/").items()}
        until_sound = line.sent
        wait_until_kept(driver)
        whole = line.sent
        found |= {f"second visit: {step}": at for step, at in first_sound_s(driver, f"{address}/").items()}
        print(
            f"bytes: {until_sound / 1e6:.2f} MB to the first sound, {whole / 1e6:.2f} MB with the files that are kept"
        )
        print(f"second visit: {(line.sent - whole) / 1e6:.2f} MB")
        if is_last:
            print(f"memory of the tab after an example: {memory(driver)}")
            print(f"live for {live_s:g} s: {live(driver, live_s)}")
            print(f"memory after that: {memory(driver)}")
            denoise_long(driver, LONG_S)
            print(f"memory after {LONG_S} s of audio: {memory(driver)}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("site/try"))
    parser.add_argument("--mbit", type=float, default=10)
    parser.add_argument("--latency-ms", type=float, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--live-s", type=float, default=30)
    arguments = parser.parse_args()
    rounds = []
    for index in range(arguments.rounds):
        line = Line(arguments.mbit, arguments.latency_ms / 1000)
        is_last = index == arguments.rounds - 1
        rounds.append(measure(arguments.folder, line, arguments.live_s, is_last))
    for step in rounds[0]:
        times = [found[step] for found in rounds]
        print(f"{step}: {median(times):.1f} s ({min(times):.1f} to {max(times):.1f})")


if __name__ == "__main__":
    main()
