"""Numbers in text that comes from outside."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frcrn_accel.numerals import to_number, to_whole

ODD = (
    "",
    " 1",
    "1 ",
    "1_0",
    "+1",
    "1.",
    "0x10",
    "inf",
    "-Infinity",
    "nan",
    "1e999",
    "1e",
    "\u0661\u0660",
    "\uff11",
    "--1",
)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_what_programs_write_is_read_back(number):
    assert to_number(repr(number)) == number


@given(st.integers(0, 10**18 - 1))
def test_whole_numbers_are_read_back(number):
    assert to_whole(str(number)) == number


@given(st.one_of(st.text(max_size=12), st.text("0123456789+-._eE \n\u0661xinfa", max_size=12)))
def test_what_is_read_is_plain(text):
    number, whole = to_number(text), to_whole(text)
    if number is not None:
        assert set(text) <= set("0123456789.-+eE")
        assert number == float(text)
    if whole is not None:
        assert set(text) <= set("0123456789")
        assert whole == int(text) == number


@pytest.mark.parametrize("text", ODD)
def test_other_spellings_are_not_numbers(text):
    assert to_number(text) is None
    assert to_whole(text) is None


def test_lengths_are_bounded():
    assert to_whole("9" * 18) == 10**18 - 1
    assert to_whole("0" * 19) is None
    assert to_number("1" * 41) is None
