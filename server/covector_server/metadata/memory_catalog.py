"""The catalog in memory: the same contract, nothing kept. For tests and trials."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from covector_server.metadata.catalog import TABLES, Table, open_value, seal_value
from covector_server.metadata.content import CONTENT_KEY, ContentSum
from covector_server.metadata.lmdb_catalog import LmdbCatalog

_Tables = dict[Table, dict[bytes, bytes]]


class MemoryCatalog:
    """A catalog that lives as long as the object."""

    def __init__(self) -> None:
        self._committed: _Tables = {table: {} for table in TABLES}
        self._writing = threading.Lock()

    @contextmanager
    def read(self) -> Iterator[MemoryTransaction]:
        yield MemoryTransaction(self._committed)

    @contextmanager
    def write(self) -> Iterator[MemoryWriter]:
        with self._writing:
            draft = {table: dict(entries) for table, entries in self._committed.items()}
            writer = MemoryWriter(draft)
            yield writer
            writer.put_content()
            self._committed = draft

    def copy_to(self, path: Path) -> None:
        """The entries of one committed state, put into LMDB."""
        copy = LmdbCatalog(path)
        with self.read() as reader, copy.write() as writer:
            for table in TABLES:
                for key, value in reader.scan(table):
                    writer.put(table, key, value)
        copy.close()

    def compact(self, step: Callable[[str], object] = str) -> int:
        """Nothing: what was deleted is gone."""
        return 0

    def close(self) -> None:
        pass


class MemoryTransaction:
    """A read transaction, ``catalog.Reader``."""

    def __init__(self, tables: _Tables) -> None:
        self._tables = tables

    def get(self, table: Table, key: bytes) -> bytes | None:
        stored = self._tables[table].get(key)
        return None if stored is None else open_value(table, key, stored)

    def scan(self, table: Table, prefix: bytes = b"", start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        entries = self._tables[table]
        for key in sorted(key for key in entries if key.startswith(prefix) and key >= start):
            yield key, open_value(table, key, entries[key])

    def floor(self, table: Table, key: bytes, prefix: bytes = b"") -> tuple[bytes, bytes] | None:
        entries = self._tables[table]
        at = max((one for one in entries if one <= key), default=None)
        if at is None or not at.startswith(prefix):
            return None
        return at, open_value(table, at, entries[at])


class MemoryWriter(MemoryTransaction):
    """A write transaction, ``catalog.Writer``. It keeps the content digest."""

    _content: ContentSum | None = None  # made by the first change

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        stored = seal_value(table, key, value)
        self._count(table, key, stored)
        self._tables[table][key] = stored

    def delete(self, table: Table, key: bytes) -> None:
        self._count(table, key, None)
        self._tables[table].pop(key, None)

    def put_content(self) -> None:
        """Writes the digest, if anything changed. The last step before the commit."""
        if self._content is not None:
            self._tables["store"][CONTENT_KEY] = seal_value("store", CONTENT_KEY, self._content.encode())

    def _count(self, table: Table, key: bytes, stored: bytes | None) -> None:
        self._content = self._content or ContentSum(self)
        self._content.replace(table, key, self._tables[table].get(key), stored)
