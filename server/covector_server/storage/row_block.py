"""A block of the row log: keys, texts and metadata of some rows, as bytes. docs/design/002-row-log.md freezes them.

A block is a header, its sections, nothing else. Sections are columns (``ends``, ``present`` bits, data) compressed with
Zstandard where that helps; each has a CRC-32C, the header too. Two kinds: ``new`` holds rows whose ids are consecutive
from ``first``, with their keys; ``supplement`` holds texts and metadata that came after their row did, with row ids.

Sections are packed before the rows have ids, off the commit thread, and unpacked one by one when they are asked for: a
damaged text does not hide a key.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import zstandard
from crc32c import crc32c

from covector.blocks import Column, column_of
from covector.errors import Corrupt

NEW, SUPPLEMENT = 0, 1

_MAGIC = b"CVRB"
_VERSION = 1
_HEADER = struct.Struct("<4sHHQQI")  # magic, version, kind, first, last, row_count
_SECTION = struct.Struct("<IIII")  # codec, stored bytes, raw bytes, CRC-32C of the stored bytes
_SECTIONS = ("row_ids", "keys", "texts", "metadata")
HEADER_BYTES = _HEADER.size + len(_SECTIONS) * _SECTION.size + 4
_RAW, _ZSTD = 0, 1
_WORTH_PACKING_BYTES = 64
_OF_THREAD = threading.local()


@dataclass(frozen=True, slots=True)
class Section:
    """A section as it is stored, behind its entry in the header."""

    entry: bytes
    body: bytes

    @staticmethod
    def of(raw: bytes) -> Section:
        """Packs ``raw``."""
        codec, body = _compress(raw)
        return Section(_SECTION.pack(codec, len(body), len(raw), crc32c(body)), body)

    @staticmethod
    def of_column(column: Column | None) -> Section:
        """Packs a column, None for one without a value."""
        return _EMPTY if column is None else Section.of(_encode_column(column))


_EMPTY = Section(_SECTION.pack(_RAW, 0, 0, crc32c(b"")), b"")


def new_block(first: int, row_count: int, keys: Section, texts: Section, metadata: Section) -> bytes:
    """The bytes of a block of new rows, ``first`` to ``first + row_count - 1``."""
    return _joined(NEW, first, first + row_count - 1, row_count, (_EMPTY, keys, texts, metadata))


def supplement_block(row_ids: npt.NDArray[np.int64], texts: Section, metadata: Section) -> bytes:
    """The bytes of a supplement. ``row_ids``: ascending."""
    sections = (Section.of(row_ids.astype("<u8").tobytes()), _EMPTY, texts, metadata)
    return _joined(SUPPLEMENT, int(row_ids[0]), int(row_ids[-1]), len(row_ids), sections)


def without_rows(block: Block, gone: npt.NDArray[np.bool_]) -> bytes:
    """The bytes of a block of the same rows in which some (bool[rows]) have an empty key and neither text nor metadata.
    Raises Corrupt if the block is damaged."""
    block.check()
    texts, metadata = (Section.of_column(_with_absent(column, gone)) for column in (block.texts, block.metadata))
    if block.kind == SUPPLEMENT:
        return supplement_block(block.row_ids, texts, metadata)
    if block.keys is None:
        raise Corrupt("a block of new rows lacks keys")
    keys = column_of(b"" if away else key for key, away in zip(block.keys.values(), gone.tolist(), strict=True))
    return new_block(block.first, block.row_count, Section.of_column(keys), texts, metadata)


class Block:
    """A block that was read. Sections are unpacked, and checked, when they are first asked for; each raises Corrupt if
    it does not match its checksum."""

    def __init__(self, data: bytes) -> None:
        """Raises Corrupt if the header does not match its checksum."""
        header = data[: HEADER_BYTES - 4]
        if len(data) < HEADER_BYTES or crc32c(header).to_bytes(4, "little") != data[len(header) : HEADER_BYTES]:
            raise Corrupt("a block's header does not match its checksum")
        magic, version, self.kind, self.first, self.last, self.row_count = _HEADER.unpack_from(header)
        if magic != _MAGIC or version != _VERSION:
            raise Corrupt(f"a block of version {version} is not known to this program")
        self._data = data

    @property
    def memory_bytes(self) -> int:
        """About what it takes in memory, unpacked."""
        return len(self._data) + sum(self._entry(index)[2] for index in range(len(_SECTIONS)))

    @cached_property
    def row_ids(self) -> npt.NDArray[np.int64]:
        """int64[rows]."""
        if self.kind == NEW:
            return np.arange(self.first, self.last + 1)
        return np.frombuffer(self._section("row_ids"), "<u8").astype(np.int64)

    @cached_property
    def keys(self) -> Column | None:
        """The encoded keys; None in a supplement."""
        return self._column("keys")

    @cached_property
    def texts(self) -> Column | None:
        """UTF-8; None where no row has a text."""
        return self._column("texts")

    @cached_property
    def metadata(self) -> Column | None:
        """Canonical JSON; None where no row has metadata."""
        return self._column("metadata")

    def readable(self, sections: Sequence[str], bad: dict[str, str]) -> Block:
        """The block itself, if these sections match their checksums; else one in which those that do not are empty, and
        ``bad`` says by name what is wrong with each."""
        for name in sections:
            try:
                getattr(self, name)
            except Corrupt as error:
                bad[name] = error.message
        return _Damaged(self._data, bad) if bad else self

    def holds(self, texts: Section, metadata: Section) -> bool:
        """Whether its texts and metadata are, to the byte, these sections. False may also mean that they were packed
        in another way."""
        sections = zip(("texts", "metadata"), (texts, metadata), strict=True)
        return all(self._stored(name) == (section.entry, section.body) for name, section in sections)

    def check(self) -> None:
        """Unpacks every section. Raises Corrupt naming the first that does not match its checksum."""
        _ = (self.row_ids, self.keys, self.texts, self.metadata)

    def _column(self, name: str) -> Column | None:
        return _decode_column(self._section(name), self.row_count)

    def _section(self, name: str) -> bytes:
        entry, body = self._stored(name)
        codec, stored, raw, checksum = _SECTION.unpack(entry)
        if len(body) != stored or crc32c(body) != checksum:
            raise Corrupt(f"section {name!r} does not match its checksum")
        return zstandard.ZstdDecompressor().decompress(body, max_output_size=raw) if codec == _ZSTD else body

    def _stored(self, name: str) -> tuple[bytes, bytes]:
        """A section's entry in the header, and its bytes."""
        index = _SECTIONS.index(name)
        offset = HEADER_BYTES + sum(self._entry(before)[1] for before in range(index))
        at = _HEADER.size + index * _SECTION.size
        return self._data[at : at + _SECTION.size], self._data[offset : offset + self._entry(index)[1]]

    def _entry(self, index: int) -> tuple[int, int, int, int]:
        return _SECTION.unpack_from(self._data, _HEADER.size + index * _SECTION.size)


