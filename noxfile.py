"""Checks and tests, each in an environment of its own: `nox` runs what every change must pass."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2024.4"
nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_missing_interpreters = True

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
# One exact version: a plain "torch" is a CUDA build of several gigabytes in many places.
TORCH = os.environ.get("FRCRN_ACCEL_TORCH", "torch==2.13.0")
# Upstream's code is an oracle for tests; its own requirements are not needed for the folder that is used.
UPSTREAM = "clearvoice==0.1.2"
# What each backend's test session installs beside the package.
BACKENDS = {
    "ort": ["ort"],
    "torch": ["export"],
    "openvino": ["openvino", "ort"],
    "tensorrt-rtx": ["tensorrt-rtx", "quantize"],
}
# The extra [cuda] without CUDA's libraries, some gigabytes that are of no use where there is no card.
ONNXRUNTIME_GPU = ["onnxruntime-gpu>=1.21", "onnx>=1.17"]


def install(session: nox.Session, *extras: str, groups: tuple[str, ...] = ()) -> None:
    """The package with extras, and dependency groups; torch, if an extra wants it, in the exact version."""
    packages = [f".[{','.join(extras)}]" if extras else "."]
    if {"export", "train"} & set(extras):
        packages.append(TORCH)
    for group in groups:
        packages += nox.project.dependency_groups(PROJECT, group)
    session.install(*packages)


def install_for_parity(session: nox.Session, *extras: str) -> None:
    """What comparing with upstream's code takes."""
    install(session, "ort", "export", *extras, groups=("test", "upstream"))
    session.install("--no-deps", UPSTREAM)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and common mistakes."""
    session.install(*nox.project.dependency_groups(PROJECT, "lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """mypy --strict, the code for TensorRT against its type stubs."""
    install(session, "ort", "export", "serve", groups=("types", "test", "page"))
    stubs = Path(session.create_tmp()).resolve() / "stubs"
    session.run("python", "scripts/tensorrt_stubs.py", str(stubs))
    session.run("mypy", env={"MYPYPATH": str(stubs)})


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, with every engine that runs on any CPU, and upstream's code at a few lengths."""
    install_for_parity(session, "train")
    session.install("pytest-xdist>=3.6")
    # Most tests keep one CPU busy. A file stays in one process: what its tests share is made once.
    session.run("pytest", "--numprocesses=2", "--dist=loadfile", *session.posargs)


@nox.session
@nox.parametrize("name", list(BACKENDS))
def backend(session: nox.Session, name: str) -> None:
    """One backend alone in its environment: the conformance class, and what the others say they need."""
    install(session, *BACKENDS[name], groups=("test",))
    tests = f"Test{name.title().replace('-', '')} or Registry or MissingPackages"
    session.run("pytest", "tests/test_backends.py", "-k", tests)
    more = {
        "ort": "tests/test_int8.py",
        "openvino": "tests/test_openvino.py",
        "tensorrt-rtx": "tests/test_tensorrt.py",
    }
    if name in more:
        session.run("pytest", more[name])


@nox.session
def cuda(session: nox.Session) -> None:
    """ONNX Runtime with CUDA: what it says where there is no card, and the conformance class where there is."""
    install(session, groups=("test",))
    session.install(*ONNXRUNTIME_GPU)
    session.run("pytest", "tests/test_gpu.py", "tests/test_backends.py", "-k", "not test_backends or TestOrtCuda")
    session.run("frcrn-accel", "backends")


@nox.session
def adapters(session: nox.Session) -> None:
    """Pipecat, LiveKit and sounddevice: tests and types with the real packages, and with the soxr they want."""
    install(session, "ort", "quantize", "pipecat", "livekit", "live", groups=("test", "types"))
    checked = ["src/frcrn_accel/adapters", "src/frcrn_accel/cli/live.py", "examples/live"]
    session.run("mypy", "--follow-imports=silent", *checked)
    session.run("pytest", "tests/test_adapters.py")
    session.run("pytest", "tests/test_streaming.py", "-k", "the_delay_is_what_it_says or chunks_do_not_change")


@nox.session(default=False)
def ray(session: nox.Session) -> None:
    """Corpus jobs on a Ray cluster of two actors, with S3 and the web: tests and types with the real packages."""
    install(session, "ort", "ray", groups=("test", "types", "storage"))
    session.run("mypy", "--follow-imports=silent", "src/frcrn_accel/ray.py", "src/frcrn_accel/corpus")
    session.run("pytest", "tests/test_ray.py")


