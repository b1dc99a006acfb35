"""The row log: keys, texts and metadata, a compressed block a batch, appended to files below ``rows/``.

A block is a header, its sections, nothing else. Sections are columns (``ends``, ``present`` bits, data) compressed with
Zstandard where that helps; each has a CRC-32C, the header too. Two kinds: ``new`` holds rows whose ids are consecutive
from ``first``, with their keys; ``supplement`` holds texts and metadata that came after their row did, with row ids.
``docs/design/002-row-log.md`` freezes the bytes.
"""

from __future__ import annotations

import struct
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zstandard
from crc32c import crc32c

from covector.blocks import Column
from covector.errors import Corrupt
from covector_server.metadata.records import BlockRecord
from covector_server.storage.disk import Disk

NEW, SUPPLEMENT = 0, 1
FILE_BYTES = 256 << 20
CACHED_BYTES = 32 << 20

_MAGIC = b"CVRB"
_VERSION = 1
_HEADER = struct.Struct("<4sHHQQI")  # magic, version, kind, first, last, row_count
_SECTION = struct.Struct("<IIII")  # codec, stored bytes, raw bytes, CRC-32C of the stored bytes
_SECTIONS = ("row_ids", "keys", "texts", "metadata")
_HEADER_BYTES = _HEADER.size + len(_SECTIONS) * _SECTION.size + 4
_RAW, _ZSTD = 0, 1


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of the log. ``row_ids``: int64[rows]; a column is None where no row has a value."""

    kind: int
    row_ids: npt.NDArray[np.int64]
    keys: Column | None
    texts: Column | None
    metadata: Column | None

    def encode(self) -> bytes:
        """The block's bytes."""
        row_ids = self.row_ids.astype("<u8").tobytes() if self.kind == SUPPLEMENT else b""
        raw = (row_ids, *(_encode_column(column) for column in (self.keys, self.texts, self.metadata)))
        stored = [_compress(section) for section in raw]
        header = _HEADER.pack(
            _MAGIC, _VERSION, self.kind, int(self.row_ids[0]), int(self.row_ids[-1]), len(self.row_ids)
        )
        for section, (codec, body) in zip(raw, stored, strict=True):
            header += _SECTION.pack(codec, len(body), len(section), crc32c(body))
        return header + struct.pack("<I", crc32c(header)) + b"".join(body for _, body in stored)

    @staticmethod
    def decode(data: bytes) -> Block:
        """The block in ``data``. Raises Corrupt if a checksum does not match."""
        header = data[: _HEADER_BYTES - 4]
        if len(data) < _HEADER_BYTES or crc32c(header).to_bytes(4, "little") != data[len(header) : _HEADER_BYTES]:
            raise Corrupt("a block's header does not match its checksum")
        magic, version, kind, first, last, row_count = _HEADER.unpack_from(header)
        if magic != _MAGIC or version != _VERSION:
            raise Corrupt(f"a block of version {version} is not known to this program")
        row_ids, *columns = _decode_sections(header, data)
        ids = np.frombuffer(row_ids, "<u8").astype(np.int64) if kind == SUPPLEMENT else np.arange(first, last + 1)
        return Block(kind, ids, *(_decode_column(column, row_count) for column in columns))


