"""Downloading, from a server in this process that misbehaves in the ways servers do."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from frcrn_accel import ModelError, OutputExistsError
from frcrn_accel.models import download, download_checkpoint, known_models
from web_server import served

CONTENT = random.Random(0).randbytes(300_000)
WRONG = random.Random(1).randbytes(300_000)
NAME = "frcrn-16k"


@dataclass
class Server:
    """The behaviour of the server, and the requests that it received.

    Attributes:
        content: What it serves.
        cut_after: Bytes of an answer after which it closes the connection, one request after the other.
        ranges: Whether it knows ranges.
        length: The Content-Length that it claims, if not the true one.
        no_length: Send none.
        asked: The Range header of each request.
    """

    content: bytes = CONTENT
    cut_after: list[int] = field(default_factory=list)
    ranges: bool = True
    length: int | None = None
    no_length: bool = False
    asked: list[str | None] = field(default_factory=list)
    agents: list[str | None] = field(default_factory=list)
    url: str = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers["Range"]
        self.asked.append(wanted)
        self.agents.append(request.headers["User-Agent"])
        if request.path == "/moved":
            request.send_response(302)
            request.send_header("Location", "/file")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if request.path != "/file":
            request.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.ranges else 0
        if start >= len(self.content):
            request.send_error(416)
            return
        body = self.content[start:]
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        if not self.no_length:
            request.send_header("Content-Length", str(len(body) if self.length is None else self.length))
        request.end_headers()
        cut = self.cut_after.pop(0) if self.cut_after else len(body)
        request.wfile.write(body[:cut])


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with served(Handler) as address:
        state.url = f"{address}/file"
        serve(monkeypatch, state.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield state


def serve(monkeypatch, url: str) -> None:
    """Make this the URL of the checkpoint of `NAME`."""
    known = dataclasses.replace(
        known_models()[NAME],
        checkpoint_url=url,
        checkpoint_bytes=len(CONTENT),
        checkpoint_sha256=hashlib.sha256(CONTENT).hexdigest(),
    )
    monkeypatch.setitem(known_models(), NAME, known)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file(server, tmp_path):
    seen: list[tuple[int, int]] = []
    out = download_checkpoint(NAME, tmp_path / "a.bin", progress=lambda done, total: seen.append((done, total)))
    assert out == tmp_path / "a.bin"
    assert out.read_bytes() == CONTENT
    assert names(tmp_path) == ["a.bin"]
    assert server.asked == [None]
    assert server.agents[0].startswith("frcrn-accel/")
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert (seen[0], seen[-1]) == ((0, 300_000), (300_000, 300_000))


def test_a_connection_that_is_cut_off_is_taken_up_again(server, tmp_path):
    server.cut_after = [100_000, 50_000]
    assert download_checkpoint(NAME, tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]
    assert names(tmp_path) == ["a.bin"]


def test_a_system_without_users_and_links(server, tmp_path, monkeypatch):
    """Windows has neither numbers of users nor O_NOFOLLOW."""
    absent = ("geteuid", "O_NOFOLLOW")
    there = {name: value for name, value in vars(os).items() if name not in absent}
    monkeypatch.setattr(download, "os", types.SimpleNamespace(**there, O_BINARY=0))
    server.cut_after = [100_000]
    assert download_checkpoint(NAME, tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-"]
    assert names(tmp_path) == ["a.bin"]


def test_the_next_call_goes_on_where_the_last_one_ended(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_ATTEMPTS", 1)
    server.cut_after = [120_000]
    with pytest.raises(ModelError, match=r"broke 1 times, at 0\.1 of 0\.3 MB; run the same command again to resume "):
        download_checkpoint(NAME, tmp_path / "a.bin")
    assert names(tmp_path) == ["a.bin.part"]
    assert (tmp_path / "a.bin.part").read_bytes() == CONTENT[:120_000]
    assert download_checkpoint(NAME, tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=120000-"]
    assert names(tmp_path) == ["a.bin"]


def test_a_part_that_is_complete_needs_no_server(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    assert download_checkpoint(NAME, tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.asked == []


def test_it_gives_up_on_a_server_that_always_cuts_off(server, tmp_path):
    server.cut_after = [0] * 99
    with pytest.raises(ModelError, match=r"broke 5 times, at 0\.0 of 0\.3 MB$"):
        download_checkpoint(NAME, tmp_path / "a.bin")
    assert len(server.asked) == 5


def test_a_server_that_ignores_ranges_begins_anew(server, tmp_path):
    server.ranges = False
    (tmp_path / "a.bin.part").write_bytes(WRONG[:70_000])
    assert download_checkpoint(NAME, tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.asked == ["bytes=70000-"]


def test_a_redirect_keeps_the_range(server, tmp_path, monkeypatch):
    serve(monkeypatch, server.url.replace("/file", "/moved"))
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:70_000])
    assert download_checkpoint(NAME, tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.asked == ["bytes=70000-", "bytes=70000-"]


def test_a_server_that_promises_more_than_it_has(server, tmp_path):
    server.content = CONTENT[:200_000]
    server.length = len(CONTENT)
    with pytest.raises(ModelError, match=r"broke 5 times, at 0\.2 of 0\.3 MB"):
        download_checkpoint(NAME, tmp_path / "a.bin")
    assert names(tmp_path) == ["a.bin.part"]


@pytest.mark.parametrize("length", [299_999, 300_001, 5])
def test_another_length_is_refused_before_the_first_byte(server, tmp_path, length):
    server.length = length
    with pytest.raises(ModelError, match=f"known checkpoint of .*: it has {length:,} bytes, expected 300,000"):
        download_checkpoint(NAME, tmp_path / "a.bin")
    assert names(tmp_path) == []


def test_a_server_that_sends_more_than_there_is(server, tmp_path):
    server.content, server.no_length = CONTENT + b"more", True
    with pytest.raises(ModelError, match="it has more than 300,000 bytes; the download was deleted"):
        download_checkpoint(NAME, tmp_path / "a.bin")
    assert names(tmp_path) == []


@pytest.mark.parametrize("kept", [b"", WRONG[:70_000]])
def test_a_wrong_file_of_the_right_size(server, tmp_path, kept):
    server.content = WRONG
    (tmp_path / "a.bin.part").write_bytes(kept)
    with pytest.raises(ModelError, match=f"its sha256 is {hashlib.sha256(WRONG).hexdigest()}, expected .* deleted"):
        download_checkpoint(NAME, tmp_path / "a.bin")
    assert names(tmp_path) == []
    server.content = CONTENT
    assert download_checkpoint(NAME, tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_part_that_is_too_long_is_dropped(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(WRONG + b"more")
    assert download_checkpoint(NAME, tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.asked == [None]


def test_a_range_that_the_server_does_not_have(server, tmp_path):
    server.content = CONTENT[:50_000]
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:70_000])
    with pytest.raises(ModelError, match="it has 50,000 bytes, expected 300,000"):
        download_checkpoint(NAME, tmp_path / "a.bin")
    assert server.asked == ["bytes=70000-", None]


def test_no_such_page(server, tmp_path, monkeypatch):
    serve(monkeypatch, server.url + "/none")
    with pytest.raises(ModelError, match=r"/none cannot be downloaded: Not Found$"):
        download_checkpoint(NAME, tmp_path / "a.bin")
    assert names(tmp_path) == []


def test_no_server(monkeypatch, tmp_path):
    serve(monkeypatch, "http://127.0.0.1:1/file")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:10])
    with pytest.raises(ModelError, match=r"cannot be downloaded: .*refused.*; run the same command again to resume "):
        download_checkpoint(NAME, tmp_path / "a.bin")
    assert (tmp_path / "a.bin.part").read_bytes() == CONTENT[:10]


def test_an_existing_file(server, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"precious")
    with pytest.raises(OutputExistsError, match="exists"):
        download_checkpoint(NAME, tmp_path / "a.bin")
    assert server.asked == []
    assert (tmp_path / "a.bin").read_bytes() == b"precious"
    download_checkpoint(NAME, tmp_path / "a.bin", overwrite=True)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_folder_that_is_not_there(server, tmp_path):
    with pytest.raises(ModelError, match="cannot be written: No such file"):
        download_checkpoint(NAME, tmp_path / "none" / "a.bin")
    assert server.asked == []


@pytest.mark.parametrize("name", ["frcrn-small", "nope"])
def test_a_model_without_a_source(name, tmp_path):
    with pytest.raises(ModelError, match=f"no checkpoint of '{name}' can be downloaded; choose one of frcrn-16k"):
        download_checkpoint(name, tmp_path / "a.bin")


def test_the_catalogue_asks_over_https_for_the_known_file():
    for known in known_models().values():
        assert (known.checkpoint_url is None) == (known.checkpoint_bytes is None)
    assert known_models()[NAME].checkpoint_url.startswith("https://modelscope.cn/")
    assert known_models()[NAME].checkpoint_bytes == 57_991_225