@nox.session
def serve(session: nox.Session) -> None:
    """The server: tests on loopback, and requests made from its OpenAPI document."""
    install(session, "ort", "serve", groups=("test", "serve"))
    session.run("pytest", "tests/test_serve.py", "tests/test_serve_schema.py", *session.posargs)


@nox.session
def smoke(session: nox.Session) -> None:
    """Build the wheel, install it in an empty environment, and run the command and the example plug-in."""
    session.install("build")
    folder = Path(session.create_tmp()).resolve()
    dist = folder / "dist"
    for old in dist.glob("*"):
        old.unlink()
    session.run("python", "-m", "build", "--outdir", str(dist), silent=True)
    (wheel,) = dist.glob("*.whl")
    venv = folder / "venv"
    session.run("python", "-m", "venv", "--clear", str(venv))
    scripts = venv / ("Scripts" if sys.platform == "win32" else "bin")
    python = str(scripts / "python")
    pytest = nox.project.dependency_groups(PROJECT, "test")
    session.run(python, "-m", "pip", "install", "--quiet", f"{wheel}[ort]", external=True)
    session.run(python, "scripts/smoke.py", str(scripts / "frcrn-accel"), external=True)
    session.run(python, "-m", "pip", "install", "--quiet", "./examples/plugin", *pytest, external=True)
    session.run(python, "-m", "pytest", "-q", "-c", "pyproject.toml", "examples/plugin/tests", external=True)


@nox.session(default=False)
def parity(session: nox.Session) -> None:
    """Upstream's numbers at every length, both widths; streams against the whole pass."""
    install_for_parity(session)
    tests = ("tests/test_parity.py", "tests/test_checkpoint.py", "tests/test_streaming.py::TestExactness")
    session.run("pytest", *tests, "--all-lengths", *session.posargs)


@nox.session(default=False, python=PYTHONS)
def pythons(session: nox.Session) -> None:
    """The tests that need no torch, on every Python version."""
    install(session, "ort", groups=("test",))
    session.run("pytest", *session.posargs)


def install_for_speed(session: nox.Session) -> None:
    """All that `frcrn-accel bench` measures, upstream's code as backends among it."""
    install(session, "ort", "export", "quantize", "openvino", "eval", groups=("test", "upstream"))
    session.install("--no-deps", UPSTREAM, "./benchmarks/upstream_plugin")
    session.env["PYTHONPATH"] = str(Path("tests").resolve())  # of upstream.py


@nox.session(default=False)
def speed(session: nox.Session) -> None:
    """`frcrn-accel bench` with upstream's own code beside it: `nox -s speed -- [--released-size] [...]`."""
    install_for_speed(session)
    session.run("frcrn-accel", "bench", *session.posargs)


@nox.session(default=False)
def figures(session: nox.Session) -> None:
    """Measure the tables of README and docs again, on a machine with nothing else to do: `-- [PAIRS_DIR]`."""
    install_for_speed(session)
    results = Path("benchmarks/results")
    bench = ("frcrn-accel", "bench", "--overwrite")
    baselines = ("--baseline", "upstream-ort", "--baseline", "upstream-torch")
    session.run(*bench, "--released-size", *baselines, "--json", str(results / "speed-released.json"))
    small = ("--json", str(results / "speed-small.json"), "--plot", "docs/speed-and-quality.png")
    session.run(*bench, "frcrn-small", *baselines, *small)
    throughput = ("--throughput", "--json", str(results / "throughput.json"))
    session.run(*bench, "frcrn-small", "--released-size", *throughput)
    if session.posargs:
        evaluate = ("--alone", "--backend", "ort", "--json", str(results / "quality.json"), "--overwrite")
        session.run("frcrn-accel", "evaluate", session.posargs[0], *evaluate)
    session.run("python", "scripts/figures.py")


@nox.session(default=False)
def peak(session: nox.Session) -> None:
    """How near variants come to the machine's peak: `nox -s peak -- REPORT.json`."""
    install(session, "quantize")
    session.run("python", "benchmarks/peak.py", *session.posargs)


