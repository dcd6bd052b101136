"""Build the page as a static site that denoises in the browser: `python scripts/build_site.py FOLDER`.

The site is the page of `frcrn-accel serve` with another engine (`web/`), the models of the package, and
onnxruntime-web, a package of the npm registry that is fetched in one exact version and checked against its digest.
Any web server can deliver the folder; browsers run it over HTTPS or from this machine.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import shutil
import tarfile
from pathlib import Path

from npm_package import NpmPackage, read_member

from frcrn_accel.models import STEP, find_model, packaged_variant

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "src" / "frcrn_accel" / "serve" / "page"
WEB = ROOT / "web"
RUNTIME = NpmPackage(
    "onnxruntime-web",
    "1.30.0",
    "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
)
RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
FILE_MODEL = "frcrn-small"
STREAM_MODEL = "frcrn-small-stream"
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; worker-src 'self' blob:; base-uri 'none'; form-action 'none'"
)
LINKS = (
    'Runs in this page with <a href="page/ort/LICENSE">onnxruntime-web</a> · '
    '<a href="page/examples/CREDITS.md">Examples</a>'
)
DOCS_LINK = ' · <a href="../">Documentation</a>'


def main() -> None:
    """Build the site into a folder, which is replaced."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runtime", type=Path, help=f"a copy of {RUNTIME.url}")
    arguments = parser.parse_args()
    with RUNTIME.archive(arguments.runtime) as archive:
        build(arguments.folder, archive)
    size = sum(path.stat().st_size for path in arguments.folder.rglob("*") if path.is_file())
    print(f"{arguments.folder}: {size / 1e6:.1f} MB")


def build(folder: Path, runtime: tarfile.TarFile) -> None:
    """Write the site. Where it is in the folder of the documentation, they link to each other."""
    docs = folder.parent / "index.html"
    links = LINKS
    if docs.exists():
        links += DOCS_LINK
        text = docs.read_text(encoding="utf-8").replace('<p id="try" hidden>', '<p id="try">')
        docs.write_text(text, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    page = folder / "page"
    shutil.copytree(PAGE, page)
    index = (page / "index.html").read_text(encoding="utf-8")
    (page / "index.html").unlink()
    (page / "server.js").unlink()
    shutil.copy(WEB / "engine.js", page)
    shutil.copytree(WEB / "tab", page / "tab")
    write_runtime(page / "ort", runtime)
    write_models(page / "models")
    head = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    index = replaced(index, '<meta charset="utf-8">', f'<meta charset="utf-8">\n{head}')
    index = replaced(index, 'API: <a href="openapi.json">OpenAPI</a>', links)
    (folder / "index.html").write_text(index, encoding="utf-8")
    write_service_worker(folder)


def write_runtime(folder: Path, archive: tarfile.TarFile) -> None:
    """Unpack what the site needs of onnxruntime-web."""
    folder.mkdir()
    shutil.copy(WEB / "ort-LICENSE", folder / "LICENSE")
    for name in RUNTIME_FILES:
        write = write_packed if name.endswith(".wasm") else Path.write_bytes
        write(folder / name, read_member(archive, f"dist/{name}"))


def write_models(folder: Path) -> None:
    """Write the models, and what the page needs of their metadata."""
    folder.mkdir()
    file_model, stream_model = find_model(FILE_MODEL), find_model(STREAM_MODEL)
    step = packaged_variant(stream_model, STEP)
    assert step is not None
    write_packed(folder / f"{FILE_MODEL}.onnx", file_model.path.read_bytes())
    write_packed(folder / f"{STREAM_MODEL}.step.onnx", step.path.read_bytes())
    facts = {STREAM_MODEL: {"unets": step.metadata.unets, "start_means": step.metadata.start_means}}
    (folder / "models.json").write_text(json.dumps(facts))


def write_packed(path: Path, content: bytes) -> None:
    """Write a file compressed: not every host compresses WebAssembly and models."""
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content, 9, mtime=0))


def write_service_worker(folder: Path) -> None:
    """Write the service worker, with a version that changes with any file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [f"./{path.relative_to(folder).as_posix()}" for path in files]
    digest = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)).hexdigest()
    text = (WEB / "service-worker.js").read_text(encoding="utf-8")
    text = replaced(text, "{version}", f"frcrn-accel-{digest[:16]}")
    text = replaced(text, '"{files}"', json.dumps(["./", *names]))
    (folder / "service-worker.js").write_text(text, encoding="utf-8")


def replaced(text: str, old: str, new: str) -> str:
    """Replace a part that occurs once.

    Raises:
        ValueError: It does not.
    """
    if text.count(old) != 1:
        raise ValueError(f"{old!r} occurs {text.count(old)} times")
    return text.replace(old, new)


if __name__ == "__main__":
    main()
