"""Checks and tests: `nox` runs everything that a change must pass, the quick sessions first.

One environment holds every package that runs on a CPU; types, tests and documentation are checked there. Small
environments of their own show that each extra brings what it needs; they run while that one is made and its types are
checked.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nox

nox.needs_version = ">=2025.11.12"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = True

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
# One exact version: where a plain "torch" comes from PyPI for Linux, it is a CUDA build of several gigabytes.
TORCH = os.environ.get("FRCRN_ACCEL_TORCH", "torch==2.13.0")
# Upstream's code is an oracle for tests; its own requirements are not needed for the folder that is used.
UPSTREAM = "clearvoice==0.1.2"
TENSORRT_STUBS = "tensorrt-stubs==10.13.0.35.1"
# Every extra that runs, or builds its files, on a CPU. They fit into one environment.
CPU_EXTRAS = (
    *("ort", "openvino", "tensorrt-rtx"),
    *("export", "quantize", "eval", "pesq", "train"),
    *("serve", "live", "livekit", "pipecat", "ray"),
)
# The extra [cuda] without CUDA's libraries: several gigabytes that are useless without a card.
ONNXRUNTIME_GPU = ["onnxruntime-gpu>=1.21", "onnx>=1.17"]
# A few seconds in all, and something of each layer: audio, files, windows, models, backends, streams, the denoiser.
QUICK_TESTS = [
    f"tests/test_{name}.py"
    for name in ("audio", "windows", "pipeline", "package", "models", "backends", "plugins", "denoiser", "batching")
]
# Most tests keep one CPU busy. A file stays in one process, so that what its tests share is made once. If a process
# dies, the run ends: pytest-xdist 3.8 may wait forever for one that it starts in its place.
PARALLEL = ("--numprocesses=2", "--dist=loadfile", "--max-worker-restart=0")
COVERED_PERCENT = 94  # of the lines, at least
DIST = Path(".nox", "dist")


def make_uv_like_pip() -> None:
    """Let uv find wheels where pip is configured to find them."""
    command = [sys.executable, "-m", "pip", "config", "get", "global.find-links"]
    configured = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    links = os.environ.get("PIP_FIND_LINKS", configured).split()
    if links:
        os.environ.setdefault("UV_FIND_LINKS", ",".join(links))


def find_other_python() -> str | None:
    """Return the newest supported Python other than this one that is installed, on PATH or by pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    this = f"{sys.version_info.major}.{sys.version_info.minor}"
    for version in reversed(PYTHONS):
        if version != this:
            # A shim of pyenv fails while its version is not active, so try each before taking it.
            for path in (shutil.which(f"python{version}"), *pyenv.glob(f"versions/{version}.*/bin/python")):
                if path and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
                    return str(path)
    return None


make_uv_like_pip()
# uv compiles no bytecode, so the first process that imports a module compiles it for all later ones.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
OTHER_PYTHON = find_other_python()
WHEEL_VARIABLE = "FRCRN_ACCEL_WHEEL"  # tells the nox that runs the small sessions beside `everything`
_built = [Path(os.environ[WHEEL_VARIABLE])] if WHEEL_VARIABLE in os.environ else []  # the wheel, once it is there
NEEDS_BUILD = [] if _built else ["build"]
# A few seconds each, mostly on one CPU. The two groups take about the same time.
SMALL_SESSIONS = (("smoke", "cuda", "other_python"), ("alone",))


def install(session: nox.Session, *extras: str, groups: tuple[str, ...] = ()) -> None:
    """Install the package with extras and dependency groups, and the exact version of PyTorch if one needs it."""
    package = str(_built[0]) if _built else "."
    packages = [f"{package}[{','.join(extras)}]" if extras else package]
    if {"export", "train"} & set(extras):
        packages.append(TORCH)
    for group in groups:
        packages += nox.project.dependency_groups(PROJECT, group)
    session.install(*packages)


