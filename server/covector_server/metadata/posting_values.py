"""The distinct values of a field in a range of rows, in order: a value's place in them is its code.

Values are compared as Python compares them, whatever they are stored as: an integer beyond 2^53 is never rounded to a
float, and -0.0 is 0. So each form gives back exact Python numbers, or bytes that sort as the strings do (UTF-8 sorts
by code point), and a lookup is a binary search among them.

    i1 i2 i4 i8 f8   numbers, in the narrowest of these that holds them all exactly (integers as differences, which
                     compress); booleans are 0 and 1
    json             numbers that none of these holds, such as 2^60 beside 0.5
    text             strings
    digest           strings too long to be kept: 128-bit digests, in their own order, which answer eq and in only
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from covector.errors import Corrupt
from covector_server.metadata.fields import Value

TEXT_BYTES_MAX = 4 << 20  # of a field's distinct strings, before digests stand in their place
DIGEST_BYTES = 16
_INTEGERS = ("i1", "i2", "i4", "i8")

Span = tuple[int, int]  # codes, [low, high)


class Unanswered(Exception):
    """The index cannot tell; the rows themselves can."""


@dataclass(frozen=True, slots=True)
class EncodedValues:
    """``order``: the values by code. ``data``: their stored form, which ``decode_values`` reads."""

    form: str
    data: bytes
    order: Sequence[Value]


def encode_values(distinct: Iterable[Any], text_bytes_max: int = TEXT_BYTES_MAX) -> EncodedValues:
    """The stored form of a field's values, which are all of one type. Raises Corrupt if they are not."""
    order = list(distinct)
    types = set(map(type, order))
    if types <= {str}:
        return _encode_strings(order, text_bytes_max)
    if types <= {int, float} or types <= {bool}:
        return _encode_numbers(sorted(order))
    raise Corrupt(f"a metadata field holds values of several types: {sorted(t.__name__ for t in types)}")


def decode_values(form: str, data: bytes | memoryview, count: int) -> SortedValues:
    """The values, ``count`` of them, behind their stored form."""
    if form == "text":
        ends = np.cumsum(np.frombuffer(data, "<u4", count=count), dtype=np.int64)
        return SortedValues(_Texts(ends, memoryview(data)[4 * count :]), is_text=True)
    if form == "digest":
        ends = np.arange(DIGEST_BYTES, DIGEST_BYTES * (count + 1), DIGEST_BYTES, dtype=np.int64)
        return SortedValues(_Texts(ends, memoryview(data)), is_text=True, is_digest=True)
    if form == "json":
        return SortedValues(json.loads(bytes(data)))
    numbers = np.frombuffer(data, f"<{form}", count=count)
    native = numbers.astype(form) if form == "f8" else np.cumsum(numbers, dtype=form)
    return SortedValues(native.data)


class _Ascending(Protocol):
    """What a binary search needs."""

    def __len__(self) -> int: ...
    def __getitem__(self, place: int, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class _Texts:
    """Byte strings, one after the other."""

    ends: npt.NDArray[np.int64]
    data: memoryview

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, place: int) -> bytes:
        return bytes(self.data[int(self.ends[place - 1]) if place else 0 : int(self.ends[place])])


@dataclass(frozen=True, slots=True)
class SortedValues:
    """Distinct values in ascending order."""

    values: _Ascending
    is_text: bool = False
    is_digest: bool = False

    def __len__(self) -> int:
        return len(self.values)

    def plain(self) -> list[Any]:
        """The values themselves, numbers for booleans. Raises Unanswered where only digests are kept."""
        if self.is_digest:
            raise Unanswered
        found = [self.values[code] for code in range(len(self))]
        return [value.decode() for value in found] if self.is_text else found

    def span(self, comparison: str, operand: Value) -> Span:
        """The codes of the values that compare so with the operand; ``comparison`` is one of eq, gt, gte, lt, lte.
        Raises Unanswered where only digests are kept and the comparison is one of order."""
        if self.is_digest and comparison != "eq":
            raise Unanswered
        if isinstance(operand, float) and math.isnan(operand):  # which compares with nothing
            return 0, 0
        operand = self._comparable(operand)
        low = bisect_left(self.values, operand)
        if comparison in {"lt", "gte"}:
            return (0, low) if comparison == "lt" else (low, len(self))
        high = bisect_right(self.values, operand, lo=low, hi=min(low + 1, len(self)))
        return {"eq": (low, high), "lte": (0, high), "gt": (high, len(self))}[comparison]

    def spans(self, operands: Iterable[Value]) -> list[Span]:
        """The codes of the values that are among the operands, as ascending spans that do not touch."""
        spans: list[Span] = []
        for low, high in sorted(self.span("eq", operand) for operand in operands):
            if spans and spans[-1][1] >= low:
                spans[-1] = (spans[-1][0], max(high, spans[-1][1]))
            elif low < high:
                spans.append((low, high))
        return spans

    def _comparable(self, operand: Any) -> Any:
        if not self.is_text:
            return operand
        encoded = _utf8(operand)
        return _digest(encoded) if self.is_digest else encoded


def _encode_numbers(order: list[Any]) -> EncodedValues:
    return EncodedValues(form := _form_of(order), _number_bytes(order, form), order)


def _form_of(order: list[Any]) -> str:
    if all(number == int(number) for number in order):
        for form in _INTEGERS:
            if np.iinfo(form).min <= order[0] and order[-1] <= np.iinfo(form).max:
                return form
    return "f8" if all(isinstance(number, float) or _is_float(number) for number in order) else "json"


def _number_bytes(order: list[Any], form: str) -> bytes:
    if form == "json":
        return json.dumps(order).encode()
    if form == "f8":
        return np.array([float(number) for number in order], dtype="<f8").tobytes()
    whole = np.array([int(number) for number in order], dtype=f"<{form}")
    return np.diff(whole, prepend=whole.dtype.type(0)).tobytes()  # wraps around, and so does the sum that undoes it


def _is_float(whole: int) -> bool:
    try:
        return float(whole) == whole
    except OverflowError:
        return False


def _encode_strings(order: list[str], text_bytes_max: int) -> EncodedValues:
    order.sort()
    encoded = [_utf8(text) for text in order]
    if sum(map(len, encoded)) <= text_bytes_max:
        sizes = np.array([len(text) for text in encoded], dtype="<u4")
        return EncodedValues("text", sizes.tobytes() + b"".join(encoded), order)
    by_digest = sorted((_digest(text), place) for place, text in enumerate(encoded))
    data = b"".join(digest for digest, _ in by_digest)
    return EncodedValues("digest", data, [order[place] for _, place in by_digest])


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _digest(encoded: bytes) -> bytes:
    return blake2b(encoded, digest_size=DIGEST_BYTES).digest()
