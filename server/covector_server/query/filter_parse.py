"""From a JSON object to a checked condition: every mistake in a filter is found here, before any row is looked at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from reprlib import repr as short
from typing import Any

from covector.errors import InvalidInput, NotFound, near_matches
from covector_server.limits import Limits
from covector_server.metadata.fields import type_of
from covector_server.query.filter_tree import COMPARISONS, All, Compare, Condition, Either, Exists, In, Not

_JOINTS = ("and", "or", "not")
_ORDERED = ("gt", "gte", "lt", "lte")
_LISTS = ("in", "not_in")
_OPERATORS = (*COMPARISONS, "ne", *_LISTS, "exists")


def parse_where(text: str) -> dict[str, Any] | None:
    """The filter in JSON, None for an empty text. Raises InvalidInput unless it is a JSON object."""
    if not text:
        return None
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the filter is not JSON: {error}") from error
    return _object(found, "a filter")


class FilterParser:
    """Turns one filter into a condition, checking it against the fields of a collection and the limits."""

    def __init__(self, fields: Mapping[str, str], limits: Limits) -> None:
        self._fields = fields
        self._limits = limits
        self._term_count = 0

    def parse(self, where: Mapping[str, Any], depth: int = 1) -> Condition:
        """The condition of a filter. Raises as ``filter.find_rows`` does."""
        self._limits.check("filter_depth", depth, "the filter is nested too deeply")
        return _all([self._entry(name, value, depth) for name, value in where.items()])

    def _entry(self, name: str, value: Any, depth: int) -> Condition:
        if name == "not":
            return Not(self.parse(_object(value, "'not'"), depth + 1))
        if name in _JOINTS:
            if not isinstance(value, list):
                raise InvalidInput(
                    f"{name!r} takes a list of filters, not {short(value)}; no field of that name can be filtered on"
                )
            parts = [self.parse(_object(part, f"each entry of {name!r}"), depth + 1) for part in value]
            return _all(parts) if name == "and" else Either(tuple(parts))
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
            wanted = self._boolean(field, operand)
            return Exists(field) if wanted else Not(Exists(field))
        if name in _LISTS:
            among = In(field, self._values(field, name, operand))
            return among if name == "in" else Not(among)
        self._check_type(field, name, operand)
        return Not(Compare(field, "eq", operand)) if name == "ne" else Compare(field, name, operand)

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


def _all(parts: list[Condition]) -> Condition:
    return parts[0] if len(parts) == 1 else All(tuple(parts))