def install_everything(session: nox.Session) -> None:
    """Install all extras for the CPU, what the checks need, and upstream's code."""
    install(session, *CPU_EXTRAS, groups=("check",))
    session.install("--no-deps", UPSTREAM, "./benchmarks/upstream_plugin")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, common mistakes, and that imports keep the order of the layers."""
    session.install(*nox.project.dependency_groups(PROJECT, "lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", env={"PYTHONPATH": "src"})


@nox.session
def build(session: nox.Session) -> None:
    """Build the source distribution, and from it the wheel that the later sessions install."""
    session.install("build", *PROJECT["build-system"]["requires"])
    shutil.rmtree(DIST, ignore_errors=True)
    session.run("python", "-m", "build", "--no-isolation", "--outdir", str(DIST), silent=True)
    _built[:] = DIST.resolve().glob("*.whl")


@nox.session(default=False, requires=NEEDS_BUILD)
def smoke(session: nox.Session) -> None:
    """Install the wheel in an empty environment, and run the command and the example plug-in."""
    install(session, "ort")
    session.run("python", "scripts/smoke.py", str(Path(session.bin, "frcrn-accel")))
    session.install("./examples/plugin", *nox.project.dependency_groups(PROJECT, "test"))
    session.run("pytest", "-q", "-c", "pyproject.toml", "examples/plugin/tests")


@nox.session(default=False, requires=NEEDS_BUILD)
@nox.parametrize("extra", ["none", "ort", "export", "openvino", "tensorrt-rtx"])
def alone(session: nox.Session, extra: str) -> None:
    """Install one extra alone: its backend runs or says why not, and the other backends name what to install."""
    install(session, *([] if extra == "none" else [extra]), groups=("test",))
    session.run("pytest", "-q", "tests/test_alone.py", f"--alone={extra}")


@nox.session(default=False, requires=NEEDS_BUILD)
def cuda(session: nox.Session) -> None:
    """Check the errors of ONNX Runtime with CUDA on a machine without a GPU, or its conformance on one with a GPU."""
    install(session, groups=("test",))
    session.install(*ONNXRUNTIME_GPU)
    tests = ("tests/test_gpu.py", "tests/test_backends.py", "-k", "not test_backends or TestOrtCuda")
    session.run("pytest", "-q", *tests)
    session.run("frcrn-accel", "backends")


@nox.session(default=False, python=OTHER_PYTHON, requires=NEEDS_BUILD)
def other_python(session: nox.Session) -> None:
    """Run the quick tests on another version of Python, the newest that is installed."""
    if OTHER_PYTHON is None:
        session.skip(f"no Python of {', '.join(PYTHONS)} is installed but this one")
    install(session, "ort", groups=("test",))
    session.run("pytest", "-q", *PARALLEL, *QUICK_TESTS)


@nox.session(requires=["build"])
def everything(session: nox.Session) -> None:
    """Check types, build the documentation, and run all tests, in one environment with everything for the CPU.

    The small sessions run beside.
    """
    with ThreadPoolExecutor() as beside:  # each keeps one CPU busy
        small = [beside.submit(run_small_sessions, session, names) for names in SMALL_SESSIONS]
        install_everything(session)
        docs = beside.submit(build_docs, session)
        check_types(session)
        for done in (docs, *small):
            done.result()
    run_tests(session)


@nox.session(default=False)
def types(session: nox.Session) -> None:
    """Check types alone."""
    install_everything(session)
    check_types(session)


@nox.session(default=False)
def tests(session: nox.Session) -> None:
    """Run the tests alone, e.g. `nox -s tests -- tests/test_cli.py -k denoise`."""
    install_everything(session)
    run_tests(session)


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Build the documentation alone."""
    install(session, groups=("docs",))
    build_docs(session)


@nox.session(default=False)
def tutorial(session: nox.Session) -> None:
    """Execute the tutorial in an environment of its own, and write it and its page with the results.

    PESQ needs a C compiler.
    """
    install(session, "ort", "openvino", "export", "quantize", "serve", "eval", "pesq", groups=("tutorial",))
    session.run("python", "scripts/tutorial.py", *session.posargs)


def run_small_sessions(session: nox.Session, names: tuple[str, ...]) -> None:
    """Run sessions in a nox of their own, and show what it prints when it is done."""
    command = (sys.executable, "-m", "nox", "--sessions", *names)
    print(session.run(*command, external=True, silent=True, env={WHEEL_VARIABLE: str(_built[0])}))


