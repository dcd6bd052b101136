"""Model files, caches and downloads that somebody else could have written or left behind."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from frcrn_accel import ModelError, ModelFile, OutputExistsError
from frcrn_accel.models import (
    CACHE_DIR_VARIABLE,
    DEFAULT_MODEL,
    STEP,
    ModelMetadata,
    cached_files,
    cached_variant,
    download_checkpoint,
    find_cached,
    find_imported,
    find_model,
    keep_imported,
    packaged_variant,
)
from frcrn_accel.models.file import METADATA_PREFIX
from frcrn_accel.models.properties import has_external_data

SOURCE = find_model(DEFAULT_MODEL)
NAMES = [field.name for field in dataclasses.fields(ModelMetadata)]


def copy(path: Path) -> None:
    shutil.copyfile(SOURCE.path, path)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="folders of users are their own on Windows")
class TestOthersCanWrite:
    def test_a_folder(self, empty_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
        made = cached_variant(SOURCE, {"a": "1"}, copy).path
        assert made.parent == empty_cache
        assert made.stat().st_mode & 0o022 == 0
        empty_cache.chmod(0o777)
        assert find_cached(SOURCE, {"a": "1"}) is None
        again = cached_variant(SOURCE, {"a": "1"}, copy).path
        assert again.parent != empty_cache
        assert f"other users can write to it: run 'chmod go-w {empty_cache}'" in warnings_of(caplog)[-1]
        empty_cache.chmod(0o755)

    @pytest.mark.parametrize("mode", [0o664, 0o646])
    def test_a_file(self, empty_cache: Path, caplog: pytest.LogCaptureFixture, mode: int) -> None:
        made = cached_variant(SOURCE, {}, copy).path
        made.chmod(mode)
        assert find_cached(SOURCE, {}) is None
        assert warnings_of(caplog)[0].startswith(f"cached file {made} is not used: other users can write to it: run")
        assert [file.problem is not None for file in cached_files()] == [True]
        assert cached_variant(SOURCE, {}, copy).path.stat().st_mode & 0o022 == 0

    @pytest.mark.skipif("os.geteuid() != 0", reason="only root can give files away")
    def test_a_folder_and_a_file_of_another_user(self, empty_cache: Path) -> None:
        made = cached_variant(SOURCE, {}, copy).path
        os.chown(made, 12_345, -1)
        assert find_cached(SOURCE, {}) is None
        os.chown(made, 0, -1)
        assert find_cached(SOURCE, {}) is not None
        os.chown(empty_cache, 12_345, -1)
        assert find_cached(SOURCE, {}) is None

    @pytest.mark.parametrize("which", ["folder", "file"])
    def test_an_imported_model(self, empty_cache: Path, which: str) -> None:
        path = keep_imported("mine", copy).path
        assert find_imported("mine") == ModelFile.open(path)
        odd = empty_cache if which == "folder" else path
        odd.chmod(odd.stat().st_mode | 0o002)
        with pytest.raises(ModelError, match=f"'mine': '{odd}' is not used: .* run 'chmod go-w {odd}'"):
            find_model("mine")
        if which == "folder":
            with pytest.raises(ModelError, match="chmod"):
                keep_imported("mine", copy)

    @pytest.mark.parametrize(("mode", "is_used"), [(0o757, False), (0o777, False), (0o1777, True), (0o755, True)])
    def test_a_folder_above(self, tmp_path: Path, monkeypatch, caplog, mode: int, is_used: bool) -> None:
        folder = tmp_path / "above" / "between" / "cache"
        monkeypatch.setenv(CACHE_DIR_VARIABLE, str(folder))
        path = keep_imported("mine", copy).path
        made = cached_variant(SOURCE, {}, copy)
        (tmp_path / "above").chmod(mode)
        assert (find_cached(SOURCE, {}) == made) == is_used
        assert [file.problem is None for file in cached_files()] == 2 * [is_used]
        if is_used:
            assert find_imported("mine") == ModelFile.open(path)
            assert warnings_of(caplog) == []
            return
        remedy = f"other users can write to {tmp_path / 'above'} above it: run 'chmod go-w {tmp_path / 'above'}'"
        assert remedy in warnings_of(caplog)[-1]
        assert cached_variant(SOURCE, {}, copy).path.parent != folder
        with pytest.raises(ModelError, match=f"'mine': '{folder}' is not used: {remedy}"):
            find_imported("mine")
        with pytest.raises(ModelError, match=remedy):
            keep_imported("other", copy)

    @pytest.mark.skipif("os.geteuid() != 0", reason="only root can give files away")
    def test_a_folder_above_of_others(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        above = tmp_path / "above"
        monkeypatch.setenv(CACHE_DIR_VARIABLE, str(above / "cache"))
        made = cached_variant(SOURCE, {}, copy)
        above.chmod(0o775)
        assert find_cached(SOURCE, {}) == made  # the group is this user's own
        os.chown(above, -1, 12_345)
        assert find_cached(SOURCE, {}) is None
        above.chmod(0o755)
        assert find_cached(SOURCE, {}) == made
        for mode in (0o755, 0o1777):
            os.chown(above, 12_345, -1)
            above.chmod(mode)
            assert find_cached(SOURCE, {}) is None

    @pytest.mark.parametrize("link", ["cache", "above"])
    def test_links_on_the_way(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: str) -> None:
        real, named = tmp_path / "real" / "above" / "cache", tmp_path / "named" / "above" / "cache"
        first, last = (named, real) if link == "cache" else (named.parent, real.parent)
        real.mkdir(parents=True)
        first.parent.mkdir(parents=True)
        first.symlink_to(Path(os.path.relpath(last, first.parent)))
        monkeypatch.setenv(CACHE_DIR_VARIABLE, str(named))
        made = cached_variant(SOURCE, {}, copy)
        assert made.path.parent == named
        for folder in (tmp_path / "real", tmp_path / "real" / "above", tmp_path / "named"):
            folder.chmod(0o777)
            assert find_cached(SOURCE, {}) is None
            folder.chmod(0o755)
        assert find_cached(SOURCE, {}) == made
        if os.geteuid() == 0:
            os.chown(first, 12_345, -1, follow_symlinks=False)
            assert find_cached(SOURCE, {}) is None

    def test_new_folders_are_of_this_user_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(CACHE_DIR_VARIABLE, str(tmp_path / "above" / "cache"))
        before = os.umask(0)
        try:
            made = cached_variant(SOURCE, {}, copy)
        finally:
            os.umask(before)
        for path in (tmp_path / "above", tmp_path / "above" / "cache", made.path):
            assert path.stat().st_mode & 0o022 == 0
        assert find_cached(SOURCE, {}) == made

    def test_a_file_of_another_model_under_the_name(
        self, empty_cache: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        def copy_other(path: Path) -> None:
            shutil.copyfile(find_model("frcrn-small-stream").path, path)

        with pytest.raises(ModelError, match="has the metadata of 'frcrn-small-stream'"):
            cached_variant(SOURCE, {}, copy_other)
        made = cached_variant(SOURCE, {}, copy).path
        other = cached_variant(find_model("frcrn-small-stream"), {}, copy_other).path
        stem = made.stem.rpartition("-")[0]
        made.unlink()
        other.rename(empty_cache / f"{stem}-{other.stem.rpartition('-')[2]}.onnx")  # whole, but not of this model
        assert find_cached(SOURCE, {}) is None


class TestKilled:
    @pytest.mark.parametrize(
        "call", ["cached_variant(find_model(DEFAULT_MODEL), {}, build)", "keep_imported('a', build)"]
    )
    def test_the_next_start_clears_what_a_killed_process_left(self, empty_cache: Path, call: str) -> None:
        if not Path("/proc/self/stat").exists():
            pytest.skip("only Linux tells when a process started")
        code = (
            "import os, signal; from frcrn_accel.models import *\n"
            f"build = lambda path: (path.touch(), os.kill(os.getpid(), signal.SIGKILL)); {call}"
        )
        done = subprocess.run([sys.executable, "-c", code], check=False)
        assert done.returncode == -signal.SIGKILL
        (left,) = empty_cache.iterdir()
        assert left.name.startswith(".")
        made = keep_imported("mine", copy) if "variant" in call else cached_variant(SOURCE, {"another": "file"}, copy)
        assert list(empty_cache.iterdir()) == [made.path]

    def test_files_of_a_process_that_runs_stay(self, empty_cache: Path) -> None:
        def build(path: Path) -> None:
            cached_variant(SOURCE, {"another": "file"}, copy)
            copy(path)  # it is still there

        cached_variant(SOURCE, {}, build)
        assert len(list(empty_cache.iterdir())) == 2


def test_a_full_disk_is_an_error(empty_cache: Path) -> None:
    def fail(path: Path) -> None:
        raise OSError(28, os.strerror(28))

    with pytest.raises(ModelError, match=f"cannot be made: no file can be written: {os.strerror(28)}"):
        cached_variant(SOURCE, {}, fail)


def test_a_file_replaced_by_one_of_the_same_size_and_time(empty_cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    content = SOURCE.path.read_bytes()
    path.write_bytes(content + b"\x08\x07")
    before = cached_variant(ModelFile.open(path), {}, copy).path
    times = path.stat()
    (tmp_path / "new").write_bytes(content + b"\x08\x08")
    os.utime(tmp_path / "new", ns=(times.st_atime_ns, times.st_mtime_ns))
    (tmp_path / "new").replace(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    assert cached_variant(ModelFile.open(path), {}, copy).path != before


class TestMetadata:
    PROPERTIES = SOURCE.metadata.to_properties()
    STEP_PROPERTIES = packaged_variant(SOURCE, STEP).metadata.to_properties()

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"hop_samples": "640"}, "hop_samples' is 640, but an FRCRN has 320"),
            ({"hop_samples": "1"}, "but an FRCRN has 320"),
            ({"frame_samples": "1"}, "but an FRCRN has 640"),
            ({"sample_rate_hz": "48000"}, "but an FRCRN has 16000"),
            ({"sample_rate_hz": "9" * 5_000}, "is not a positive number"),
            ({"channels": "7"}, "not a multiple of 8"),
            ({"source_sha256": "ab"}, "contradict each other"),
            ({"method": "dynamic"}, "contradict each other"),
            ({"window_samples": "320"}, "contradict each other"),
            ({"timeline": "stream", "is_step": "false"}, "contradict each other"),
            ({"start_means": "AAAA"}, "start_means"),
        ],
    )
    def test_contradictions(self, changed: dict[str, str], message: str) -> None:
        properties = self.PROPERTIES | {METADATA_PREFIX + key: text for key, text in changed.items()}
        with pytest.raises(ModelError, match=message):
            ModelMetadata.from_properties(properties)

    @pytest.mark.parametrize("means", ["AAA", "!!!!", "AACAfw==", "AAA="])  # the third is infinity
    def test_means_of_a_step_that_are_none(self, means: str) -> None:
        with pytest.raises(ModelError, match="are not the means of a step"):
            ModelMetadata.from_properties(self.STEP_PROPERTIES | {METADATA_PREFIX + "start_means": means})

    @given(st.dictionaries(st.sampled_from([*NAMES, "window_samples", "timeline"]), st.text(max_size=12), max_size=4))
    @settings(max_examples=200, derandomize=True, database=None, deadline=None)
    def test_any_text_is_refused_or_describes_an_frcrn(self, changed: dict[str, str]) -> None:
        properties = self.STEP_PROPERTIES | {METADATA_PREFIX + key: text for key, text in changed.items()}
        try:
            found = ModelMetadata.from_properties(properties)
        except ModelError:
            return
        assert (found.sample_rate_hz, found.frame_samples, found.hop_samples) == (16_000, 640, 320)
        assert found.channels % 8 == 0
        assert ModelMetadata.from_properties(found.to_properties()) == found

    def test_two_values_of_one_property(self, tmp_path: Path) -> None:
        entry = b"\x0a\x17frcrn_accel.hop_samples" + b"\x12\x03160"
        assert len(entry) == 2 + 0x17 + 5
        (tmp_path / "a.onnx").write_bytes(SOURCE.path.read_bytes() + b"\x72" + bytes([len(entry)]) + entry)
        with pytest.raises(ModelError, match=r"two values of 'frcrn_accel\.hop_samples'"):
            ModelFile.open(tmp_path / "a.onnx")


class TestExternalData:
    def test_weights_in_another_file_are_refused(self, tiny: ModelFile, tmp_path: Path) -> None:
        onnx = pytest.importorskip("onnx")
        path = tmp_path / "a.onnx"
        onnx.save_model(onnx.load(tiny.path), path, save_as_external_data=True, location="b.bin", size_threshold=0)
        assert (tmp_path / "b.bin").exists()
        with pytest.raises(ModelError, match="keeps weights in other files, which its digest does not cover"):
            find_model(path)

    def test_in_an_attribute_or_a_function(self, tmp_path: Path) -> None:
        pytest.importorskip("onnx")
        from onnx import TensorProto, helper

        tensor = helper.make_tensor("w", TensorProto.FLOAT, [1], np.zeros(1, np.float32))
        tensor.ClearField("float_data")
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", "b.bin"
        node = helper.make_node("Constant", [], ["c"], value=tensor)
        inner = helper.make_graph([node], "inner", [], [])
        outer = helper.make_node("If", ["x"], ["y"], then_branch=inner)
        for nodes in ([node], [outer]):
            model = helper.make_model(helper.make_graph(nodes, "g", [], []))
            (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
            assert has_external_data(tmp_path / "a.onnx")

    def test_the_word_alone_is_no_data(self, tmp_path: Path) -> None:
        onnx = pytest.importorskip("onnx")
        helper = onnx.helper
        model = helper.make_model(helper.make_graph([], "location", [], []))
        helper.set_model_props(model, {"location": "here"})
        (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
        assert not has_external_data(tmp_path / "a.onnx")


class TestPartialDownload:
    @pytest.mark.parametrize("kind", ["symlink", "hard link", "FIFO", "folder"])
    def test_what_others_put_in_its_place_is_not_written_to(self, tmp_path: Path, kind: str) -> None:
        precious, part = tmp_path / "precious", tmp_path / "a.bin.part"
        precious.write_bytes(b"precious")
        if kind == "symlink":
            part.symlink_to(precious)
        elif kind == "hard link":
            os.link(precious, part)
        elif kind == "FIFO":
            os.mkfifo(part)
        else:
            part.mkdir()
        with pytest.raises(OutputExistsError, match=r"a\.bin\.part' is not a file that an earlier download left"):
            download_checkpoint("frcrn-16k", tmp_path / "a.bin")
        assert precious.read_bytes() == b"precious"


@pytest.mark.skipif(os.name != "posix", reason="elsewhere, homes are found in other ways")
def test_a_user_without_a_home_and_a_name() -> None:
    """As in containers: `HOME` is not set, and the system has no name for the number of the user."""
    pytest.importorskip("onnxruntime")
    code = """
