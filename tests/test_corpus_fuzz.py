"""Lists, manifests and journals of any content: a result, or one error on one line."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frcrn_accel import AudioError, CorpusError
from frcrn_accel.corpus.journal import Journal
from frcrn_accel.corpus.plan import accepted, read_inputs

FUZZ = settings(
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
NAMES = st.one_of(
    st.sampled_from(
        [
            *("a.wav", "../a.wav", "/a.wav", "a.wav/b.wav", ".corpus/a.wav", "corpus.jsonl", "", ".", "a//b.wav"),
            *("\ud800.wav", f"{'x' * 300}.wav", "a\0.wav", "\u202e.wav"),
        ]
    ),
    st.text(max_size=12),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
HEAD = {"corpus": 1, "replaces": False, "others": [], "settings": {}}
LINE = {"output": "a.wav", "sha256": "0" * 64, "member": None, "members": None, "error": None, "bytes": 3}


def check_plan(path: Path) -> None:
    """Read a list: what is accepted has names of its own below the output folder."""
    try:
        recordings = read_inputs(str(path), "out").recordings
    except (CorpusError, AudioError):
        return
    outputs = [PurePosixPath(recording.output) for recording in accepted(recordings)]
    assert len(set(outputs)) == len(outputs)
    for output in outputs:
        assert not output.is_absolute()
        assert ".." not in output.parts
        assert output.parts[0] not in (".corpus", "corpus.jsonl")
        assert not any(parent in outputs for parent in output.parents)


@given(st.lists(st.one_of(st.fixed_dictionaries({"input": NAMES}, optional={"output": NAMES}), JSON), max_size=6))
@FUZZ
def test_manifests(tmp_path: Path, lines: list[object]) -> None:
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    check_plan(tmp_path / "m.jsonl")


@given(
    st.one_of(
        st.binary(max_size=60),
        st.lists(NAMES, max_size=6).map(lambda names: "\n".join(names).encode("utf-8", "replace")),
    )
)
@FUZZ
def test_lists(tmp_path: Path, content: bytes) -> None:
    for name in ("l.txt", "l.jsonl"):
        (tmp_path / name).write_bytes(content)
        check_plan(tmp_path / name)


@given(
    st.dictionaries(st.sampled_from(list(HEAD)), JSON, max_size=1),
    st.lists(st.dictionaries(st.sampled_from(list(LINE)), JSON | NAMES, max_size=2), max_size=3),
    st.binary(max_size=12),
)
@FUZZ
def test_journals(tmp_path: Path, head: dict[str, object], lines: list[dict[str, object]], rest: bytes) -> None:
    text = "".join(json.dumps(line) + "\n" for line in [{**HEAD, **head}, *({**LINE, **line} for line in lines)])
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(text.encode() + rest)
    before = path.read_bytes()
    try:
        with Journal(path, tmp_path, {}, restart=False) as journal:
            journal.verify()
    except CorpusError:
        assert path.read_bytes() == before
        return
    assert before.startswith(path.read_bytes())  # at most the end, which was cut off, is dropped


def test_a_journal_of_any_bytes_is_read_or_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    for content in (b"\xff\xfe", b"\0" * 50 + b"\n", json.dumps(HEAD).encode() + b"\n\xff\xff\n"):
        path.write_bytes(content)
        with pytest.raises(CorpusError, match="move it away"):
            Journal(path, tmp_path, {}, restart=False)
        assert path.read_bytes() == content
