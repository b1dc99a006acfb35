"""Filters, judged by a table of cases and by a twin that interprets the JSON anew for each row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covector.errors import InvalidInput, LimitExceeded, NotFound
from covector.types import Space
from covector_server.limits import Limits
from covector_server.query.cancellation import never
from covector_server.query.filter import FilterParser, matching_rows, parse_where
from covector_server.testing.memory import memory_collection

FIELDS = {"source": "string", "year": "number", "good": "boolean", "eq": "number"}
BIG = 2**60


def holds(where: dict[str, Any], row: dict[str, Any]) -> bool:
    return FilterParser(FIELDS, Limits()).parse(where)(row)


@pytest.mark.parametrize(("where", "row", "expected"), [
    ({}, {}, True),
    ({"source": "x"}, {"source": "x"}, True),
    ({"source": "x"}, {"source": "X"}, False),
    ({"source": "x", "year": 1}, {"source": "x", "year": 2}, False),
    ({"year": 1}, {"year": 1.0}, True),
    ({"year": {"gte": 2, "lt": 3}}, {"year": 2}, True),
    ({"year": {"gte": 2, "lt": 3}}, {"year": 3}, False),
    ({"year": {"gt": 2}}, {"year": 2}, False),
    ({"year": {"lte": 2}}, {"year": 2}, True),
    ({"year": BIG + 1}, {"year": float(BIG)}, False),
    ({"year": {"gt": float(BIG)}}, {"year": BIG + 1}, True),
    ({"year": {"in": [float(BIG)]}}, {"year": BIG + 1}, False),
    ({"year": {"in": [1.0, 5]}}, {"year": 1}, True),
    ({"source": {"lt": "b"}}, {"source": "a"}, True),
    ({"good": False}, {"good": False}, True),
    ({"good": {"ne": True}}, {"good": False}, True),
    ({"source": {"in": []}}, {"source": "a"}, False),
    ({"source": {"not_in": []}}, {"source": "a"}, True),
    ({"source": {"exists": True}}, {"source": ""}, True),
    ({"eq": 3}, {"eq": 3}, True),
    ({"and": []}, {}, True),
    ({"or": []}, {}, False),
    ({"or": [{"source": "x"}, {"year": 1}]}, {"year": 1}, True),
    ({"and": [{"source": "x"}, {"year": 1}]}, {"year": 1}, False),
    ({"not": {"source": "x"}}, {"source": "x"}, False),
    ({"not": {"source": "x", "year": 1}}, {"source": "x"}, True),
    ({"not": {"year": {"gt": 1}}}, {}, True),
])  # fmt: skip
def test_cases(where: dict[str, Any], row: dict[str, Any], expected: bool) -> None:
    assert holds(where, row) is expected


@pytest.mark.parametrize("row", [{}, {"year": None}])
def test_absent_and_null(row: dict[str, Any]) -> None:
    true_of_nothing = [{"ne": 1}, {"not_in": [1]}, {"exists": False}]
    false_of_nothing = [{"eq": 1}, {"gt": 1}, {"gte": 1}, {"lt": 1}, {"lte": 1}, {"in": [1]}, {"exists": True}]
    assert all(holds({"year": condition}, row) for condition in true_of_nothing)
    assert not any(holds({"year": condition}, row) for condition in false_of_nothing)


@pytest.mark.parametrize(("where", "message"), [
    ({"year": {"gtee": 1}}, r"no operator 'gtee'; did you mean 'gte'"),
    ({"year": "2020"}, r"field 'year' holds numbers, '2020' is a string"),
    ({"year": True}, r"field 'year' holds numbers, True is a boolean"),
    ({"good": 1}, r"field 'good' holds booleans, 1 is a number"),
    ({"source": {"in": ["a", 1]}}, r"field 'source' holds strings, 1 is a number"),
    ({"source": {"in": "a"}}, r"'in' takes a list of values"),
    ({"source": ["a"]}, r'a list goes with \{"in"'),
    ({"source": None}, r'use \{"exists": false\}'),
    ({"source": {"in": [None]}}, r'use \{"exists": false\}'),
    ({"source": {"eq": {"a": 1}}}, r"values are not nested"),
    ({"source": {}}, r"has no operator; the operators are eq, "),
    ({"source": {"exists": 1}}, r"'exists' takes true or false"),
    ({"good": {"gt": False}}, r"booleans, which have no order"),
    ({"and": {"source": "x"}}, r"'and' takes a list of filters"),
    ({"or": "x"}, r"no field of that name can be filtered on"),
    ({"not": [{"source": "x"}]}, r"'not' must be a JSON object"),
    ({"and": ["x"]}, r"each entry of 'and' must be a JSON object"),
])  # fmt: skip
def test_what_is_refused(where: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        holds(where, {})


def test_an_unknown_field_names_the_near_ones() -> None:
    with pytest.raises(NotFound, match="no metadata field 'yaer'; did you mean 'year'"):
        holds({"yaer": 1}, {})


def test_limits() -> None:
    deep: dict[str, Any] = {"year": 1}
    for _ in range(32):
        deep = {"not": deep}
    with pytest.raises(LimitExceeded, match="filter_depth=32"):
        holds(deep, {})
    with pytest.raises(LimitExceeded, match="filter_terms=1000"):
        holds({"year": {"in": list(range(1000))}}, {})
    assert holds({"year": {"in": list(range(999))}}, {"year": 5})


@pytest.mark.parametrize("text", ["[1]", "1", "{", '{"a": NaN}', "[" * 200_000])
def test_text_that_is_no_filter(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_where(text)


def test_text_that_is_a_filter() -> None:
    assert parse_where("") is None
    assert parse_where('{"year": {"gt": 1}}') == {"year": {"gt": 1}}


def test_the_message_of_a_huge_value_stays_short() -> None:
    with pytest.raises(InvalidInput) as caught:
        holds({"year": "x" * 1_000_000}, {})
    assert len(caught.value.message) < 200


VALUES = {"source": st.sampled_from(["a", "b", "c"]), "year": st.integers(0, 3), "good": st.booleans()}


def conditions(field: str) -> st.SearchStrategy[Any]:
    value = VALUES[field]
    names = ["eq", "ne"] if field == "good" else ["eq", "ne", "gt", "gte", "lt", "lte"]
    single = st.dictionaries(st.sampled_from(names), value, min_size=1, max_size=2)
    several = st.dictionaries(st.sampled_from(["in", "not_in"]), st.lists(value, max_size=2), min_size=1)
    return value | single | several | st.fixed_dictionaries({"exists": st.booleans()})


LEAVES: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries({}, optional={f: conditions(f) for f in VALUES})
FILTERS = st.recursive(
    LEAVES,
    lambda inner: (
        st.fixed_dictionaries({"and": st.lists(inner, max_size=3)})
        | st.fixed_dictionaries({"or": st.lists(inner, max_size=3)})
        | st.fixed_dictionaries({"not": inner})
    ),
    max_leaves=6,
)
ROWS = st.none() | st.fixed_dictionaries({}, optional={f: st.none() | value for f, value in VALUES.items()})


def twin(where: dict[str, Any], row: dict[str, Any]) -> bool:
    return all(twin_entry(name, value, row) for name, value in where.items())


def twin_entry(name: str, value: Any, row: dict[str, Any]) -> bool:
    if name == "and":
        return all(twin(part, row) for part in value)
    if name == "or":
        return any(twin(part, row) for part in value)
    if name == "not":
        return not twin(value, row)
    wanted = value if isinstance(value, dict) else {"eq": value}
    return all(twin_term(operator, operand, row.get(name)) for operator, operand in wanted.items())


def twin_term(operator: str, operand: Any, value: Any) -> bool:
    if operator == "exists":
        return (value is not None) is bool(operand)
    if value is None:
        return operator in {"ne", "not_in"}
    if operator in {"in", "not_in"}:
        return any(bool(value == one) for one in operand) is (operator == "in")
    below, equal = value < operand, value == operand
    names = {"lt", "lte", "ne"} if below else {"eq", "lte", "gte"} if equal else {"gt", "gte", "ne"}
    return operator in names


@given(FILTERS, st.lists(ROWS, max_size=8))
def test_masks_are_the_twins(where: dict[str, Any], rows: list[dict[str, Any] | None]) -> None:
    complete = [{"source": "a", "year": 0, "good": True}, *rows]
    view = memory_collection(
        "c", Space(dim=1), {}, texts=dict.fromkeys(range(len(complete)), ""),
        metadata={place: row for place, row in enumerate(complete) if row is not None},
    )  # fmt: skip
    mask = matching_rows(view, where, Limits(), never)
    np.testing.assert_array_equal(mask, [twin(where, row or {}) for row in complete])
