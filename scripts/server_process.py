"""A server in a process of its own, for the scripts and benchmarks that need one."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

READY_S = 300.0  # a backend may have to quantize the model first
END_S = 60.0


class ServerProcess:
    """`frcrn-accel serve`, with its log in a file.

    As a context manager it is ready inside the block, and ends with it.

    Args:
        log: File for its log.
        options: Options of the command. By default the port is a free one, and requests have 5 s to end at shutdown.
        python: Interpreter that runs it.
        environment: Its environment; by default that of this process.
        before: Start of the command line, see `limited`.

    Attributes:
        log: File with its log.
        process: Its process.
        port: Its port, once `wait_until_ready` has returned.
    """

    def __init__(
        self,
        log: Path,
        *options: str,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
        before: Sequence[str] = (),
    ) -> None:
        self.log = log
        self.port = 0
        command = [*before, python, "-m", "frcrn_accel", "serve", "--port", "0", "--drain-s", "5", *options]
        with log.open("wb") as stderr:
            # In a session of its own, so that Ctrl-C ends only the process that started it.
            self.process = subprocess.Popen(command, stderr=stderr, env=environment, start_new_session=True)

    @property
    def url(self) -> str:
        """Its URL, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def wait_until_ready(self) -> None:
        """Wait until it has loaded the model and answers requests.

        Raises:
            SystemExit: It has ended instead, or is not ready after 5 minutes.
        """
        deadline = time.monotonic() + READY_S
        while self.process.poll() is None and time.monotonic() < deadline:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", self.log.read_text()):
                self.port = int(found[1])
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{self.url}/ready", timeout=5).close()
                    return
            time.sleep(0.1)
        raise SystemExit(f"the server did not start: {self.log.read_text()}")

    def metric(self, name: str) -> float:
        """Return the value of a metric without labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as answer:
            text = answer.read().decode()
        return float(next(line for line in text.splitlines() if line.startswith(f"{name} ")).split()[1])

    def end(self) -> str:
        """Shut it down, and return its log.

        Raises:
            AssertionError: Its exit status is not 0.
        """
        self.process.terminate()
        status = self.process.wait(END_S)
        said = self.log.read_text()
        assert status == 0, (status, said)
        return said

    def __enter__(self) -> Self:
        try:
            self.wait_until_ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.terminate()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def limited(descriptors: int) -> tuple[str, ...]:
    """Return the start of a command line that may have only so many files and connections open."""
    return "sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh"
