"""Columns packed in bulk hold the bytes that packing row by row gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covector.blocks import Column, column_of, encode_key
from covector.columns import absent, joined, pack, pack_keys, pack_texts
from covector.errors import InvalidInput

STRINGS = st.one_of(st.text(max_size=6), st.text("abc", max_size=6))
INTEGERS = st.integers(-(1 << 63), (1 << 63) - 1)
KEYS = st.one_of(st.lists(STRINGS), st.lists(INTEGERS), st.lists(st.one_of(STRINGS, INTEGERS)))


def same(left: Column, right: Column) -> bool:
    present = (left.present is None) == (right.present is None)
    return (
        present
        and left.data == right.data
        and left.ends.tolist() == right.ends.tolist()
        and (left.present is None or right.present is None or left.present.tolist() == right.present.tolist())
    )


@given(KEYS)
def test_keys(keys: list[Any]) -> None:
    assert same(joined([pack_keys(keys)]), column_of(encode_key(key) for key in keys))


@given(st.lists(STRINGS))
def test_texts(texts: list[str]) -> None:
    assert same(joined([pack_texts(texts)]), column_of(text.encode() for text in texts))


@given(st.lists(st.one_of(st.none(), st.binary(max_size=5)), max_size=12), st.integers(0, 12), st.integers(0, 12))
def test_values_cut_and_joined_again(values: list[bytes | None], first: int, second: int) -> None:
    one, two = sorted((min(first, len(values)), min(second, len(values))))
    packed = pack(values)
    parts = [packed.part(slice(start, stop)) for start, stop in ((0, one), (one, two), (two, len(values)))]
    assert same(joined(parts), column_of(values))
    assert same(joined([absent(2), packed]), column_of([None, None, *values]))


@pytest.mark.parametrize("keys", [[1 << 63], ["a", 1.5], [True, False], ["\ud800"], [1, None]])
def test_what_is_no_key_is_refused(keys: list[Any]) -> None:
    with pytest.raises(InvalidInput):
        pack_keys(keys)


def test_a_column_past_four_gib_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("covector.columns._COLUMN_BYTES_MAX", 10)
    assert len(joined([pack([b"12345"] * 2)])) == 2
    with pytest.raises(InvalidInput, match="at most 4 GiB"):
        joined([pack([b"12345"] * 2), pack([b"1"])])


def test_numpy_strings_and_integers_are_keys() -> None:
    keys: list[Any] = [np.str_("é"), np.int64(-4), "b"]
    assert same(joined([pack_keys(keys)]), column_of(encode_key(key) for key in keys))
