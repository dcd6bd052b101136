"""The job on a Ray cluster of two CPUs: the same outputs, actors that die, URLs."""

from __future__ import annotations

import http.server
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
import soundfile
from corpus import digests

from dying import (
    FIRST,
    MARK,
    DyingOnceBackend,
    DyingWhenLoadedBackend,
    EndingBackend,
    OrphanedBackend,
    OrphanedOnceBackend,
)
from frcrn_accel import CorpusError, MissingExtraError
from frcrn_accel.corpus import CorpusJob, CorpusReport, denoise_corpus
from frcrn_accel.denoiser import DenoiserOptions
from frcrn_accel.testing import FunctionBackend
from web_server import served


def options(backend: object) -> DenoiserOptions:
    return DenoiserOptions(backend=backend, threads=1)


PLAIN = options(FunctionBackend)  # returns its input
# Ray's own code and its dependencies cause warnings.
pytestmark = pytest.mark.filterwarnings("ignore")


def denoise(inputs, out, denoiser=PLAIN, **more) -> CorpusReport:
    return denoise_corpus(CorpusJob(inputs, out, denoiser, **more))


def start_ray() -> None:
    import ray

    os.environ[FIRST] = str(os.getpid())
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))  # its dozen processes starve on one CPU: see conftest.py
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def stop_ray() -> None:
    import ray

    ray.shutdown()


def names_of_threads() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate())


def test_what_is_missing_is_reported(tmp_path, noisy_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "in.txt").write_text(str(noisy_path))
    with pytest.raises(MissingExtraError, match=r"pip install 'frcrn-accel\[ray\]'"):
        denoise(tmp_path / "in.txt", tmp_path / "out", PLAIN, workers_on="ray")


