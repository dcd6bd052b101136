from __future__ import annotations

import logging
import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from frcrn_accel import ModelError
from frcrn_accel.digest import sha256_of
from frcrn_accel.models import (
    CACHE_DIR_VARIABLE,
    DEFAULT_MODEL,
    ModelFile,
    cache,
    cache_folder,
    cached_variant,
    find_model,
)


class Copy:
    """A build that copies the packaged model and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, path: Path) -> None:
        self.calls += 1
        assert path.read_bytes() == b""
        shutil.copyfile(find_model(DEFAULT_MODEL).path, path)


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_the_second_time_it_is_not_built(empty_cache):
    source, build = find_model(DEFAULT_MODEL), Copy()
    first = cached_variant(source, {"method": "dynamic"}, build)
    assert cached_variant(source, {"method": "dynamic"}, build) == first
    assert build.calls == 1
    assert files(empty_cache) == [first.path]
    assert first.metadata == source.metadata
    name, identity, content = first.path.stem.rsplit("-", 2)
    assert name == DEFAULT_MODEL
    assert len(identity) == 16
    assert content == sha256_of(source.path)[:16]


def test_options_source_and_version_each_make_another_file(empty_cache, tmp_path, monkeypatch):
    source, build = find_model(DEFAULT_MODEL), Copy()
    cached_variant(source, {"method": "dynamic"}, build)
    cached_variant(source, {"method": "dynamic", "keep_float": "unet.fsmn"}, build)
    other = tmp_path / "other.onnx"
    other.write_bytes(source.path.read_bytes() + b"\x08\x07")  # a field that changes nothing: other bytes
    cached_variant(ModelFile.open(other), {"method": "dynamic"}, build)
    monkeypatch.setattr(cache, "__version__", "0.0.0")
    cached_variant(source, {"method": "dynamic"}, build)
    assert build.calls == len(files(empty_cache)) == 4


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:-9] + b"x" + b[-8:]])
def test_a_damaged_file_is_made_anew(empty_cache, caplog, damage):
    source, build = find_model(DEFAULT_MODEL), Copy()
    path = cached_variant(source, {}, build).path
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING, "frcrn_accel"):
        assert cached_variant(source, {}, build).path.read_bytes() == whole
    assert [record.getMessage() for record in caplog.records] == [f"cached file {path} is damaged and is made again"]
    assert build.calls == 2
    assert files(empty_cache) == [path]


def test_a_build_that_fails_leaves_nothing(empty_cache):
    def fail(path: Path) -> None:
        path.write_bytes(b"half of it")
        raise ModelError("no")

    with pytest.raises(ModelError, match=r"^no$"):
        cached_variant(find_model(DEFAULT_MODEL), {}, fail)
    with pytest.raises(ModelError, match="is not a"):
        cached_variant(find_model(DEFAULT_MODEL), {}, lambda path: None)
    assert files(empty_cache) == []


def test_a_folder_that_cannot_be_written_is_one_warning(empty_cache, caplog):
    empty_cache.write_text("a file in the way")
    source, build = find_model(DEFAULT_MODEL), Copy()
    with caplog.at_level(logging.WARNING, "frcrn_accel"):
        made = cached_variant(source, {}, build)
        assert cached_variant(source, {}, build) == made
    assert build.calls == 1
    (record,) = caplog.records
    assert f"cannot be cached in {empty_cache} (" in record.getMessage()
    assert made.path.read_bytes() == source.path.read_bytes()
    assert empty_cache.read_text() == "a file in the way"


def test_what_cannot_be_kept_goes_with_the_process(empty_cache):
    empty_cache.write_text("a file in the way")
    code = (
        "import shutil; from frcrn_accel.models import *; source = find_model(DEFAULT_MODEL);"
        "print(cached_variant(source, {}, lambda path: shutil.copyfile(source.path, path)).path)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    path = Path(done.stdout.strip())
    assert path.name.startswith(f"{DEFAULT_MODEL}-")
    assert not path.parent.exists()


def build_when_both_are_there(barrier, results) -> None:
    def build(path: Path) -> None:
        barrier.wait(60)  # neither is done before both have begun
        shutil.copyfile(find_model(DEFAULT_MODEL).path, path)

    results.put(str(cached_variant(find_model(DEFAULT_MODEL), {}, build).path))


def test_two_processes_at_once(empty_cache):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=build_when_both_are_there, args=(barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    found = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert found == {str(path) for path in files(empty_cache)}
    assert len(found) == 1


def test_the_folder_is_the_users_unless_it_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv(CACHE_DIR_VARIABLE, raising=False)
    assert cache_folder().name == "frcrn-accel"
    monkeypatch.setenv(CACHE_DIR_VARIABLE, str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv(CACHE_DIR_VARIABLE, "~/kept")
    assert cache_folder() == Path.home() / "kept"


def test_a_name_that_is_no_file_name(empty_cache):
    source = find_model(DEFAULT_MODEL)
    odd = type(source.metadata)(**{**vars(source.metadata), "name": "../a b/[x]*"})
    made = cached_variant(ModelFile(source.path, odd), {}, Copy())
    assert made.path.parent == empty_cache
    assert made.path.name.startswith(".._a_b__x__-")
