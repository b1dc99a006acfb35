"""What users hand in: every refusal names the row, field or argument."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covector.blocks import keys_of
from covector.columns import joined
from covector.errors import InvalidInput
from covector.inputs import Origin, given_rows, gradient_array, origin_of, query_array, row_chunks
from covector.types import GradientKind, Gradients, Projection, Space

ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_keys_come_back_as_they_went_in() -> None:
    keys: list[Any] = ["a", 7, np.int64(-3), np.str_("é"), "7"]
    for handed_in, expected in ((keys, ["a", 7, -3, "é", "7"]), (np.arange(3), [0, 1, 2]), (range(2), [0, 1])):
        rows = given_rows(handed_in, None, None)
        assert rows.keys == expected
        assert keys_of(joined([rows.encoded])) == expected


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("abc", r"write keys=\['abc'\]"),
        (3, r"write keys=\[3\]"),
        (None, "not NoneType"),
        (np.zeros((2, 2)), r"keys has shape \(2, 2\)"),
        (np.array([1.0]), "not float"),
        ([True], "not bool"),
        ([1 << 63], "does not fit"),
        (["a", "b", "a"], r"key 'a' stands twice in one call \(again at row 2\)"),
        (["\ud800"], "not valid Unicode"),
    ],
)
def test_bad_keys(keys: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        given_rows(keys, None, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gradients": ROWS[:2]}, "gradients has 2 rows for 3 keys"),
        ({"texts": ["x"]}, "texts has 1 rows for 3 keys"),
        ({"texts": "xyz"}, "not one string"),
        ({"texts": ["x", 3, None]}, "text of key 'b' is int"),
        ({"texts": ["x", "\ud800", None]}, "text of key 'b' is not valid Unicode"),
        ({"metadata": [{}]}, "metadata has 1 rows"),
        ({"metadata": {"a": 1}}, "not one dict"),
        ({"metadata": [None, [1], None]}, "metadata of key 'b' is list"),
        ({"metadata": [None, None, {"tags": ["x"]}]}, "field 'tags' of key 'c' is list; metadata is flat"),
        ({"metadata": [None, {"p": float("nan")}, None]}, "field 'p' of key 'b' is nan"),
        ({"metadata": [{1: 2}, None, None]}, "key 'a' has the field 1"),
        ({"trak_q": [0.1, 1.5, 0.2]}, "trak_q of key 'b' is 1.5"),
        ({"trak_q": [0.1, np.inf, 0.2]}, "trak_q of key 'b' is inf"),
        ({"trak_q": [0.1]}, "trak_q has 1 rows"),
        ({"trak_q": [[0.1]] * 3}, "one number a row"),
    ],
)
def test_bad_rows(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        given_rows(["a", "b", "c"], arguments.pop("texts", None), arguments.pop("metadata", None), **arguments)


@pytest.mark.parametrize(
    ("value", "dtype", "what"),
    [
        (np.nan, "f4", "NaN or infinity"),
        (np.inf, "f2", "NaN or infinity"),
        (-np.inf, "f8", "NaN or infinity"),
        (1e39, "f8", "a number past the range of float32"),
    ],
)
def test_a_row_that_is_not_finite_is_named(value: float, dtype: str, what: str) -> None:
    rows = ROWS.astype(dtype)
    rows[1, 2] = value
    with pytest.raises(InvalidInput, match=f"gradient of key 'b' \\(row 1\\) holds {what}"):
        given_rows(["a", "b", "c"], None, None, gradients=rows)


def test_metadata_is_plain_json() -> None:
    fields: dict[str, Any] = {"n": np.int64(3), "x": np.float32(0.5), "b": np.True_, "é": None}
    first, second = joined([given_rows([1, 2], None, [fields, None]).metadata]).values()
    assert json.loads(first or b"") == {"n": 3, "x": 0.5, "b": True, "é": None}
    assert second is None


FIELDS = st.dictionaries(
    st.one_of(st.text(max_size=3), st.sampled_from(["},{", '"', "\\", "[{"])),
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=4)
    ),
    max_size=3,
)


@given(st.lists(st.one_of(st.none(), FIELDS, st.just({"a": "},{"}))))
def test_metadata_in_bulk_is_that_of_each_row(rows: list[Any]) -> None:
    def alone(row: Any) -> bytes | None:
        text = json.dumps(row, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return None if row is None else text.encode()

    found = joined([given_rows(range(len(rows)), None, rows).metadata]).values() if rows else []
    assert found == [alone(row) for row in rows]


@pytest.mark.parametrize(
    ("gradients", "message"),
    [
        (np.zeros(4), r"write gradients\[None, :\]"),
        (np.zeros((2, 5)), r"shape \[2, 5\]; this collection needs \[n, 4\]"),
        (np.zeros((1, 2, 4)), "this collection needs"),
        (np.zeros((2, 4), dtype=complex), "complex128"),
        ([[1.0, 2.0], [1.0]], "no array of numbers"),
        ([["a"] * 4], "not of real numbers"),
    ],
)
def test_bad_gradients(gradients: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        gradient_array(gradients, 4)


def test_arrays_are_not_copied() -> None:
    assert gradient_array(ROWS, 4) is ROWS
    assert gradient_array(Gradients(ROWS, Space(dim=4)), 4) is ROWS
    assert gradient_array([], 4).shape == (0, 4)


def test_queries() -> None:
    assert query_array([1, 2], 2).tolist() == [[1.0, 2.0]]
    with pytest.raises(InvalidInput, match="holds no vector"):
        query_array(np.zeros((0, 2)), 2)
    with pytest.raises(InvalidInput, match=r"shape \[3\]; this collection needs \[2\] or \[m, 2\]"):
        query_array([1, 2, 3], 2)
    for bad in (np.nan, 1e300):
        with pytest.raises(InvalidInput, match="vector 1 holds NaN or infinity"):
            query_array(np.array([[1, 2], [bad, 0]]), 2)


def test_another_space_is_refused_by_its_field() -> None:
    stored = Space(dim=4, projection=Projection(kind="count_sketch", dim=4, seed=0))
    given = Gradients(ROWS, Space(dim=4, projection=Projection(kind="count_sketch", dim=4, seed=1)))
    with pytest.raises(InvalidInput, match="another space than collection 'c': projection: ") as caught:
        origin_of(given, stored, "c")
    assert caught.value.facts["field"] == "projection"
    assert origin_of(ROWS, stored, "c") == Origin()


def test_origins_must_agree() -> None:
    space, loss = Space(dim=4), GradientKind("loss")
    first = Origin(space, loss, "abc")
    assert first.difference(Origin(space, loss, "abc")) is None
    assert "weights: abc before, not stated now" in str(first.difference(Origin(space, loss, None)))
    assert "kind" in str(first.difference(Origin(space, GradientKind("margin"), "abc")))
    assert "Gradients before, a bare array now" in str(first.difference(Origin()))


def test_chunks_of_keys_are_bounded_and_complete() -> None:
    keys = [b"x" * size for size in (1, 1, 1, 50, 200, 1, 1)]
    chunks = list(row_chunks(keys, rows_max=2, bytes_max=100))
    assert [row for chunk in chunks for row in range(chunk.start, chunk.stop)] == list(range(7))
    assert [(chunk.start, chunk.stop) for chunk in chunks] == [(0, 2), (2, 4), (4, 5), (5, 7)]
    assert list(row_chunks([], rows_max=2, bytes_max=9)) == []