def unreadable(first: int, row_count: int, reason: str) -> Block:
    """Stands for a block of which nothing can be read."""
    return _Damaged(new_block(first, row_count, _EMPTY, _EMPTY, _EMPTY), dict.fromkeys(_SECTIONS, reason))


class _Damaged(Block):
    """A block some of whose sections are damaged: they are empty, as if no row had a value."""

    def __init__(self, data: bytes, reasons: dict[str, str]) -> None:
        super().__init__(data)
        self._reasons = reasons

    def readable(self, sections: Sequence[str], bad: dict[str, str]) -> Block:
        bad.update({name: self._reasons[name] for name in sections if name in self._reasons})
        return self

    def check(self) -> None:
        raise Corrupt("; ".join(self._reasons.values()))

    @cached_property
    def row_ids(self) -> npt.NDArray[np.int64]:
        return np.arange(self.first, self.last + 1) if "row_ids" in self._reasons else super().row_ids

    def _section(self, name: str) -> bytes:
        return b"" if name in self._reasons else super()._section(name)


def _joined(kind: int, first: int, last: int, row_count: int, sections: Sequence[Section]) -> bytes:
    header = _HEADER.pack(_MAGIC, _VERSION, kind, first, last, row_count)
    header += b"".join(section.entry for section in sections)
    return b"".join((header, struct.pack("<I", crc32c(header)), *(section.body for section in sections)))


def _compressor() -> zstandard.ZstdCompressor:
    """The thread's own: making one costs more than packing a small section."""
    found: zstandard.ZstdCompressor | None = getattr(_OF_THREAD, "compressor", None)
    if found is None:
        found = _OF_THREAD.compressor = zstandard.ZstdCompressor(level=1)
    return found


def _with_absent(column: Column | None, gone: npt.NDArray[np.bool_]) -> Column | None:
    """A column without the values of some rows; None if no value is left."""
    if column is None:
        return None
    values = [None if away else value for value, away in zip(column.values(), gone.tolist(), strict=True)]
    return column_of(values) if any(value is not None for value in values) else None


def _compress(raw: bytes) -> tuple[int, bytes]:
    if len(raw) >= _WORTH_PACKING_BYTES:
        packed = _compressor().compress(raw)
        if len(packed) < len(raw) * 7 // 8:
            return _ZSTD, packed
    return _RAW, raw


def _encode_column(column: Column) -> bytes:
    present = b"" if column.present is None else np.packbits(column.present, bitorder="little").tobytes()
    return b"".join((bytes([column.present is not None]), column.ends.astype("<u4").tobytes(), present, column.data))


def _decode_column(section: bytes, row_count: int) -> Column | None:
    if not section:
        return None
    ends = np.frombuffer(section, "<u4", count=row_count, offset=1)
    start, present = 1 + 4 * row_count, None
    if section[0]:
        bits = np.frombuffer(section, np.uint8, count=(row_count + 7) // 8, offset=start)
        present = np.unpackbits(bits, count=row_count, bitorder="little").astype(bool)
        start += len(bits)
    return Column(section[start:], ends, present)
