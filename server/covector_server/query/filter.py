"""Filters on metadata: a JSON object becomes a checked condition, and a condition a mask of row ids.

    {"field": value}                       the field equals the value
    {"field": {"gte": 2020, "lt": 2023}}   every operator holds: eq ne gt gte lt lte in not_in exists
    {"source": "x", "year": 2020}          every field's condition holds; {} holds for every row
    {"and": [...]}  {"or": [...]}  {"not": {...}}

The words ``and``, ``or`` and ``not`` always join conditions: a field of such a name cannot be filtered on. Integers and
floats are one type, ``number``, compared by exact value; a boolean is no number. On a field that a row does not have,
or has as null, ``ne`` and ``not_in`` hold, ``exists`` says false, and every other operator fails.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping
from reprlib import repr as short
from typing import Any

import numpy as np
import numpy.typing as npt

from covector.errors import InvalidInput, NotFound, near_matches
from covector_server.limits import Limits
from covector_server.metadata.fields import type_of
from covector_server.query.cancellation import Cancelled, check_cancelled
from covector_server.storage.damage import OnDamage
from covector_server.storage.view import CollectionView

Metadata = Mapping[str, Any]
Condition = Callable[[Metadata], bool]

_JOINTS = ("and", "or", "not")
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}
_ORDERED = ("gt", "gte", "lt", "lte")
_LISTS = ("in", "not_in")
_OPERATORS = (*_COMPARISONS, "ne", *_LISTS, "exists")


def parse_where(text: str) -> dict[str, Any] | None:
    """The filter in JSON, None for an empty text. Raises InvalidInput unless it is a JSON object."""
    if not text:
        return None
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the filter is not JSON: {error}") from error
    return _object(found, "a filter")


def matching_rows(
    view: CollectionView,
    where: Mapping[str, Any],
    limits: Limits,
    cancelled: Cancelled,
    on_damage: OnDamage | None = None,
) -> npt.NDArray[np.bool_]:
    """Which rows a filter holds for: bool[row_id_count], by row id.

    Raises InvalidInput for a malformed filter, NotFound for an unknown field, LimitExceeded for too large a filter.
    Without ``on_damage`` raises Corrupt for damaged metadata; with it, no filter holds for the rows.
    """
    condition = FilterParser(view.fields, limits).parse(where)
    mask = np.zeros(view.row_id_count, dtype=bool)
    for first, run in view.metadata(on_damage):
        check_cancelled(cancelled)
        mask[first : first + len(run)] = [condition(metadata or {}) for metadata in run]
    mask[view.deleted] = False
    return mask


class FilterParser:
    """Turns one filter into a condition, checking it against the fields of a collection and the limits."""

    def __init__(self, fields: Mapping[str, str], limits: Limits) -> None:
        self._fields = fields
        self._limits = limits
        self._term_count = 0

    def parse(self, where: Mapping[str, Any], depth: int = 1) -> Condition:
        """The condition of a filter. Raises as ``matching_rows`` does."""
        self._limits.check("filter_depth", depth, "the filter is nested too deeply")
        return _all([self._entry(name, value, depth) for name, value in where.items()])

    def _entry(self, name: str, value: Any, depth: int) -> Condition:
        if name == "not":
            return _not(self.parse(_object(value, "'not'"), depth + 1))
        if name in _JOINTS:
            if not isinstance(value, list):
                raise InvalidInput(
                    f"{name!r} takes a list of filters, not {short(value)}; no field of that name can be filtered on"
                )
            parts = [self.parse(_object(part, f"each entry of {name!r}"), depth + 1) for part in value]
            return _all(parts) if name == "and" else _any(parts)
        return self._field(name, value)

    def _field(self, field: str, value: Any) -> Condition:
        if field not in self._fields:
            raise NotFound(f"no metadata field {short(field)}; {near_matches(field, self._fields)}", field=field)
        operands = value if isinstance(value, dict) else {"eq": value}
        if not operands:
            raise InvalidInput(
                f"field {field!r} has no operator; the operators are {', '.join(_OPERATORS)}", field=field
            )
        return _all([self._term(field, name, operand) for name, operand in operands.items()])

    def _term(self, field: str, name: str, operand: Any) -> Condition:
        if name not in _OPERATORS:
            raise InvalidInput(
                f"field {field!r}: no operator {short(name)}; {near_matches(name, _OPERATORS)}", field=field
            )
        self._count(1)
        if name == "exists":
            return _exists(field, self._boolean(field, operand))
        if name in _LISTS:
            values = self._values(field, name, operand)
            return _in(field, values) if name == "in" else _not(_in(field, values))
        self._check_type(field, name, operand)
        return _not(_compare(field, "eq", operand)) if name == "ne" else _compare(field, name, operand)

    def _values(self, field: str, name: str, operand: Any) -> frozenset[Any]:
        if not isinstance(operand, list):
            raise InvalidInput(f"field {field!r}: {name!r} takes a list of values, not {short(operand)}", field=field)
        self._count(len(operand))
        for value in operand:
            self._check_type(field, name, value)
        return frozenset(operand)

    def _check_type(self, field: str, name: str, value: Any) -> None:
        if value is None:
            raise InvalidInput(
                f'field {field!r}: null is no value to compare with; use {{"exists": false}}', field=field
            )
        if isinstance(value, dict | list):
            hint = 'a list goes with {"in": [...]}' if isinstance(value, list) else "values are not nested"
            raise InvalidInput(f"field {field!r}: {name!r} takes a string, number or boolean; {hint}", field=field)
        given, expected = type_of(value), self._fields[field]
        if given != expected:
            raise InvalidInput(f"field {field!r} holds {expected}s, {short(value)} is a {given}", field=field)
        if given == "boolean" and name in _ORDERED:
            raise InvalidInput(
                f"field {field!r} holds booleans, which have no order; use eq or ne, not {name}", field=field
            )

    def _boolean(self, field: str, operand: Any) -> bool:
        if not isinstance(operand, bool):
            raise InvalidInput(f"field {field!r}: 'exists' takes true or false, not {short(operand)}", field=field)
        return operand

    def _count(self, terms: int) -> None:
        self._term_count += terms
        self._limits.check("filter_terms", self._term_count, "the filter has too many terms")


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidInput(f'{what} must be a JSON object such as {{"field": value}}, not {short(value)}')
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _all(conditions: list[Condition]) -> Condition:
    return conditions[0] if len(conditions) == 1 else lambda row: all(condition(row) for condition in conditions)


def _any(conditions: list[Condition]) -> Condition:
    return lambda row: any(condition(row) for condition in conditions)


def _not(condition: Condition) -> Condition:
    return lambda row: not condition(row)


def _exists(field: str, wanted: bool) -> Condition:
    return lambda row: (row.get(field) is not None) is wanted


def _in(field: str, values: frozenset[Any]) -> Condition:
    return lambda row: row.get(field) in values


def _compare(field: str, name: str, operand: Any) -> Condition:
    compare = _COMPARISONS[name]

    def condition(row: Metadata) -> bool:
        value = row.get(field)
        return value is not None and compare(value, operand)

    return condition