class RowLog:
    """The blocks below ``directory``. Appending belongs to one thread, reading to any; decoded blocks are cached."""

    def __init__(self, directory: Path, disk: Disk) -> None:
        self._directory = directory
        self._disk = disk
        self._open_file: tuple[int, int] | None = None  # number, descriptor
        self._touched: set[int] = set()
        self._new_file = False
        self._cache: OrderedDict[tuple[int, int], tuple[Block, int]] = OrderedDict()
        self._cached_bytes = 0
        self._caching = threading.Lock()

    def create(self) -> None:
        """Makes the empty log, durably."""
        self._disk.make_directories(self._directory)

    def append(self, block: Block, file: int, offset_bytes: int) -> BlockRecord:
        """Writes a block at or after a place and returns where it lies. Not durable before ``sync``."""
        data = block.encode()
        if offset_bytes and offset_bytes + len(data) > FILE_BYTES:
            file, offset_bytes = file + 1, 0
        self._disk.write(self._open(file), data, offset_bytes)
        self._touched.add(file)
        first, last = int(block.row_ids[0]), int(block.row_ids[-1])
        self._forget(file, offset_bytes)
        return BlockRecord(file, offset_bytes, len(data), first, last, len(block.row_ids))

    def sync(self) -> None:
        """Returns when everything appended is on stable storage."""
        touched, self._touched = self._touched, set()
        if touched and self._open_file is not None:
            self._disk.sync(self._open_file[1])
        if self._new_file:
            self._disk.sync_directory(self._directory)
            self._new_file = False

    def read(self, record: BlockRecord) -> Block:
        """The block at a place. Raises Corrupt naming file and rows if it is damaged."""
        place = (record.file, record.offset_bytes)
        with self._caching:
            if place in self._cache:
                self._cache.move_to_end(place)
                return self._cache[place][0]
        try:
            block = Block.decode(self._read_bytes(record))
        except (Corrupt, OSError) as error:
            raise Corrupt(
                f"{self._path(record.file)} at {record.offset_bytes}: keys, texts and metadata of rows with ids "
                f"{record.first} to {record.last} are damaged ({error}); restore the file from a snapshot"
            ) from error
        self._remember(place, block, record.size_bytes)
        return block

    def close(self) -> None:
        if self._open_file is not None:
            self._disk.close(self._open_file[1])
            self._open_file = None

    def _read_bytes(self, record: BlockRecord) -> bytes:
        with self._path(record.file).open("rb") as file:
            file.seek(record.offset_bytes)
            return file.read(record.size_bytes)

    def _remember(self, place: tuple[int, int], block: Block, size_bytes: int) -> None:
        with self._caching:
            self._cache[place] = (block, size_bytes)
            self._cached_bytes += size_bytes
            while self._cached_bytes > CACHED_BYTES and len(self._cache) > 1:
                self._cached_bytes -= self._cache.popitem(last=False)[1][1]

    def _forget(self, file: int, offset_bytes: int) -> None:
        with self._caching:
            self._cached_bytes -= self._cache.pop((file, offset_bytes), (None, 0))[1]

    def _open(self, file: int) -> int:
        if self._open_file is not None and self._open_file[0] != file:
            if self._open_file[0] in self._touched:
                self._disk.sync(self._open_file[1])
            self.close()
        if self._open_file is None:
            self._new_file = True  # or its maker died before syncing its name
            self._open_file = (file, self._disk.open(self._path(file), 0))
        return self._open_file[1]

    def _path(self, file: int) -> Path:
        return self._directory / f"{file:08d}.blocks"


def _compress(section: bytes) -> tuple[int, bytes]:
    if len(section) >= 64:
        packed = zstandard.ZstdCompressor(level=1).compress(section)
        if len(packed) < len(section) * 7 // 8:
            return _ZSTD, packed
    return _RAW, section


def _decode_sections(header: bytes, data: bytes) -> Sequence[bytes]:
    sections, offset = [], _HEADER_BYTES
    for index, name in enumerate(_SECTIONS):
        codec, stored, raw, checksum = _SECTION.unpack_from(header, _HEADER.size + index * _SECTION.size)
        body = data[offset : offset + stored]
        offset += stored
        if crc32c(body) != checksum:
            raise Corrupt(f"section {name!r} does not match its checksum")
        sections.append(zstandard.ZstdDecompressor().decompress(body, max_output_size=raw) if codec == _ZSTD else body)
    return sections


def _encode_column(column: Column | None) -> bytes:
    if column is None:
        return b""
    present = b"" if column.present is None else np.packbits(column.present, bitorder="little").tobytes()
    return bytes([column.present is not None]) + column.ends.astype("<u4").tobytes() + present + column.data


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