import pwd
import numpy
def unknown(number):
    raise KeyError(number)
pwd.getpwuid = unknown
from frcrn_accel import Denoiser, backend_statuses
from frcrn_accel.models import cache_folder
print(*(status.problem for status in backend_statuses() if status.name == "openvino"))
print(cache_folder().is_dir(), Denoiser()(numpy.full(800, 0.1), 16_000).shape)
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    environment.pop(CACHE_DIR_VARIABLE, None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    problem, made = done.stdout.splitlines()
    assert "failed" not in problem
    assert made == "True (800,)"
    assert "this user has no home folder: files are made again by every process" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="elsewhere, homes are found in other ways")
def test_commands_of_a_user_without_a_home_and_a_name(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    soundfile.write(tmp_path / "a.wav", np.full(800, 0.1), 16_000)
    code = """
import pwd, sys
def unknown(number):
    raise KeyError(number)
pwd.getpwuid = unknown
from frcrn_accel.cli import main
for command in ("denoise a.wav", "models list", "models verify", "backends", "doctor --json"):
    sys.argv = ["frcrn-accel", *command.split()]
    try:
        main()
    except SystemExit as end:
        print("ended", end.code)
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    environment.pop(CACHE_DIR_VARIABLE, None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert [line for line in done.stdout.splitlines() if line.startswith("ended")] == 5 * ["ended 0"], done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "a.denoised.wav").exists()
