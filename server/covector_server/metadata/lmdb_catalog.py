"""The catalog in LMDB: one file, synchronous commits, readers that never wait.

LMDB gives what the contract asks: a commit is one fdatasync and one write of the root page. One environment a process
and a local file system are its conditions; the store's lock file holds the first, the operator the second.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from covector.errors import Unavailable
from covector_server.metadata.catalog import TABLES, Table, open_value, seal_value
from covector_server.metadata.content import CONTENT_KEY, ContentSum

MAP_BYTES = 1 << 40  # sparse: address space, not disk
READERS_MAX = 2048


class LmdbCatalog:
    """A catalog at ``path``, made if it is not there."""

    def __init__(self, path: Path) -> None:
        self._environment = lmdb.open(
            str(path), subdir=False, max_dbs=len(TABLES), map_size=MAP_BYTES, max_readers=READERS_MAX, meminit=False
        )
        self._environment.reader_check()
        self._tables = {table: self._environment.open_db(table.encode()) for table in TABLES}

    @contextmanager
    def read(self) -> Iterator[LmdbTransaction]:
        """A snapshot. Keep it short: pages freed meanwhile cannot be used again."""
        with self._environment.begin() as transaction:
            yield LmdbTransaction(transaction, self._tables)

    @contextmanager
    def write(self) -> Iterator[LmdbWriter]:
        """A write transaction, committed and synced when the block ends without an exception."""
        try:
            with self._environment.begin(write=True) as transaction:
                writer = LmdbWriter(transaction, self._tables)
                yield writer
                writer.put_content()
        except lmdb.Error as error:
            raise Unavailable(f"the catalog could not be written ({error}); free space or look at the disk") from error

    def copy_to(self, path: Path) -> None:
        """LMDB's own copy: one committed state, without the pages that are free."""
        try:
            self._environment.copy(str(path), compact=True)
        except lmdb.Error as error:
            raise Unavailable(f"the catalog could not be copied to {path} ({error}); free space there") from error

    def close(self) -> None:
        self._environment.close()


class LmdbTransaction:
    """A read transaction, ``catalog.Reader``."""

    def __init__(self, transaction: lmdb.Transaction, tables: dict[Table, lmdb._Database]) -> None:
        self._transaction = transaction
        self._tables = tables

    def get(self, table: Table, key: bytes) -> bytes | None:
        stored = self._transaction.get(key, db=self._tables[table])
        return None if stored is None else open_value(table, key, bytes(stored))

    def scan(self, table: Table, prefix: bytes = b"", start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        with self._transaction.cursor(db=self._tables[table]) as cursor:
            lowest = max(prefix, start)
            found = cursor.set_range(lowest) if lowest else cursor.first()
            while found and (key := bytes(cursor.key())).startswith(prefix):
                yield key, open_value(table, key, bytes(cursor.value()))
                found = cursor.next()

    def floor(self, table: Table, key: bytes, prefix: bytes = b"") -> tuple[bytes, bytes] | None:
        with self._transaction.cursor(db=self._tables[table]) as cursor:
            found = cursor.set_range(key) if key else cursor.first()
            if not (found and bytes(cursor.key()) == key):
                found = cursor.prev() if found else cursor.last()
            if not found or not (at := bytes(cursor.key())).startswith(prefix):
                return None
            return at, open_value(table, at, bytes(cursor.value()))


class LmdbWriter(LmdbTransaction):
    """A write transaction, ``catalog.Writer``. It keeps the content digest."""

    _content: ContentSum | None = None  # made by the first change

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        self._put_stored(table, key, seal_value(table, key, value))

    def delete(self, table: Table, key: bytes) -> None:
        self._put_stored(table, key, None)

    def put_content(self) -> None:
        """Writes the digest, if anything changed. The last step before the commit."""
        if self._content is not None:
            stored = seal_value("store", CONTENT_KEY, self._content.encode())
            self._transaction.put(CONTENT_KEY, stored, db=self._tables["store"])

    def _put_stored(self, table: Table, key: bytes, stored: bytes | None) -> None:
        content = self._content = self._content or ContentSum(self)
        before = self._transaction.get(key, db=self._tables[table])
        content.replace(table, key, None if before is None else bytes(before), stored)
        if stored is None:
            self._transaction.delete(key, db=self._tables[table])
        else:
            self._transaction.put(key, stored, db=self._tables[table])
