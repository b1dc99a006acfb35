"""Postings: an immutable index of the metadata of a range of consecutive rows, by which a filter needs no row.

A row is its offset in the range. For each field stand the rows that have it, its distinct values in order, and the rows
of each value, as bit slices: slice k holds the rows whose value's code has bit k. A set of values is then found by
halving: the rows that have the field split by the highest slice, each half by the next, down to where all codes of a
part are wanted, or none. So equality costs one step a bit, a range two, and a field of n values takes log2(n) bits a
row, fewer where rows that lie together are alike: the slices are roaring bitmaps, compressed by runs.

The bytes (little-endian): magic, version, first row, rows, supplements seen, size of the directory; the directory, in
JSON, with the sizes of each field's sections; the sections, field by field: the rows that have it, the slices, the
values (Zstandard where that helps); CRC-32C of all of it. Nothing but the directory is decoded before it is asked for.
"""

from __future__ import annotations

import json
import struct
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard
from crc32c import crc32c
from pyroaring import BitMap

from covector.errors import Corrupt
from covector_server.metadata.fields import Value
from covector_server.metadata.posting_values import SortedValues, Span, decode_values

MAGIC = b"CVPI"
VERSION = 1
HEADER = struct.Struct("<4sHHQIQI")  # magic, version, zero, first, row_count, supplement_count, directory bytes
CHECKSUM_BYTES = 4


@dataclass(frozen=True, slots=True)
class FieldEntry:
    """A field in the directory. ``sizes``: of its sections; ``raw_bytes``: of the values, 0 if they are not packed."""

    name: str
    form: str
    value_count: int
    raw_bytes: int
    sizes: list[int]


class FieldPostings:
    """One field; its sections are decoded as they are asked for. Any number of threads may read it."""

    def __init__(self, entry: FieldEntry, data: memoryview) -> None:
        self._entry = entry
        self._sections: list[memoryview] = []
        for size in entry.sizes:
            self._sections.append(data[:size])
            data = data[size:]
        self._bitmaps: list[BitMap | None] = [None] * (len(entry.sizes) - 1)
        self._values: SortedValues | None = None

    @property
    def rows(self) -> BitMap:
        """The rows that have the field."""
        return self._bitmap(0)

    @property
    def values(self) -> SortedValues:
        """Its distinct values."""
        if self._values is None:
            data: memoryview | bytes = self._sections[-1]
            if self._entry.raw_bytes:
                data = zstandard.ZstdDecompressor().decompress(data, max_output_size=self._entry.raw_bytes)
            self._values = decode_values(self._entry.form, data, self._entry.value_count)
        return self._values

    def rows_of(self, spans: list[Span], within: BitMap) -> BitMap:
        """The rows of ``within`` whose value's code lies in one of the spans, which ascend and do not touch."""
        parts: list[BitMap] = []
        edges = [edge for span in spans for edge in span]
        self._halve(within & self.rows, edges, 0, len(self._bitmaps) - 1, parts)
        return BitMap.union(*parts) if parts else BitMap()

    def codes(self) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """The rows that have the field, ascending, and the code of each one's value."""
        rows = _numbers(self.rows)
        codes = np.zeros(len(rows), dtype=np.int64)
        for bit in range(len(self._bitmaps) - 1):
            codes[np.searchsorted(rows, _numbers(self._bitmap(bit + 1)))] |= 1 << bit
        return rows, codes

    def _halve(self, rows: BitMap, edges: list[int], low: int, bits: int, parts: list[BitMap]) -> None:
        """Adds to ``parts`` those of ``rows``, whose codes all lie in [low, low + 2**bits), that are wanted. ``edges``:
        the codes at which being wanted begins and ends, by turns."""
        passed = bisect_right(edges, low)
        if passed == len(edges) or edges[passed] >= min(low + (1 << bits), self._entry.value_count):
            if passed % 2:
                parts.append(rows)
            return
        ones, middle = self._bitmap(bits), low + (1 << (bits - 1))
        if upper := rows & ones:
            self._halve(upper, edges, middle, bits - 1, parts)
        if (passed % 2 or edges[passed] < middle) and (lower := rows - ones):  # something is wanted below
            self._halve(lower, edges, low, bits - 1, parts)

    def _bitmap(self, section: int) -> BitMap:
        """The rows that have the field (0), or the slice of bit ``section - 1``. Never change it."""
        found = self._bitmaps[section]
        if found is None:
            found = self._bitmaps[section] = BitMap.deserialize(bytes(self._sections[section]))
        return found


@dataclass(frozen=True, slots=True)
class Postings:
    """The index of the rows [first, first + row_count); their metadata is that of the first ``supplement_count``
    supplements. ``size_bytes``: in memory, once every part of it was used."""

    first: int
    row_count: int
    supplement_count: int
    size_bytes: int
    _fields: dict[str, FieldPostings] = field(repr=False)

    @staticmethod
    def decode(data: bytes) -> Postings:
        """The index in ``data``. Raises Corrupt if that is not what was encoded."""
        stored = data[-CHECKSUM_BYTES:]
        body = memoryview(data)[:-CHECKSUM_BYTES]
        if len(body) < HEADER.size or crc32c(body).to_bytes(CHECKSUM_BYTES, "little") != stored:
            raise Corrupt("the postings do not match their checksum")
        magic, version, _, first, row_count, supplement_count, directory_bytes = HEADER.unpack_from(data)
        if magic != MAGIC or version != VERSION:
            raise Corrupt(f"postings of version {version} are not known to this program")
        directory, rest = body[HEADER.size :][:directory_bytes], body[HEADER.size + directory_bytes :]
        entries = [FieldEntry(**entry) for entry in json.loads(bytes(directory))]
        fields = {}
        for entry in entries:
            fields[entry.name] = FieldPostings(entry, rest)
            rest = rest[sum(entry.sizes) :]
        size_bytes = 2 * len(data) + sum(entry.raw_bytes for entry in entries)
        return Postings(first, row_count, supplement_count, size_bytes, fields)

    def all_rows(self) -> BitMap:
        """Every row of the range."""
        return BitMap(range(self.row_count))

    def having(self, name: str) -> BitMap:
        """The rows that have the field, and not as null. Never change it."""
        return self._fields[name].rows if name in self._fields else BitMap()

    def compared(self, name: str, comparison: str, operand: Value, within: BitMap) -> BitMap:
        """The rows of ``within`` whose value compares so. Raises Unanswered where the values were too long to keep."""
        if name not in self._fields:
            return BitMap()
        found = self._fields[name]
        low, high = found.values.span(comparison, operand)
        return found.rows_of([(low, high)] if low < high else [], within)

    def coded(self, name: str) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64], list[Any]]:
        """The rows that have a field, the code of each one's value, and the values by code. Raises Unanswered where
        these were too long to keep."""
        if name not in self._fields:
            return np.empty(0, dtype=np.uint32), np.empty(0, dtype=np.int64), []
        found = self._fields[name]
        return *found.codes(), found.values.plain()

    def among(self, name: str, operands: Iterable[Any], within: BitMap) -> BitMap:
        """The rows of ``within`` whose value is one of the operands."""
        if name not in self._fields:
            return BitMap()
        found = self._fields[name]
        return found.rows_of(found.values.spans(operands), within)


def _numbers(rows: BitMap) -> npt.NDArray[np.uint32]:
    return np.frombuffer(rows.to_array(), dtype=np.uint32)
