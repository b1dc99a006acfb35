"""The catalog in LMDB: one file, synchronous commits, readers that never wait.

LMDB gives what the contract asks: a commit is one fdatasync and one write of the root page. One environment a process
and a local file system are its conditions; the store's lock file holds the first, the operator the second.

Another process may open the file for a moment, to read a state or to list an index (``beside``): LMDB serialises its
transactions with those of the store's owner. It must not hold a file that is being swapped for its compacted copy, so
both take a lock on the directory around it: shared while the file is open beside, exclusive for the swap.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from covector.errors import Unavailable
from covector_server.metadata.catalog import TABLES, Table, open_value, seal_value
from covector_server.metadata.content import CONTENT_KEY, ContentSum
from covector_server.metadata.reading_gate import ReadingGate

MAP_BYTES = 1 << 40  # sparse: address space, not disk
READERS_MAX = 2048
READERS_WAIT_S = 10.0  # for read transactions to end, before the file is swapped


class LmdbCatalog:
    """A catalog at ``path``, made if it is not there."""

    def __init__(self, path: Path, *, is_owner: bool = True) -> None:
        """is_owner: whether nobody else has it open for longer than a moment; see ``beside``."""
        self._path = path
        self._gate = ReadingGate()
        if is_owner:
            self._compact_path.unlink(missing_ok=True)  # of a compaction that did not end
        self._open()

    @property
    def _compact_path(self) -> Path:
        return self._path.with_name(self._path.name + ".compact")

    def _open(self) -> None:
        self._environment = lmdb.open(
            str(self._path),
            subdir=False,
            max_dbs=len(TABLES),
            map_size=MAP_BYTES,
            max_readers=READERS_MAX,
            meminit=False,
        )
        self._environment.reader_check()
        self._tables = {table: self._environment.open_db(table.encode()) for table in TABLES}

    @contextmanager
    def read(self) -> Iterator[LmdbTransaction]:
        """A snapshot. Keep it short: pages freed meanwhile cannot be used again."""
        with self._gate.reading(), self._environment.begin() as transaction:
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
            with self._gate.reading():
                self._environment.copy(str(path), compact=True)
        except lmdb.Error as error:
            raise Unavailable(f"the catalog could not be copied to {path} ({error}); free space there") from error

    def compact(self, step: Callable[[str], object] = str) -> int:
        """See ``catalog.Catalog``. The copy, which takes longest, goes on beside readers; they wait while the file is
        swapped. LMDB may not have one file open twice, so the old environment is closed first."""
        old_bytes, copy = self._path.stat().st_size, self._compact_path
        try:
            with _locked(self._path.parent, fcntl.LOCK_EX):
                copy.unlink(missing_ok=True)
                self._environment.copy(str(copy), compact=True)
                _sync(copy, os.O_RDWR)
                step("compact.catalog_copied")
                with self._gate.closed(READERS_WAIT_S):
                    self._swap(copy)
        except (lmdb.Error, OSError) as error:
            raise Unavailable(f"the catalog could not be compacted ({error}); free space, then try again") from error
        finally:
            copy.unlink(missing_ok=True)
        step("compact.catalog_swapped")
        return old_bytes - self._path.stat().st_size

    def _swap(self, copy: Path) -> None:
        self._environment.close()
        try:
            copy.replace(self._path)
            _sync(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        finally:
            self._open()

    def close(self) -> None:
        self._environment.close()


@contextmanager
def beside(path: Path) -> Iterator[LmdbCatalog]:
    """The catalog at ``path``, open while the block runs, in a process that does not own the store. Keep it short: the
    owner's compaction waits for it. Raises Unavailable if it cannot be opened."""
    with _locked(path.parent, fcntl.LOCK_SH):
        try:
            catalog = LmdbCatalog(path, is_owner=False)
        except lmdb.Error as error:
            raise Unavailable(f"{path} cannot be opened ({error})") from error
        try:
            yield catalog
        finally:
            catalog.close()


@contextmanager
def _locked(directory: Path, how: int) -> Iterator[None]:
    """Holds a lock on a directory while the block runs, and waits for it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
