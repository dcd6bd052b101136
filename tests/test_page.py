"""The web page, in a headless Chromium."""

from __future__ import annotations

import io
import re
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
import soundfile

for _package in ("starlette", "uvicorn", "httpx", "websockets", "prometheus_client", "python_multipart", "selenium"):
    pytest.importorskip(_package, reason="needs [serve], httpx and selenium: nox -s page")

from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from browsing import (
    AXE,
    BROWSER,
    DRIVER,
    NOISE_S,
    RATE,
    Page,
    axe_findings,
    gain_db_of,
    look,
    luminance,
    microphone_noise,
    open_browser,
    place_and_gain,
    weak_texts,
)
from frcrn_accel.serve.denoise import FORMATS
from serving import GatedBackend, Running, gated_denoiser, running, wav

pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="needs Chromium and its driver: apt-get install chromium chromium-driver"
)

GAIN = 0.5  # of a live stream
TOKEN = "a-token-of-twenty-some-characters"
PHONE_PX = 360
SYNC_S = (
    0.35e-3  # a stream's filters delay high tones by up to 0.25 ms, and positions are found to a sample at 16 kHz
)


class Backend(GatedBackend):
    """Turns a file into the differences of its samples, so that it sounds different and not only softer."""

    def _run_file(self, audio: np.ndarray) -> np.ndarray:
        return np.diff(super()._run_file(audio), axis=1, prepend=np.float32(0))


class ServedPage(Page):
    """The page of a server.

    Attributes:
        server: The server.
    """

    def __init__(self, driver: Chrome, downloads: Path, server: Running) -> None:
        self.server = server
        super().__init__(driver, downloads, server.url)


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Iterator[Chrome]:
    with open_browser(tmp_path_factory.mktemp("microphone")) as driver:
        yield driver


@pytest.fixture(scope="module")
def backend() -> Backend:
    return Backend(GAIN)


@pytest.fixture(scope="module")
def server(backend: Backend, tmp_path_factory) -> Iterator[Running]:
    with gated_denoiser(backend) as denoiser, running(denoiser, tmp_path_factory.mktemp("server") / "work") as server:
        yield server


@pytest.fixture
def open_page(driver: Chrome, tmp_path: Path) -> Callable[[Running], ServedPage]:
    """Opens the page of a server."""
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    return lambda server: ServedPage(driver, downloads, server)


@pytest.fixture
def page(open_page: Callable[[Running], ServedPage], server: Running) -> Iterator[ServedPage]:
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


@pytest.fixture
def film(tmp_path: Path, noisy_path: Path) -> Path:
    """A film with two tracks of noisy speech."""
    path = tmp_path / "holiday.film.mp4"
    picture = ("-f", "lavfi", "-i", "testsrc=size=64x48:rate=10")
    inputs = (*picture, "-i", noisy_path, "-i", noisy_path, "-map", "0", "-map", "1", "-map", "2")
    coding = ("-c:v", "mpeg4", "-c:a", "aac", "-shortest")
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *inputs, *coding, path], check=True)
    return path


