"""Checking ``zarr.json``: it must say what the layout says, byte for byte as the server writes it."""

from __future__ import annotations

import functools
import json
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from covector_server.storage.layout import ArrayLayout


class BadDocument(Exception):
    """The document is not what it should be; the message says how."""


@functools.lru_cache(maxsize=256)
def _expected(layout: ArrayLayout) -> str:
    return json.dumps(layout.zarr_document(0))


def published_row_count(path: Path, layout: ArrayLayout, allowed: AbstractSet[int]) -> int:
    """The rows that the document speaks of, one of ``allowed``. Raises BadDocument, OSError."""
    data = path.read_bytes()
    try:
        found: dict[str, Any] = json.loads(data)
        row_count = found["shape"][0]
        expected: dict[str, Any] = json.loads(_expected(layout))
        expected["shape"][0] = row_count
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise BadDocument(f"it cannot be read: {error!r}") from error
    if data != json.dumps(found, indent=2).encode():
        raise BadDocument("its bytes are not those that the server writes")
    for name in sorted({*found, *expected}):
        if found.get(name) != expected.get(name):
            raise BadDocument(f"{name!r} is {found.get(name)!r}, {expected.get(name)!r} is right")
    if row_count not in allowed:
        raise BadDocument(f"it speaks of {row_count!r} rows; {' or '.join(map(str, sorted(allowed)))} is right")
    return int(row_count)
