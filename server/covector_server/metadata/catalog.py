"""The contract of a catalog: tables of ordered byte keys, with snapshots to read and one synchronous write at a time.

A commit that returned is on stable storage, whole; a commit that did not return is there whole or not at all. Every
value carries a CRC-32C over its table, key and bytes, checked at each read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, Protocol, get_args

from crc32c import crc32c

from covector.errors import Corrupt

Table = Literal[
    "store",  # format version; the content digest
    "names",  # collection name -> id
    "collections",  # id -> what never changes
    "collection_counters",  # id -> next row id, end of the row log
    "fields",  # id, field name -> type
    "checkpoints",  # id, checkpoint id -> what never changes
    "checkpoint_counters",  # id, checkpoint id -> row count, running checksums
    "writers",  # id, writer id -> last sequence stored
    "row_blocks",  # id, kind, number -> where the block lies
    "tombstones",  # id, checkpoint id, shard -> dead positions
    "erased",  # id, checkpoint id, shard (or id, 0, row id >> 16) -> how many dead positions (deleted rows) are erased
    "retired_logs",  # id, file -> a file of the row log that is being emptied
    "deleted_rows",  # id, row id >> 16 -> deleted rows of that range
    "key_runs",  # id, number -> a sorted run of the key table
    "postings",  # id, number -> an index of the metadata of a range of rows
    "indexes",  # id, index id -> an approximate search structure
    "fits",  # id, fit id -> what was learnt for a scorer, or is being learnt
    "operations",  # id -> state
    "requests",  # request id -> its answer
]
TABLES: tuple[Table, ...] = get_args(Table)


class Reader(Protocol):
    """A snapshot of the catalog."""

    def get(self, table: Table, key: bytes) -> bytes | None:
        """The value, or None. Raises Corrupt if it does not match its checksum."""
        ...

    def scan(self, table: Table, prefix: bytes = b"", start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """The entries whose keys start with ``prefix`` and are not below ``start``, in the order of the keys."""
        ...

    def floor(self, table: Table, key: bytes, prefix: bytes = b"") -> tuple[bytes, bytes] | None:
        """The last entry whose key is not above ``key``, None if there is none that starts with ``prefix``."""
        ...


class Writer(Reader, Protocol):
    """A write transaction: it sees its own writes, and commits when its block ends without an exception."""

    def put(self, table: Table, key: bytes, value: bytes) -> None: ...

    def delete(self, table: Table, key: bytes) -> None:
        """Removes the entry if there is one."""
        ...


class Catalog(Protocol):
    """Where the store's state is committed."""

    def read(self) -> AbstractContextManager[Reader]: ...
    def write(self) -> AbstractContextManager[Writer]: ...

    def copy_to(self, path: Path) -> None:
        """Writes one committed state, the newest, to a new file at ``path`` that ``LmdbCatalog`` opens. Commits go on
        meanwhile. The file is not synced. Raises Unavailable."""
        ...

    def compact(self, step: Callable[[str], object] = str) -> int:
        """Rewrites the catalog so that nothing is left in its file of entries that were changed or deleted, durably,
        and returns by how many bytes it shrank. Call it where nobody writes; it waits for those who read. ``step`` is
        called between its steps. Raises Unavailable, and then nothing is changed."""
        ...

    def close(self) -> None: ...


def number(*parts: int) -> bytes:
    """A key of numbers that sorts as they do."""
    return struct.pack(f">{len(parts)}Q", *parts)


def numbers(key: bytes) -> tuple[int, ...]:
    """The numbers in a key made by ``number``."""
    return struct.unpack(f">{len(key) // 8}Q", key)


def seal_value(table: Table, key: bytes, value: bytes) -> bytes:
    """The stored form of a value: its checksum and itself."""
    return struct.pack("<I", _checksum(table, key, value)) + value


def open_value(table: Table, key: bytes, stored: bytes) -> bytes:
    """The value behind its stored form. Raises Corrupt naming table and key."""
    value = bytes(stored[4:])
    if len(stored) < 4 or struct.unpack("<I", stored[:4])[0] != _checksum(table, key, value):
        raise Corrupt(f"catalog table {table!r}, key {key.hex()}: the value does not match its checksum", table=table)
    return value


def _checksum(table: Table, key: bytes, value: bytes) -> int:
    return crc32c(value, crc32c(table.encode() + b"\0" + key))
