"""The catalog in memory: the same contract, nothing kept. For tests and trials."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from covector_server.metadata.catalog import TABLES, Table, open_value, seal_value

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
    def write(self) -> Iterator[MemoryTransaction]:
        with self._writing:
            draft = {table: dict(entries) for table, entries in self._committed.items()}
            yield MemoryTransaction(draft)
            self._committed = draft

    def compact(self, step: Callable[[str], object] = str) -> int:
        """Nothing: what was deleted is gone."""
        return 0

    def close(self) -> None:
        pass


class MemoryTransaction:
    """One transaction; ``catalog.Reader`` and ``catalog.Writer`` both."""

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

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        self._tables[table][key] = seal_value(table, key, value)

    def delete(self, table: Table, key: bytes) -> None:
        self._tables[table].pop(key, None)
