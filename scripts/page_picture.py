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
import shutil
import tempfile
from pathlib import Path

from server_process import ServerProcess

REPOSITORY = Path(__file__).parents[1]
NOISY = REPOSITORY / "examples" / "noisy.wav"
COLOURS = 128  # a third of the bytes
WAIT_S = 120
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


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
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(Path(folder, "log"), "--backend", "ort") as server,
    ):
        picture = Image.open(io.BytesIO(photograph(server.url, arguments.width, arguments.scheme)))
    picture.convert("RGB").quantize(COLOURS).save(arguments.target, optimize=True)


if __name__ == "__main__":
    main()