@nox.session(default=False)
def regression(session: nox.Session) -> None:
    """Is the working tree as fast as an earlier version? `nox -s regression -- [GIT_REF] [--least-ratio 0.9]`.

    Without a reference it is the last commit.
    """
    named = session.posargs and not session.posargs[0].startswith("-")
    reference, options = (session.posargs[0], session.posargs[1:]) if named else ("HEAD", session.posargs)
    install(session, "ort")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        session.run("git", "archive", "--output", str(folder / "old.tar"), reference, external=True)
        shutil.unpack_archive(folder / "old.tar", folder / "old")
        session.run("python", "-m", "venv", str(folder / "venv"))
        python = str(folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python")
        session.run(python, "-m", "pip", "install", "--quiet", f"{folder / 'old'}[ort]", external=True)
        session.run("python", "benchmarks/regression.py", "--old", python, *options)


@nox.session(default=False)
def plan(session: nox.Session) -> None:
    """What is in a TensorRT plan, its memory and the least time: `nox -s plan -- [--channels 32 --unets 1]`."""
    install(session, "tensorrt-rtx", "quantize", groups=("test",))
    session.run("python", "benchmarks/plan.py", *session.posargs)


@nox.session(default=False)
def gpu(session: nox.Session) -> None:
    """Speed on an NVIDIA GPU, against what is published: `nox -s gpu -- [MODEL] [--hour]`."""
    install(session, "cuda", "tensorrt-rtx", groups=("test",))
    session.run("python", "benchmarks/gpu.py", *session.posargs)


@nox.session(default=False)
def operators(session: nox.Session) -> None:
    """Where the time goes: `nox -s operators -- MODEL [--backend openvino:int8]`."""
    install(session, "ort", "quantize", "openvino", groups=("test",))
    session.run("python", "benchmarks/operators.py", *session.posargs)


@nox.session(default=False)
def quality(session: nox.Session) -> None:
    """What variants change in the sound: `nox -s quality -- PAIRS_DIR --variants ort openvino:int8`.

    PESQ wants a C compiler.
    """
    install(session, "ort", "quantize", "openvino", "eval", groups=("test",))
    session.run("pytest", "-q", "tests/test_evaluate.py", "tests/test_evaluation.py")
    session.run("pytest", "-q", "tests/test_corpus.py", "-k", "clean_files or scores")
    session.run("python", "benchmarks/quality.py", *session.posargs)


@nox.session(default=False)
def windows(session: nox.Session) -> None:
    """Windows against a whole pass: `nox -s windows -- PAIRS_DIR`."""
    install(session, "ort")
    session.run("python", "benchmarks/windows.py", *session.posargs)


@nox.session(default=False)
def length(session: nox.Session) -> None:
    """Time and memory against the length of a file."""
    install(session, "ort", "quantize")
    session.run("python", "benchmarks/length.py", *session.posargs)


@nox.session(default=False)
def streams(session: nox.Session) -> None:
    """Streams: quality, speed, an hour; e.g. `nox -s streams -- quality PAIRS_DIR`."""
    install(session, "ort", "openvino", "quantize", "export", "eval", groups=("test",))
    session.run("python", "benchmarks/streaming.py", *session.posargs)


@nox.session(default=False)
def page(session: nox.Session) -> None:
    """The web page, in a Chromium without a window: it is seen and heard in real time, so on a machine with time."""
    browsers = ("chromium", "chromium-browser", "google-chrome")
    if not (shutil.which("chromedriver") and any(map(shutil.which, browsers))):
        session.skip("there is no Chromium with its driver: apt-get install chromium chromium-driver")
    install(session, "serve", groups=("test", "page"))
    session.run("pytest", "tests/test_page.py", *session.posargs)


@nox.session(default=False)
def serving(session: nox.Session) -> None:
    """The server under load: `nox -s serving -- [--minutes 10]`."""
    install(session, "ort", "serve", groups=("serve",))
    session.run("python", "benchmarks/serving.py", *session.posargs)


@nox.session(default=False)
def corpus(session: nox.Session) -> None:
    """Jobs that are killed, full disks, speed: e.g. `nox -s corpus -- kills`; see benchmarks/corpus.py."""
    install(session, "ort", "ray")
    session.run("python", "benchmarks/corpus.py", *session.posargs)


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Build the documentation."""
    session.install(*nox.project.dependency_groups(PROJECT, "docs"))
    session.run("mkdocs", "build", "--strict")
