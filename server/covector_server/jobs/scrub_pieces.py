"""The pieces that the scrubber reads: a chunk of an array, the index of a sealed shard, a block of the row log,
a file of an approximate search structure or of a fit.

A piece names the catalog's entries that it depends on, and is checked against their values. Checking is a generator of
the bytes of each read, so that a large piece need not be read at once; what it returns is what is wrong, or None.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from crc32c import crc32c

from covector.errors import Corrupt
from covector_server.check.blocks import open_block
from covector_server.metadata.catalog import Table, numbers
from covector_server.metadata.records import (
    BlockRecord,
    CheckpointCounters,
    CheckpointRecord,
    CollectionRecord,
    FilesRecord,
    FitRecord,
    IndexRecord,
)
from covector_server.storage.damage import Damage
from covector_server.storage.drafts import MANIFEST
from covector_server.storage.fit_files import FITS
from covector_server.storage.index_files import INDEXES
from covector_server.storage.layout import CHECKSUM_BYTES, ArrayLayout

READ_BYTES = 1 << 20  # small, so that nobody waits for the interpreter
Values = tuple[bytes, ...]  # of the entries a piece names, in their order
Check = Generator[int, None, str | None]


class Piece(Protocol):
    """Something to check."""

    @property
    def entries(self) -> list[tuple[Table, bytes]]:
        """The catalog's entries that say what is committed."""
        ...

    def check(self, reading: Reading, values: Values) -> Check:
        """Reads the piece; returns what is wrong with it, or None. Raises OSError."""
        ...

    def damage(self, values: Values, trouble: str) -> tuple[str, Damage]:
        """The collection's name and the entry for the damage log."""
        ...


class Reading:
    """Files that are open for one piece. What was not in the page cache before a read is dropped from it after."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._open: dict[str, int] = {}

    def read(self, path: str, offset_bytes: int, size_bytes: int) -> memoryview:
        """At most so many bytes at a place; fewer at the end of the file."""
        descriptor = self._open.get(path)
        if descriptor is None:
            descriptor = self._open[path] = os.open(self._data / path, os.O_RDONLY | os.O_CLOEXEC)
        buffer = bytearray(size_bytes)
        cached = _read_cached(descriptor, buffer, offset_bytes)
        count = cached
        while count < size_bytes:
            piece = os.pread(descriptor, size_bytes - count, offset_bytes + count)
            if not piece:
                break
            buffer[count : count + len(piece)] = piece
            count += len(piece)
        if count > cached:
            os.posix_fadvise(descriptor, offset_bytes + cached, count - cached, os.POSIX_FADV_DONTNEED)
        return memoryview(buffer)[:count]

    def close(self) -> None:
        """Closes the files."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()


def _read_cached(descriptor: int, buffer: bytearray, offset_bytes: int) -> int:
    """Fills the buffer as far as the page cache goes; 0 where the file system cannot say."""
    try:
        return os.preadv(descriptor, [buffer], offset_bytes, os.RWF_NOWAIT)
    except OSError:
        return 0


@dataclass(frozen=True, slots=True)
class _ArrayPiece:
    """A piece of an array of one generation of a checkpoint. ``key``: the checkpoint's."""

    id_: bytes
    key: bytes
    layout: ArrayLayout
    generation: int
    number: int

    @property
    def entries(self) -> list[tuple[Table, bytes]]:
        return [("collections", self.id_), ("checkpoints", self.key), ("checkpoint_counters", self.key)]

    @property
    def shard(self) -> int:
        """The shard that the piece lies in."""
        raise NotImplementedError

    @property
    def path(self) -> str:
        """The shard's file, below the data directory."""
        collection, checkpoint = numbers(self.key)
        directory = f"collections/{collection}/{checkpoint}/{self.generation}/{self.layout.name}"
        return f"{directory}/{self.layout.shard_file(self.shard)}"

    def _is_current(self, values: Values) -> bool:
        return CheckpointRecord.decode(values[1]).generation == self.generation

    def _damage(self, values: Values, trouble: str, row_count: int) -> tuple[str, Damage]:
        collection, checkpoint = CollectionRecord.decode(values[0]), CheckpointRecord.decode(values[1])
        return collection.name, Damage(checkpoint.name, self.path, trouble, row_count)


