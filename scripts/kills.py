"""Kill servers, their processes for files, workers and jobs at random moments, and run them out of room.

    python scripts/kills.py [server] [child] [worker] [job] [room] [--count 30] [--seed 0]

- `server`: `frcrn-accel serve` is killed (SIGKILL) with files and streams in flight, every third time while it starts
  with an empty cache. Its child processes must end. The next server must take the same port, clear the temporary
  files, and answer correctly.
- `child`: one of the server's processes for files is killed while it works. Only its own request may fail, with a
  reason; all others must be answered correctly.
- `worker`: a worker of `frcrn-accel corpus` is killed. The job must end as if nothing had happened.
- `job`: the job is killed, every third time also the one that resumes it. Once resumed, its outputs must equal, bit
  for bit, those of a job that was not killed, each with one line in the journal and no other files left. (For
  `--workers-on ray`, `benchmarks/corpus.py ray` kills an actor. Ray does not say which signal ended an actor.)
- `room`: no space, no inodes (small tmpfs, which require root) and no descriptors. There must be an answer or one
  line of error, and everything must work again once there is room.

Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import numpy as np
import soundfile
from fuzz import START
from numpy.typing import NDArray
from server_process import ServerProcess, limited

from frcrn_accel.export import write_random_model
from frcrn_accel.network.topology import Config

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from corpus import check_whole, command, digests, make_files

FILES = 12
SAME = 1e-3  # of decoded samples: engines may compute windows together or one by one
OF_ENGINES = (".ses",)  # ONNX Runtime keeps a session number there, one file for all processes
GONE_S = 10.0  # a second on an idle machine: a process that just starts has to load its modules first
TIME_S = 60.0
FILE_PROCESS, CORPUS_PROCESS = b"file_worker.py", b"spawn_main"
Answer = tuple[int, bytes]


def processes_in(folder: Path, what: bytes = b"") -> list[int]:
    """Return the processes with temporary files below a folder, and with that in their command lines."""
    mark = f"TMPDIR={folder}/".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (path / "environ").read_bytes() and what in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return sorted(found)


def kill_one(processes: Sequence[int], rng: np.random.Generator) -> int:
    """Kill one of the processes; return the number killed, 0 if none is left."""
    if processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(rng.choice(processes)), signal.SIGKILL)
            return 1
    return 0


class Place:
    """Where commands run: with temporary files, a cache and a log of their own.

    Attributes:
        folder: All of it.
        temporary: Folder for temporary files.
        cache: The cache folder.
        log: What the server has said.
        model: A small model with random weights, so that kills hit more than the engine.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = folder / "temporary"
        self.cache = folder / "cache"
        self.log = folder / "log"
        self.model = folder / "tiny.onnx"
        for path in (self.temporary, self.cache):
            path.mkdir(parents=True)
        write_random_model(self.model, Config(8, 1), "tiny")
        self.environment = {
            **os.environ,
            "TMPDIR": str(self.temporary),
            "FRCRN_ACCEL_CACHE_DIR": str(self.cache),
        }

    def processes(self, what: bytes = b"") -> list[int]:
        """Return the processes that run here, and have that in their command lines."""
        return processes_in(self.folder, what)

    def seconds_until_empty(self) -> float:
        """Wait until no process runs here; return how long that took."""
        began = time.monotonic()
        while left := self.processes():
            assert time.monotonic() - began < GONE_S, f"processes are left: {left}"
            time.sleep(0.01)
        return time.monotonic() - began

    def leftovers(self) -> list[Path]:
        """Return the temporary files."""
        own = [path for path in self.temporary.rglob("*") if path.name not in OF_ENGINES]
        return [*own, *self.cache.glob(".*")]

    def check_empty(self) -> None:
        """Check that no temporary file is left. A request removes its own just after its answer is sent."""
        began = time.monotonic()
        while left := self.leftovers():
            assert time.monotonic() - began < GONE_S, f"temporary files are left: {left}"
            time.sleep(0.01)

    def run(self, *arguments: str, descriptors: int | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command of the library; return how it ended."""
        before = () if descriptors is None else limited(descriptors)
        return subprocess.run(
            [*before, sys.executable, "-m", "frcrn_accel", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )

    def job(self, source: Path, out: Path, workers: int = 2) -> subprocess.Popen[bytes]:
        """Start a job over files."""
        arguments = command(source, out, "ort", "--workers", str(workers), "--model", str(self.model))
        return subprocess.Popen(arguments, env=self.environment, stderr=self.log.open("wb"))


class Server(ServerProcess):
    """A server that runs in a place."""

    def __init__(self, place: Place, port: int = 0, *, descriptors: int | None = None) -> None:
        options = ("--model", str(place.model), "--backend", "ort", "--threads", "1", "--port", str(port))
        before = () if descriptors is None else limited(descriptors)
        super().__init__(place.log, *options, environment=place.environment, before=before)

    def post(self, body: bytes) -> Answer:
        """Post a file; return the status, 0 without an answer, and the content."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=TIME_S)
        try:
            connection.request("POST", "/v1/denoise", body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except TimeoutError:
            raise
        except (OSError, HTTPException) as error:
            return 0, repr(error).encode()
        finally:
            connection.close()

    def kill(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()


def show(number: int, count: int) -> None:
    """Show how many kills are done."""
    print(f"\r{number} of {count}", end="\n" if number >= count else "", file=sys.stderr, flush=True)


def samples(content: bytes) -> NDArray[np.float32]:
    """Decode a file."""
    audio: NDArray[np.float32] = soundfile.read(io.BytesIO(content), dtype="float32")[0]
    return audio


class Files:
    """Files to send, and their right results.

    Attributes:
        bodies: The files.
    """

    def __init__(self, folder: Path, server: Server, count: int = FILES) -> None:
        make_files(folder, count, longest_s=8)
        self.bodies = [path.read_bytes() for path in sorted(folder.rglob("*.*"))]
        answers = [server.post(body) for body in self.bodies]
        assert all(status == 200 for status, _ in answers), answers
        self._right = [samples(content) for _, content in answers]

    def check(self, number: int, content: bytes) -> None:
        """Check the result of a file."""
        found, right = samples(content), self._right[number]
        assert found.shape == right.shape, f"file {number} has another length"
        assert np.abs(found - right).max(initial=0) < SAME, f"file {number} has another result"

    def ask(self, server: Server, number: int) -> None:
        """Post a file that has to be answered right."""
        status, content = server.post(self.bodies[number])
        assert status == 200, (status, content)
        self.check(number, content)


class Together:
    """Clients that post one file each at the same time.

    Attributes:
        answers: The number of each file, and its answer.
    """

    def __init__(self, server: Server, files: Files, numbers: Iterable[int]) -> None:
        self.answers: list[tuple[int, Answer]] = []
        self._files = files

        def post(number: int) -> None:
            self.answers.append((number, server.post(files.bodies[number])))

        self._threads = [threading.Thread(target=post, args=(number,)) for number in numbers]
        for thread in self._threads:
            thread.start()

    def join(self) -> Counter[int]:
        """Wait for all answers; check the results, and count the statuses."""
        for thread in self._threads:
            thread.join()
        for number, (status, content) in self.answers:
            if status == 200:
                self._files.check(number, content)
        return Counter(status for _, (status, _) in self.answers)


class Load:
    """Clients that post files and send streams, one after the other, until the server has gone."""

    def __init__(self, server: Server, files: Files, rng: np.random.Generator, posting: int, streaming: int) -> None:
        self.answers: list[tuple[int, Answer]] = []
        self.frames = 0
        self._server, self._files = server, files
        orders = [rng.permutation(len(files.bodies)) for _ in range(posting)]
        targets = [lambda order=order: self._post(order) for order in orders] + streaming * [self._stream]
        self._threads = [threading.Thread(target=target, daemon=True) for target in targets]
        for thread in self._threads:
            thread.start()

    def _post(self, order: NDArray[np.int64]) -> None:
        while True:
            for number in map(int, order):
                answer = self._server.post(self._files.bodies[number])
                self.answers.append((number, answer))
                if answer[0] == 0:
                    return

    def _stream(self) -> None:
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect

        with (
            contextlib.suppress(OSError, EOFError, WebSocketException),
            connect(f"ws://127.0.0.1:{self._server.port}/v1/stream") as stream,
        ):
            stream.send(START.decode())
            stream.recv(TIME_S)
            while True:
                stream.send(bytes(2 * 1_600))
                stream.recv(TIME_S)
                self.frames += 1

    def join(self) -> Counter[int]:
        """Wait until the clients have noticed that the server has gone; check what it answered, and count that."""
        for thread in self._threads:
            thread.join(GONE_S + 8)
            assert not thread.is_alive(), "a client did not notice that the server has gone"
        for number, (status, content) in self.answers:
            assert status in (0, 200), (status, content)
            if status:
                self._files.check(number, content)
        return Counter(status for _, (status, _) in self.answers)


def kill_servers(folder: Path, count: int, rng: np.random.Generator) -> str:
    """Kill servers with files and streams in flight."""
    place = Place(folder / "place")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    server = Server(place, port)
    began = time.monotonic()
    server.wait_until_ready()
    start_s = time.monotonic() - began
    files = Files(folder / "in", server)
    seen: Counter[int] = Counter()
    frames = left = 0
    slowest_s = 0.0
    for number in range(count):
        if number % 3 == 2:
            server.kill()
            shutil.rmtree(place.cache)
            place.cache.mkdir()
            server = Server(place, port)
            time.sleep(rng.uniform(0, start_s))
            server.kill()
        else:
            load = Load(server, files, rng, posting=3, streaming=2)
            time.sleep(rng.uniform(0, 2))
            server.kill()
            seen += load.join()
            frames += load.frames
        slowest_s = max(slowest_s, place.seconds_until_empty())
        left += len(place.leftovers())
        server = Server(place, port)
        server.wait_until_ready()
        assert server.port == port
        place.check_empty()
        files.ask(server, number % FILES)
        place.check_empty()
        show(number + 1, count)
    server.end()
    place.seconds_until_empty()
    return (
        f"{count} servers killed: {seen[200]} files answered right before, {seen[0]} cut off, {frames} pieces of "
        f"streams answered; {left} temporary files left, all cleared by the next server; processes gone after "
        f"{slowest_s:.2f} s at most; the same port taken each time, and a file answered right"
    )


def kill_children(folder: Path, count: int, rng: np.random.Generator) -> str:
    """Kill processes for files."""
    place = Place(folder / "place")
    server = Server(place, 0)
    server.wait_until_ready()
    files = Files(folder / "in", server)
    seen: Counter[int] = Counter()
    reasons: Counter[str] = Counter()
    killed = 0
    while killed < count:
        clients = Together(server, files, map(int, rng.permutation(FILES)[:6]))
        time.sleep(rng.uniform(0, 0.6))
        killed += kill_one(place.processes(FILE_PROCESS), rng)
        statuses = clients.join()
        assert statuses[200] >= 5, clients.answers
        for _, (status, content) in clients.answers:
            if status != 200:
                assert status in (422, 503), (status, content)
                assert b"SIGKILL" in content, content
                reasons[content.decode()] += 1
        seen += statuses
        files.ask(server, killed % FILES)
        place.check_empty()
        show(killed, count)
    assert server.metric("frcrn_accel_file_processes_died_total") == seen[422] + seen[503]
    server.end()
    place.seconds_until_empty()
    return f"{killed} processes for files killed: answers {dict(seen)}, reasons {dict(reasons)}; all others right"


def whole_job(folder: Path) -> tuple[Place, dict[str, str], float]:
    """Do a job that is not disturbed; return its place, the outputs, and how long it took."""
    make_files(folder / "in", 30, longest_s=6)
    place = Place(folder / "place")
    for _ in range(2):  # the second one finds everything in the cache
        shutil.rmtree(folder / "whole", ignore_errors=True)
        began = time.monotonic()
        assert place.job(folder / "in", folder / "whole").wait() == 0, place.log.read_text()
    return place, digests(folder / "whole"), time.monotonic() - began


def check_job(place: Place, out: Path, expected: dict[str, str]) -> None:
    """Check that a job is whole and has left nothing."""
    check_whole(out, expected)
    place.seconds_until_empty()
    place.check_empty()


def kill_workers(folder: Path, count: int, rng: np.random.Generator) -> str:
    """Kill workers of jobs."""
    place, expected, whole_s = whole_job(folder)
    killed = 0
    while killed < count:
        out = folder / "out"
        job = place.job(folder / "in", out)
        while job.poll() is None and not place.processes(CORPUS_PROCESS):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, whole_s / 2))
        killed += kill_one(place.processes(CORPUS_PROCESS), rng)
        status = job.wait()
        said = place.log.read_text()
        assert status == 0, said
        assert "Traceback" not in said, said
        check_job(place, out, expected)
        shutil.rmtree(out)
        show(killed, count)
    return f"{killed} workers killed, each job ended with status 0 and {len(expected)} equal outputs"


def kill_jobs(folder: Path, count: int, rng: np.random.Generator) -> str:
    """Kill jobs and resume them."""
    place, expected, whole_s = whole_job(folder)
    killed = found = 0
    slowest_s = 0.0
    while killed < count:
        out = folder / "out"
        for _ in range(2 if killed % 3 == 2 else 1):
            job = place.job(folder / "in", out)
            time.sleep(rng.uniform(0, whole_s))
            killed += job.poll() is None
            job.kill()
            job.wait()
            slowest_s = max(slowest_s, place.seconds_until_empty())
        found += len(digests(out)) if out.exists() else 0
        status = place.job(folder / "in", out).wait()
        assert status == 0, place.log.read_text()
        check_job(place, out, expected)
        shutil.rmtree(out)
        show(killed, count)
    return (
        f"{killed} jobs killed, {found} files done before; resumed, each had {len(expected)} equal outputs; "
        f"processes gone after {slowest_s:.2f} s at most"
    )


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Callable[[str], None]]:
    """Mount a small disk over a folder; give a function that changes its options.

    Raises:
        PermissionError: Mounting is not permitted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        raise PermissionError("mounting a small disk is not permitted here")

    def remount(more: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{more}", str(folder)], check=True)

    try:
        yield remount
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, *, inodes: bool) -> list[Path]:
    """Fill a disk; return the files to remove."""
    made = []
    with contextlib.suppress(OSError):
        if inodes:
            for number in range(10_000):
                made.append(folder / f"filler{number}")
                made[-1].touch()
        else:
            made.append(folder / "filler")
            with made[-1].open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
    return [path for path in made if path.exists()]


def room_of_server(folder: Path, *, inodes: bool) -> str:
    """Fill the disk of a server's temporary files between requests and during them, and make room."""
    place = Place(folder / "place")
    statuses: Counter[int] = Counter()
    with small_disk(place.temporary, "nr_inodes=40,size=16m" if inodes else "size=16m"):
        server = Server(place)
        server.wait_until_ready()
        files = Files(folder / "in", server)
        for number in range(FILES):
            fillers = fill(place.temporary, inodes=inodes)
            spared = 0 if number < 2 else number // 2  # so that some fail at the folder, the body, or the result
            if inodes:
                for path in fillers[:spared]:
                    path.unlink()
            elif spared:
                size = fillers[0].stat().st_size
                os.truncate(fillers[0], max(0, size - spared * len(files.bodies[number]) // 3))
            status, content = server.post(files.bodies[number])
            assert status in (200, 503, 507), (status, content)
            if status == 200:
                files.check(number, content)
            statuses[status] += 1
            for path in fillers:
                path.unlink(missing_ok=True)
            place.check_empty()
            files.ask(server, number)
        server.end()
        place.seconds_until_empty()
    assert statuses[507] > 1
    return f"answers {dict(statuses)}, and all files right with room"


def room_of_job(folder: Path, *, inodes: bool) -> str:
    """Let a job fill its disk, and resume it on a larger one."""
    place, expected, _ = whole_job(folder)
    need = sum(path.stat().st_size for path in (folder / "whole").rglob("*.*"))
    small = "nr_inodes=20" if inodes else f"size={need // 2}"
    with small_disk(folder / "disk", small) as remount:
        status = place.job(folder / "in", folder / "disk").wait()
        said = place.log.read_text()
        errors = [line for line in said.splitlines() if line.startswith("frcrn-accel: error: ")]
        assert (status, len(errors)) == (2, 1), said
        assert "Traceback" not in said, said
        done = digests(folder / "disk")
        parts = {name: digest for name, digest in done.items() if not name.startswith(".corpus")}
        assert all(digest == expected[name] for name, digest in parts.items())
        remount("nr_inodes=10000" if inodes else f"size={4 * need}")
        assert place.job(folder / "in", folder / "disk").wait() == 0, place.log.read_text()
        check_job(place, folder / "disk", expected)
    return f"{errors[0].replace(str(folder), '')} ({len(parts)} files done; resumed with room, all equal)"


def room_of_file(folder: Path, *, inodes: bool) -> str:
    """Denoise a file onto a full disk, with the cache on it, too; then with room."""
    place = Place(folder / "place")
    make_files(folder / "in", 1, longest_s=8)
    source = next((folder / "in").rglob("*.*"))
    before = source.read_bytes()
    with small_disk(folder / "disk", "nr_inodes=20,size=32m" if inodes else "size=32m"):
        place.environment["FRCRN_ACCEL_CACHE_DIR"] = str(folder / "disk" / "cache")
        fillers = fill(folder / "disk", inodes=inodes)
        options = ("--backend", "ort", "--model", str(place.model))
        arguments = ("denoise", str(source), "-o", str(folder / "disk" / "out.wav"), *options)
        full = place.run(*arguments)
        assert full.returncode in (1, 2), full.stderr
        assert "Traceback" not in full.stderr, full.stderr
        assert sorted(path for path in (folder / "disk").rglob("*") if path.is_file()) == sorted(fillers)
        for path in fillers:
            path.unlink()
        again = place.run(*arguments)
        assert again.returncode == 0, again.stderr
        assert (folder / "disk" / "out.wav").stat().st_size > 44
    assert source.read_bytes() == before
    place.check_empty()
    return f"{full.stderr.strip().replace(str(folder), '')} (status {full.returncode}; with room, status 0)"


def room_of_descriptors(folder: Path) -> str:
    """Take all descriptors of a server, and of jobs."""
    said = []
    for number in (264, 300, 400):  # fewer are refused at the start
        place = Place(folder / f"server{number}")
        server = Server(place, 0, descriptors=number)
        server.wait_until_ready()
        files = Files(folder / f"in{number}", server)
        statuses: Counter[int] = Counter()
        for _ in range(3):
            held: list[socket.socket] = []
            for _ in range(300):
                with contextlib.suppress(OSError):
                    held.append(socket.create_connection(("127.0.0.1", server.port), 1))
            statuses += Together(server, files, range(FILES)).join()
            for connection in held:
                connection.close()
            time.sleep(0.2)
        alone = Together(server, files, [one % FILES for one in range(16)]).join()  # as many as there can be
        assert statuses.keys() | alone.keys() <= {0, 200, 429, 503, 507}, (statuses, alone)
        for one in range(FILES):
            files.ask(server, one)
        place.check_empty()
        log = server.end()
        assert "Traceback" not in log or statuses[507], log
        said.append(f"a server with {number}: {dict(statuses)} beside idle connections, {dict(alone)} without")
    place, expected, _ = whole_job(folder / "job")
    for number in (16, 24, 48):
        out = folder / "job" / f"out{number}"
        options = ("--workers", "2", "--model", str(place.model))
        arguments = command(folder / "job" / "in", out, "ort", *options)[3:]
        done = place.run(*arguments, descriptors=number)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode in (0, 1, 2), done.returncode
        assert place.run(*arguments).returncode == 0
        check_job(place, out, expected)
        said.append(f"a job with {number}: status {done.returncode}, {done.stderr.splitlines()[-1][-200:]}")
    return "; ".join(said)


def take_room(folder: Path, count: int, rng: np.random.Generator) -> str:
    """Take space, inodes and descriptors away."""
    said = []
    for inodes in (False, True):
        for who in (room_of_file, room_of_server, room_of_job):
            what = f"{'no inodes' if inodes else 'no space'}, {who.__name__.removeprefix('room_of_')}"
            try:
                found = who(folder / what.replace(", ", "-").replace(" ", "-"), inodes=inodes)
            except PermissionError as error:
                found = f"not tried: {error}"
            said.append(f"{what}: {found}")
            print(said[-1], file=sys.stderr, flush=True)
    said.append(f"no descriptors: {room_of_descriptors(folder / 'descriptors')}")
    return "\n  ".join(said)


KINDS: dict[str, Callable[[Path, int, np.random.Generator], str]] = {
    "server": kill_servers,
    "child": kill_children,
    "worker": kill_workers,
    "job": kill_jobs,
    "room": take_room,
}


def main() -> None:
    """Kill what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], help="all by default")
    parser.add_argument("--count", type=int, default=30, help="kills of each kind")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name in arguments.kinds or KINDS:
        with tempfile.TemporaryDirectory(prefix="kills-") as folder:
            try:
                said = KINDS[name](Path(folder), arguments.count, np.random.default_rng(arguments.seed))
            finally:
                for process in processes_in(Path(folder)):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
        print(f"{name}: {said}", flush=True)


if __name__ == "__main__":
    main()
