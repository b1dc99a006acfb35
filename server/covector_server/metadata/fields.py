"""Typed metadata: flat JSON objects whose fields take their type from the first value given."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from covector.errors import InvalidInput

Value = str | int | float | bool | None
Fields = Mapping[str, str]  # by name: `string`, `number` or `boolean`


def type_of(value: Value) -> str | None:
    """``string``, ``number`` or ``boolean``; None for null, which fits every type."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "boolean"
    return "string" if isinstance(value, str) else "number"


def parse_metadata(encoded: bytes, row: int) -> dict[str, Value]:
    """The object in ``encoded``. Raises InvalidInput naming the row unless it is flat JSON with finite numbers."""
    try:
        found = json.loads(encoded, parse_constant=_refuse_constant)
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"metadata of row {row} holds half of a surrogate pair, which is no text") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"metadata of row {row} is not flat JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidInput(f"metadata of row {row} is not an object but {type(found).__name__}")
    for name, value in found.items():
        if isinstance(value, dict | list):
            raise InvalidInput(
                f"metadata of row {row}, field {name!r}: nested values are not kept; flatten it", field=name
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidInput(f"metadata of row {row}, field {name!r}: the number is past the range of float64")
    return found


def canonical(metadata: Mapping[str, Any]) -> bytes:
    """The stored form: canonical JSON, so that equal objects have equal bytes."""
    return json.dumps(metadata, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def fields_of(rows: Iterable[tuple[int, Mapping[str, Value]]]) -> Fields | None:
    """The types of all fields of some rows, None if one field has values of two types."""
    found: dict[str, str] = {}
    for _, metadata in rows:
        for name, value in metadata.items():
            given = type_of(value)
            if given is not None and found.setdefault(name, given) != given:
                return None
    return found


def new_fields(known: Mapping[str, str], rows: Iterable[tuple[int, Mapping[str, Value]]]) -> dict[str, str]:
    """The fields, with types, that these rows add to the known ones. Raises InvalidInput naming row and field where a
    value's type is not its field's."""
    added: dict[str, str] = {}
    for row, metadata in rows:
        for name, value in metadata.items():
            given = type_of(value)
            expected = known.get(name) or added.get(name)
            if given is None or given == expected:
                continue
            if expected is not None:
                raise InvalidInput(
                    f"metadata of row {row}, field {name!r}: {value!r} is a {given}, the field holds {expected}s",
                    field=name,
                )
            added[name] = given
    return added


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
