"""Take the picture of the web page in the documentation.

    python scripts/page_picture.py [TARGET] [--width 960] [--scheme dark]

Needs Chromium and its driver, Selenium and Pillow. It starts a server, denoises examples/noisy.wav in its
page, and writes docs/page.png, with playback in the middle.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
NOISY = REPOSITORY / "examples" / "noisy.wav"
COLOURS = 128  # a third of the bytes
WAIT_S = 120
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SERVE = (sys.executable, "-m", "frcrn_accel", "serve", "--backend", "ort", "--port", "0")


@contextmanager
def serving() -> Iterator[str]:
    """Run a server, and give its address."""
    with subprocess.Popen(SERVE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            found = (re.search(r"listening on (http://\S+)", line) for line in server.stderr)
            yield next(match[1] for match in found if match)
        finally:
            server.terminate()
            server.communicate()


def photograph(url: str, width: int, scheme: str) -> bytes:
    """Denoise the example and return the whole page as a PNG."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService, Keys
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    options = ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, BROWSERS)))
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    for argument in ("--headless=new", "--hide-scrollbars", "--disable-dev-shm-usage", *root):
        options.add_argument(argument)
    with Chrome(options, ChromeService(shutil.which("chromedriver"))) as driver:

        def resize(height: int) -> None:
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

        features = [{"name": "prefers-color-scheme", "value": scheme}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        resize(800)
        driver.get(url)
        wait = WebDriverWait(driver, WAIT_S)
        wait.until(lambda _: "ready" in driver.find_element(By.ID, "service").text)
        driver.find_element(By.ID, "chosen").send_keys(str(NOISY))
        wait.until(lambda _: driver.find_element(By.ID, "download").is_displayed())
        wait.until(lambda _: not driver.find_element(By.ID, "work").is_displayed())
        driver.find_element(By.ID, "tracks").send_keys(Keys.HOME, *[Keys.ARROW_RIGHT] * 4)
        driver.execute_script("document.activeElement.blur()")
        resize(driver.execute_script("return document.documentElement.scrollHeight"))
        # The pictures are painted again in the next frame.
        frames = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
        driver.execute_async_script(frames)
        return base64.b64decode(driver.execute_cdp_cmd("Page.captureScreenshot", {})["data"])


def main() -> None:
    from PIL import Image

    parser = argparse.ArgumentParser(description="Take the picture of the web page in the documentation.")
    parser.add_argument("target", nargs="?", type=Path, default=REPOSITORY / "docs" / "page.png")
    parser.add_argument("--width", type=int, default=960)
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    arguments = parser.parse_args()
    with serving() as url:
        picture = Image.open(io.BytesIO(photograph(url, arguments.width, arguments.scheme)))
    picture.convert("RGB").quantize(COLOURS).save(arguments.target, optimize=True)


if __name__ == "__main__":
    main()
