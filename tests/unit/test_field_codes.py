"""The value of a field of every row, from postings and without: against the rows themselves."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covector.errors import LimitExceeded, NotFound
from covector.types import Space
from covector_server.limits import Limits
from covector_server.metadata.postings_builder import PostingsBuilder
from covector_server.query.cancellation import never
from covector_server.query.field_codes import field_codes
from covector_server.testing.memory import MemoryCollection, MemoryPostings, memory_collection

FIELDS = {"text": "string", "number": "number", "flag": "boolean"}
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "text": st.sampled_from(["", "a", "b", "ab", "漢字", "z" * 30]),
    "number": st.sampled_from([0, -0.0, 1, 1.5, 2**53 + 1, -7]),
    "flag": st.booleans(),
}
ROWS = st.lists(
    st.none() | st.fixed_dictionaries({}, optional={k: st.none() | v for k, v in VALUES.items()}), max_size=25
)


def collection_of(rows: Sequence[dict[str, Any] | None]) -> MemoryCollection:
    made = memory_collection(
        "c",
        Space(dim=1),
        {},
        texts=dict.fromkeys(range(len(rows)), ""),
        metadata={place: row for place, row in enumerate(rows) if row is not None},
    )
    return dataclasses.replace(made, fields=FIELDS, run_rows=3)


def encoded(rows: Sequence[dict[str, Any] | None], first: int, text_bytes_max: int) -> bytes:
    builder = PostingsBuilder(first, text_bytes_max)
    builder.add(list(rows))
    return builder.encode(0)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(FIELDS)), ROWS, st.data())
def test_codes_stand_for_what_the_rows_have(name: str, rows: list[dict[str, Any] | None], data: st.DataObject) -> None:
    """Ranges with gaps, an unreadable one, some that keep digests alone, and rows whose metadata came later."""
    cuts = sorted(data.draw(st.sets(st.integers(0, len(rows)), max_size=6)))
    newer = sorted(data.draw(st.sets(st.integers(0, max(0, len(rows) - 1)), max_size=4))) if rows else []
    older_rows = [None if place in newer else row for place, row in enumerate(rows)]
    indexes = []
    for low, high in itertools.pairwise(cuts):
        kind = data.draw(st.sampled_from(["none", "unreadable", "text", "digest"]))
        body = encoded(older_rows[low:high], low, 0 if kind == "digest" else 1 << 20)
        if kind != "none":
            indexes.append(MemoryPostings(low, high - low, 0, None if kind == "unreadable" else body))
    view = dataclasses.replace(collection_of(rows), indexes=indexes, newer_rows=newer)
    found = field_codes(view, name, Limits(), never)
    given_values = [found.values[code] for code in found.codes.tolist()]
    expected = [(row or {}).get(name) for row in rows]
    assert given_values == expected
    assert [type(value) is bool for value in given_values] == [type(value) is bool for value in expected]
    assert len(set(found.values)) == len(found.values)


def test_an_unknown_field_and_too_many_values_are_refused() -> None:
    view = collection_of([{"number": place} for place in range(5)])
    with pytest.raises(NotFound, match=r"no metadata field 'numbr'.*number"):
        field_codes(view, "numbr", Limits(), never)
    with pytest.raises(LimitExceeded, match="query_groups=4"):
        field_codes(view, "number", Limits(query_groups=4), never)
    np.testing.assert_array_equal(field_codes(view, "number", Limits(query_groups=5), never).codes, [1, 2, 3, 4, 5])
