"""Attack an installed frcrn-accel as a user that is not root: `sudo python scripts/as_user.py PYTHON`.

PYTHON is the interpreter of an environment that has the wheel with `[ort,serve]`; for the last two checks also
`[export]`, `moto[server]` and `s3fs`. It belongs to root, so the user can read the package and not change it. Nor can
the user write to its home; its temporary folder is a disk of 64 MiB. Each line of the output says what was sent and
what happened:

- a file of 6 kB whose result, as Ogg, once killed the server and the command; and others like it;
- a server below a prefix of another application, which once checked no tokens there;
- keys of a bucket that lead out of the output folder;
- a checkpoint whose model is NaN everywhere, or silent.

Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import logging
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import soundfile
from server_process import ServerProcess

NOBODY = 65534
RATE = 192_000
TOKEN = "correct-horse-battery-staple"
OUTSIDE = Path("/frcrn-accel-as-user.wav")  # where the key of that name must not lead


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the installed command."""
    program = Path(sysconfig.get_path("scripts"), "frcrn-accel")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def request(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Do a request; return its status and body."""
    connection = HTTPConnection("127.0.0.1", port, timeout=120)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[int]:
    """Run a server and yield its port. It must end on SIGTERM and leave no temporary files."""
    from fuzz import leftovers

    with ServerProcess(folder / "log") as server:
        yield server.port
        said = server.end()
        assert "Traceback" not in said, said
    server.log.unlink()
    assert leftovers(Path(os.environ["TMPDIR"])) == []


def send_silence(folder: Path) -> str:
    """Send 11 s of silence at 192 kHz, and denoise them with the command."""
    source, target = folder / "silence.flac", folder / "silence.ogg"
    soundfile.write(source, np.zeros(11 * RATE), RATE)
    with serving(folder) as port:
        status, content = request(port, "POST", "/v1/denoise?format=ogg", source.read_bytes())
        assert status == 200, (status, content)
        audio, rate = soundfile.read(io.BytesIO(content))
        assert not audio.any()
        kinds = 0
        for hz in (8_000, 44_100, 96_000, RATE):
            for channels in (1, 2, 8):
                silence = io.BytesIO()
                seconds = 11 if (hz, channels) == (RATE, 1) else 1
                soundfile.write(silence, np.zeros((seconds * hz, channels)), hz, format="FLAC")
                for form in ("aiff", "flac", "mp3", "ogg", "opus", "wav"):
                    status, answer = request(port, "POST", f"/v1/denoise?format={form}", silence.getvalue())
                    fits = channels <= 2 or form != "mp3"
                    assert status == (200 if fits else 422), (form, hz, channels, status, answer[:200])
                    kinds += 1
        assert request(port, "GET", "/ready")[0] == 200
        text = request(port, "GET", "/metrics")[1].decode()
        assert "\nfrcrn_accel_file_processes_died_total 0.0" in text
    done = command("denoise", source, "-o", target)
    assert done.returncode == 0, done.stderr
    assert soundfile.info(target).frames / soundfile.info(target).samplerate == 11
    size = source.stat().st_size
    return (
        f"{size} bytes, {len(audio) / rate:g} s of Ogg came back, and {kinds} others of all rates, channels and "
        "formats; the server is ready, no process died; command: 0"
    )


def mount(port_file: Path) -> None:
    """Run the application below a prefix of another one, with a token."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.routing import Mount

    from frcrn_accel import Denoiser
    from frcrn_accel.serve import Limits, Service, create_app

    service = Service(Denoiser(backend="ort"), Limits())
    app = Starlette(routes=[Mount("/denoiser", create_app(service, tokens=[TOKEN]))])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))

    async def run() -> None:
        task = asyncio.ensure_future(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port_file.write_text(str(server.servers[0].sockets[0].getsockname()[1]))
        await task

    try:
        asyncio.run(run())
    finally:
        service.close()


def ask_below_a_prefix(folder: Path) -> str:
    """Ask for everything below the prefix: without a token, with one, and from the page of another origin."""
    port_file = folder / "port"
    server = subprocess.Popen([sys.executable, __file__, "--mount", str(port_file)])
    try:
        port = int(until(lambda: port_file.exists() and port_file.read_text()))
        paths = [("GET", "/models"), ("POST", "/denoise"), ("GET", "/stream"), ("GET", "/nothing")]
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        foreign = {"Origin": "https://evil.example", **bearer}
        found = {
            who: [request(port, method, f"/denoiser/v1{path}", b"RIFF" if method == "POST" else None, **headers)[0]
                  for method, path in paths]
            for who, headers in (("no token", {}), ("another origin", foreign), ("token", bearer))
        }  # fmt: skip
        assert found == {"no token": [401] * 4, "another origin": [403] * 4, "token": [200, 422, 404, 404]}, found
        guesses = Counter(
            request(port, "GET", f"/denoiser{path}", None, **headers)[0]
            for path in ("/v1/models", "/v1%2Fmodels", "//v1/models", "/./v1/models", "/%76%31/models", "/v1/models/")
            for headers in wrong_tokens()
        )
        assert guesses.keys() <= {401, 403, 404, 429}, guesses
        until(lambda: request(port, "GET", "/denoiser/ready")[0] == 200)
    finally:
        server.terminate()
        server.wait(30)
    return f"models, denoise, stream, nothing: {found}; other spellings and tokens: {dict(guesses)}; /ready: 200"


def wrong_tokens() -> Iterator[dict[str, str]]:
    """Yield headers that hold the token, or a part of it, in a place or a form that does not count."""
    encoded = base64.urlsafe_b64encode(TOKEN.encode()).decode()
    for text in (
        *("", "Bearer", "Bearer ", TOKEN, f"Basic {encoded}", f"Bearer {encoded}", f"Bearer {TOKEN[:-1]}"),
        *(f"Bearer {TOKEN.upper()}", f"Bearer {TOKEN}, Bearer {TOKEN}", f"Bearer {TOKEN}\xa0", f"Bearer%20{TOKEN}"),
    ):
        yield {"Authorization": text}
    yield {"Proxy-Authorization": f"Bearer {TOKEN}"}
    yield {"Cookie": f"Authorization=Bearer {TOKEN}"}


def until(condition: object, tries: int = 600) -> str:
    """Return what a function returns once it is true."""
    import time

    assert callable(condition)
    for _ in range(tries):
        if found := condition():
            return str(found)
        time.sleep(0.1)
    raise TimeoutError


def list_keys(folder: Path) -> str:
    """Denoise a bucket with keys that lead out of the output folder, to files and to tars."""
    import boto3
    from moto.server import ThreadedMotoServer

    bad = [f"../../../{OUTSIDE.name}", str(OUTSIDE), "a/../../b.wav", "a//b.wav"]
    good = ["take #3.wav", "take #4.wav", "is it?.wav", "a/c.wav"]
    file = io.BytesIO()
    soundfile.write(file, 0.1 * np.random.default_rng(0).standard_normal(8_000), 16_000, format="WAV")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # each request of the bucket
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        os.environ |= {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        os.environ["AWS_ENDPOINT_URL_S3"] = f"http://{host}:{port}"
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket="bucket")
        for key in (*bad, *good):
            s3.put_object(Bucket="bucket", Key=f"in/{key}", Body=file.getvalue())
        work = Path.cwd()
        said = []
        for form, options in (("files", ()), ("tars", ("--tar", "10"))):
            out = folder / "deep/er" / form
            before = {path for path in work.rglob("*") if path.is_file()}
            done = command("corpus", "s3://bucket/in", out, "--backend", "ort", "--workers", "1", *options)
            made = {path for path in work.rglob("*") if path.is_file()} - before
            outside = [str(path) for path in made if out not in path.parents]
            assert outside == [], outside
            assert not OUTSIDE.exists()
            names = sorted(path.relative_to(out).as_posix() for path in made if out in path.parents)
            assert done.returncode == 1, done.stderr
            failed = [key for key in bad if key in done.stderr]
            assert failed == bad, done.stderr
            if form == "files":
                assert names == sorted([*good, "corpus.jsonl"]), names
            said.append(f"{form}: {names}")
    finally:
        server.stop()
    return f"{'; '.join(said)}; {len(bad)} keys failed by name, nothing is outside"


def export_ruined(folder: Path) -> str:
    """Export checkpoints whose model gives NaN, or zeros, and import them."""
    import torch

    from frcrn_accel.network.seeded import random_weights
    from frcrn_accel.network.topology import Config

    os.environ["FRCRN_ACCEL_CACHE_DIR"] = str(folder / "cache")
    weights = {key: torch.tensor(value) for key, value in random_weights(Config(16, 1)).items()}
    name = "unet.encoders.3.bn.bn_re.running_var"
    ruined = {
        "nan": {**weights, name: weights[name] - 100},
        "zeros": {key: torch.zeros_like(value) for key, value in weights.items()},
    }
    said = []
    for kind, content in ruined.items():
        checkpoint, target = folder / f"{kind}.pt", folder / f"{kind}.onnx"
        torch.save(content, checkpoint)
        listed = command("models", "list").stdout
        for arguments in (("export", checkpoint, target), ("models", "import", checkpoint)):
            done = command(*arguments)
            assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
            assert not target.exists()
            assert command("models", "list").stdout == listed
            said.append(f"{kind}, {arguments[0]}: {' '.join(done.stderr.split()).replace(str(folder), '')}")
    return "; ".join(said)


CHECKS = {
    "a file of 6 kB": send_silence,
    "mounted": ask_below_a_prefix,
    "keys of a bucket": list_keys,
    "ruined checkpoints": export_ruined,
}


def check(names: list[str]) -> None:
    """Run checks as this user."""
    import frcrn_accel

    package, home = Path(frcrn_accel.__file__).parent, Path(os.environ["HOME"])
    assert os.geteuid() != 0
    changeable = [path for path in (home, package, *package.rglob("*")) if os.access(path, os.W_OK)]
    assert changeable == [], changeable
    print(f"user {os.geteuid()}, {package}, which is read-only, as {home} is")
    for name in names:
        folder = Path(tempfile.mkdtemp(dir=Path.cwd()))
        print(f"{name}: {CHECKS[name](folder)}", flush=True)


def main() -> None:
    """Start this file as the user, or do what it was started for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", nargs="?", help="interpreter of the environment")
    parser.add_argument("--user", type=int, default=NOBODY, help="number of the user and of its group")
    parser.add_argument("--check", action="append", choices=CHECKS, help="only these")
    parser.add_argument("--mount", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.mount:
        mount(arguments.mount)
    elif not arguments.python:
        check(arguments.check)
    else:
        start_as(arguments.user, arguments.python, arguments.check or list(CHECKS))


def start_as(user: int, python: str, names: list[str]) -> None:
    """Start this file as a user, with a home that is not its own, and a small disk for temporary files."""
    with tempfile.TemporaryDirectory(prefix="as-user-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)
        home, temporary, work = folder / "home", folder / "tmp", folder / "work"
        for path in (home, temporary, work):
            path.mkdir()
        os.chown(work, user, user)
        disk = ["-t", "tmpfs", "-o", f"size=64m,mode=700,uid={user},gid={user}", "none", str(temporary)]
        subprocess.run(["mount", *disk], check=True)
        stack.callback(subprocess.run, ["umount", "--lazy", str(temporary)], check=True)
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        environment = {"HOME": str(home), "TMPDIR": str(temporary), "PATH": os.defpath, "LANG": "C.UTF-8"}
        only = [argument for name in names for argument in ("--check", name)]
        subprocess.run(
            [*become, python, __file__, *only], cwd=work, env=environment, check=True, stdin=subprocess.DEVNULL
        )


if __name__ == "__main__":
    main()
