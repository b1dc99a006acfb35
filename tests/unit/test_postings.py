"""Postings, judged by the row-by-row reading of the same condition, over every type of value that is awkward."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from covector.errors import Corrupt
from covector.types import Space
from covector_server.limits import Limits
from covector_server.metadata.posting_values import Unanswered, decode_values, encode_values
from covector_server.metadata.postings import Postings
from covector_server.metadata.postings_builder import PostingsBuilder
from covector_server.query.cancellation import never
from covector_server.query.filter import FilterParser, find_rows, matching_rows
from covector_server.testing.memory import MemoryCollection, MemoryPostings, memory_collection

FIELDS = {"text": "string", "number": "number", "flag": "boolean", "rare": "number"}
BIG = 2**60
NUMBERS = st.sampled_from([
    0, -0.0, 1, 1.0, -1, 0.5, -127, 128, 40_000, 2**31, 2**53, 2**53 + 1, float(2**53), BIG, BIG + 1, float(BIG),
    -(2**63), 2**63 - 1, 2**63, 10**30, 1e30, 1e300, -1e300, 5e-324, 10**400,
]) | st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False, width=16)  # fmt: skip
TEXTS = st.sampled_from(["", "a", "aa", "b", "é", "z", "\U0001f600", "\uffff", "\x00", "long" * 20]) | st.text(
    max_size=3
)
OPERANDS = {
    "text": TEXTS | st.just("\ud800"),
    "number": NUMBERS | st.sampled_from([float("inf"), float("-inf"), float("nan")]),
    "flag": st.booleans(),
    "rare": NUMBERS,
}
VALUES = {"text": TEXTS, "number": NUMBERS, "flag": st.booleans(), "rare": NUMBERS}
SURROGATES = dict.fromkeys(range(0xD800, 0xE000))


def conditions(field: str) -> st.SearchStrategy[dict[str, Any]]:
    names = ["eq", "ne"] if field == "flag" else ["eq", "ne", "gt", "gte", "lt", "lte"]
    single = st.dictionaries(st.sampled_from(names), OPERANDS[field], min_size=1, max_size=2)
    several = st.dictionaries(st.sampled_from(["in", "not_in"]), st.lists(OPERANDS[field], max_size=5), min_size=1)
    return single | several | st.fixed_dictionaries({"exists": st.booleans()})


FILTERS = st.recursive(
    st.fixed_dictionaries({}, optional={field: conditions(field) for field in FIELDS}),
    lambda inner: (
        st.fixed_dictionaries({"and": st.lists(inner, max_size=3)})
        | st.fixed_dictionaries({"or": st.lists(inner, max_size=3)})
        | st.fixed_dictionaries({"not": inner})
    ),
    max_leaves=6,
)
ROW = st.none() | st.fixed_dictionaries({}, optional={f: st.none() | value for f, value in VALUES.items()})
ROWS = st.lists(ROW, max_size=20).map(lambda rows: [_plain(row) for row in rows])


def _plain(row: dict[str, Any] | None) -> dict[str, Any] | None:
    """As metadata is stored: whole characters only."""
    return row and {k: v.translate(SURROGATES) if isinstance(v, str) else v for k, v in row.items()}


def encoded(rows: Sequence[dict[str, Any] | None], first: int = 0, text_bytes_max: int = 1 << 20) -> bytes:
    builder = PostingsBuilder(first, text_bytes_max)
    builder.add(rows[: len(rows) // 2])
    builder.add(rows[len(rows) // 2 :])
    return builder.encode(0)


def collection_of(rows: Sequence[dict[str, Any] | None]) -> MemoryCollection:
    made = memory_collection(
        "c", Space(dim=1), {}, texts=dict.fromkeys(range(len(rows)), ""),
        metadata={place: row for place, row in enumerate(rows) if row is not None},
    )  # fmt: skip
    return dataclasses.replace(made, fields=FIELDS, run_rows=3)


@settings(max_examples=300, deadline=None)
@given(FILTERS, ROWS)
@example({"number": {"gt": float(BIG)}}, [{"number": BIG + 1}, {"number": float(BIG)}])
@example({"number": {"lte": 10**400}}, [{"number": 10**400}, {"number": 0.5}, {"number": None}, None])
@example({"number": {"gte": float("nan")}}, [{"number": 1}])
def test_postings_answer_as_the_rows_do(where: dict[str, Any], rows: list[dict[str, Any] | None]) -> None:
    condition = FilterParser(FIELDS, Limits()).parse(where)
    postings = Postings.decode(encoded(rows))
    expected = [offset for offset, row in enumerate(rows) if condition(row or {})]
    assert list(condition.rows(postings, postings.all_rows())) == expected
    odd = BitMap(range(1, len(rows), 2))
    assert list(condition.rows(postings, odd)) == [offset for offset in expected if offset % 2]
    assert postings.all_rows() == BitMap(range(len(rows)))  # and what is shared is as it was


@settings(max_examples=300, deadline=None)
@given(FILTERS, ROWS, st.data())
def test_a_filter_over_covered_and_uncovered_rows_is_the_one_over_rows(
    where: dict[str, Any], rows: list[dict[str, Any] | None], data: st.DataObject
) -> None:
    """Ranges with gaps, an unreadable one, some that keep digests alone, and rows whose metadata came later."""
    view = collection_of(rows)
    expected = matching_rows(view, where, Limits(), never)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(rows)), max_size=6)))
    newer = sorted(data.draw(st.sets(st.integers(0, max(0, len(rows) - 1)), max_size=4))) if rows else []
    older_rows = [None if place in newer else row for place, row in enumerate(rows)]
    indexes = []
    for low, high in itertools.pairwise(cuts):
        kind = data.draw(st.sampled_from(["none", "unreadable", "text", "digest"]))
        body = encoded(older_rows[low:high], low, 0 if kind == "digest" else 1 << 20)
        if kind != "none":
            indexes.append(MemoryPostings(low, high - low, 0, None if kind == "unreadable" else body))
    found = find_rows(dataclasses.replace(view, indexes=indexes, newer_rows=newer), where, Limits(), never)
    np.testing.assert_array_equal(found.mask(), expected)
    np.testing.assert_array_equal(found.row_ids(), np.flatnonzero(expected))
    assert found.count == expected.sum()
    gone = np.array(sorted(data.draw(st.sets(st.integers(0, 20)))), dtype=np.int64)
    np.testing.assert_array_equal(found.without(gone).row_ids(), np.setdiff1d(np.flatnonzero(expected), gone))


@pytest.mark.parametrize(("values", "form"), [
    ([True, False], "i1"), ([1, 2.0], "i1"), ([-0.0], "i1"), ([128], "i2"), ([-40_000, 1e4], "i4"), ([2**63 - 1], "i8"),
    ([-128, 127], "i1"), ([-(2**63), 0, 2**63 - 1], "i8"),
    ([-(2**63)], "i8"), ([2**63], "f8"), ([0.5, BIG], "f8"), ([0.5, BIG + 1], "json"), ([1e300], "f8"),
    ([10**400], "json"), (["a"], "text"), (["a" * 40], "digest"),
])  # fmt: skip
def test_the_form_is_the_narrowest_that_is_exact(values: list[Any], form: str) -> None:
    made = encode_values(values, text_bytes_max=32)
    assert made.form == form
    decoded = decode_values(form, made.data, len(values))
    for code, value in enumerate(made.order):
        assert decoded.span("eq", value) == (code, code + 1)


def test_values_of_several_types_are_refused() -> None:
    builder = PostingsBuilder(100)
    builder.add([{"x": 1}, {"x": True}, {"x": "a"}])
    with pytest.raises(Corrupt, match=r"field 'x' of rows 100 to 102: .*several types"):
        builder.encode(0)


def test_digests_tell_equality_and_nothing_of_order() -> None:
    texts = [f"{'x' * 50}{place % 10}" for place in range(100)]
    postings = Postings.decode(encoded([{"t": text} for text in texts], text_bytes_max=100))
    rows = postings.all_rows()
    assert list(postings.compared("t", "eq", texts[3], rows)) == list(range(3, 100, 10))
    assert list(postings.compared("t", "eq", texts[3] + "?", rows)) == []
    assert list(postings.among("t", [texts[0], "y", texts[9]], rows)) == sorted(
        [*range(0, 100, 10), *range(9, 100, 10)]
    )
    with pytest.raises(Unanswered):
        postings.compared("t", "gte", texts[3], rows)


def test_every_flipped_byte_is_found() -> None:
    data = encoded([{"text": f"t{row % 3}", "number": row * 0.5, "flag": row % 2 == 0} for row in range(50)])
    assert Postings.decode(data).row_count == 50
    for place in range(len(data)):
        for flip in (1, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[place] ^= flip
            with pytest.raises(Corrupt):
                Postings.decode(bytes(damaged))


@pytest.mark.parametrize("size", [0, 3, 20, 40])
def test_a_cut_file_is_found(size: int) -> None:
    with pytest.raises(Corrupt):
        Postings.decode(encoded([{"number": 1}] * 9)[:size])


def test_many_rows_and_many_values() -> None:
    """What is too long for hypothesis: containers of every kind, sixteen slices, a list of hundreds of values."""
    rng = random.Random(5)
    rows: list[dict[str, Any] | None] = [
        {"source": rng.choice("abcdefg"), "day": row // 20, "id": f"{row:x}", "noise": rng.random()}
        for row in range(20_000)
    ]
    fields = {"source": "string", "day": "number", "id": "string", "noise": "number"}
    postings = Postings.decode(encoded(rows))
    for where in (
        {"source": "c", "day": {"gte": 100, "lt": 500}},
        {"source": {"ne": "c"}, "noise": {"lt": 0.25}},
        {"id": {"in": [f"{row:x}" for row in range(0, 40_000, 41)]}},
        {"id": {"gt": "3", "lte": "4f"}, "source": {"in": ["a", "g"]}},
        {"day": {"not_in": list(range(0, 990, 2))}},
    ):
        condition = FilterParser(fields, Limits()).parse(where)
        found = condition.rows(postings, postings.all_rows())
        assert list(found) == [row for row, metadata in enumerate(rows) if condition(metadata or {})]


def test_rows_that_are_alike_take_no_room_and_others_bits() -> None:
    """Bytes a row: sixteen sources and 3,650 days are 4 and 12 bits, and far less where they come in order."""
    rng = np.random.default_rng(0)
    sources, days = rng.integers(0, 16, 65_536), rng.integers(0, 3650, 65_536)
    for kind, most in (("mixed", 2.1), ("ordered", 0.25)):
        rows = [
            {"source": f"source {source}", "day": 20_000_000 + day}
            for source, day in zip(
                (np.sort(sources) if kind == "ordered" else sources).tolist(),
                (np.sort(days) if kind == "ordered" else days).tolist(),
                strict=True,
            )
        ]
        assert len(encoded(rows)) / len(rows) < most