def check_types(session: nox.Session) -> None:
    """Run mypy --strict; the code for TensorRT is checked against type stubs."""
    stubs = Path(session.create_tmp()).resolve() / "stubs"
    shutil.rmtree(stubs, ignore_errors=True)
    session.install("--no-deps", "--target", str(stubs), TENSORRT_STUBS)
    session.run("python", "scripts/tensorrt_stubs.py", str(stubs))
    session.run("mypy", env={"MYPYPATH": str(stubs)})


def build_docs(session: nox.Session, site: Path | None = None) -> None:
    """Build the documentation; a broken link is an error."""
    site = site or Path(session.create_tmp()).resolve() / "site"
    quiet = {"NO_MKDOCS_2_WARNING": "1"}  # the theme advertises its successor
    session.run("mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site), env=quiet)


def run_tests(session: nox.Session) -> None:
    """Run pytest on what was asked for, or else all tests except those of the page, with the lines that they cover.

    SlipCover no longer watches lines that have run, so it costs hardly any time.
    """
    if session.posargs:
        session.run("pytest", *PARALLEL, *session.posargs)
        return
    report = Path(session.create_tmp()).resolve() / "coverage.json"
    find = "import frcrn_accel, pathlib; print(pathlib.Path(frcrn_accel.__file__).parent)"
    package = str(session.run("python", "-c", find, silent=True)).strip()
    slipcover = ("python", "-m", "slipcover", f"--out={report}")
    everything = ("--ignore=tests/test_page.py", "--ignore=tests/test_site.py", "--durations=25")
    session.run(*slipcover, "--json", f"--source={package}", "-m", "pytest", *PARALLEL, *everything)
    # With a floor, the run itself would delete what the processes of pytest-xdist wrote before it prints them.
    session.run(*slipcover, f"--merge={report}", f"--fail-under={COVERED_PERCENT}", "--skip-covered")


@nox.session(default=False)
def thorough(session: nox.Session) -> None:
    """Run the tests that the others skip because they take long: the released size, and every length."""
    install_everything(session)
    session.run("pytest", *PARALLEL, "-m", "thorough", "--thorough", *session.posargs)


@nox.session(default=False)
def formats(session: nox.Session) -> None:
    """Write, read, cut, join and damage files of every format, with a hundred times the random examples."""
    install(session, "ort", groups=("test",))
    tests = [f"tests/test_{name}.py" for name in ("reading", "writing", "belongings", "places")]
    session.run("pytest", *PARALLEL, "--examples-times=100", *tests, *session.posargs)


@nox.session(default=False)
def parity(session: nox.Session) -> None:
    """Compare with upstream's numbers at every length and both widths, and streams with the whole pass."""
    install(session, "ort", "export", groups=("test", "upstream"))
    session.install("--no-deps", UPSTREAM, "./benchmarks/upstream_plugin")
    tests = ("tests/test_parity.py", "tests/test_checkpoint.py", "tests/test_streaming.py::TestExactness")
    session.run("pytest", *tests, "--thorough", *session.posargs)


@nox.session(name="stream-hours", default=False)
def stream_hours(session: nox.Session) -> None:
    """Stream two hours of audio at every rate, which takes hours on one core: `nox -s stream-hours -- [HOURS]`."""
    install(session, groups=("test",))
    session.run("python", "benchmarks/stream_hours.py", *session.posargs)


@nox.session(default=False, python=PYTHONS)
def pythons(session: nox.Session) -> None:
    """Run the tests that need only ONNX Runtime, on every version of Python."""
    install(session, "ort", groups=("test",))
    session.run("pytest", *session.posargs)


@nox.session(default=False, requires=["build"])
def aarch64(session: nox.Session) -> None:
    """Run the packaged models in an emulated 64-bit Arm Python: `nox -s aarch64 -- [--cpu cortex-a76]`.

    It needs Debian's apt on x86-64, and 850 MB in .nox. It takes about five minutes of CPU time for each CPU.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb") and platform.machine() == "x86_64"):
        session.skip("it takes qemu and an Arm Python from Debian's packages: apt-get on x86-64 is needed")
    install(session, "ort")
    session.install("uv")
    session.run("python", "scripts/aarch64.py", "--wheel", str(_built[0]), *session.posargs)


@nox.session(name="install-sizes", default=False, requires=["build"])
def install_sizes(session: nox.Session) -> None:
    """Measure what each extra takes on disk, for docs/platforms.md: `nox -s install-sizes -- [EXTRA ...]`."""
    session.install("uv")
    extras = session.posargs or [*CPU_EXTRAS, "cuda"]
    session.run("python", "scripts/install_sizes.py", str(_built[0]), *extras, "--constraint", TORCH)


@nox.session(name="cold-start", default=False, requires=["build"])
def cold_start(session: nox.Session) -> None:
    """Measure what one cold command costs, on an idle machine: `nox -s cold-start -- [--runs 11] [--parts]`."""
    install(session, "ort", "openvino")
    session.run("python", "scripts/cold_start.py", *session.posargs)


def install_for_speed(session: nox.Session) -> None:
    """Install everything that `frcrn-accel bench` measures, with upstream's code as backends."""
    install(session, "ort", "export", "quantize", "openvino", "eval", "pesq", groups=("upstream",))
    session.install("--no-deps", UPSTREAM, "./benchmarks/upstream_plugin")


@nox.session(default=False)
def speed(session: nox.Session) -> None:
    """Run `frcrn-accel bench` with upstream's own code as baselines: `nox -s speed -- [--released-size] [...]`."""
    install_for_speed(session)
    session.run("frcrn-accel", "bench", *session.posargs)


@nox.session(default=False)
def figures(session: nox.Session) -> None:
    """Measure the tables of README and docs again, on an idle machine: `nox -s figures -- [PAIRS_DIR]`."""
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
        evaluate = ("--components", "--backend", "ort", "--json", str(results / "quality.json"), "--overwrite")
        session.run("frcrn-accel", "evaluate", session.posargs[0], *evaluate)
    session.run("python", "scripts/figures.py")


@nox.session(default=False)
def peak(session: nox.Session) -> None:
    """Compare the speed of backends with the machine's peak: `nox -s peak -- REPORT.json`."""
    install(session, "quantize")
    session.run("python", "benchmarks/peak.py", *session.posargs)


@nox.session(default=False)
def regression(session: nox.Session) -> None:
    """Check that the working tree is as fast as an earlier version: `nox -s regression -- [GIT_REF] [...]`.

    The default is the last commit. `--least-ratio 0.9` sets the limit.
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
    """Print a TensorRT plan's layers, memory and least time: `nox -s plan -- [--channels 32 --unets 1]`."""
    install(session, "tensorrt-rtx", "quantize", groups=("test",))
    session.run("python", "benchmarks/plan.py", *session.posargs)


@nox.session(default=False)
def gpu(session: nox.Session) -> None:
    """Measure speed on an NVIDIA GPU, against published figures: `nox -s gpu -- [MODEL] [--hour]`."""
    install(session, "cuda", "tensorrt-rtx", groups=("test",))
    session.run("python", "benchmarks/gpu.py", *session.posargs)


@nox.session(default=False)
def operators(session: nox.Session) -> None:
    """Measure the time of each operator: `nox -s operators -- MODEL [--backend openvino:int8]`."""
    install(session, "ort", "quantize", "openvino", groups=("test",))
    session.run("python", "benchmarks/operators.py", *session.posargs)


@nox.session(default=False)
def quality(session: nox.Session) -> None:
    """Measure the quality of configurations: `nox -s quality -- PAIRS_DIR --configurations ort openvino:int8`.

    PESQ needs a C compiler.
    """
    install(session, "ort", "quantize", "openvino", "eval", "pesq", groups=("test",))
    session.run("python", "benchmarks/quality.py", *session.posargs)


@nox.session(default=False)
def compare(session: nox.Session) -> None:
    """Compare with other denoisers: `nox -s compare -- PAIRS_DIR [--speed-only]`, on an idle machine for the speed.

    PESQ needs a C compiler. The environments of the denoisers take 1.5 GB in .nox.
    """
    install(session, "ort", "eval", "pesq", groups=("compare",))
    environment = {"PYTHONPATH": "scripts"}
    session.run("python", "benchmarks/compare.py", *session.posargs, "--constraint", TORCH, env=environment)
    session.run("python", "scripts/figures.py")


@nox.session(default=False)
def windows(session: nox.Session) -> None:
    """Compare windows with one pass over the whole signal: `nox -s windows -- PAIRS_DIR`."""
    install(session, "ort")
    session.run("python", "benchmarks/windows.py", *session.posargs)


@nox.session(default=False)
def length(session: nox.Session) -> None:
    """Measure time and memory against the length of a file."""
    install(session, "ort", "quantize")
    session.run("python", "benchmarks/length.py", *session.posargs)


@nox.session(default=False)
def streams(session: nox.Session) -> None:
    """Measure streams: quality, speed, or an hour of audio, e.g. `nox -s streams -- quality PAIRS_DIR`."""
    install(session, "ort", "openvino", "quantize", "export", "eval", "pesq", groups=("test",))
    session.run("python", "benchmarks/streaming.py", *session.posargs)


@nox.session(default=False)
def page(session: nox.Session) -> None:
    """Test the web page in a headless Chromium. It plays audio in real time, so use an idle machine."""
    browsers = ("chromium", "chromium-browser", "google-chrome")
    if not (shutil.which("chromedriver") and any(map(shutil.which, browsers))):
        session.skip("Chromium and its driver are not installed: apt-get install chromium chromium-driver")
    install(session, "serve", groups=("test", "page"))
    session.run("pytest", "tests/test_page.py", *session.posargs, env=fetch_axe(session))


@nox.session(default=False)
def site(session: nox.Session) -> None:
    """Build documentation and page as a static site that denoises in the browser, into site/, and test that page.

    Chromium has to be installed for the test. `nox -s site -- --runtime FILE` takes onnxruntime-web from a file.
    """
    install(session, "ort", "serve", groups=("docs", "test", "page"))
    target = Path("site").resolve()
    build_docs(session, target)
    session.run("python", "scripts/build_site.py", str(target / "try"), *session.posargs)
    session.run("pytest", "tests/test_site.py", env={"FRCRN_ACCEL_SITE": str(target / "try"), **fetch_axe(session)})


def fetch_axe(session: nox.Session) -> dict[str, str]:
    """Fetch axe-core, and name it to the tests; those that need it are skipped if the registry does not answer."""
    file = Path(session.create_tmp()).resolve() / "axe.min.js"
    file.unlink(missing_ok=True)
    session.run("python", "scripts/npm_package.py", str(file), success_codes=[0, 1])
    return {"FRCRN_ACCEL_AXE": str(file)} if file.exists() else {}


@nox.session(name="site-speed", default=False)
def site_speed(session: nox.Session) -> None:
    """Measure the site that `nox -s site` built, on an idle machine: `nox -s site-speed -- [--mbit 10]`."""
    install(session, "serve", groups=("test", "page"))
    session.run("python", "scripts/site_speed.py", *session.posargs, env={"PYTHONPATH": "tests"})


@nox.session(default=False)
def serving(session: nox.Session) -> None:
    """Measure the server under load: `nox -s serving -- [--minutes 10]`."""
    install(session, "ort", "serve", groups=("serve",))
    session.run("python", "benchmarks/serving.py", *session.posargs)


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """Send 90,000 mutated requests, messages and files to a server: `nox -s fuzz -- [--seed 0] [--files 50000]`."""
    install(session, "ort", "serve", groups=("test",))
    session.run("python", "scripts/fuzz.py", *session.posargs)


@nox.session(default=False)
def floods(session: nox.Session) -> None:
    """Flood a server in seven ways, and measure what another client notices: `nox -s floods -- [--rounds 3]`."""
    install(session, "ort", "serve", groups=("test",))
    session.run("python", "scripts/floods.py", *session.posargs)


@nox.session(default=False)
def kills(session: nox.Session) -> None:
    """Kill servers, workers and jobs at random moments, and fill disks: `nox -s kills -- [server] [--count 30]`."""
    install(session, "ort", "serve", "export", groups=("test",))
    session.run("python", "scripts/kills.py", *session.posargs)


@nox.session(default=False)
def corpus(session: nox.Session) -> None:
    """Test corpus jobs on full disks, Ray, and for speed: `nox -s corpus -- faults`; see benchmarks/corpus.py."""
    install(session, "ort", "ray")
    session.run("python", "benchmarks/corpus.py", *session.posargs)
