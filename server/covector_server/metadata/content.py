"""The content digest of a catalog: one number over every entry, so that an entry which vanished is noticed.

A value's own checksum cannot tell that the value is missing, or that an older one stands in its place. The digest can:
it is the sum, modulo 2^64, of a 64-bit hash of every (table, key, stored value). It lies under ``CONTENT_KEY`` of the
table ``store``, and each write transaction changes it by what that transaction changes. A catalog without it, of format
1, gets it with the first write.
"""

from __future__ import annotations

from collections.abc import Iterable

from xxhash import xxh3_64_intdigest

from covector.errors import Corrupt
from covector_server.metadata.catalog import TABLES, Reader, Table, seal_value

CONTENT_KEY = b"content"
_MODULUS = 1 << 64


class ContentSum:
    """The digest while a write transaction changes entries."""

    def __init__(self, reader: Reader) -> None:
        stored = reader.get("store", CONTENT_KEY)
        self._sum = content_of(reader) if stored is None else decode_content(stored)

    def replace(self, table: Table, key: bytes, before: bytes | None, after: bytes | None) -> None:
        """An entry's stored value was ``before`` and is ``after``; None for no entry. The digest's own entry, which a
        copy may bring along, does not count."""
        if _is_digest(table, key):
            return
        if before is not None:
            self._sum -= entry_hash(table, key, before)
        if after is not None:
            self._sum += entry_hash(table, key, after)

    def encode(self) -> bytes:
        """The value to keep under ``CONTENT_KEY``."""
        return (self._sum % _MODULUS).to_bytes(8, "little")


def decode_content(value: bytes) -> int:
    """The digest in a value kept under ``CONTENT_KEY``. Raises Corrupt."""
    if len(value) != 8:
        raise Corrupt(f"the catalog's content digest has {len(value)} bytes, 8 are right")
    return int.from_bytes(value, "little")


def entry_hash(table: Table, key: bytes, stored: bytes) -> int:
    """What one entry adds to the digest. ``stored``: the value with its checksum before it."""
    return xxh3_64_intdigest(b"%s\0%s%s%s" % (table.encode(), len(key).to_bytes(2, "little"), key, stored))


def sum_of(entries: Iterable[tuple[Table, bytes, bytes]]) -> int:
    """The digest of (table, key, stored value) entries; the digest's own entry is left out."""
    hashes = (entry_hash(table, key, stored) for table, key, stored in entries if not _is_digest(table, key))
    return sum(hashes) % _MODULUS


def content_of(reader: Reader) -> int:
    """The digest, from all entries of a catalog."""
    return sum_of((table, key, seal_value(table, key, value)) for table in TABLES for key, value in reader.scan(table))


def _is_digest(table: Table, key: bytes) -> bool:
    return table == "store" and key == CONTENT_KEY