@pytest.fixture(scope="module")
def mark(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("mark") / "mark"


@pytest.fixture(scope="module")
def s3():
    """URL of an S3 server; None without the packages for it."""
    try:
        import s3fs  # noqa: F401
        from moto.server import ThreadedMotoServer
    except ImportError:
        yield None
        return
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def storage(s3) -> str:
    if s3 is None:
        pytest.skip("the packages of the dependency group 'storage' are not installed")
    return s3


@pytest.fixture(scope="module", autouse=True)
def environment(s3, mark) -> Iterator[None]:
    """The environment of the actors, which must be set when Ray starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, str(mark))
        if Path("/tmp").is_dir():  # Ray waits forever for a socket whose path is too long, as in a deep TMPDIR
            patch.setenv("RAY_TMPDIR", "/tmp")
        folders = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, folders)))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        if s3 is not None:
            patch.setenv("AWS_ENDPOINT_URL_S3", s3)
        yield


@pytest.fixture(scope="module")
def driver(environment) -> Iterator[ProcessPoolExecutor]:
    """A process with a cluster on this machine, not that of the tests: Ray ends a process that loses its cluster."""
    pytest.importorskip("ray", reason="[ray] is not installed")
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        process.submit(start_ray).result()
        yield process
        process.submit(stop_ray).result()


@pytest.fixture
def denoise_on_ray(driver) -> Callable[..., CorpusReport]:
    return lambda *arguments, **more: driver.submit(denoise, *arguments, workers_on="ray", **more).result()


@pytest.fixture(scope="module")
def tree(tmp_path_factory, noisy) -> Path:
    """Six short recordings in three formats, a long one, and a text file."""
    folder = tmp_path_factory.mktemp("tree")
    (folder / "a/b").mkdir(parents=True)
    for count, name in enumerate(["1.wav", "2.flac", "a/3.ogg", "a/4.wav", "a/b/5.flac", "a/b/6.ogg", "long.wav"]):
        samples = 40_000 if name == "long.wav" else 6_000 + 500 * count
        soundfile.write(folder / name, noisy[count * 8_000 : count * 8_000 + samples], 16_000)
    (folder / "a/broken.wav").write_text("no audio")
    return folder


@pytest.fixture(scope="module")
def local(tree, tmp_path_factory) -> Path:
    """Their outputs from local workers."""
    out = tmp_path_factory.mktemp("local")
    denoise(tree, out, PLAIN, workers=1)
    return out


@pytest.mark.parametrize("files_per_tar", [None, 3])
def test_the_outputs_are_those_of_one_machine(tree, tmp_path, denoise_on_ray, files_per_tar):
    reports = {
        name: run(tree, tmp_path / name, PLAIN, workers=2, files_per_tar=files_per_tar)
        for name, run in (("local", denoise), ("ray", denoise_on_ray))
    }
    assert digests(tmp_path / "ray") == digests(tmp_path / "local")
    assert len(digests(tmp_path / "ray")) == (7 if files_per_tar is None else 3)
    assert {report.done for report in reports.values()} == {7}
    assert reports["ray"].failed == reports["local"].failed
    assert "2 actor(s) x 1 CPU(s)" in reports["ray"].workers
    if files_per_tar is None:
        # A job that was begun on one of them can be resumed on the other.
        (tmp_path / "ray/a/3.ogg").unlink()
        report = denoise(tree, tmp_path / "ray", PLAIN, workers=1)
        assert (report.before, report.done) == (6, 1)


@pytest.mark.thorough
def test_the_packaged_model(tree, tmp_path, denoise_on_ray):
    pytest.importorskip("onnxruntime")
    for name, run in (("local", denoise), ("ray", denoise_on_ray)):
        run(tree, tmp_path / name, options("ort"), workers=2)
    assert digests(tmp_path / "ray") == digests(tmp_path / "local")


@pytest.mark.parametrize("backend", [DyingOnceBackend, OrphanedOnceBackend])
def test_a_worker_or_actor_that_dies_once_loses_nothing(backend, tree, local, tmp_path, mark, denoise_on_ray):
    mark.touch()
    report = denoise_on_ray(tree, tmp_path, options(backend), workers=2)
    assert not mark.exists()
    assert report.done == 7
    assert digests(tmp_path) == digests(local)
    made = [json.loads(line)["output"] for line in (tmp_path / "corpus.jsonl").read_text().splitlines()[1:]]
    assert sorted(made) == sorted([*digests(local), "a/broken.wav"])


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        (EndingBackend, "its worker process died 3 times (killed by SIGSEGV)"),
        (OrphanedBackend, "its actor died 3 times (out of memory?)"),
    ],
)
def test_a_file_that_kills_says_how(backend, reason, tree, local, tmp_path, denoise_on_ray):
    report = denoise_on_ray(tree, tmp_path, options(backend), workers=2)
    assert report.done == 6
    assert report.failed["long.wav"] == reason
    assert digests(tmp_path) == {name: digest for name, digest in digests(local).items() if name != "long.wav"}


def test_actors_that_die_while_they_load(tree, tmp_path, denoise_on_ray, driver):
    before = driver.submit(names_of_threads).result()
    with pytest.raises(
        CorpusError, match=r"the worker process died 3 times while it loaded the model \(killed by SIGKILL"
    ):
        denoise_on_ray(tree, tmp_path, options(DyingWhenLoadedBackend), workers=1)
    # A thread that used Ray after its end would end the process.
    assert driver.submit(names_of_threads).result() == before


def test_no_room(tree, tmp_path, denoise_on_ray):
    with pytest.raises(CorpusError, match=r"has room for 2 worker\(s\) with 1 CPU\(s\) and 0 GPU"):
        denoise_on_ray(tree, tmp_path, PLAIN, workers=3)
    with pytest.raises(CorpusError, match=r"has room for 0 worker\(s\) with 1 CPU\(s\) and 0\.5 GPU"):
        denoise_on_ray(tree, tmp_path, PLAIN, gpus=0.5)


class TestUrls:
    @pytest.fixture
    def bucket(self, storage, tree, request):
        """A bucket with the tree in it."""
        import s3fs

        files = s3fs.S3FileSystem()
        name = f"bucket-{abs(hash(request.node.name))}"
        files.mkdir(name)
        for path in tree.rglob("*.*"):
            files.put_file(str(path), f"{name}/in/{path.relative_to(tree).as_posix()}")
        files.invalidate_cache()
        return name

    @pytest.fixture
    def web(self, tree):
        pytest.importorskip("aiohttp", reason="fsspec needs it for http://")
        handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tree))
        with served(handler) as address:
            yield address

    @pytest.mark.parametrize("workers_on", ["local", "ray"])
    def test_from_s3_to_s3(self, bucket, tmp_path, local, workers_on, request):
        import s3fs

        run = denoise if workers_on == "local" else request.getfixturevalue("denoise_on_ray")
        journal = tmp_path / "journal.jsonl"
        arguments = (f"s3://{bucket}/in", f"s3://{bucket}/out", PLAIN)
        for before, done in ((0, 7), (7, 0)):
            report = run(*arguments, workers=1, journal=journal)
            assert (report.before, report.done) == (before, done)
            assert list(report.failed) == ["a/broken.wav"]
        files = s3fs.S3FileSystem(skip_instance_cache=True)
        files.get(f"{bucket}/out", str(tmp_path / "out"), recursive=True)
        assert digests(tmp_path / "out") == digests(local)
        # An output without its line, as after a kill, is made again.
        journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:-1]))
        report = denoise(*arguments, workers=1, journal=journal)
        assert report.before + report.done == 7
        # Without the journal they belong to someone else.
        journal.unlink()
        report = denoise(*arguments, workers=1, journal=journal)
        assert report.done == 0
        assert "'1.wav' exists already: start over with --overwrite to replace it" in report.failed.values()

    def test_from_the_web_to_tars(self, web, tmp_path, local, denoise_on_ray):
        names = ["1.wav", "a/3.ogg", "none.wav"]
        (tmp_path / "files.jsonl").write_text(
            "".join(json.dumps({"input": f"{web}/{name}", "output": name}) + "\n" for name in names)
        )
        report = denoise_on_ray(tmp_path / "files.jsonl", tmp_path / "out", PLAIN, workers=1, files_per_tar=10)
        assert report.done == 2
        assert list(report.failed) == ["none.wav"]
        assert "FileNotFoundError" in report.failed["none.wav"]
        webdataset = pytest.importorskip("webdataset")
        samples = list(webdataset.WebDataset(str(tmp_path / "out/corpus-000000.tar"), shardshuffle=False))
        assert [sample["__key__"] for sample in samples] == ["1", "a/3"]
        assert samples[0]["wav"] == (local / "1.wav").read_bytes()
        assert json.loads(samples[1]["json"])["input"] == f"{web}/a/3.ogg"

    def test_a_storage_that_refuses(self, tree, tmp_path, storage, denoise_on_ray):
        with pytest.raises(CorpusError, match=r"the job stopped: 's3://no-such-bucket/out': "):
            denoise_on_ray(tree, "s3://no-such-bucket/out", PLAIN, workers=1, journal=tmp_path / "j.jsonl")
