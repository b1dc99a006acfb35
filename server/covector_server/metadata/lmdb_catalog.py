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
    def write(self) -> Iterator[LmdbTransaction]:
        """A write transaction, committed and synced when the block ends without an exception."""
        try:
            with self._environment.begin(write=True) as transaction:
                yield LmdbTransaction(transaction, self._tables)
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
    """One transaction; ``catalog.Reader`` and ``catalog.Writer`` both."""

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

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        self._transaction.put(key, seal_value(table, key, value), db=self._tables[table])

    def delete(self, table: Table, key: bytes) -> None:
        self._transaction.delete(key, db=self._tables[table])