@dataclass(frozen=True, slots=True)
class ChunkPiece(_ArrayPiece):
    """Chunk ``number`` of an array, counted over all shards. The last one may be partial."""

    @property
    def shard(self) -> int:
        return self.number // self.layout.chunks_per_shard

    def check(self, reading: Reading, values: Values) -> Check:
        """A whole chunk against the checksum behind it, the rows of a partial one against the catalog."""
        counters = CheckpointCounters.decode(values[2])
        rows = self._rows(counters)
        if rows <= 0 or not self._is_current(values):
            return None
        start = self.number % self.layout.chunks_per_shard * self.layout.stride_bytes
        size, checksum = rows * self.layout.row_bytes, 0
        for offset in range(start, start + size, READ_BYTES):
            piece = reading.read(self.path, offset, min(READ_BYTES, start + size - offset))
            checksum = crc32c(piece, checksum)
            yield len(piece)
        if rows < self.layout.chunk_rows:
            expected = counters.checksums.get(self.layout.name, 0)
        else:
            expected = int.from_bytes(reading.read(self.path, start + size, CHECKSUM_BYTES), "little")
        return None if checksum == expected else f"{self._place(rows)} do not match their checksum"

    def damage(self, values: Values, trouble: str) -> tuple[str, Damage]:
        return self._damage(values, trouble, self._rows(CheckpointCounters.decode(values[2])))

    def _rows(self, counters: CheckpointCounters) -> int:
        return min(counters.row_count - self.number * self.layout.chunk_rows, self.layout.chunk_rows)

    def _place(self, rows: int) -> str:
        first = self.number * self.layout.chunk_rows
        return f"rows {first} to {first + rows - 1} of the checkpoint"


@dataclass(frozen=True, slots=True)
class IndexPiece(_ArrayPiece):
    """The index of sealed shard ``number``."""

    @property
    def shard(self) -> int:
        return self.number

    def check(self, reading: Reading, values: Values) -> Check:
        """The index against the one that follows from the layout."""
        if self.number >= CheckpointCounters.decode(values[2]).sealed_shard_count or not self._is_current(values):
            return None
        expected = self.layout.index(self.layout.chunks_per_shard)
        found = reading.read(self.path, self.layout.index_offset_bytes, len(expected))
        yield len(found)
        return None if found == expected else "the shard's index is damaged: Zarr tools cannot read the shard"

    def damage(self, values: Values, trouble: str) -> tuple[str, Damage]:
        return self._damage(values, trouble, 0)


@dataclass(frozen=True, slots=True)
class BlockPiece:
    """The block of the row log that the entry under ``key`` places."""

    id_: bytes
    key: bytes

    @property
    def entries(self) -> list[tuple[Table, bytes]]:
        return [("collections", self.id_), ("row_blocks", self.key)]

    def check(self, reading: Reading, values: Values) -> Check:
        """The checksums of header and sections."""
        record = BlockRecord.decode(values[1])
        data = reading.read(self._path(record), record.offset_bytes, record.size_bytes)
        yield len(data)
        try:
            open_block(bytes(data))
        except Corrupt as error:
            return f"keys, texts and metadata of rows with ids {record.first} to {record.last}: {error}"
        return None

    def damage(self, values: Values, trouble: str) -> tuple[str, Damage]:
        record = BlockRecord.decode(values[1])
        damage = Damage("", self._path(record), trouble, record.row_count)
        return CollectionRecord.decode(values[0]).name, damage

    def _path(self, record: BlockRecord) -> str:
        return f"collections/{numbers(self.id_)[0]}/rows/{record.file:08d}.blocks"


def listed_files(table: Table, value: bytes) -> tuple[str, list[FilesRecord]]:
    """The id and the directories of an index or a fit."""
    if table == "fits":
        fit = FitRecord.decode(value)
        return fit.id, fit.stored
    index = IndexRecord.decode(value)
    return index.id, [FilesRecord(index.directory, index.files, index.checksum)]


@dataclass(frozen=True, slots=True)
class ListedFilePiece:
    """The file ``name`` of a directory of the index or the fit under ``key`` of its table."""

    table: Table
    id_: bytes
    key: bytes
    directory: str
    name: str

    @property
    def entries(self) -> list[tuple[Table, bytes]]:
        return [("collections", self.id_), (self.table, self.key)]

    def check(self, reading: Reading, values: Values) -> Check:
        """The manifest against the catalog, another file against the manifest. Where the manifest is damaged nothing is
        said of the others."""
        owner, directories = listed_files(self.table, values[1])
        found = [one for one in directories if one.directory == self.directory]
        if not found:
            return None
        manifest = bytes(reading.read(self._path(MANIFEST), 0, found[0].files.get(MANIFEST, 0)))
        yield len(manifest)
        is_sound = crc32c(manifest) == found[0].checksum
        if self.name == MANIFEST or not is_sound:
            return None if is_sound or self.name != MANIFEST else f"{owner}: its manifest does not match"
        expected, checksum = json.loads(manifest)["files"][self.name], 0
        for offset in range(0, expected["size_bytes"], READ_BYTES):
            size_bytes = min(READ_BYTES, expected["size_bytes"] - offset)
            piece = reading.read(self._path(self.name), offset, size_bytes)
            checksum = crc32c(piece, checksum)
            yield len(piece)
        return None if checksum == expected["checksum"] else f"{owner}: a file does not match its checksum"

    def damage(self, values: Values, trouble: str) -> tuple[str, Damage]:
        return CollectionRecord.decode(values[0]).name, Damage("", self._path(self.name), trouble, 0)

    def _path(self, name: str) -> str:
        root = FITS if self.table == "fits" else INDEXES
        return f"collections/{numbers(self.id_)[0]}/{root}/{self.directory}/{name}"
