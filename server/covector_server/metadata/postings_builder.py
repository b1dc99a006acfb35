"""Makes the postings of a range of rows from their metadata: columns are gathered, then encoded one after the other."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard
from crc32c import crc32c
from pyroaring import BitMap

from covector.errors import Corrupt
from covector_server.metadata.posting_values import TEXT_BYTES_MAX, encode_values
from covector_server.metadata.postings import HEADER, MAGIC, VERSION, FieldEntry

_Numbers = npt.NDArray[np.uint32]


@dataclass(slots=True)
class _Column:
    offsets: list[int] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)


class PostingsBuilder:
    """Takes the metadata of consecutive rows, from row ``first`` on."""

    def __init__(self, first: int, text_bytes_max: int = TEXT_BYTES_MAX) -> None:
        self.first = first
        self.row_count = 0
        self.text_count = 0  # characters of all strings taken
        self._text_bytes_max = text_bytes_max
        self._columns: dict[str, _Column] = {}

    def add(self, rows: Sequence[Mapping[str, Any] | None]) -> None:
        """Takes the next rows; None is a row without metadata."""
        columns = self._columns
        for offset, metadata in enumerate(rows, self.row_count):
            for name, value in (metadata or {}).items():
                if value is None:
                    continue
                column = columns.get(name)
                if column is None:
                    column = columns[name] = _Column()
                column.offsets.append(offset)
                column.values.append(value)
                if isinstance(value, str):
                    self.text_count += len(value)
        self.row_count += len(rows)

    def encode(self, supplement_count: int) -> bytes:
        """The postings' bytes. ``supplement_count``: how many supplements the rows' metadata takes in. Raises Corrupt
        if a field holds values of several types, which no collection stores."""
        entries, sections = [], []
        for name, column in sorted(self._columns.items()):
            try:
                entry, found = _encode_column(name, column, self._text_bytes_max)
            except Corrupt as error:
                last = self.first + self.row_count - 1
                raise Corrupt(f"field {name!r} of rows {self.first} to {last}: {error.message}") from error
            entries.append(asdict(entry))
            sections += found
        directory = json.dumps(entries, separators=(",", ":")).encode()
        header = HEADER.pack(MAGIC, VERSION, 0, self.first, self.row_count, supplement_count, len(directory))
        body = b"".join([header, directory, *sections])
        return body + crc32c(body).to_bytes(4, "little")


def bitmap_of(offsets: npt.NDArray[np.integer[Any]]) -> BitMap:
    """A bitmap of these numbers."""
    return BitMap(array("I", offsets.astype(np.uint32).tobytes()))  # from numpy's own array it takes ten times as long


def _encode_column(name: str, column: _Column, text_bytes_max: int) -> tuple[FieldEntry, list[bytes]]:
    encoded = encode_values(set(column.values), text_bytes_max)
    code_of = {value: code for code, value in enumerate(encoded.order)}
    codes = np.fromiter(map(code_of.__getitem__, column.values), dtype=np.uint32, count=len(column.values))
    offsets = np.array(column.offsets, dtype=np.uint32)
    values = zstandard.ZstdCompressor(level=1).compress(encoded.data)
    is_packed = len(values) < len(encoded.data) * 7 // 8
    sections = [_bitmap_bytes(offsets), *_slices(offsets, codes, len(code_of)), values if is_packed else encoded.data]
    raw_bytes = len(encoded.data) if is_packed else 0
    return FieldEntry(name, encoded.form, len(code_of), raw_bytes, [len(section) for section in sections]), sections


def _slices(offsets: _Numbers, codes: _Numbers, value_count: int) -> list[bytes]:
    bits = (value_count - 1).bit_length()
    return [_bitmap_bytes(offsets[codes >> np.uint32(bit) & np.uint32(1) == 1]) for bit in range(bits)]


def _bitmap_bytes(offsets: _Numbers) -> bytes:
    bitmap = bitmap_of(offsets)
    bitmap.run_optimize()
    return bytes(bitmap.serialize())