class TestFile:
    def test_the_download_is_the_servers_answer(self, page: ServedPage, clip: Path) -> None:
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

    def test_other_formats_come_from_the_server(self, page: ServedPage, clip: Path) -> None:
        page.denoise(clip)
        formats = page.script("return [...document.getElementById('format').options].map((option) => option.value)")
        assert set(formats) - {""} <= set(FORMATS)
        page["format"].find_element(By.CSS_SELECTOR, "[value=flac]").click()
        path = page.download()
        assert path.name == "clip.denoised.flac"
        answer = page.server.client.post("/v1/denoise?format=flac", content=clip.read_bytes())
        assert path.read_bytes() == answer.content

    def test_what_is_heard_is_what_is_chosen(self, page: ServedPage, noisy_path: Path) -> None:
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
        self, page: ServedPage, tmp_path: Path, noisy: np.ndarray, name: str
    ) -> None:
        path = tmp_path / name
        soundfile.write(path, noisy, RATE)
        before, _ = soundfile.read(path)
        page.denoise(path)
        page["equal"].click()
        page["play"].click()
        page.press("a")
        assert gain_db_of(page.heard_for(0.4), before) == pytest.approx(0, abs=0.01)

    def test_a_film_is_heard_and_comes_back_as_a_film(self, page: ServedPage, film: Path) -> None:
        def answer(query: str) -> bytes:
            response = page.server.client.post(f"/v1/denoise?{query}", content=film.read_bytes())
            assert response.status_code == 200
            return response.content

        page.denoise(film)
        path = page.download()
        assert path.name == "holiday.film.denoised.wav"
        assert path.read_bytes() == answer("format=wav")
        after, _ = soundfile.read(path)
        before, _ = soundfile.read(io.BytesIO(answer("format=wav&attenuation_limit_db=0")))
        assert before.shape == after.shape
        page["equal"].click()
        page["play"].click()
        for key, signal in (("a", before), ("b", after), ("c", before - after)):
            page.press(key)
            assert gain_db_of(page.heard_for(0.4), signal) == pytest.approx(0, abs=0.01)
        Select(page["format"]).select_by_visible_text("same as the file")
        path = page.download()
        assert path.name == "holiday.film.denoised.mp4"
        assert path.read_bytes() == answer("")
        with av.open(path) as found, av.open(film) as given:
            assert found.format.name == given.format.name
            assert [stream.codec.name for stream in found.streams] == [stream.codec.name for stream in given.streams]
            assert [bytes(packet) for packet in found.demux(video=0)] == [
                bytes(packet) for packet in given.demux(video=0)
            ]

    def test_an_attenuation_limit_is_heard_at_once_and_downloaded(self, page: ServedPage, noisy_path: Path) -> None:
        before, _ = soundfile.read(noisy_path)
        page.denoise(noisy_path)
        after, _ = soundfile.read(page.download())
        page["equal"].click()
        page["play"].click()
        page["file-limit"].send_keys(Keys.HOME, *[Keys.ARROW_RIGHT] * 11)
        assert page.text("file-limit-text") == "at most 12 dB"
        share = 10 ** (-12 / 20)
        assert gain_db_of(page.heard_for(0.4), share * before + (1 - share) * after) == pytest.approx(0, abs=0.001)
        content = noisy_path.read_bytes()
        answer = page.server.client.post("/v1/denoise?format=wav&attenuation_limit_db=12", content=content)
        assert page.download().read_bytes() == answer.content
        page["file-limit"].send_keys(Keys.END)
        without = page.server.client.post("/v1/denoise?format=wav", content=content)
        assert page.download().read_bytes() == without.content != answer.content

    def test_without_the_sound_above_8_khz(self, page: ServedPage, tmp_path: Path) -> None:
        """The file is denoised again; at 16 kHz there is nothing to choose."""
        samples = 0.1 * np.random.default_rng(0).standard_normal(48_000)
        for rate in (48_000, 16_000):
            soundfile.write(tmp_path / f"{rate}.wav", samples, rate, "PCM_16")
        page.denoise(tmp_path / "48000.wav")
        content = (tmp_path / "48000.wav").read_bytes()
        answers = {
            mode: page.server.client.post(f"/v1/denoise?format=wav&high_band={mode}", content=content).content
            for mode in ("follow", "drop")
        }
        assert answers["follow"] != answers["drop"]
        assert page["file-band"].is_selected()
        assert page.download().read_bytes() == answers["follow"]
        page["file-band"].click()
        page.until(lambda: page.is_shown("result"))
        assert page.download().read_bytes() == answers["drop"]
        page.denoise(tmp_path / "16000.wav")
        assert not page.is_shown("file-band")

    def test_what_was_removed_can_be_heard(self, page: ServedPage, noisy_path: Path) -> None:
        before, _ = soundfile.read(noisy_path)
        page.denoise(noisy_path)
        after, _ = soundfile.read(page.download())
        page["play"].click()
        page.press("c")
        assert gain_db_of(page.heard_for(0.4), before - after) == pytest.approx(0, abs=0.001)

    def test_a_part_is_repeated(self, page: ServedPage, noisy_path: Path) -> None:
        page.denoise(noisy_path)
        page["equal"].click()
        after, _ = soundfile.read(page.download())
        page["tracks"].send_keys(Keys.HOME, Keys.ARROW_RIGHT)
        page.press("[")
        page["tracks"].send_keys(Keys.ARROW_RIGHT)
        page.press("]")
        assert page.text("status") == "Loop from 1.0 to 2.0 s"
        assert page["loop"].get_attribute("aria-pressed") == "true"
        page["play"].click()
        page.until(lambda: 1 <= page.position_s() < 1.4)
        page.until(lambda: page.position_s() > 1.5)
        page.until(lambda: 1 <= page.position_s() < 1.5)
        rate, heard = page.heard()
        repeated = np.tile(after[rate : 2 * rate], 4)
        assert gain_db_of(heard[-int(0.4 * rate) :], repeated) == pytest.approx(0, abs=0.001)
        page["loop"].click()
        assert page["loop"].get_attribute("aria-pressed") == "false"

    def test_zoom(self, page: ServedPage, noisy_path: Path) -> None:
        """A click seeks to the time that is shown there; zooming in with a loop shows the loop."""
        page.denoise(noisy_path)
        duration_s = soundfile.info(noisy_path).duration

        def time_at(share: float) -> float:
            box = page["tracks"].size
            across = round(4 + share * (box["width"] - 4) - box["width"] / 2)
            ActionChains(page.driver).move_to_element_with_offset(page["tracks"], across, 0).click().perform()
            return page.position_s()

        def picture() -> str:
            return page.script("return document.querySelector('.track.b .spectrogram').toDataURL()")

        assert time_at(0.5) == pytest.approx(duration_s / 2, abs=0.1)
        whole = picture()
        page.press("+")
        page.until(lambda: page.text("status") == f"Showing {duration_s / 4:.1f} to {3 * duration_s / 4:.1f} s")
        assert picture() != whole
        assert time_at(0) == pytest.approx(duration_s / 4, abs=0.1)
        assert page["playhead"].is_displayed()
        page["tracks"].send_keys(Keys.HOME)
        assert not page["playhead"].is_displayed()
        page["zoom-out"].click()
        page.until(lambda: page.text("status") == f"Showing 0.0 to {duration_s:.1f} s")
        assert not page["zoom-out"].is_enabled()
        assert picture() == whole
        page["tracks"].send_keys(Keys.HOME, Keys.ARROW_RIGHT)
        page.press("[")
        page["tracks"].send_keys(Keys.ARROW_RIGHT)
        page.press("]")
        page["zoom-in"].click()
        page.until(lambda: page.text("status") == "Showing 1.0 to 2.0 s")
        assert time_at(0.5) == pytest.approx(1.5, abs=0.1)

    def test_the_summary_is_in_words(self, page: ServedPage, clip: Path) -> None:
        page.denoise(clip)
        assert re.search(r"[\d.]+ s of speech in 4.0 s\.$", page.text("summary"))

    def test_several_files_and_an_archive(self, page: ServedPage, tmp_path: Path, noisy: np.ndarray) -> None:
        paths = [tmp_path / name / "same.wav" for name in ("one", "two")] + [tmp_path / "no-audio.txt"]
        for path, first in zip(paths[:2], (0, 16_000), strict=True):
            path.parent.mkdir()
            path.write_bytes(wav(noisy[first : first + 32_000]))
        paths[2].write_text("This is no audio.")
        page.send("\n".join(map(str, paths)))
        page.until(lambda: page.is_shown("archive"))
        states = [node.text for node in page.driver.find_elements(By.CSS_SELECTOR, "#batch .state")]
        assert states[:2] == ["done", "done"]
        assert states[2] != "done"
        assert page.is_shown("again")  # one has failed
        answers = [page.server.client.post("/v1/denoise?format=wav", content=path.read_bytes()) for path in paths[:2]]
        with zipfile.ZipFile(page.download("archive")) as archive:
            assert archive.testzip() is None
            assert archive.namelist() == ["same.denoised.wav", "same.denoised (2).wav"]
            assert [archive.read(name) for name in archive.namelist()] == [answer.content for answer in answers]
        page.driver.find_elements(By.CSS_SELECTOR, "#batch button")[1].click()
        page.until(lambda: page.driver.find_elements(By.CSS_SELECTOR, "#batch li")[1].get_attribute("aria-current"))
        assert page.download().read_bytes() == answers[1].content
        page.problems()  # Chromium logs the status of the third

    @pytest.mark.parametrize("name", ["train", "rain", "night"])
    def test_an_example(self, page: ServedPage, name: str) -> None:
        page[f"example-{name}"].click()
        page.until(lambda: page.is_shown("result"))
        assert page.text("result-title") == f"{name}.flac"

    def test_it_can_be_cancelled(self, page: ServedPage, backend: Backend, clip: Path) -> None:
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

    def test_a_file_can_be_dropped(self, page: ServedPage, clip: Path) -> None:
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

        drop([])
        assert page.text("file-error").startswith("Drop audio files or films.")
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

    def test_errors_are_in_words_and_the_next_file_works(self, page: ServedPage, tmp_path: Path, clip: Path) -> None:
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

    def test_audio_of_one_sample_and_silence(self, page: ServedPage, tmp_path: Path) -> None:
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

    def test_the_microphone_is_recorded(self, page: ServedPage) -> None:
        samples, rate = page.record()
        expected = np.diff(GAIN * microphone_noise(), prepend=0)
        _, gain = place_and_gain(samples[rate // 2 : rate // 2 + rate // 4], rate, expected)
        assert gain == pytest.approx(1, rel=0.05)


class TestLive:
    def test_the_microphone_comes_back_denoised_and_in_step(self, page: ServedPage) -> None:
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

    def test_the_limit_can_be_changed_while_it_runs(self, page: ServedPage) -> None:
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
        assert not page["live-band"].is_enabled()  # a stream keeps what it was started with
        page["live-start"].click()
        assert page["live-band"].is_enabled()
        page.until(lambda: "Real-time factor" in page.text("live-facts"))

    def test_gaps_are_said(self, page: ServedPage) -> None:
        page["tab-live"].click()
        page["live-start"].click()
        page.until_live(lambda: "Latency" in page.text("live-facts"))

        def is_said_after_a_gap() -> bool:
            page.script("for (const end = performance.now() + 700; performance.now() < end; );")  # nothing is relayed
            return page.is_shown("live-gaps")

        page.until_live(is_said_after_a_gap)
        assert page.text("live-gaps") == "The sound has gaps: " + page.module("engine.js", "m.traits.slow")
        page["live-start"].click()
        page.until(lambda: "Real-time factor" in page.text("live-facts"))
        assert not page.is_shown("live-gaps")

    def test_an_engine_that_fails_is_an_error_in_words(self, page: ServedPage, backend: Backend) -> None:
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

    def test_no_microphone_is_an_error_in_words(self, page: ServedPage) -> None:
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
    def test_all_of_it_works_without_a_mouse(self, page: ServedPage, clip: Path) -> None:
        page.press(Keys.TAB)
        order = [page.focus()]
        while order[-1] != "example-night" and len(order) < 20:
            page.press(Keys.TAB)
            order.append(page.focus())
        assert order == ["tab-file", "choose", "record", "example-train", "example-rain", "example-night"]
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
        while (not order or order[-1] != "a") and len(order) < 20:
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
        assert order == [
            *("after", "loop", "zoom-in", "file-limit", "equal", "tracks", "format", "download", "summary", "a")
        ]
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

    def test_tabs_and_keys_that_are_off(self, page: ServedPage, clip: Path) -> None:
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

    def test_a_phone_need_not_scroll_sideways(self, page: ServedPage, clip: Path) -> None:
        metrics = {"width": PHONE_PX, "height": 740, "deviceScaleFactor": 2, "mobile": True}
        page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        long_name = clip.rename(clip.with_name(f"{'a-recording-with-a-long-name' * 5}.wav"))
        page.denoise(long_name)
        page.driver.find_element(By.TAG_NAME, "summary").click()
        assert page.script("return document.documentElement.scrollWidth") == PHONE_PX
        for name in ("play", "loop", "download", "choose", "example-night"):
            assert page[name].rect["x"] + page[name].rect["width"] <= PHONE_PX
            assert page[name].rect["height"] >= 44
        page["tab-live"].click()
        assert page.script("return document.documentElement.scrollWidth") == PHONE_PX

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_text_has_contrast(self, page: ServedPage, scheme: str, clip: Path) -> None:
        look(page.driver, scheme, 1280)
        page.denoise(clip)
        assert weak_texts(page) == []
        ground = luminance(page.script("return getComputedStyle(document.body).backgroundColor"))
        assert (ground < 0.05) == (scheme == "dark")

    def test_reduced_motion(self, page: ServedPage) -> None:
        names = "return getComputedStyle(document.getElementById('progress')).animationName"
        page.script("document.getElementById('work').hidden = false")
        assert page.script(names) == "sweep"
        features = [{"name": "prefers-reduced-motion", "value": "reduce"}]
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        assert page.script(names) == "none"

    def test_the_pictures_show_the_sound(self, page: ServedPage, tmp_path: Path) -> None:
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


@pytest.mark.skipif(not AXE, reason="needs axe-core: nox -s page fetches it")
class TestAxe:
    """axe-core finds nothing, in any state of the page."""

    @pytest.fixture(autouse=True, params=product(("light", "dark"), (1280, 390)), ids=str)
    def looks(self, driver: Chrome, request: pytest.FixtureRequest) -> Iterator[None]:
        look(driver, *request.param)
        yield
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})

    def test_files(self, page: ServedPage, backend: Backend, tmp_path: Path, clip: Path) -> None:
        found = {"empty": axe_findings(page.driver)}
        backend.files_gate.clear()
        try:
            page.send(clip)
            page.until(lambda: page.text("phase").startswith("Denoising"))
            found["computing"] = axe_findings(page.driver)
        finally:
            backend.files_gate.set()
        page.until(lambda: page.is_shown("result"))
        page.driver.find_element(By.TAG_NAME, "summary").click()
        found["result"] = axe_findings(page.driver)
        page["tracks"].send_keys(Keys.HOME, Keys.ARROW_RIGHT)
        page.press("[", "+", "c")
        found["loop"] = axe_findings(page.driver)
        text = tmp_path / "no-audio.txt"
        text.write_text("This is no audio.")
        page.send(text)
        page.until(lambda: page.is_shown("file-error"))
        found["error"] = axe_findings(page.driver)
        page.send(f"{clip}\n{clip}\n{text}")
        page.until(lambda: page.is_shown("archive"))
        found["several files"] = axe_findings(page.driver)
        page["record"].click()
        page.until(lambda: page.is_shown("recording"))
        found["recording"] = axe_findings(page.driver)
        page["record"].click()
        page.problems()  # Chromium logs the status of the file that is no audio
        assert not any(found.values()), found

    def test_live(self, page: ServedPage) -> None:
        page["tab-live"].click()
        found = {"stopped": axe_findings(page.driver)}
        page["live-start"].click()
        page.until_live(lambda: "Latency" in page.text("live-facts"))
        found["running"] = axe_findings(page.driver)
        page["live-start"].click()
        page.until(lambda: "Real-time factor" in page.text("live-facts"))
        found["measured"] = axe_findings(page.driver)
        page.script(
            "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotFoundError') }"
        )
        page["live-start"].click()
        page.until(lambda: page.is_shown("live-error"))
        found["error"] = axe_findings(page.driver)
        assert not any(found.values()), found

    def test_the_question_for_a_token(self, open_page, backend: Backend, tmp_path: Path, clip: Path) -> None:
        with gated_denoiser(backend) as denoiser, running(denoiser, tmp_path / "work", tokens=[TOKEN]) as server:
            page = open_page(server)
            page.send(clip)
            page.until(lambda: page.is_shown("ask-token"))
            assert axe_findings(page.driver) == []
            assert all("401" in problem for problem in page.problems())
            page.driver.get("about:blank")


class TestMeasures:
    def test_loudness_is_that_of_the_standard(self, page: ServedPage) -> None:
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

    def test_spectra_are_those_of_numpy(self, page: ServedPage) -> None:
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
